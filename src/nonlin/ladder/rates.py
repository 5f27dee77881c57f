"""Best learning rates: where they lie at a rung, how they are carried upward, what it costs where they move.

At a rung of three rates or more, each arm's losses are a parabola over the logarithm of the rate. The arms share its
curvature, and every seed of an arm has a level of its own. The vertex is the arm's best rate, with its standard error.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import special

from nonlin.ladder.design import Rung
from nonlin.training.transfer import standard_deviations, transfer_of

_REACH = 1.0  # how far from its rates a vertex may lie, in steps between them


class Rule(Protocol):
    """A rule of transfer: from the best rate of one model to that of another."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...

    def factor(self, small: Rung, large: Rung) -> float:
        """Return the best rate of ``large`` over that of ``small``."""
        ...

    def training(self, one: Rung, base: Rung, learning_rate: float, own: Mapping[str, Any] | None = None
                 ) -> dict[str, Any]:
        """Return what the recipe of a rung needs besides its rate; ``base`` is the smallest rung, with its rate.

        ``own`` is the description of the base's model, where that is of a user's own architecture.
        """
        ...


@dataclass(frozen=True)
class Standard:
    """One rate for all parameters, by the model's size; for longer horizons by the number of tokens.

    rate ∝ N^(−1/3) at fixed tokens per parameter (OLMo-core's ladder); (T₀/T)^0.3 for another horizon.
    """

    name: str = "standard"
    source: str = "OLMo-core's ladder: rate ∝ N^(−1/3); Complete(d)P, arXiv:2512.22382: (T₀/T)^0.3 for longer horizons"

    def factor(self, small: Rung, large: Rung) -> float:
        """Return the best rate of ``large`` over that of ``small``."""
        return (large.parameters / small.parameters) ** (-1 / 3) * (small.longer / large.longer) ** 0.3

    def training(self, one: Rung, base: Rung, learning_rate: float, own: Mapping[str, Any] | None = None
                 ) -> dict[str, Any]:
        """Nothing: the rate alone differs."""
        return {}


@dataclass(frozen=True)
class CompleteP:
    """Rates, initial values and epsilon by parameter group (:mod:`nonlin.training.transfer`): one base rate for all.

    The rate of a run is that of the base's; the recipe's rule does the rest, and a longer
    horizon lowers the rate by (T₀/T)^0.3. Weight decay is measured in the middle rate of the grid, one for all arms.
    """

    name: str = "completep"
    source: str = "CompleteP, arXiv:2505.01618 and 2512.22382; independent weight decay, arXiv:2510.19093"

    def factor(self, small: Rung, large: Rung) -> float:
        """Return the best rate of ``large`` over that of ``small``: only a longer horizon changes it."""
        return (small.longer / large.longer) ** 0.3

    def training(self, one: Rung, base: Rung, learning_rate: float, own: Mapping[str, Any] | None = None
                 ) -> dict[str, Any]:
        """Return the recipe's "transfer": the base's shape, and the rate that weight decay is measured in."""
        shape: dict[str, Any] = {"layers": base.layers, "dim": base.dim, "heads": base.heads, "kv_heads": base.heads}
        if own is not None:
            shape["std"] = standard_deviations(own)
        return {"transfer": transfer_of("completep", shape, learning_rate)}


#: By name.
RULES: dict[str, Rule] = {one.name: one for one in (CompleteP(), Standard())}


@dataclass(frozen=True)
class Optimum:
    """An arm's best rate at a rung: its natural logarithm, the standard error of that, its degrees of freedom."""

    place: float
    error: float
    freedom: int

    @property
    def rate(self) -> float:
        """The best rate."""
        return math.exp(self.place)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the interval of the rate."""
        half = -float(special.stdtrit(self.freedom, (1 - confidence) / 2)) * self.error
        return math.exp(self.place - half), math.exp(self.place + half)


@dataclass(frozen=True)
class Optima:
    """The best rates of a rung by arm, and the curvature. A loss rises by it times the squared logarithm of the
    rate's distance, in bits per byte."""

    by_arm: Mapping[str, Optimum]
    curvature: float | None


