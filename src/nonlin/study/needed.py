"""How many seeds would decide: the chance of a verdict after more seeds, given the seeds that are there.

Neither the difference nor its spread is known: both are what the seeds so far say of them, within their errors. So the
chance is that of the predictive distribution (Spiegelhalter, Freedman and Blackburn, "Monitoring clinical trials",
1986), with flat priors; and the test after more seeds is that of a further stage (:mod:`nonlin.study.stages`).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from nonlin.study.stages import boundaries
from nonlin.study.statistics import Effect

MOST = 1000  # seeds of a study
_SPREADS, _MEANS, _REST = ((np.arange(n) + 0.5) / n for n in (16, 32, 4))  # quantiles


def chance(effect: Effect, seeds: int, margin: float, level: float) -> float:
    """Return the probability that ``seeds`` in all decide (better, worse or tie), given the effect of those so far.

    ``level``: of the test then.

    >>> from nonlin.study.statistics import paired_effect
    >>> found = paired_effect([0.01, 0.03, 0.02, 0.02, 0.0, 0.04])
    >>> chance(found, 8, 0.005, 0.05) < chance(found, 24, 0.005, 0.05)
    True
    """
    now, more = effect.seeds, seeds - effect.seeds
    squares = (now - 1) * effect.standard_deviation**2
    spread_S = np.sqrt(squares / special.chdtri(now - 1, _SPREADS))[:, None, None]
    shift_M = special.ndtri(_MEANS)[None, :, None] * math.sqrt(more / (now * seeds)) * spread_S
    mean = effect.mean + shift_M
    rest = special.chdtri(more - 1, _REST)[None, None, :] if more > 1 else 0.0
    variance = (squares + spread_S**2 * rest + shift_M**2 * now * seeds / more) / (seeds - 1)
    half = -float(special.stdtrit(seeds - 1, level / 2)) * np.sqrt(variance / seeds)
    apart = np.abs(mean) > np.maximum(half, margin)
    tie = np.abs(mean) + half <= margin
    return float(np.mean(apart | tie))


def seeds_needed(effect: Effect, margin: float, error: float, looks: Sequence[int], wanted: float = 0.8) -> int | None:
    """Return the seeds in all that decide with probability ``wanted``; None where more than 1,000 would be needed.

    ``error``: what the comparison's test may spend at the first look, Holm's correction counted; ``looks``: the seeds
    at each look so far.

    >>> from nonlin.study.statistics import paired_effect
    >>> seeds_needed(paired_effect([0.005, 0.03, 0.02, 0.02, -0.01, 0.04]), 0.005, 0.05, [6]) > 6
    True
    """
    looks = [look for look in looks if look < effect.seeds] + [effect.seeds]

    def enough(seeds: int) -> bool:
        return chance(effect, seeds, margin, boundaries(error, [*looks, seeds])[-1]) >= wanted

    low, high = effect.seeds, effect.seeds + 1
    while not enough(high):
        low, high = high, effect.seeds + 2 * (high - effect.seeds)
        if low >= MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= MOST else None
