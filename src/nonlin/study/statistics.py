"""Paired differences, Holm's correction and its intervals, and what a test finds."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from nonlin.errors import UserError, rule

_QUANTILES = (np.arange(200) + 0.5) / 200


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences with its two-sided interval and p-value."""

    mean: float
    low: float
    high: float
    confidence: float
    p_value: float
    standard_deviation: float
    seeds: int

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        return self.standard_deviation / math.sqrt(self.seeds)


def paired_effect(differences: Sequence[float], confidence: float = 0.95) -> Effect:
    """Return the mean difference with Student's interval and two-sided p-value.

    Differences without any spread (a twin's are all exactly zero) have an interval of no width, and a
    p-value of 1 if they are zero, else 0. Raises UserError for fewer than two differences, or one not finite.

    >>> effect = paired_effect([0.01, 0.03, 0.02, 0.02])
    >>> round(effect.mean, 4), round(effect.low, 4), round(effect.high, 4)
    (0.02, 0.007, 0.033)
    >>> paired_effect([0.0, 0.0, 0.0, 0.0]).p_value
    1.0
    """
    values = np.asarray(differences, dtype=float)
    if values.size < 2 or not np.isfinite(values).all():
        raise UserError(rule("paired_effect", "differences", "be two or more finite numbers",
                             list(differences), "Run more seeds."))
    # fsum: the mean does not depend on the order of the seeds, nor on numpy's summation
    mean = math.fsum(values) / values.size
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (values.size - 1))
    if np.all(values == values[0]):  # rounding in the mean must not invent a spread
        mean, sd = float(values[0]), 0.0
    return effect_of(mean, sd / math.sqrt(values.size), int(values.size), confidence)


def effect_of(mean: float, error: float, seeds: int, confidence: float) -> Effect:
    """Return the effect of a mean with its standard error: Student's, with one degree of freedom less than seeds.

    >>> effect_of(0.02, 0.01, 5, 0.95).p_value < 0.13
    True
    """
    sd = error * math.sqrt(seeds)
    half = half_width(sd, seeds, confidence)
    p_value = float(mean == 0.0) if error == 0.0 else float(2 * special.stdtr(seeds - 1, -abs(mean) / error))
    return Effect(mean, mean - half, mean + half, confidence, p_value, sd, seeds)


def share_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share, of Clopper and Pearson (1934).

    >>> low, high = share_interval(4, 16)
    >>> round(low, 2), round(high, 2)
    (0.07, 0.52)
    """
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(special.betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return low, high


def median(values: Sequence[float]) -> float | None:
    """Return the median; None where there is nothing."""
    return float(np.median(values)) if len(values) else None


def detectable(sd: float | None, seeds: int, margin: float, confidence: float = 0.95, wanted: float = 0.8
               ) -> float | None:
    """Return the true difference that the rule calls better or worse with probability ``wanted``.

    ``sd`` is the standard deviation of paired differences; None where it is unknown.

    >>> 0.006 < detectable(0.01, 16, margin=0.005) < 0.009
    True
    """
    if sd is None:
        return None
    low, high = 0.0, margin + 100 * sd + 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        enough = power(middle, sd, seeds, margin, confidence).better_or_worse >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def half_width(sd: float, seeds: int, confidence: float) -> float:
    """Return half the width of Student's interval for a mean.

    >>> round(half_width(1.0, 4, 0.95), 4)
    1.5912
    """
    return -float(special.stdtrit(seeds - 1, (1 - confidence) / 2)) * sd / math.sqrt(seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method, in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def holm_confidences(p_values: Sequence[float], confidence: float = 0.95) -> list[float]:
    """Return the confidence of each interval such that it excludes zero exactly where Holm's test rejects.

    The hypothesis of rank i (from 0, of m) is tested at (1 − confidence) / (m − i); the first that is not
    rejected ends the steps, and all that follow keep its level.

    >>> [round(c, 4) for c in holm_confidences([0.001, 0.5, 0.4])]
    [0.9833, 0.975, 0.975]
    """
    alpha, levels = 1 - confidence, [0.0] * len(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    level, going = alpha, True
    for rank, index in enumerate(order):
        if going:
            level = alpha / (len(order) - rank)
            going = p_values[index] <= level
        levels[index] = 1 - level
    return levels


@dataclass(frozen=True)
class Power:
    """Return the probability of each verdict."""

    better_or_worse: float
    tie: float


@functools.lru_cache(maxsize=1024)
def _spread(seeds: int) -> np.ndarray:
    """Return quantiles of the sample's standard deviation over the true one."""
    return np.sqrt(special.chdtri(seeds - 1, _QUANTILES) / (seeds - 1))


def power(effect: float, sd: float, seeds: int, margin: float, confidence: float = 0.95) -> Power:
    """Return the probabilities that the rule calls a true mean difference on its true side, or a tie.

    ``sd`` is that of the paired differences; ``confidence`` that of the interval the rule looks at. The mean
    and the spread of normal samples are independent: the probability given the spread is averaged over 200
    of its quantiles.

    >>> power(0.02, 0.005, 5, margin=0.005).better_or_worse > 0.99
    True
    """
    effect = abs(effect)
    if sd == 0.0:
        return Power(float(effect > margin), float(effect <= margin))
    error = sd / math.sqrt(seeds)
    half_Q = half_width(sd, seeds, confidence) * _spread(seeds)
    decided = special.ndtr((effect - np.maximum(margin, half_Q)) / error)
    room_Q = np.maximum(margin - half_Q, 0.0)
    tie = special.ndtr((room_Q - effect) / error) - special.ndtr((-room_Q - effect) / error)
    return Power(float(np.mean(decided)), float(np.mean(tie)))
