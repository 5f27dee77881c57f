"""What nonlin's own recorded ladders measured, as evidence beside the papers: decoders of text by the byte.

``benchmarks/records/ladder-*.json`` have every seed. A rung's standard deviation is that of paired differences, pooled
over its activations. Each loss gets an even share: the errors of two add up to that of their difference.
"""

import math
from dataclasses import dataclass

from nonlin.advice.published import Loss, Table

RUNS = 3


@dataclass(frozen=True)
class Recorded:
    """A recorded ladder. A rung is (parameters without embeddings, tokens, standard deviation, bits per byte).

    The standard deviation is of paired differences; the bits per byte are by activation, in their order.
    """

    name: str
    text: str
    activations: tuple[str, ...]
    rungs: tuple[tuple[int, int, float, tuple[float, ...]], ...]

    def tables(self) -> tuple[Table, ...]:
        """Return a table a rung, in nats per token, which is a byte."""
        return tuple(Table(f"nonlin's recorded ladder on {self.text}", "docs/how-to/ladder.md", params, tokens,
                           {name: _loss(value, paired) for name, value in zip(self.activations, bits, strict=True)},
                           "nonlin's small decoder, by the byte")
                     for params, tokens, paired, bits in self.rungs)


def _loss(bits: float, paired: float) -> Loss:
    return Loss(bits * math.log(2), paired * math.log(2) / math.sqrt(2), RUNS)


LADDERS = (
    Recorded("python", "Python's standard library",
             ("gelu", "swiglu", "geglu", "relu", "relu_squared", "swiglu_clamped", "situ_glu"), (
                 (55_600, 138_752, 0.0543, (3.1139, 3.1473, 3.1626, 3.1429, 3.1600, 3.1342, 3.1066)),
                 (98_688, 246_784, 0.0191, (2.7813, 2.7583, 2.7766, 2.8045, 2.8132, 2.7581, 2.7637)),
                 (231_056, 577_536, 0.0125, (2.2782, 2.2548, 2.2444, 2.3099, 2.3126, 2.2563, 2.2456)),
                 (452_464, 1_131_008, 0.0085, (2.0179, 1.9912, 1.9814, 2.0356, 2.0365, 1.9963, 1.9859)),
                 (1_230_368, 3_076_096, 0.0035, (1.7744, 1.7572, 1.7555, 1.7983, 1.7679, 1.7556, 1.7532)))),
    Recorded("english", "English prose", ("gelu", "swiglu"), (
        (55_600, 138_752, 0.0236, (2.9421, 2.9458)),
        (98_688, 246_784, 0.0102, (2.6818, 2.6508)),
        (231_056, 577_536, 0.0079, (2.3001, 2.2723)),
        (452_464, 1_131_008, 0.0024, (2.1225, 2.1020)),
        (1_230_368, 3_076_096, 0.0019, (1.9372, 1.9126)))),
)


def tables() -> tuple[Table, ...]:
    """Return the tables of all recorded ladders.

    >>> [table.params for table in tables()[:5]]
    [55600, 98688, 231056, 452464, 1230368]
    """
    return tuple(table for ladder in LADDERS for table in ladder.tables())
