"""Files of text as streams: what is in them, piece by piece, and what had to be left out."""

import codecs
import contextlib
import gzip
import io
import itertools
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from nonlin.data import parquet
from nonlin.data.spool import LOOK, must_leave_room
from nonlin.errors import UserError
from nonlin.files import printable

CHUNK = 1 << 20
"""Bytes of text that are in hand at once."""

LONGEST_RECORD = 64 << 20
"""Bytes that one line of JSON may have: more is refused, since a line is parsed whole."""

_LOOKED_AT = 4096  # bytes at a file's start that distinguish text and binary data
_ZSTD_PIECE, _ZSTD_WINDOW = 2048, 1 << 27  # so many bytes make 64 MiB at most; and frames that need more are refused
_TRIED = 64  # records of a .json file, among which one with a text tells what the file is
_MARKS = re.compile(rb'\\.|["{}\[\]]', re.DOTALL)
_ENDED = -1  # the depth of brackets after an array
_BOM = b"\xef\xbb\xbf"
# How UTF-16 and UTF-32 begin: by their marks, or by two letters of ASCII.
_WIDE = re.compile(rb"\xff\xfe|\0{0,2}\xfe\xff|(?:[\t\n\r -~](?:\0|\0{3})){2}|(?:(?:\0|\0{3})[\t\n\r -~]){2}")
_PLACES = 3  # of a kind of loss that are named

#: (number of the record in its file, the next piece of its text).
Pieces = Iterator[tuple[int, bytes]]


@dataclass
class Losses:
    """What was left out or replaced on the way from files to text: counts, and the first places of each kind.

    ``scratch`` is the folder for temporary files, and ``progress`` is called in long stretches that give no text.
    """

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    scratch: Path | None = None
    progress: Callable[[], None] = lambda: None
    done: int = 0
    file: BinaryIO | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of files, as they lie on disk, that are done."""
        return self.done + (self.file.tell() if self.file else 0)

    @contextlib.contextmanager
    def reading(self, file: BinaryIO) -> Iterator[None]:
        """Count the bytes of a file as it is read."""
        self.file = file
        try:
            yield
        finally:
            self.done, self.file = self.bytes_read, None

    def add(self, kind: str, place: str) -> None:
        """Count one loss; ``kind`` reads on after its number, as in "3 binary files left out"."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        places = self.places.setdefault(kind, [])
        if len(places) < _PLACES:
            places.append(printable(place))

    def sentences(self) -> list[str]:
        """Return a sentence a kind.

        >>> losses = Losses()
        >>> losses.add("records without text left out", "a.jsonl line 3")
        >>> losses.sentences()
        ['1 records without text left out: a.jsonl line 3.']
        """
        return [f"{count:,} {kind}: {', '.join(self.places[kind])}{', …' if count > _PLACES else ''}."
                for kind, count in self.counts.items()]


def unreadable(path: Path | str, why: object) -> UserError:
    """Return the error for a file that is damaged or holds something else."""
    return UserError(f"data: {printable(str(path))} cannot be read: {why}. Pass text, .gz, .zst, .jsonl or .parquet.")


def pieces(path: Path, losses: Losses, in_folder: bool) -> Pieces:
    """Yield a file's texts, each as one or more pieces that have its number.

    Nothing larger than a piece, or one record, is in memory. A file of binary data is left out of a folder and
    refused by itself. Raises UserError for all that a damaged file can raise, with the line where there are lines.
    """
    try:
        with path.open("rb", CHUNK) as file, losses.reading(file):
            yield from _parsed(file, path, losses, in_folder)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, RecursionError, MemoryError, zlib.error) as error:
        raise unreadable(path, str(error) or type(error).__name__) from error
    except Exception as error:  # zstandard and pyarrow raise classes of their own for damaged files
        if type(error).__module__.split(".")[0] not in ("zstandard", "pyarrow"):
            raise
        raise unreadable(path, error) from error


def _parsed(file: BinaryIO, path: Path, losses: Losses, in_folder: bool) -> Pieces:
    name, text = _opened(file, path.name.lower())
    if name.endswith(".parquet"):
        yield from _rows(file if text is file else _copied(text, losses), path, losses)
    elif _WIDE.match(text.peek(CHUNK)[:8]):
        if not in_folder:
            raise ValueError("it is UTF-16 or UTF-32, and must be UTF-8")
        losses.add("files of UTF-16 or UTF-32 left out", str(path))
    elif name.endswith((".jsonl", ".ndjson", ".jsonlines")):
        yield from _records(_lines(text, losses.progress), path, losses)
    elif name.endswith(".json") and (form := _json_form(path, losses.progress)):
        yield from _records(form(text, losses.progress), path, losses)
    else:
        if name.endswith(".json"):
            losses.add('.json files without records that have a "text", taken as they are', str(path))
        yield from _plain(text, path, losses, in_folder)