def optima(arms: Iterable[Mapping[str, Any]]) -> Optima:
    """Return the best rates at a rung, from the arms of its results.

    An arm counts with its best rate and the neighbours of it; one that trains at a single rate shows no best one.
    Without a curvature there are no optima: the losses
    fall, or rise, over all rates of all arms.
    """
    near = {arm["name"]: _near(arm["tuning"]) for arm in arms}
    runs = {arm: some for arm, some in near.items() if len({place for _, place, _ in some}) > 1}
    rows = [(i, seed, place, loss) for i, arm in enumerate(runs) for seed, place, loss in runs[arm]]
    levels = {key: k for k, key in enumerate(dict.fromkeys((i, seed) for i, seed, _, _ in rows))}
    count, left = len(runs), len(rows) - len(levels) - len(runs) - 1
    if left < 1:
        return Optima({}, None)
    middle = [float(np.mean([place for _, place, _ in runs[arm]])) for arm in runs]
    design = np.zeros((len(rows), len(levels) + count + 1))
    for row, (i, seed, place, _) in enumerate(rows):
        design[row, levels[i, seed]], design[row, len(levels) + i] = 1.0, place - middle[i]
        design[row, -1] = (place - middle[i]) ** 2
    losses = np.array([loss for _, _, _, loss in rows])
    inverse = np.linalg.pinv(design.T @ design)
    fitted = inverse @ design.T @ losses
    noise = float(np.sum((losses - design @ fitted) ** 2)) / left
    bend = float(fitted[-1])
    if bend <= 0:
        return Optima({}, None)
    found = {}
    for i, arm in enumerate(runs):
        line, at = float(fitted[len(levels) + i]), len(levels) + i
        places = sorted({place for _, place, _ in runs[arm]})
        step = (places[-1] - places[0]) / max(1, len(places) - 1)
        low, high = places[0] - _REACH * step, places[-1] + _REACH * step
        derivative = np.zeros(design.shape[1])
        derivative[at], derivative[-1] = -1 / (2 * bend), line / (2 * bend**2)
        error = math.sqrt(noise * float(derivative @ inverse @ derivative))
        found[arm] = Optimum(min(high, max(low, middle[i] - line / (2 * bend))), error, left)
    return Optima(found, bend)


