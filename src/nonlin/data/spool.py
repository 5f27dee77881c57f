"""Documents one after the other on disk, with what is known of each: the memory they take does not grow with them."""

import hashlib
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from nonlin.errors import UserError
from nonlin.files import printable

CHUNK = 1 << 20
MEMORY = 32 << 20
"""Bytes of text that stay in memory; more goes to a file that no name leads to, so that nothing is left behind."""

#: What is known of a document: where its name and its text lie, a hash of its text, and one of name and text.
ENTRY = np.dtype([("name", "<u8"), ("name_size", "<u4"), ("start", "<u8"), ("size", "<u8"), ("key", "<u8", 2),
                  ("draw", ">u4")])
_PACKED = struct.Struct("<QIQQ16s4s")
RESERVE, _SHARE = 1 << 30, 20
"""Bytes of a disk that text leaves free, or a twentieth of a small disk."""
LOOK = 1 << 26  # bytes of text between two looks at it
BLOCK = 1 << 16
"""Documents whose entries are in memory at once."""


class Spool:
    """Documents as they come; read again in order, piece by piece."""

    def __init__(self, scratch: Path | None = None):
        self.scratch = scratch or Path(tempfile.gettempdir())
        self._text, self._names, self._index = (_Bytes(self.scratch) for _ in range(3))
        self._digest = hashlib.sha256()
        self.count = 0

    @property
    def size(self) -> int:
        """Bytes of text."""
        return self._text.size

    @property
    def sha256(self) -> str:
        """The hash of names and texts, made while they came."""
        return self._digest.hexdigest()

    def add(self, name: str, text: Iterable[bytes]) -> None:
        """Append a document, its text in pieces."""
        encoded = name.encode(errors="surrogateescape")
        key = hashlib.blake2b(digest_size=16)
        draw = hashlib.sha256(name.rsplit("/", 1)[-1].encode(errors="surrogateescape") + b"\0")
        start, name_start, only = self._text.size, self._names.size, b""
        for piece in text:
            only = piece if self._text.size == start else b""
            self._text.append(piece)
            key.update(piece)
            draw.update(piece)
        size = self._text.size - start
        # The hash has a text's size before the text, and a text of several pieces is read once more for it.
        self._digest.update(f"{len(name)}:{name}:{size}:".encode(errors="surrogateescape"))
        for piece in [only] if len(only) == size else self.read(start, size):
            self._digest.update(piece)
        self._names.append(encoded)
        self._index.append(
            _PACKED.pack(name_start, len(encoded), start, size, key.digest(), draw.digest()[:4]))
        self.count += 1

    def read(self, start: int, size: int) -> Iterator[bytes]:
        """Yield so many bytes of text from ``start`` on, in pieces."""
        return self._text.read(start, size)

    def name(self, entry: Any) -> str:
        """Return a document's name."""
        name = b"".join(self._names.read(int(entry["name"]), int(entry["name_size"])))
        return name.decode(errors="surrogateescape")

    def entries(self, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
        """Yield what is known of documents ``first`` to ``last``, some thousands at a time."""
        last = self.count if last is None else last
        for begin in range(first, last, BLOCK):
            count = min(BLOCK, last - begin)
            found = self._index.read(begin * ENTRY.itemsize, count * ENTRY.itemsize)
            yield np.frombuffer(b"".join(found), ENTRY)


def must_leave_room(scratch: Path, written: int) -> None:
    """Raise UserError where little of the disk is left: a small compressed file may hold more than any disk."""
    disk = shutil.disk_usage(scratch)
    kept = min(RESERVE, disk.total // _SHARE)
    if disk.free < kept:
        raise UserError(f"data: text must leave {kept / 2**30:.2g} GiB of the disk that holds "
                        f"{printable(str(scratch))} free; after {written:,} bytes of it "
                        f"{disk.free / 2**30:.2g} GiB are. Pass less text, look into what its compressed files "
                        "hold, or choose a folder on a larger disk with --out.")


class _Bytes:
    """Bytes that only grow, in memory or in a file; what is read lies in a window, so that short reads cost little."""

    def __init__(self, scratch: Path):
        self._file = tempfile.SpooledTemporaryFile(MEMORY, dir=str(scratch))  # noqa: SIM115  lives as long as this
        self.size, self._at_end, self._looked, self._scratch = 0, True, 0, scratch
        self._window, self._window_start = b"", 0

    def append(self, piece: bytes) -> None:
        if not self._at_end:
            self._file.seek(self.size)
            self._at_end = True
        self._file.write(piece)
        self.size += len(piece)
        if self.size - self._looked > LOOK:
            self._looked = self.size
            must_leave_room(self._scratch, self.size)

    def read(self, start: int, size: int) -> Iterator[bytes]:
        """Yield so many bytes from ``start`` on, in pieces."""
        end = start + size
        while start < end:
            at = start - self._window_start
            if not 0 <= at < len(self._window):
                self._file.seek(start)
                self._window, self._window_start, self._at_end, at = self._file.read(CHUNK), start, False, 0
            piece = self._window[at:at + end - start]
            if not piece:
                raise OSError("a temporary file of the text was cut")
            yield piece
            start += len(piece)


class Documents(Sequence[tuple[str, bytes]]):
    """A spool's documents as (name, text), each read when it is asked for."""

    def __init__(self, spool: Spool):
        self._spool = spool

    def __len__(self) -> int:
        return self._spool.count

    def _document(self, entry: Any) -> tuple[str, bytes]:
        return self._spool.name(entry), b"".join(self._spool.read(int(entry["start"]), int(entry["size"])))

    @overload
    def __getitem__(self, index: int) -> tuple[str, bytes]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, bytes]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        return self._document(next(self._spool.entries(at, at + 1))[0])

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for block in self._spool.entries():
            for entry in block:
                yield self._document(entry)
