"""Tokens on disk: written once as a stream, checked by their hashes, written again where they are damaged."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nonlin.data import tokenizing
from nonlin.data.corpus import Corpus, Progress
from nonlin.data.description import read_description
from nonlin.data.splitting import SEPARATOR, Part, left_out
from nonlin.data.splitting import sides as both_sides
from nonlin.errors import UserError, not_empty, rule
from nonlin.files import Unreadable, inside, lock, plain_name, replacing, sha256, write_atomically, writing

SIDES = ("train", "validation")
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 258, 65535
"""Of a byte-pair tokenizer trained here."""


def prepare(corpus: Corpus, directory: Path | str, tokenizer: str | int | Path = "bytes",
            progress: Progress | None = None, end: int | None = None) -> dict[str, Any]:
    """Write the corpus as tokens to ``directory`` and return its description; done before, it is read back.

    Tokens there that are not what was written (a file cut, changed or gone) are written again. ``tokenizer`` is
    "bytes", the vocabulary size of a byte-pair tokenizer trained on the training text, or a model's tokenizer.json.
    Little of the text is in memory at once, however long it is; a tokenizer runs in several processes. ``progress``
    is told (stage, bytes done, bytes in all). ``end`` is the token that opens each document; without it two line feeds
    stand between documents. Raises UserError for a vocabulary outside 258…65535, a file that is
    no tokenizer, or a folder that holds other data.
    """
    not_empty("data", directory=directory, tokenizer=tokenizer)
    directory = Path(directory)
    wanted = {"corpus_sha256": corpus.sha256, "tokenizer": identity(tokenizer)}
    wanted |= {} if end is None else {"end": end}
    info = described(directory)
    if info is not None:
        if _is(info, wanted):
            if intact(directory):
                return info
        else:
            raise UserError(f"data: {directory} holds other data ({info.get('description')}). Use another --out.")
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        inside(directory)
        with lock(directory / ".lock", wait=True):
            again = described(directory)  # another process may have written it meanwhile
            if again is not None and _is(again, wanted) and intact(directory):
                return again
            return _write(corpus, directory, tokenizer, wanted, progress)


def _is(info: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a dataset is the wanted one: of one text, one tokenizer, one way to divide documents."""
    return all(info.get(key) == wanted.get(key) for key in ("corpus_sha256", "tokenizer", "end"))


def _write(corpus: Corpus, directory: Path, tokenizer: str | int | Path, wanted: dict[str, Any],
           progress: Progress | None) -> dict[str, Any]:
    sides = both_sides(corpus)
    writing = _Writing(directory, sides, progress, wanted.get("end"))
    files = writing.tokenizer(tokenizer)
    parts = {name: writing.side(name, side) for name, side in zip(SIDES, sides, strict=True)}
    totals = {f"{name}_{what}": sum(p[what] for p in parts[name]) for name in SIDES for what in ("tokens", "bytes")}
    info = wanted | {
        "format": 1, "sha256": corpus.sha256, "description": corpus.description, "source": corpus.source,
        "vocabulary": writing.vocabulary, "dtype": writing.dtype.name, "documents": len(corpus.documents), **totals,
        "bytes_per_token_validation": sum(p["share"] * p["bytes"] / max(1, p["tokens"]) for p in parts["validation"]),
        "parts": parts, "notes": [*corpus.notes, *writing.notes(sides)], "files": files | writing.files}
    write_atomically(directory / "dataset.json", json.dumps(info, indent=1))
    return info


def identity(tokenizer: str | int | Path) -> str | int:
    """Return what stands for a tokenizer in a study's plan: of a file, the hash of what is in it."""
    if tokenizer == "bytes":
        return "bytes"
    if type(tokenizer) is int and SMALLEST_VOCABULARY <= tokenizer <= LARGEST_VOCABULARY:
        return tokenizer
    if isinstance(tokenizer, (str, Path)) and Path(tokenizer).is_file():
        try:
            return f"sha256:{sha256(Path(tokenizer))}"
        except Unreadable as error:
            raise UserError(f"data: tokenizer must be a file that can be read: {error}. Choose another file.") from None
    raise UserError(rule("data", "tokenizer", f'be "bytes", a vocabulary of {SMALLEST_VOCABULARY} to '
                         f"{LARGEST_VOCABULARY}, or the path of a tokenizer.json", tokenizer, "Try 4096."))