def _near(tuning: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """Return (seed, log rate, loss) of the finished tuning runs at the best rate and its neighbours."""
    rates = sorted({run["learning_rate"] for run in tuning})
    means = []
    for rate in rates:
        losses = [run["bits_per_byte"] for run in tuning if run["learning_rate"] == rate]
        means.append(math.inf if None in losses else math.fsum(losses) / len(losses))
    if not rates or min(means) == math.inf:
        return []
    best = means.index(min(means))
    best = min(max(best, 1), max(1, len(rates) - 2))  # three rates where there are so many
    taken = {rate for i, rate in enumerate(rates) if abs(i - best) <= 1 and means[i] < math.inf}
    return [(run["seed"], math.log(run["learning_rate"]), run["bits_per_byte"]) for run in tuning
            if run["learning_rate"] in taken]


@dataclass(frozen=True)
class Carried:
    """Each arm's best rate at the smallest rung, joined from the tuned ones by the rule of transfer."""

    rule: Rule
    base: Rung
    at_base: Mapping[str, Optimum]

    def to(self, one: Rung) -> dict[str, float]:
        """Return each arm's rate at a rung, to three digits: it is part of a run's name."""
        factor = self.rule.factor(self.base, one)
        return {arm: float(f"{optimum.rate * factor:.3g}") for arm, optimum in self.at_base.items()}

    def optimum(self, arm: str, one: Rung) -> Optimum:
        """Return an arm's carried rate at a rung with its standard error."""
        here = self.at_base[arm]
        return Optimum(here.place + math.log(self.rule.factor(self.base, one)), here.error, here.freedom)


def carry(rule: Rule, tuned: Sequence[tuple[Rung, Sequence[Mapping[str, Any]]]]) -> Carried:
    """Return the rates to carry upward, from the tuned rungs and the arms of their results.

    An arm with optima at several rungs gets their mean, weighted by the inverse of their variances. No optimum counts
    as much surer than the others. An arm without any gets the rate that its study chose.
    """
    base = tuned[0][0]
    found: dict[str, list[Optimum]] = {}
    for one, arms in tuned:
        there = optima(arms)
        shift = math.log(rule.factor(base, one))
        for arm in arms:
            known = there.by_arm.get(arm["name"])
            if known is None and arm["learning_rate"] is not None:
                known = Optimum(math.log(arm["learning_rate"]), _UNKNOWN, 1)
            if known is not None:
                found.setdefault(arm["name"], []).append(Optimum(known.place - shift, known.error, known.freedom))
    return Carried(rule, base, {arm: _joined(some) for arm, some in found.items()})


_UNKNOWN, _FLOOR = 0.35, 0.1  # half a step of a grid by a factor of 2; an error that no optimum is taken to be below


def _joined(some: Sequence[Optimum]) -> Optimum:
    weights = [1 / (one.error**2 + _FLOOR**2) for one in some]
    shares = [weight / math.fsum(weights) for weight in weights]
    place = math.fsum(share * one.place for share, one in zip(shares, some, strict=True))
    error = math.sqrt(math.fsum((share * one.error) ** 2 for share, one in zip(shares, some, strict=True)))
    return Optimum(place, error, sum(one.freedom for one in some))


@dataclass(frozen=True)
class Check:
    """The check of the rule at a middle rung.

    ``moved``: by arm, how far the best rate lies from the carried one (in the logarithm), and the standard error.
    ``drift``: the same, drawn towards what chance explains. ``start`` and ``at`` are the sizes between which it moved.
    """

    moved: Mapping[str, tuple[float, float]]
    drift: Mapping[str, float]
    freedom: int
    curvature: float
    start: float
    at: float

    def cost(self, arm: str, size: float) -> float:
        """Return the cost of an arm's carried rate at a size in bits per byte, if the best one moves on as it did."""
        along = math.log(size / self.start) / math.log(self.at / self.start)
        return self.curvature * (self.drift.get(arm, 0.0) * max(0.0, along)) ** 2

    def widening(self, baseline: str, arm: str, size: float) -> float:
        """Return how wrong a difference to the baseline may be at a size by rates that moved, in bits per byte."""
        return abs(self.cost(arm, size) - self.cost(baseline, size))

    def surely(self, arm: str, confidence: float = 0.95) -> bool:
        """Whether an arm's best rate moved by more than chance."""
        moved, error = self.moved[arm]
        return bool(abs(moved) > -float(special.stdtrit(self.freedom, (1 - confidence) / 2)) * error)


def check(carried: Carried, tuned: Sequence[Rung], one: Rung, arms: Sequence[Mapping[str, Any]]) -> Check | None:
    """Return what the checked rung says of the rule; None where its losses show no optimum.

    The part of the movement that all arms share is separated from each arm's own. Of either the part that chance
    explains is left out: half of all arms would else be said to move.
    """
    there = optima(arms)
    names = [name for name in there.by_arm if name in carried.at_base]
    if there.curvature is None or not names:
        return None
    moved = {}
    for name in names:
        known, expected = there.by_arm[name], carried.optimum(name, one)
        moved[name] = (known.place - expected.place, math.hypot(known.error, expected.error))
    values, errors = np.array([moved[name][0] for name in names]), np.array([moved[name][1] for name in names])
    shared = float(np.mean(values))
    common = _beyond_chance(np.array([shared]), float(np.mean(errors**2)) / len(names), 1)
    own = _beyond_chance(values - shared, float(np.mean(errors**2)), len(names) - 1)
    drift = {name: float(shared * common + (value - shared) * own) for name, value in zip(names, values, strict=True)}
    start = math.exp(float(np.mean([math.log(rung.parameters) for rung in tuned])))
    return Check(moved, drift, there.by_arm[names[0]].freedom, there.curvature, start, one.parameters)


def _beyond_chance(values: np.ndarray, variance: float, freedom: int) -> float:
    """Return the share of these values that chance does not explain (James and Stein's positive part)."""
    total = float(np.sum(values**2))
    return max(0.0, 1 - variance * freedom / total) if total > 0 and freedom > 0 else 0.0
