"""The door of a GGUF file: what its header says, held against the file's size before any reader believes it.

Readers make an object of each entry of a list, and numbers of each tensor. A length of 2⁶⁰ costs eight bytes to write.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nonlin.model.folder import Unfit

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9
_VERSIONS = (2, 3)
_ENTRIES = 4_000_000
"""Entries of all lists: the largest vocabularies, with merges, scores and kinds, have some two million."""
_NAME, _TEXT = 65_535, 1 << 24  # bytes
_DIMENSIONS = 4  # ggml's own limit
_LARGEST = 1 << 40
_ALIGNMENTS = tuple(1 << power for power in range(17))
_LAYERS = ("block_count",)
_SIZES = ("embedding_length", "embedding_length_out", "feed_forward_length", "head_count", "head_count_kv",
          "key_length", "value_length", "dimension_count", "vocab_size", "expert_count", "expert_used_count",
          "lora_rank", "inner_size", "state_size", "conv_kernel", "expert_feed_forward_length",
          "leading_dense_block_count", "time_step_rank", "group_count")


def gguf_sizes(path: Path) -> tuple[int, int]:
    """Return (tensors, numbers) that a GGUF file says it holds; Unfit where that cannot be in a file of its size."""
    with path.open("rb") as file:
        return _Header(file, path.stat().st_size).sizes()


class _Header:
    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.at, self.order, self.entries = file, size, 0, "<", 0

    def sizes(self) -> tuple[int, int]:
        """Read the header to its end."""
        if self.bytes(4, "its first letters") != b"GGUF":
            raise Unfit("be a whole GGUF file, which begins with the letters GGUF")
        version = self.bytes(4, "its version")
        self.order = next((order for order in "<>" if struct.unpack(f"{order}I", version)[0] in _VERSIONS), "")
        if not self.order:
            raise Unfit(f"be of a known version of GGUF, {' or '.join(map(str, _VERSIONS))}")
        tensors, keys = self.number("Q", "its number of tensors"), self.number("Q", "its number of keys")
        self.must_hold(tensors, 32, "tensors")
        self.must_hold(keys, 13, "keys")
        values: dict[str, Any] = {}
        for _ in range(keys):
            name = self.text("a key", _NAME)
            if name in values:
                raise Unfit(f"name a key once; it has {name!r:.80} twice")
            values[name] = self.value(self.number("I", name), name)
        numbers = self.tensors(tensors, self.alignment(values))
        _must_fit(values, tensors, numbers)
        return tensors, numbers

    def bytes(self, count: int, what: str) -> bytes:
        """Return the next bytes."""
        if count > self.size - self.at:
            raise Unfit(f"be a whole GGUF file; {what!r:.80} takes {count:,} bytes, and {self.size - self.at:,} are "
                        "left")
        found = self.file.read(count)
        self.at += len(found)
        return found

    def number(self, kind: str, what: str) -> Any:
        """Return the next number."""
        return struct.unpack(self.order + kind, self.bytes(struct.calcsize("<" + kind), what))[0]

    def text(self, what: str, most: int = _TEXT) -> str:
        """Return the next text."""
        length = self.number("Q", what)
        if length > most:
            raise Unfit(f"have texts of at most {most:,} bytes; {what!r:.80} has {length:,}")
        try:
            return self.bytes(length, what).decode("utf-8")
        except UnicodeDecodeError:
            return ""  # a token may be a part of a letter

    def must_hold(self, count: int, each: int, what: str) -> None:
        """Raise Unfit where so many things of so many bytes are not left in the file."""
        if count * each > self.size - self.at:
            raise Unfit(f"be a whole GGUF file; it says {count:,} {what}, and has {self.size - self.at:,} bytes for "
                        "them")

    def value(self, kind: int, name: str) -> Any:
        """Return a key's value, of a list its length; its entries are passed over."""
        if kind == _STRING:
            return self.text(name)
        if kind != _LIST:
            if kind not in _SCALARS:
                raise Unfit(f"have values of known kinds; {name!r:.80} is of kind {kind}")
            return self.number(_SCALARS[kind], name)
        inner, length = self.number("I", name), self.number("Q", name)
        self.entries += length
        if self.entries > _ENTRIES:
            raise Unfit(f"have at most {_ENTRIES:,} entries in its lists; {name!r:.80} makes it {self.entries:,}")
        if inner == _STRING:
            self.must_hold(length, 8, f"texts in {name!r:.80}")
            for _ in range(length):
                self.text(name)
        elif inner in _SCALARS:
            self.bytes(length * struct.calcsize("<" + _SCALARS[inner]), name)
        else:
            raise Unfit(f"have lists of numbers or texts; {name!r:.80} is one of kind {inner}")
        return None

    def alignment(self, values: Mapping[str, Any]) -> int:
        """Return what the tensors' places are multiples of."""
        found = values.get("general.alignment", 32)
        if found not in _ALIGNMENTS:
            raise Unfit(f"have a power of two as general.alignment; it is {found!r:.80}")
        return found

    def tensors(self, count: int, alignment: int) -> int:
        """Return how many numbers all tensors have; Unfit where they are not whole in the file, or share a place."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        numbers = taken = end = 0
        names = set[str]()
        for _ in range(count):
            name, dimensions = self.text("a tensor's name", _NAME), self.number("I", "a tensor")
            if name in names:
                raise Unfit(f"name a tensor once; it has {name!r:.80} twice")
            names.add(name)
            if dimensions > _DIMENSIONS:
                raise Unfit(f"have tensors of at most {_DIMENSIONS} dimensions; {name!r:.80} has {dimensions:,}")
            shape = [self.number("Q", name) for _ in range(dimensions)]
            kind, offset = self.number("I", name), self.number("Q", name)
            if any(size > _LARGEST for size in shape) or kind not in set(GGMLQuantizationType):
                raise Unfit(f"have sizes and known kinds of numbers in its tensors; {name!r:.80} has {shape} of kind "
                            f"{kind}")
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            size = math.prod(shape)
            length = -(-size // block) * width
            numbers, taken, end = numbers + size, taken + length, max(end, offset + length)
        room = self.size - -(-self.at // alignment) * alignment
        if max(end, taken) > max(room, 0):  # more than the file holds, or several in one place
            raise Unfit(f"be a whole GGUF file; its tensors take {max(end, taken):,} bytes, and it has "
                        f"{max(room, 0):,} for them")
        return numbers


def _must_fit(values: Mapping[str, Any], tensors: int, numbers: int) -> None:
    """Raise Unfit where a size is beyond what the tensors can have."""
    for name, value in values.items():
        last = name.rpartition(".")[2]
        most = tensors if last in _LAYERS else numbers if last in _SIZES else None
        if most is not None and type(value) in (int, float) and not 0 <= value <= max(1, most):
            raise Unfit(f"have sizes that its tensors can have; {name} is {value:,}, and the file holds {numbers:,} "
                        f"numbers in {tensors:,} tensors")
