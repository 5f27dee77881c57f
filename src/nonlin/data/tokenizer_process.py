"""A process that tokenizes: ``python -m nonlin.data.tokenizer_process TOKENIZER_FILE``.

It reads pieces of text from its standard input and writes their tokens, each with its length before it. It ends when
its input does, so with the process that started it.
"""

import sys

import numpy as np

from nonlin.data.tokenizing import encode, load_tokenizer, receive, send


def main(path: str) -> None:
    """Serve pieces until the input ends."""
    tokenizer = load_tokenizer(path)
    while (piece := receive(sys.stdin.buffer)) is not None:
        send(sys.stdout.buffer, np.array(encode(tokenizer, piece.decode()), "<u4").tobytes())


if __name__ == "__main__":
    main(sys.argv[1])
