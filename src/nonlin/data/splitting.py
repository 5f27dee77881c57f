"""Which text is trained on and which is judged by: whole documents by a hash, or the ends of a few long ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nonlin.data.corpus import Corpus
from nonlin.data.spool import BLOCK, Spool

SEPARATOR = b"\n\n"
_AT_ONCE = 1 << 21  # documents whose hashes are compared at once


@dataclass(frozen=True)
class Part:
    """One source's text on one side, a stream that can be read again; ``share`` is its weight, all parts' sum 1."""

    spool: Spool
    first: int
    last: int
    sides: np.ndarray | None
    side: int
    fraction: float
    share: float
    description: str

    def slices(self) -> Iterator[tuple[int, int]]:
        """Yield (start, size) of each text in the spool."""
        for number, block in enumerate(self.spool.entries(self.first, self.last)):
            starts, sizes = block["start"].astype(np.int64), block["size"].astype(np.int64)
            if self.sides is None:  # every document is cut at its end
                cuts = (sizes * (1 - self.fraction)).astype(np.int64)
                starts, sizes = (starts + cuts, sizes - cuts) if self.side else (starts, cuts)
            else:
                begin = number * BLOCK
                chosen = self.sides[begin:begin + len(block)] == self.side
                starts, sizes = starts[chosen], sizes[chosen]
            yield from zip(starts.tolist(), sizes.tolist(), strict=True)

    def texts(self) -> Iterator[bytes]:
        """Yield the texts, each in memory whole."""
        return (b"".join(self.spool.read(start, size)) for start, size in self.slices())

    def documents(self) -> Iterator[Iterator[bytes]]:
        """Yield each text as its pieces; one is read before the next is asked for."""
        return (self.spool.read(start, size) for start, size in self.slices())

    def stream(self) -> Iterator[bytes]:
        """Yield the texts in pieces, two line feeds between them."""
        for number, (start, size) in enumerate(self.slices()):
            if number:
                yield SEPARATOR
            yield from self.spool.read(start, size)

    @property
    def size(self) -> int:
        """Bytes of :meth:`stream`."""
        count, size = 0, 0
        for count, (_, length) in enumerate(self.slices(), 1):  # noqa: B007
            size += length
        return size + max(0, count - 1) * len(SEPARATOR)


def split(corpus: Corpus, validation_fraction: float = 0.1) -> tuple[list[bytes], list[bytes]]:
    """Return the (training, validation) texts of :func:`sides`, all of them in memory."""
    training, validation = ([text for part in side for text in part.texts()]
                            for side in sides(corpus, validation_fraction))
    return training, validation


def sides(corpus: Corpus, validation_fraction: float = 0.1) -> tuple[list[Part], list[Part]]:
    """Return the (training, validation) parts: one each, or one a source where the sources have weights.

    Documents go by the hash of their name and text, whatever lies beside or before them. Copies of one text go
    together, in other sources too. Every document is cut at its end instead where there are fewer than ten. So it is
    where a side would hold less than a third of its share of bytes. Copies of cut documents in a source that is not cut
    are on no side. A corpus with validation text of its own is judged by that alone, and copies of its documents are
    not trained on.
    """
    spool, total = corpus.spool, sum(corpus.weights)
    training, validation = [], []
    held_out = corpus.validation_from
    spans = list(zip([0, *corpus.ends], corpus.ends))  # noqa: B905  the last end begins none
    if held_out is None:
        chosen = _all_sides(spool, spans, validation_fraction)
    else:
        seen = _keys(spool, held_out, spool.count)
        chosen = [_without(spool, first, last, seen) for first, last in spans]
    for (first, last), weight, description, on in zip(spans, corpus.weights, corpus.descriptions, chosen, strict=True):
        for side, parts in enumerate((training, validation)):
            if side == 0 or held_out is None:
                parts.append(Part(spool, first, last, on, side, validation_fraction, weight / total, description))
    if held_out is not None:
        whole = np.zeros(spool.count - held_out, np.uint8)
        validation.append(Part(spool, held_out, spool.count, whole, 0, validation_fraction, 1.0, "validation text"))
    return training, validation


def _all_sides(spool: Spool, spans: list[tuple[int, int]], fraction: float) -> list[np.ndarray | None]:
    """Return each source's sides: 1 judged by, 0 trained on, 2 neither; None for one whose documents are cut.

    A cut document is on both sides, so its copies in a source that is not cut are on none. Copies that are cut too are
    cut at the same place. The rest of a source may then have to be cut itself, and all are looked at again.
    """
    drawn, cut = _drawn(spool, spans[0][0], spans[-1][1], fraction * 2**32), set[int]()
    while True:
        seen = np.unique(np.concatenate([_keys(spool, *spans[i]) for i in cut])) if cut else None
        found: list[np.ndarray | None] = []
        for i, (first, last) in enumerate(spans):
            sides = drawn[first:last]
            if seen is not None and i not in cut:
                sides = np.where(_without(spool, first, last, seen), np.uint8(2), sides)
            found.append(sides if i not in cut and _balanced(spool, first, sides, fraction) else None)
        lost = {i for i, sides in enumerate(found) if sides is None}
        if lost == cut or len(spans) == 1:
            return found
        cut = lost


def _balanced(spool: Spool, first: int, sides: np.ndarray, fraction: float) -> bool:
    """Return whether both sides hold enough documents and bytes to go by whole documents."""
    held = whole = done = 0
    for block in spool.entries(first, first + len(sides)):
        sizes, on = block["size"].astype(np.int64), sides[done:done + len(block)]
        held += int(sizes[on == 1].sum())
        whole, done = whole + int(sizes[on != 2].sum()), done + len(block)
    share = held / max(whole, 1)
    return int((sides != 2).sum()) >= 10 and fraction / 3 < share < min(3 * fraction, 0.5)


def _drawn(spool: Spool, first: int, last: int, below: float) -> np.ndarray:
    """Return 1 for each document whose text has a copy with a hash below the bound, 0 for the others.

    Copies have one key. So many keys are compared at once as fit in little memory; the index is read once for each.
    """
    sides = np.zeros(last - first, np.uint8)
    rounds = -(-(last - first) // _AT_ONCE)
    for turn in range(rounds):
        places, keys, own, done = [], [], [], 0
        for block in spool.entries(first, last):
            chosen = np.flatnonzero(block["key"][:, 0] % rounds == turn)
            places.append(chosen + done)
            keys.append(block["key"][chosen])
            own.append(block["draw"][chosen].astype(np.uint32))
            done += len(block)
        key, mine = np.concatenate(keys), np.concatenate(own)
        order = np.lexsort((mine, key[:, 0], key[:, 1]))
        key, mine, at = key[order], mine[order], np.concatenate(places)[order]
        new = np.ones(len(key), bool)
        new[1:] = (key[1:] != key[:-1]).any(axis=1)
        sides[at] = (mine[new] < below)[np.cumsum(new) - 1]
    return sides


def _keys(spool: Spool, first: int, last: int) -> np.ndarray:
    """Return the sorted first halves of the texts' keys."""
    return np.unique(np.concatenate([np.empty(0, "<u8"), *(b["key"][:, 0] for b in spool.entries(first, last))]))


def _without(spool: Spool, first: int, last: int, seen: np.ndarray) -> np.ndarray:
    """Return 0 for documents to train on and 2 for copies of what is judged by."""
    return np.concatenate([np.isin(b["key"][:, 0], seen).astype(np.uint8) * 2 for b in spool.entries(first, last)])


def left_out(sides: tuple[list[Part], list[Part]]) -> str | None:
    """Return what is to be said of documents that are on no side, being copies; None where there are none."""
    training, validation = sides
    count = sum(int((part.sides == 2).sum()) for part in training if part.sides is not None)
    if not count:
        return None
    if validation[0].side == 0:  # the text to judge by is one of its own
        return f"{count:,} documents of the text are in the validation text too: they are not trained on."
    return (f"{count:,} documents are in another source too, whose documents are cut at their ends: they are left out "
            "where they are not cut.")
