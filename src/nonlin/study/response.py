"""Differences of activations each at its own best learning rate, from tuning and judged runs together.

Near an arm's best rate its loss is a parabola over the log of the rate. One linear model describes all runs of a study.
It has an effect of each seed, which all arms share, a level and a linear term of each arm, and one curvature. Each
arm's parabola has its least value at its vertex. Verdicts are about the differences of these least values. Leaving out
one seed after another (the jackknife) gives their standard errors. So the choice of the rate, made from the same runs,
is part of the error.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nonlin.study.statistics import Effect, effect_of

_REACH = 0.5  # grid steps from an arm's judged rate to its vertex, at most: the judged rate is a vertex within as much
_SINGULAR = 1e-10  # of the largest singular value: below it a column has no estimate, and its effect is zero
_CURVED = 3  # rates of one arm that show a curvature


@dataclass(frozen=True)
class Run:
    """A finished run: its seed, its learning rate in grid steps (logarithms), its loss in bits per byte."""

    seed: int
    rate: float
    loss: float
    judged: bool


def differences(runs: Mapping[str, Sequence[Run]], baseline: str, confidence: float = 0.95) -> dict[str, Effect]:
    """Return each arm's difference to the baseline with its interval and p-value, by arm.

    ``runs``: each arm's judged runs, all at one rate, and the tuning runs at the rates near it. Intervals are
    Student's with one degree of freedom less than there are seeds judged in both. A vertex lies among the rates at
    which its arm has a finished run. Without three rates of any arm there is no curvature, and the levels at the judged
    rates are compared. An arm whose runs equal the baseline's to
    the last bit has a difference of exactly zero.

    Source of the jackknife: Efron and Stein, "The jackknife estimate of variance", 1981.

    >>> base = [Run(s, 0.0, 2.0 + 0.01 * s, True) for s in range(5)]
    >>> better = [Run(r.seed, r.rate, r.loss - 0.1 + 0.001 * (r.seed % 2), True) for r in base]
    >>> found = differences({"gelu": base, "swiglu": better, "twin": base}, "gelu")
    >>> round(found["swiglu"].mean, 4), found["twin"].mean, found["twin"].p_value
    (-0.0996, 0.0, 1.0)
    """
    fit = Fit(runs)
    return {arm: fit.effect(arm, baseline, confidence) for arm in runs if arm != baseline}


class Fit:
    """The model fitted to all runs, and anew without each seed; ``effect`` compares any two arms by it."""

    def __init__(self, runs: Mapping[str, Sequence[Run]]):
        self.runs, model = runs, _Model(runs)
        self.whole = model.minima(None)
        self.left_out = [model.minima(seed) for seed in model.clusters()]

    def effect(self, first: str, second: str, confidence: float = 0.95) -> Effect:
        """Return the difference first − second of two arms' least values, with its interval and p-value."""
        runs, count = self.runs, len(self.left_out)
        mean = self.whole[first] - self.whole[second]
        pseudo = [count * mean - (count - 1) * (part[first] - part[second]) for part in self.left_out]
        center = math.fsum(pseudo) / count
        error = math.sqrt(math.fsum((p - center) ** 2 for p in pseudo) / (count - 1) / count)
        if sorted(map(_key, runs[first])) == sorted(map(_key, runs[second])):
            mean = error = 0.0  # not what rounding left
        judged = len(_judged(runs[first]) & _judged(runs[second]))
        return effect_of(mean, error, judged, confidence)


def _judged(runs: Sequence[Run]) -> set[int]:
    return {run.seed for run in runs if run.judged}


def _key(run: Run) -> tuple[int, float, float]:
    return run.seed, run.rate, run.loss


class _Model:
    """The least-squares fit of a level and a linear term by arm, one curvature, and an effect of each seed.

    The seeds' effects are eliminated first. The normal equations of the others are a sum over seeds, of which one is
    taken away to leave a seed out. So the cost grows with the number of runs alone. Only differences of levels are
    used. A constant that levels and seeds could share does not matter. A seed counts once in each arm, however many
    rates it was run at. Runs of one seed and arm are nearly copies of each other.
    """

    def __init__(self, runs: Mapping[str, Sequence[Run]]):
        self.arms = list(runs)
        center = {arm: float(np.mean([run.rate for run in runs[arm] if run.judged])) for arm in runs}
        places = {arm: {round(run.rate - center[arm], 9) for run in runs[arm]} for arm in runs}
        curved = any(len(found) >= _CURVED for found in places.values())
        rows = [(i, run, run.rate - center[arm]) for i, arm in enumerate(self.arms) for run in runs[arm]
                if curved or abs(run.rate - center[arm]) < 1e-9]
        # No run says how an arm trains beyond its own rates: next to a rate at which it diverges, it is not credited.
        self.low = np.array([max(-_REACH, min(places[arm])) for arm in runs])
        self.high = np.array([min(_REACH, max(places[arm])) for arm in runs])
        self._judged = {run.seed for _, run, _ in rows if run.judged}
        at = Counter((i, run.seed) for i, run, _ in rows)
        by_seed: dict[int, list[tuple[int, Run, float]]] = {}
        for row in rows:
            by_seed.setdefault(row[1].seed, []).append(row)
        self.parts = {seed: self._part(by_seed[seed], at) for seed in sorted(by_seed)}
        self.whole = sum(self.parts.values(), start=np.zeros_like(next(iter(self.parts.values()))))

    def _part(self, rows: Sequence[tuple[int, Run, float]], at: Mapping[tuple[int, int], int]) -> np.ndarray:
        """Return a seed's part of the normal equations, [left side | right side], its own effect eliminated."""
        count = len(self.arms)
        weights = np.array([1 / at[i, run.seed] for i, run, _ in rows])
        design = np.zeros((len(rows), 2 * count + 2))  # the last column is the loss
        for row, (i, run, place) in enumerate(rows):
            design[row, i], design[row, count + i], design[row, 2 * count:] = 1.0, place, (place**2, run.loss)
        design -= weights @ design / weights.sum()
        return design[:, :-1].T @ (design * weights[:, None])

    def clusters(self) -> list[int]:
        """The seeds to leave out one by one; a lone tuning seed stays, since without it no linear term is known."""
        tuning = [seed for seed in self.parts if seed not in self._judged]
        return [seed for seed in self.parts if seed in self._judged or len(tuning) > 1]

    def minima(self, without: int | None) -> dict[str, float]:
        """Return each arm's least loss, fitted without the runs of one seed."""
        if without is None:
            equations = self.whole
        else:  # summed anew: a difference of sums would leave their rounding where nothing else is left
            equations = sum((part for seed, part in self.parts.items() if seed != without),
                            start=np.zeros_like(self.whole))
        count = len(self.arms)
        fitted = np.linalg.lstsq(equations[:, :-1], equations[:, -1], rcond=_SINGULAR)[0]
        bend = fitted[2 * count]
        lines = fitted[count:2 * count]
        places = np.clip(-lines / (2 * bend), self.low, self.high) if bend > 0 else np.zeros(count)
        least = fitted[:count] + lines * places + bend * places**2
        return {arm: float(value) for arm, value in zip(self.arms, least, strict=True)}
