"""What nonlin's own recorded ladder measured, as evidence beside the papers: decoders of Python's text by the byte.

``benchmarks/records/ladder-python.json`` has every seed. A rung's standard deviation is that of paired differences,
pooled over its activations. Each loss gets an even share: the errors of two add up to that of their difference.
"""

import math

from nonlin.advice.published import Loss, Table

RUNS = 3
WHAT = "nonlin's small decoder on Python's standard library, by the byte"
ACTIVATIONS = ("gelu", "swiglu", "geglu", "relu", "relu_squared", "swiglu_clamped", "situ_glu")
# Parameters without embeddings, tokens, standard deviation of paired differences, bits per byte by activation.
RUNGS = (
    (55_600, 138_752, 0.0543, (3.1139, 3.1473, 3.1626, 3.1429, 3.1600, 3.1342, 3.1066)),
    (98_688, 246_784, 0.0191, (2.7813, 2.7583, 2.7766, 2.8045, 2.8132, 2.7581, 2.7637)),
    (231_056, 577_536, 0.0125, (2.2782, 2.2548, 2.2444, 2.3099, 2.3126, 2.2563, 2.2456)),
    (452_464, 1_131_008, 0.0085, (2.0179, 1.9912, 1.9814, 2.0356, 2.0365, 1.9963, 1.9859)),
    (1_230_368, 3_076_096, 0.0035, (1.7744, 1.7572, 1.7555, 1.7983, 1.7679, 1.7556, 1.7532)),
)


def tables() -> tuple[Table, ...]:
    """Return a table a rung, in nats per token, which is a byte.

    >>> [table.params for table in tables()]
    [55600, 98688, 231056, 452464, 1230368]
    """
    def loss(bits: float, paired: float) -> Loss:
        return Loss(bits * math.log(2), paired * math.log(2) / math.sqrt(2), RUNS)

    return tuple(Table("nonlin's recorded ladder", "docs/how-to/ladder.md", params, tokens,
                       {name: loss(value, paired) for name, value in zip(ACTIVATIONS, bits, strict=True)}, WHAT)
                 for params, tokens, paired, bits in RUNGS)
