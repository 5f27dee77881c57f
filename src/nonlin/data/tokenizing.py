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
from nonlin.files import DEEPEST
from nonlin.system import cores

PIECE = 256 * 1024
"""Bytes that are tokenized at once."""

SAMPLE = 32 << 20
"""Bytes of text, evenly spread, that a byte-pair tokenizer is trained on where there is more."""

PROCESSES = 6
"""At most: each takes about 60 MB."""

ZERO_BYTE = 188
"""The token of byte 0 in a tokenizer that :func:`train` makes: its first 256 are the bytes, printable ones first."""

LARGEST_ID = 1 << 24
"""Ids that a tokenizer may have: a model has a row of numbers for each up to the largest."""

GROWTH = 64
"""Times that a tokenizer's normalizer may make a text longer."""

_FILE_BYTES = 256 << 20
_FINE, _FAILED = b"+", b"-"  # what a process's answer begins with
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
    """Return the tokenizer of a tokenizer.json, which neither cuts nor fills up a text, whatever the file says.

    UserError where the file is none, has ids of LARGEST_ID and more, or could make a text GROWTH times as long.
    """
    from tokenizers import Tokenizer

    with _understood(str(path)):
        if Path(path).stat().st_size > _FILE_BYTES:
            raise ValueError(f"it has more than {_FILE_BYTES >> 20} MiB")
        text = Path(path).read_text(encoding="utf-8")
        must_grow_little(json.loads(text))
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = vocabulary_of(tokenizer)
        if not 0 < vocabulary <= LARGEST_ID:
            raise ValueError(f"its largest id is {vocabulary - 1:,}, and ids are 0 to {LARGEST_ID - 1:,}")
    return tokenizer


@contextlib.contextmanager
def _understood(where: str) -> Iterator[None]:
    """Tell what the library raises, a panic of its own language too, in one sentence."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(rule("data", "tokenizer", "be the tokenizer.json of a model", where,
                             f"It cannot be used: {why}.")) from error


def must_grow_little(values: Any) -> None:
    """Raise ValueError where the rules of a tokenizer.json that replace text could make it GROWTH times as long.

    Rules that follow each other multiply: forty that double a letter would never end.
    """
    growth, level = 1.0, [values.get("normalizer") if isinstance(values, dict) else None]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict) and one.get("type") == "Replace":
                growth *= _growth(one.get("pattern"), one.get("content"))
            if isinstance(one, dict):
                inner += one["normalizers"] if isinstance(one.get("normalizers"), list) else []
        level = inner
    if growth > GROWTH or level:
        raise ValueError(f"its normalizer could make a text more than {GROWTH} times as long")


def _growth(pattern: Any, content: Any) -> float:
    """How many times as long a rule that replaces a pattern makes a text at most."""
    text = pattern.get("String") if isinstance(pattern, dict) else None
    new = len(content) if isinstance(content, str) else 0
    if isinstance(text, str) and text:
        return max(1.0, new / len(text))
    return max(1.0, new + 1.0) if not isinstance(pattern, dict) or new > 1 else 1.0 + new  # it may match no letter


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
    with _understood("one that fails on this text"):
        return tokenizer.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of tokens."""
    with _understood("one that fails on these tokens"):
        return tokenizer.decode(ids)


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
    """Yield each piece, as UTF-8, with the tokens that stand before its own; a document without text has none."""
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
        if made[:1] != _FINE:
            raise UserError(made[1:].decode(errors="replace"))
        return np.frombuffer(made[1:], "<u4")

    def _died(self) -> NonlinError:
        return NonlinError(f"a process that tokenizes ended unexpectedly (status {self._process.wait()})")


def serve(tokenizer: Path | str, asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each piece with its tokens, or with the error that it makes, until no more come."""
    loaded = load_tokenizer(tokenizer)
    while (piece := receive(asked)) is not None:
        try:
            made = _FINE + np.array(encode(loaded, piece.decode()), "<u4").tobytes()
        except UserError as error:
            made = _FAILED + str(error).encode(errors="replace")
        send(answers, made)


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
