"""A process that tokenizes: ``python -m nonlin.data.tokenizer_process TOKENIZER_FILE``.

It reads pieces of text from its standard input and writes their tokens, each with its length before it. It ends when
its input does, so with the process that started it.
"""

import sys

from nonlin.data.tokenizing import serve


def main(path: str) -> None:
    """Serve pieces until the input ends."""
    serve(path, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main(sys.argv[1])