class _Writing:
    """The files of one dataset as they are made."""

    def __init__(self, directory: Path, sides: tuple[list[Part], list[Part]], progress: Progress | None,
                 end: int | None = None):
        self.end, self.inside, self.opened = end, 0, 0
        self.directory, self.sides, self.progress = directory, sides, progress or (lambda stage, done, whole: None)
        self.whole, self.done = sum(part.size for side in sides for part in side), 0
        self.files: dict[str, str] = {}
        self.vocabulary, self.dtype, self.path = 256, np.dtype(np.uint8), None
        self.unknown_id: int | None = None
        self.unknown = self.tokens = 0

    def tokenizer(self, tokenizer: str | int | Path) -> dict[str, str]:
        """Train, or copy, the tokenizer; return the hash of its file, by its name."""
        if tokenizer == "bytes":
            return {}
        self.path = self.directory / "tokenizer.json"
        if isinstance(tokenizer, int):
            self.progress("Training the tokenizer", 0, 0)
            training = self.sides[0]
            made = tokenizing.train(_joined(training), sum(part.size for part in training), tokenizer).encode()
        else:
            tokenizing.load_tokenizer(tokenizer)
            made = Path(tokenizer).read_bytes()
        write_atomically(self.path, made)
        loaded = tokenizing.load_tokenizer(self.path)
        self.vocabulary, self.unknown_id = tokenizing.vocabulary_of(loaded), tokenizing.unknown_of(loaded)
        self.dtype = np.dtype(np.uint16 if self.vocabulary <= 1 << 16 else np.uint32)
        return {"tokenizer.json": hashlib.sha256(made).hexdigest()}

    def side(self, name: str, parts: list[Part]) -> list[dict[str, Any]]:
        """Write one side's tokens; return what is in each part, in the file's order."""
        found, digest = [], hashlib.sha256()
        with _file(self.directory / f"{name}.bin") as write:
            for number, part in enumerate(parts):
                counts = {"description": part.description, "share": part.share, "tokens": 0, "bytes": 0}
                for size, data in self._tokens(part, last=number + 1 == len(parts)):
                    write(data)
                    digest.update(data)
                    counts["tokens"] += len(data) // self.dtype.itemsize
                    counts["bytes"] += size
                    self.done += size
                    self.progress("Writing tokens", self.done, self.whole)
                self._must_have_tokens(counts)
                found.append(counts)
        self.files[f"{name}.bin"] = digest.hexdigest()
        return found

    def _must_have_tokens(self, counts: dict[str, Any]) -> None:
        if counts["bytes"] and counts["tokens"] <= self.opened:
            raise UserError(rule("data", "tokenizer", "make tokens of the text", f"none of {counts['bytes']:,} bytes"
                                 f" of {counts['description']}", "Pass the tokenizer of a model for such text."))
        self.opened = 0

    def _tokens(self, part: Part, last: bool) -> Iterator[tuple[int, bytes]]:
        """Yield (bytes of text, bytes of its tokens)."""
        if self.end is not None:
            yield from self._opened(part, self.end)
            return
        text = part.stream() if last else _ended(part)
        if self.path is None:
            yield from ((len(piece), piece) for piece in text)
            return
        for piece, ids in tokenizing.tokens(text, part.size, self.path):
            yield len(piece), self._counted(ids)

    def _opened(self, part: Part, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (bytes of text, bytes of its tokens), every document opened by the end token."""
        if self.path is not None:
            for piece, ids in tokenizing.tokens(part.documents(), part.size, self.path, end=end):
                self.opened += len(ids) > 0 and int(ids[0]) == end
                yield len(piece), self._counted(ids)
            return
        for document in part.documents():
            pieces = iter(document)
            if (first := next(pieces, None)) is None:
                continue  # no token opens what holds none
            yield 0, bytes([end])
            self.opened += 1
            for piece in itertools.chain([first], pieces):
                self.inside += piece.count(end)
                yield len(piece), piece

    def _counted(self, ids: np.ndarray) -> bytes:
        self.tokens += len(ids)
        if self.unknown_id is not None:
            self.unknown += int(np.count_nonzero(ids == self.unknown_id))
        if self.end is not None:
            self.inside += int(np.count_nonzero(ids[1:] == self.end))  # the first may open a document
        return ids.astype(self.dtype).tobytes()

    def notes(self, sides: tuple[list[Part], list[Part]]) -> list[str]:
        """Return what is to be said of the tokens."""
        copies = left_out(sides)
        found = [copies] if copies else []
        if self.inside:
            found.append(f"{self.inside:,} times the text itself holds the token that opens a document: it divides "
                         "them there too.")
        if self.unknown:
            found.append(f"{self.unknown:,} of {self.tokens:,} tokens are the tokenizer's token for text that it does "
                         "not know: models cannot tell such text apart.")
        return found


def _joined(parts: list[Part]) -> Iterator[bytes]:
    for number, part in enumerate(parts):
        yield from part.stream() if number + 1 == len(parts) else _ended(part)


def _ended(part: Part) -> Iterator[bytes]:
    yield from part.stream()
    yield SEPARATOR


@contextlib.contextmanager
def _file(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Write a file in pieces; it appears under its name when it is whole."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        yield file.write


def described(directory: Path) -> dict[str, Any] | None:
    """Return dataset.json; None where there is none, or no whole one."""
    try:
        return read_description(directory)
    except Unreadable:
        return None


def intact(directory: Path | str) -> bool:
    """Return whether the tokens in ``directory`` are those that :func:`prepare` wrote there."""
    info = described(Path(directory))
    try:
        return info is not None and all(
            plain_name(name) and sha256(Path(directory) / name) == digest for name, digest in info["files"].items())
    except (Unreadable, KeyError, TypeError, AttributeError):
        return False