def _opened(file: BinaryIO, name: str) -> tuple[str, Any]:
    """Return a file's name without the ending of a compression, and what it holds, as a file to read."""
    if name.endswith(".gz"):
        return name.removesuffix(".gz"), io.BufferedReader(gzip.GzipFile(fileobj=file), CHUNK)  # type: ignore
    if name.endswith((".zst", ".zstd")):
        return name.rsplit(".", 1)[0], io.BufferedReader(_Decompressed(_zstandard(file)), CHUNK)
    return name, file


def _plain(text: BinaryIO, path: Path, losses: Losses, in_folder: bool) -> Pieces:
    chunk = text.read(CHUNK)
    if b"\0" in chunk[:_LOOKED_AT]:
        if not in_folder:
            raise ValueError("it holds binary data, not text")
        losses.add("binary files left out", str(path))
        return
    if _has_text(chunk.partition(b"\n")[0]):
        losses.add('files of JSON lines taken as they are, since their names do not end in .jsonl', str(path))
    utf8 = _Utf8()
    while chunk:
        utf8.look(chunk)
        yield 0, chunk
        chunk = text.read(CHUNK)
    if not utf8.whole():
        losses.add("files that are no UTF-8 taken byte by byte (a tokenizer reads U+FFFD in them)", str(path))


class _Utf8:
    """Whether pieces of text are UTF-8 together."""

    def __init__(self) -> None:
        self.decoder, self.valid = codecs.getincrementaldecoder("utf-8")(), True

    def look(self, piece: bytes, last: bool = False) -> None:
        try:
            if self.valid:
                self.decoder.decode(piece, last)
        except UnicodeDecodeError:
            self.valid = False

    def whole(self) -> bool:
        self.look(b"", last=True)
        return self.valid


# Compression.

class _Decompressed(io.RawIOBase):
    """A generator of bytes as a file to read."""

    def __init__(self, parts: Iterator[bytes]):
        self.parts, self.rest = parts, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            part = next(self.parts, None)
            if part is None:
                return 0
            self.rest = memoryview(part)
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def _zstandard(file: BinaryIO) -> Iterator[bytes]:
    """Yield the text of all frames; ValueError where the last is not whole, which a stream reader keeps to itself."""
    import zstandard

    rest, frame = file.read(_ZSTD_PIECE), None
    while rest or frame is not None:
        if not rest:
            rest = file.read(_ZSTD_PIECE)
            if not rest:
                raise ValueError("its end is missing")
        if frame is None:
            frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        yield frame.decompress(rest)
        rest = b""
        if frame.eof:
            rest, frame = frame.unused_data or file.read(_ZSTD_PIECE), None


def _copied(stream: BinaryIO, losses: Losses) -> BinaryIO:
    """Return the stream's content as a file in which one can go back and forth; it leaves room on its disk."""
    scratch = losses.scratch or Path(tempfile.gettempdir())
    copy: Any = tempfile.TemporaryFile(dir=str(scratch))  # noqa: SIM115  lives as long as it is read
    written = looked = 0
    while chunk := stream.read(CHUNK):
        copy.write(chunk)
        written += len(chunk)
        if written - looked >= LOOK:
            must_leave_room(scratch, looked := written)
        losses.progress()
    copy.seek(0)
    return copy


# Records.

def _lines(text: BinaryIO, progress: Callable[[], None] = lambda: None) -> Iterator[tuple[str, bytes]]:
    number = _past_blanks(text, progress)
    while line := text.readline(LONGEST_RECORD + 1):
        number += 1
        if len(line) > LONGEST_RECORD:
            raise ValueError(f"line {number} is longer than {LONGEST_RECORD >> 20} MiB")
        if line.strip():
            yield f"line {number}", line
        else:
            number += _past_blanks(text, progress)


def _past_blanks(text: Any, progress: Callable[[], None]) -> int:
    """Read on over what is blank, a buffer at a time; return how many lines end there.

    A small compressed file may hold more blank lines than one can look at singly.
    """
    lines = 0
    while (seen := text.peek(CHUNK)) and not seen[:_LOOKED_AT].strip() and not seen.strip():
        lines += text.read(len(seen)).count(b"\n")
        progress()
    return lines


