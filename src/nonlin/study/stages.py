"""Seeds added after a look: the error that each stage may spend, and the level at which its test is made.

A study that is extended has been looked at before. Its first look tested at the rule's level. Each further stage may
spend a share of that on top, half as much as the stage before it: a fifth, a tenth, a twentieth. However often a study
is extended, its error stays below 1.4 times the stated one. A stage's test counts only what earlier looks left. Its
level follows from the joint distribution of the looks, which share the earlier seeds.

Source: Lan and DeMets, "Discrete sequential boundaries for clinical trials", 1983. The levels are used with Student's
distribution as in Jennison and Turnbull, "Group Sequential Methods", 2000, section 4.4.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

SHARE = 0.2  # of the error, that the second stage spends on top; each later one half of the one before
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_RATES = np.concatenate([np.logspace(-12, -4, 33), np.logspace(-4, math.log10(0.6), 68)[1:]])


def shares(stages: int) -> list[float]:
    """Return what each stage spends, in units of the first one's error.

    >>> shares(3)
    [1.0, 0.2, 0.1]
    """
    return [1.0, *(SHARE / 2**i for i in range(stages - 1))]


def level(error: float, looks: Sequence[int]) -> float:
    """Return the level of the last look's test; ``error`` is what the first look's test spends.

    ``looks``: the number of seeds at each look. Of one look the level is the error itself.

    >>> level(0.05, [8]), round(level(0.05, [8, 12]), 4)
    (0.05, 0.0246)
    """
    return error if len(looks) < 2 else float(_between(error, _RATES, _levels(tuple(looks))))


def error_of(p_value: float, looks: Sequence[int]) -> float:
    """Return the least error at which the last look's test rejects: the p-value that takes the looks into account.

    >>> error_of(0.03, [8]), round(error_of(level(0.03, [8, 12]), [8, 12]), 6)
    (0.03, 0.03)
    """
    if len(looks) < 2:
        return p_value
    levels = _levels(tuple(looks))
    return 1.0 if p_value > levels[-1] else float(_between(p_value, levels, _RATES))


def _between(value: float, points: np.ndarray, values: np.ndarray) -> float:
    """Interpolate between logarithms; below the least point the ratio stays."""
    if value <= points[0]:
        return value * values[0] / points[0]
    return math.exp(np.interp(math.log(value), np.log(points), np.log(values)))


@functools.lru_cache(maxsize=256)
def _levels(looks: tuple[int, ...]) -> np.ndarray:
    return np.array([boundaries(rate, looks)[-1] for rate in _RATES])


def boundaries(error: float, looks: Sequence[int]) -> list[float]:
    """Return the level of every look's test, by recursive integration over what earlier looks did not reject.

    >>> [round(found, 4) for found in boundaries(0.05, [8, 12, 16])]
    [0.05, 0.0246, 0.0158]
    """
    return list(_boundaries(error, tuple(looks)))


@functools.lru_cache(maxsize=4096)
def _boundaries(error: float, looks: tuple[int, ...]) -> tuple[float, ...]:
    found: list[float] = []
    points, density = np.zeros(1), np.ones(1)  # sums of standardized differences, and their density times weights
    for seeds, before, share in zip(looks, (0, *looks), shares(len(looks)), strict=False):
        spread, root = math.sqrt(seeds - before), math.sqrt(seeds)

        def beyond(bound: float, spread: float = spread, root: float = root, points: np.ndarray = points,
                   density: np.ndarray = density, spent: float = error * share) -> float:
            reach = bound * root
            tails = special.ndtr((points - reach) / spread) + special.ndtr((-points - reach) / spread)
            return float(density @ tails) - spent

        bound = float(optimize.brentq(beyond, 0.0, 40.0, xtol=1e-10))  # pyright: ignore[reportArgumentType]
        found.append(2 * float(special.ndtr(-bound)))
        inside = bound * root * _NODES
        kernel = np.exp(-0.5 * ((inside[:, None] - points[None]) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        points, density = inside, (kernel @ density) * _WEIGHTS * bound * root
    return tuple(found)
