"""A parquet file's column of text, row by row, within a limit of memory that its own word about its sizes cannot move.

A page is in memory as a whole before a row of it is. How large it becomes is said three times: for the column, for the
page, and by the compressed bytes. The page's word is what memory is taken for, so all pages' headers are read before.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

SHRUNK = 256
"""Times: a column that was compressed so, and is larger than a record may be, is refused."""
LARGEST_PAGE = 1 << 30
"""Bytes that a page may have."""
_ROWS = 64  # in memory at once
_HEADER = 1 << 16  # bytes that the header of a page may have: statistics are in it
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_DEEPEST = 8


def texts(file: BinaryIO, longest: int) -> Iterator[tuple[int, str | None]]:
    """Yield (number, text) of each row; ValueError for a file without texts, and one that takes too much memory.

    ``longest``: the bytes that a row may have; a column may have as many a row, and ``SHRUNK`` times its own bytes. A
    page may have ``LARGEST_PAGE``.
    """
    import pyarrow
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(file)
    schema = metadata.schema.to_arrow_schema()
    if "text" not in schema.names:
        raise ValueError(f'no column "text" among {_few(schema.names)}')
    kind = schema.field("text").type
    values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(values) or pyarrow.types.is_large_string(values)):
        raise ValueError(f'its column "text" holds {kind!s:.80}')
    _must_expand_little(file, metadata, longest)
    # Values that come again and again are in memory once.
    table = pyarrow.parquet.ParquetFile(file, metadata=metadata, buffer_size=1 << 20, pre_buffer=False,
                                        read_dictionary=["text"])
    row = 0
    for batch in table.iter_batches(_ROWS, columns=["text"]):
        for value in batch.column(0):
            row += 1
            held = value.value if isinstance(value, pyarrow.DictionaryScalar) else value
            raw = held.as_buffer() if held.is_valid else None
            if raw is not None and raw.size > longest:
                raise ValueError(f"row {row} is longer than {longest >> 20} MiB")
            yield row, _decoded(raw, row)


def _few(names: list[str]) -> str:
    shown = ", ".join(f"{name:.40}" for name in names[:8])
    return f"{shown}, …" if len(names) > 8 else shown


def _decoded(raw: Any, row: int) -> str | None:
    try:
        return None if raw is None else raw.to_pybytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"row {row} is no UTF-8") from error


def _must_expand_little(file: BinaryIO, metadata: Any, longest: int) -> None:
    """Raise ValueError where a column was compressed as no text is, or pages are not those that the file speaks of."""
    size = file.seek(0, 2)
    if metadata.num_rows > max(1 << 24, SHRUNK * size):
        raise ValueError(f"it says that it has {metadata.num_rows:,} rows in {size:,} bytes")
    for group in range(metadata.num_row_groups):
        part = metadata.row_group(group)
        column = next(c for c in map(part.column, range(part.num_columns)) if c.path_in_schema == "text")
        stored, start = column.total_compressed_size, column.data_page_offset
        if column.has_dictionary_page:
            start = min(start, column.dictionary_page_offset)
        if min(start, stored) < 0 or start + stored > size:
            raise ValueError(f'its column "text" lies beyond its end, at {start:,} with {stored:,} bytes')
        grown = max(column.total_uncompressed_size, _pages(file, start, start + stored))
        if grown > longest and (grown > SHRUNK * stored or grown > longest * part.num_rows):
            raise ValueError(f'its column "text" of {stored:,} bytes grows to {grown:,}')


def _pages(file: BinaryIO, start: int, end: int) -> int:
    """Return how many bytes all pages between two places have, uncompressed, by their own headers."""
    total = 0
    while start < end:
        file.seek(start)
        header, length = _Compact(file.read(_HEADER)).struct()
        grown, stored = header.get(2), header.get(3)
        if not isinstance(grown, int) or not isinstance(stored, int) or min(grown, stored) < 0:
            raise ValueError(f"what begins at its byte {start:,} is no page")
        if grown > LARGEST_PAGE:
            raise ValueError(f"its page at byte {start:,} grows to {grown:,} bytes, and at most {LARGEST_PAGE:,} are "
                             "read at once")
        total += grown
        start += length + stored
    return total


class _Compact:
    """Thrift's compact protocol, as far as the header of a page needs it."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """Return the whole numbers of a struct by their fields, and where it ended; ValueError where it is none."""
        found: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != _STOP:
            field = field + (head >> 4) if head >> 4 else self._whole()
            value = self._value(head & 15, depth)
            if isinstance(value, int):
                found[field] = value
        return found, self.at

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("the header of a page has no end")
        self.at += 1
        return self.data[self.at - 1]

    def _plain(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("the header of a page has a number of over 64 bits")

    def _whole(self) -> int:
        value = self._plain()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int, depth: int) -> int | None:
        if depth > _DEEPEST:
            raise ValueError("the header of a page is nested too deeply")
        if kind in (_TRUE, _FALSE):
            return None
        if kind == _STRUCT:
            self.struct(depth + 1)
        elif kind in (_LIST, _SET):
            head = self._byte()
            count = self._plain() if head >> 4 == 15 else head >> 4
            for _ in range(min(count, len(self.data))):
                self._byte() if head & 15 in (_TRUE, _FALSE) else self._value(head & 15, depth + 1)
        elif kind in (_BYTE, _DOUBLE, _BINARY):
            length = {_BYTE: 1, _DOUBLE: 8}.get(kind) or self._plain()
            self.at += length  # a binary's own length moved it
        elif kind < _BYTE or kind > _STRUCT or kind == _MAP:
            raise ValueError("the header of a page is none")
        else:
            return self._whole()
        return None