def _elements(text: BinaryIO, progress: Callable[[], None] = lambda: None) -> Iterator[tuple[str, bytes]]:
    """Yield the objects and arrays that a JSON array holds, each as its own text, by a count of brackets.

    ValueError where anything but one comma stands between two of them.
    """
    depth, quoted, number, element, held, gap = 0, False, 0, bytearray(), b"", b""
    while chunk := held + text.read(CHUNK):
        progress()
        whole = len(chunk) - len(chunk.rstrip(b"\\"))
        held = chunk[-1:] if whole % 2 and chunk != held else b""  # a backslash that waits for what it escapes
        chunk, begin = chunk.removesuffix(held), 0
        for found in _MARKS.finditer(chunk):
            mark = found[0]
            if depth <= 1:
                gap = _between(gap, chunk[begin:found.start()], number)
                if gap + mark not in _places(depth, number):
                    raise ValueError(_not_alone(number))
                gap, begin = b"", found.end()
            if mark == b'"':
                quoted = not quoted
            elif not quoted and mark in b"{[":
                depth += 1
                begin = found.start() if depth == 2 else begin
            elif not quoted and mark in b"}]":
                depth -= 1
                if depth == 1:
                    number += 1
                    yield f"record {number}", bytes(element + chunk[begin:found.end()])
                    element.clear()
                    begin = found.end()
                elif not depth:
                    depth = _ENDED
        if depth > 1:
            element += chunk[begin:]
        else:
            gap = _between(gap, chunk[begin:], number)
        if len(element) > LONGEST_RECORD:
            raise ValueError(f"record {number + 1} is longer than {LONGEST_RECORD >> 20} MiB")
    if depth != _ENDED:
        raise ValueError("its end is missing")
    if gap:
        raise ValueError(_not_alone(number))


def _places(depth: int, number: int) -> tuple[bytes, ...]:
    """Return the next mark of an array, with what may stand before it, outside of its records."""
    if depth == _ENDED:
        return ()
    if depth == 0:
        return b"[", _BOM + b"["
    return (b",{", b",[", b"]") if number else (b"{", b"[", b"]")


def _between(gap: bytes, text: bytes, number: int) -> bytes:
    """Return what stands between two marks so far, without blanks."""
    gap += text.strip(b" \t\r\n")
    if len(gap) > len(_BOM):
        raise ValueError(_not_alone(number))
    return gap


def _not_alone(number: int) -> str:
    return f"after record {number} stands something that is no record"


def _json_form(path: Path, progress: Callable[[], None]) -> "Callable[..., Iterator[tuple[str, bytes]]] | None":
    """Return how to read a .json file of which some of the first records have a text; None where it is text itself."""
    with path.open("rb", CHUNK) as file:
        text = _opened(file, path.name.lower())[1]
        _past_blanks(text, progress)
        start = text.peek(CHUNK).removeprefix(_BOM).lstrip()[:1]
        form = _elements if start == b"[" else _lines
        try:
            found = any(_has_text(raw) for _, raw in itertools.islice(form(text, progress), _TRIED))
        except ValueError:
            return None
    if not found and start == b"{":
        return _whole if _has_text(_opening(path, progress)) else None
    return form if found else None


def _opening(path: Path, progress: Callable[[], None]) -> bytes:
    with path.open("rb", CHUNK) as file:
        text = _opened(file, path.name.lower())[1]
        _past_blanks(text, progress)
        return text.read(LONGEST_RECORD)


def _whole(text: BinaryIO, progress: Callable[[], None]) -> Iterator[tuple[str, bytes]]:
    """Yield a file as one record over several lines."""
    _past_blanks(text, progress)
    yield "record 1", text.read(LONGEST_RECORD)


def _has_text(raw: bytes) -> bool:
    """Whether this is JSON of an object with a "text"."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "text" in record


def _records(records: Iterator[tuple[str, bytes]], path: Path, losses: Losses) -> Pieces:
    index = 0
    for place, raw in records:
        try:
            record = json.loads(raw.decode("utf-8-sig", "surrogatepass"))
        except RecursionError as error:
            raise ValueError(f"{place} is nested too deeply") from error
        except UnicodeDecodeError as error:  # json itself would guess at another encoding
            raise ValueError(f"{place} is no UTF-8") from error
        except ValueError as error:
            raise ValueError(f"{place} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text", 0), str | None):
            raise ValueError(f'{place} has no "text" that is a text')
        text = encoded(record["text"], f"{path} {place}", losses)
        if text:
            yield index, text
            index += 1


def encoded(text: str | None, place: str, losses: Losses) -> bytes:
    """Return a record's text as UTF-8; empty where it has none. Lone surrogates, which UTF-8 has not, are replaced."""
    if not text:
        losses.add("records without text left out", place)
        return b""
    try:
        return text.encode()
    except UnicodeEncodeError:
        losses.add("records with lone surrogates, each replaced by U+FFFD", place)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _rows(file: BinaryIO, path: Path, losses: Losses) -> Pieces:
    index = 0
    for row, value in parquet.texts(file, LONGEST_RECORD):
        text = encoded(value, f"{path} row {row}", losses)
        if text:
            yield index, text
            index += 1
