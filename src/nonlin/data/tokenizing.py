"""From a stream of text to a stream of tokens: bytes as they are, or a tokenizer in parallel processes."""

import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from nonlin.errors import NonlinError, UserError, rule
from nonlin.system import cores

PIECE = 256 * 1024
"""Bytes that are tokenized at once."""

SAMPLE = 32 << 20
"""Bytes of text, evenly spread, that a byte-pair tokenizer is trained on where there is more."""

PROCESSES = 6
"""At most: each takes about 60 MB."""

ZERO_BYTE = 188
"""The token of byte 0 in a tokenizer that :func:`train` makes: its first 256 are the bytes, printable ones first."""

_ALONE = 16 * PIECE  # less text than this is not worth a process
_SLICE = 10_000  # characters that the trainer takes at once


def pieces(text: Iterable[bytes], size: int = PIECE) -> Iterator[bytes]:
    """Yield a stream in pieces of at most ``size`` bytes, whatever the pieces that it comes in.

    A piece ends before a space that stands alone between two words, where every usual tokenizer ends a token. Else it
    ends after a line, and else between two characters.
    """
    held = bytearray()
    for part in text:
        held += part
        while len(held) > size:
            cut = _cut(held, size)
            yield bytes(held[:cut])
            del held[:cut]
    if held:
        yield bytes(held)


def _cut(held: bytearray, size: int) -> int:
    blank, at = b" \t\r\n\f\v", size
    while (at := held.rfind(b" ", 1, at)) > 0:
        if held[at - 1] not in blank and held[at + 1] not in blank:
            return at
    line = held.rfind(b"\n", 0, size) + 1
    if line:
        return line
    at = size
    while at > 1 and size - at < 4 and held[at] & 0xC0 == 0x80:  # inside a character of UTF-8
        at -= 1
    return at if held[at] & 0xC0 != 0x80 else size


def as_text(piece: bytes) -> str:
    """Return a piece as characters; what is no UTF-8 is replaced."""
    return piece.decode("utf-8", errors="replace")


def train(text: Iterable[bytes], size: int, vocabulary: int) -> str:
    """Return a byte-pair tokenizer's JSON, trained on a text of ``size`` bytes or on a sample of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(_slices(_sampled(pieces(text), size)), trainer)
    return tokenizer.to_str()


def _sampled(found: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield every piece of a text, or as many as make SAMPLE bytes, evenly spread."""
    share, due = min(1.0, SAMPLE / max(1, size)), 0.0
    for piece in found:
        due += share
        if due >= 1 or share == 1:
            due -= 1
            yield piece


def _slices(found: Iterator[bytes]) -> Iterator[str]:
    held = ""
    for piece in found:
        held += as_text(piece)
        whole = len(held) - len(held) % _SLICE
        yield from (held[i:i + _SLICE] for i in range(0, whole, _SLICE))
        held = held[whole:]
    if held:
        yield held


def load_tokenizer(path: Path | str) -> Any:
    """Return the tokenizer of a tokenizer.json. UserError where the file is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except Exception as error:  # the library raises the bare class
        raise UserError(rule("data", "tokenizer", "be the tokenizer.json of a model", str(path),
                             f"It cannot be read: {error}.")) from error


def vocabulary_of(tokenizer: Any) -> int:
    """Return how many embeddings the tokens need: one more than the largest id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def unknown_of(tokenizer: Any) -> int | None:
    """Return the id of the token that stands for unknown text; None where every text has tokens."""
    model = json.loads(tokenizer.to_str())["model"]
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else tokenizer.token_to_id(token)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return a text's tokens, none added to its ends."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def tokens(text: Iterable[bytes] | Iterable[Iterable[bytes]], size: int, tokenizer: Path, processes: int | None = None,
           end: int | None = None) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield each piece of a text of ``size`` bytes, as UTF-8, with its tokens, in order.

    With ``end`` the text is documents, each a text of its own, whose first tokens have that token before them.
    ``processes``: as many as this process may use cores, at most PROCESSES; none for little text.
    """
    few = 0 if size < _ALONE else min(PROCESSES, cores())
    wanted = few if processes is None else processes
    found = _opened(text, end)
    if wanted < 2:
        loaded = load_tokenizer(tokenizer)
        yield from ((piece, np.array(opening + encode(loaded, piece.decode()), np.uint32)) for piece, opening in found)
        return
    with contextlib.ExitStack() as stack:
        workers = deque(stack.enter_context(_Process(tokenizer)) for _ in range(wanted))
        busy: deque[tuple[_Process, bytes, list[int]]] = deque()
        for piece, opening in found:
            if not workers:
                worker, sent, before = busy.popleft()
                yield sent, _joined(before, worker.answer())
                workers.append(worker)
            workers[0].ask(piece)
            busy.append((workers.popleft(), piece, opening))
        for worker, sent, before in busy:
            yield sent, _joined(before, worker.answer())


def _opened(text: Iterable[Any], end: int | None) -> Iterator[tuple[bytes, list[int]]]:
    """Yield each piece, as UTF-8, with the tokens that stand before its own."""
    for document in [text] if end is None else text:
        opening = [] if end is None else [end]
        for piece in pieces(document):
            yield as_text(piece).encode(), opening
            opening = []


def _joined(before: list[int], ids: np.ndarray) -> np.ndarray:
    return np.concatenate([np.array(before, np.uint32), ids]) if before else ids


class _Process:
    """One process that tokenizes; it has one piece at a time."""

    def __init__(self, tokenizer: Path):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nonlin.data.tokenizer_process", str(tokenizer)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}, start_new_session=True)

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream
                stream.close()
        self._process.wait()

    def ask(self, piece: bytes) -> None:
        assert self._process.stdin
        try:
            send(self._process.stdin, piece)
        except OSError as error:
            raise self._died() from error

    def answer(self) -> np.ndarray:
        assert self._process.stdout
        made = receive(self._process.stdout)
        if made is None:
            raise self._died()
        return np.frombuffer(made, "<u4")

    def _died(self) -> NonlinError:
        return NonlinError(f"a process that tokenizes ended unexpectedly (status {self._process.wait()})")


def send(stream: IO[bytes], data: bytes) -> None:
    """Write bytes with their length before them."""
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Return what the other side sent; None where it has ended."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "little")
    data = stream.read(size)
    return data if len(data) == size else None
