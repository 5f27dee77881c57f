"""The forms that a difference may take over sizes, each fitted by weighted least squares.

Δ(N) is an activation's difference to the baseline at N parameters:

* constant: Δ = c
* power law: Δ = c (N / N₀)^(−a), the exponent a shared by all activations
* changing sign: Δ = c + b (N / N₀)^(−a), with c + b log(N / N₀) as its limit at a = 0

Exponents are mixed by how likely the rungs make them. With a few rungs no form can be told from its neighbours, so a
forecast takes none for granted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

FORMS = ("constant", "power law", "changing sign")
_EXPONENTS = np.linspace(-0.4, 1.0, 29)  # of the number of parameters: effects that grow, and that vanish quickly
_BENDS = np.linspace(0.0, 0.6, 7)  # from a line over the logarithm to one that nears its limit quickly
_REJECTED = 0.01  # the probability of a misfit at which a form is set aside
_LEAST = 1e-18  # of a variance: a twin shows none
_NOISE_TREND = 0.3  # how much noise usually changes with size: the std of the exponent of its variance


@dataclass(frozen=True)
class Point:
    """One rung's difference of one arm in bits per byte, its standard error, and the seeds behind it."""

    parameters: float
    mean: float
    error: float
    seeds: int


@dataclass(frozen=True)
class Noise:
    """The variance of one seed's difference: ``level`` at ``reference`` parameters, a power law of them."""

    level: float
    exponent: float
    reference: float
    freedom: int

    def variance(self, parameters: float, seeds: float) -> float:
        """Return the variance of a mean over seeds at a size."""
        return self.level * (parameters / self.reference) ** self.exponent / seeds


@dataclass(frozen=True)
class Fit:
    """A form's forecast at one size: the mean, its standard error, whether the rungs reject the form."""

    form: str
    mean: float
    error: float
    rejected: bool


def noises(points: Mapping[str, Sequence[Point]]) -> dict[str, Noise]:
    """Return each arm's noise, from its standard errors at all rungs.

    Its change with size is common to the arms, and held near none: a few seeds per rung tell little of it.
    """
    reference = math.exp(np.mean([math.log(p.parameters) for arm in points.values() for p in arm]))
    exponent = _exponent(points)
    found = {}
    for arm, rungs in points.items():
        freedom = sum(p.seeds - 1 for p in rungs)
        level = math.fsum((p.seeds - 1) * p.seeds * p.error**2 * (p.parameters / reference) ** -exponent
                          for p in rungs) / freedom
        found[arm] = Noise(max(level, _LEAST), exponent, reference, freedom)
    return found


def _exponent(points: Mapping[str, Sequence[Point]]) -> float:
    """Return the exponent of the variances over sizes, drawn towards zero as far as it is uncertain."""
    top = bottom = 0.0
    for rungs in points.values():
        known = [p for p in rungs if p.error > 0]
        if len(known) < 2:
            continue
        weight = np.array([1 / special.polygamma(1, (p.seeds - 1) / 2) for p in known])
        x = np.array([math.log(p.parameters) for p in known])
        # The logarithm of a variance from few seeds lies below that of the true one, by a known amount.
        y = np.array([math.log(p.seeds * p.error**2) - special.digamma((p.seeds - 1) / 2)
                      + math.log((p.seeds - 1) / 2) for p in known])
        x = x - np.average(x, weights=weight)
        top, bottom = top + float(np.sum(weight * x * y)), bottom + float(np.sum(weight * x * x))
    if bottom == 0:
        return 0.0
    shared = 2.0  # arms share the baseline's runs, so they tell less than as many alone
    error = shared / bottom
    return top / bottom * _NOISE_TREND**2 / (_NOISE_TREND**2 + error)


def fits(points: Mapping[str, Sequence[Point]], noise: Mapping[str, Noise], size: float) -> dict[str, list[Fit]]:
    """Return each arm's fits of all forms, at a size. Every arm needs two rungs or more."""
    found: dict[str, list[Fit]] = {arm: [] for arm in points}
    for shape in _SHAPES:
        each = {arm: np.array([_at(shape, rungs, noise[arm], a, size) for a in shape.exponents])
                for arm, rungs in points.items()}
        weights = _weights(each, noise)
        for arm in points:
            found[arm].append(_mixed(shape.name, each[arm], noise[arm], weights))
    return found


def _linear(columns: np.ndarray, at: np.ndarray, rungs: Sequence[Point], noise: Noise
            ) -> tuple[float, float, float, int]:
    """Return (mean, variance, misfit, degrees of freedom of the misfit) of a linear form with these columns."""
    root = np.array([noise.variance(p.parameters, p.seeds) for p in rungs]) ** -0.5
    design, values = columns * root[:, None], np.array([p.mean for p in rungs]) * root
    inverse = np.linalg.pinv(design.T @ design)
    fitted = inverse @ design.T @ values
    misfit = float(np.sum((values - design @ fitted) ** 2))
    left = len(rungs) - columns.shape[1]
    inflation = max(1.0, misfit / left) if left > 0 else 1.0  # a form that fits badly is not as sure as its seeds
    return float(at @ fitted), float(at @ inverse @ at) * inflation, misfit, left


@dataclass(frozen=True)
class _Shape:
    """A form: its columns over relative sizes by the exponent, and the exponents that it may have."""

    name: str
    columns: Callable[[np.ndarray, float], np.ndarray]
    exponents: Sequence[float] | np.ndarray


def _constant(relative: np.ndarray, _: float) -> np.ndarray:
    return np.ones((len(relative), 1))


def _power(relative: np.ndarray, exponent: float) -> np.ndarray:
    return (relative**-exponent)[:, None]


def _changing(relative: np.ndarray, exponent: float) -> np.ndarray:
    along = np.log(relative) if exponent == 0 else (1 - relative**-exponent) / exponent
    return np.stack([np.ones(len(relative)), along], axis=1)


_SHAPES = (_Shape(FORMS[0], _constant, (0.0,)), _Shape(FORMS[1], _power, _EXPONENTS),
           _Shape(FORMS[2], _changing, _BENDS))


def _at(shape: _Shape, rungs: Sequence[Point], noise: Noise, exponent: float, size: float
        ) -> tuple[float, float, float, int]:
    columns = shape.columns(np.array([p.parameters for p in rungs]) / noise.reference, exponent)
    return _linear(columns, shape.columns(np.array([size / noise.reference]), exponent)[0], rungs, noise)


def _weights(each: Mapping[str, np.ndarray], noise: Mapping[str, Noise]) -> np.ndarray:
    """Return how likely each exponent is, by the misfits of all arms together."""
    misfits = np.stack([fitted[:, 2] for fitted in each.values()], axis=1)
    freedom = np.array([noise[arm].freedom for arm in each])
    together = np.sum((freedom + 1) / 2 * np.log1p(misfits / freedom), axis=1)
    together = together / (1 + (len(each) - 1) / 4)  # arms share the baseline's runs
    weights = np.exp(together.min() - together)
    return weights / weights.sum()


def _mixed(name: str, each: np.ndarray, noise: Noise, weights: np.ndarray) -> Fit:
    """Return a form's fit: the mixture over its exponents, so that its error covers theirs."""
    mean = float(weights @ each[:, 0])
    variance = float(weights @ (each[:, 1] + (each[:, 0] - mean) ** 2))
    misfit, left = float(each[:, 2].min()), int(each[0, 3])
    chance = special.fdtrc(left, noise.freedom, misfit / left) if left > 0 else 1.0
    return Fit(name, mean, math.sqrt(variance), bool(chance < _REJECTED))
