"""The shapes of an architecture of the user's own: from its table of widths to rungs. Loads no torch.

A table has a row for each width. It holds the heads, and the parameters of the layers, around them, and of the
embeddings. All are counted in built models (:mod:`nonlin.subject.sizes`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nonlin.errors import UserError, rule
from nonlin.ladder.design import LARGEST, SMALL, SMALLEST, Rung, Settings, rung_of, size_name, unlike

_FAR = 1.5  # a shape of so many times a size is no longer of that size
_DEEPEST = 80

#: A table by the width of a head.
Tables = Callable[[int], Sequence[Mapping[str, int]]]


@dataclass(frozen=True)
class Architecture:
    """Shapes of an architecture; ``period`` is the number of layers that its pattern of layers repeats after."""

    period: int
    tables: Tables

    @property
    def smallest(self) -> float:
        """The parameters of the smallest model, of as many as a ladder's smallest rung has at least."""
        sizes = [row["outside"] + row["layers"] for row in self.tables(SMALL.head_width(SMALLEST))]
        return max(SMALLEST, min(sizes))

    def head_width(self, smallest: float) -> int:
        """Return the width of a head in all rungs of a ladder that begins at this size."""
        return SMALL.head_width(smallest)

    def rung(self, size: float, role: str, head_width: int, settings: Settings, longer: float = 1.0) -> Rung:
        """Return the rung of about so many parameters; UserError where no shape has about so many.

        Its operations are six for each parameter that multiplies a token, until the built model says more.
        """
        inside, layers, row = min(self._near(size, self.tables(head_width)),
                                  key=lambda one: (one[0] != size, unlike(one[1], one[2]["dim"], one[0], size)))
        if max(inside / size, size / inside) > _FAR:
            raise UserError(rule("ladder", "sizes", f"be such as the architecture has: {inside:,} is the nearest",
                                 size_name(size), "Choose others."))
        return rung_of(role, (layers, row["dim"], row["heads"]), (inside, inside + row["embeddings"]),
                       6.0 * (inside + row["head"]), settings, longer)

    def _near(self, size: float, table: Sequence[Mapping[str, int]]) -> Iterable[tuple[int, int, Mapping[str, int]]]:
        """Return (parameters, layers, row) of each width, of about so many parameters."""
        for row in table:
            near = (size - row["outside"]) / row["layers"]
            for count in {max(1, math.floor(near)), max(1, math.ceil(near))}:
                if count * self.period <= max(_DEEPEST, self.period):
                    yield row["outside"] + count * row["layers"], count * self.period, row


def architecture_of(model: Mapping[str, Any]) -> Architecture:
    """Return the shapes that a ladder's plan has of its model, of one head width."""
    return Architecture(model["period"], lambda _: model["rows"])


def largest_of(sizes: Sequence[float] | None, target: float) -> float:
    """Return the parameters up to which a table is needed: beyond the largest rung, to tell what one above costs."""
    return 16.0 * (max(sizes) if sizes else min(target, LARGEST))
