"""Ladders of simulated runs with known truths: how often forecasts hold, without training anything.

A run's loss is that of :mod:`nonlin.study.simulated`: a parabola over the logarithm of the learning rate, with noise.
Its best rate follows the rule of transfer, or leaves it; its difference to the baseline is a known function of size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nonlin import streams
from nonlin.ladder.design import Rung, Settings, design
from nonlin.ladder.forecast import Rule, Widening, forecast
from nonlin.ladder.points import Finished, points
from nonlin.ladder.rates import Carried, Check, Standard, carry, check
from nonlin.study import defaults, simulated
from nonlin.study.plan import Plan, make_plan
from nonlin.study.request import Arm, Request

SIZES = (50e3, 100e3, 210e3, 450e3, 900e3)


@dataclass(frozen=True)
class Truth:
    """An arm's difference to the baseline at N parameters, in bits per byte, N₀ being the smallest rung's:

    constant + trend · log(N / N₀) + power · (N / N₀)^(−exponent).
    """

    constant: float = 0.0
    trend: float = 0.0
    power: float = 0.0
    exponent: float = 0.0

    def at(self, size: float, smallest: float) -> float:
        """Return the difference at a size."""
        along = math.log(size / smallest)
        return self.constant + self.trend * along + self.power * math.exp(-self.exponent * along)


@dataclass(frozen=True)
class World:
    """Truths of the arms but the baseline. ``drifts`` has the distance of the best rate from the rule's, by arm, the
    baseline first. It is in steps by a factor of 2 for each factor of e in size. ``noise`` is that of the smallest
    rung; its variance goes with size to the power ``noise_exponent``. ``scatter``: the standard deviation of a rung's
    difference around the truth that no seed shows, in bits per byte.
    """

    truths: Sequence[Truth]
    drifts: Sequence[float] = ()
    noise: simulated.World = field(default_factory=lambda: replace(simulated.DEFAULT, places=0.5))
    noise_exponent: float = -0.2
    scatter: float = 0.0


#: The default noise, of which the smallest models have most; and a fifth of it, as many seeds of large models have.
NOISY = World(())
QUIET = World((), noise=replace(NOISY.noise, arm_noise=0.002, seed_noise=0.006))


def worlds() -> dict[str, World]:
    """Return the worlds of the record: what holds in them, and the truths."""
    flat = (Truth(-0.04), Truth(0.02), Truth(-0.02))
    shrinking = tuple(Truth(power=p, exponent=0.3) for p in (-0.05, 0.03, -0.02))
    turning = (Truth(-0.02, trend=0.01), Truth(0.015, trend=-0.008), Truth(trend=0.005))
    bending = (Truth(0.02, power=-0.05, exponent=0.4), Truth(-0.03, power=0.05, exponent=0.3), Truth())
    own, shared = (0.0, 0.3, -0.2, 0.1), (0.3, 0.3, 0.3, 0.3)
    return {
        "no effect": replace(NOISY, truths=(Truth(),) * 3),
        "constant": replace(NOISY, truths=flat),
        "shrinking": replace(NOISY, truths=shrinking),
        "sign change": replace(NOISY, truths=turning),
        "wrong rule of transfer": replace(NOISY, truths=flat, drifts=own),
        "no effect, little noise": replace(QUIET, truths=(Truth(),) * 3),
        "constant, little noise": replace(QUIET, truths=flat),
        "shrinking, little noise": replace(QUIET, truths=shrinking),
        "sign change, little noise": replace(QUIET, truths=turning),
        "sign change that levels off, little noise": replace(QUIET, truths=bending),
        "wrong rule of transfer, little noise": replace(QUIET, truths=flat, drifts=own),
        "wrong rule of transfer, alike for all, little noise": replace(QUIET, truths=flat, drifts=shared),
        "rungs scatter by 0.003, little noise": replace(QUIET, truths=flat, scatter=0.003),
    }


class Ladder:
    """One simulated ladder: its rungs run when they are asked for."""

    def __init__(self, world: World, number: int, sizes: Sequence[float] = SIZES, seeds: int = 3):
        self.world, self.number, self.seeds = world, number, seeds
        self.rungs = design(sizes, Settings(seeds=seeds, longer=0))
        self.rule, self.base = Standard(), self.rungs[0]
        random = streams.generator("simulated ladder", number)
        arms = len(world.truths) + 1
        self.drifts = np.array(list(world.drifts) or [0.0] * arms)
        self.offsets = random.uniform(-1, 1, arms) * world.noise.places + random.uniform(-0.5, 0.5)
        self.scatter = random.standard_normal((len(self.rungs) + 1, arms)) * world.scatter
        self.finished: list[Finished] = []
        self.carried: Carried | None = None
        self.check: Check | None = None

    def truth(self, size: float) -> list[float]:
        """Return the arms' differences at a size, the baseline's first."""
        return [0.0, *(truth.at(size, self.base.parameters) for truth in self.world.truths)]

    def run(self) -> None:
        """Run every rung."""
        for index, one in enumerate(self.rungs):
            if one.role != "tuned" and self.carried is None:
                self.carried = carry(self.rule, [(r, f["arms"]) for r, f in self.finished])
            plan = self._plan(one)
            runs = simulated.Runs(self._noise(one, index), plan, 100 * self.number + index)
            runs.best = self.offsets + self.drifts * math.log(one.parameters / self.base.parameters)
            results = simulated.finished(runs, plan)
            self.finished.append((one, results))
            if one.role == "checked" and self.carried is not None:
                tuned = [r for r in self.rungs if r.role == "tuned"]
                self.check = check(self.carried, tuned, one, results["arms"])

    def _noise(self, one: Rung, index: int) -> simulated.World:
        """The world of one rung, as the study's simulation takes it."""
        share = (one.parameters / self.base.parameters) ** (self.world.noise_exponent / 2)
        noise = self.world.noise
        effects = np.array(self.truth(one.parameters)) + self.scatter[index]
        return replace(noise, effects=tuple(effects), shared=0.0, places=0.0,
                       seed_noise=noise.seed_noise * share, arm_noise=noise.arm_noise * share)

    def _plan(self, one: Rung) -> Plan:
        middle = defaults.LEARNING_RATE * self.rule.factor(self.base, one)
        rates = {} if one.role == "tuned" or self.carried is None else self.carried.to(one)
        names = [f"arm-{i}" for i in range(len(self.world.truths) + 1)]
        arms = [Arm(name, "pointwise", 4 * one.dim, one.parameters, activation="gelu", stream=name,
                    learning_rate=rates.get(name)) for name in names]
        model = {"layers": one.layers, "dim": one.dim, "heads": one.heads, "kv_heads": one.heads, "context": 64,
                 "vocabulary": 256}
        request = Request(arms, names[0], model, {"sha256": "0" * 64, "tokenizer": "bytes"}, minutes=None,
                          steps=one.steps, seeds=self.seeds, role=one.role, learning_rate=middle)
        return make_plan(request, dict.fromkeys(names, 1e5), {"engine": "torch"})

    def widening(self) -> Widening | None:
        """Return what rates that moved may cost, by the check of the middle rung."""
        checked = self.check
        return None if checked is None else lambda arm, size: checked.widening("arm-0", arm, size)


@dataclass(frozen=True)
class Coverage:
    """Shares of simulated ladders. ``held_out``: all intervals hold what the top rung measured. ``target``: all hold
    the truth at the target; ``each`` counts intervals one by one. ``false``: some verdict at the target contradicts the
    truth. ``decided``: of all verdicts there. ``half_width``: the median, in bits per byte.
    """

    held_out: float
    target: float
    each: float
    false: float
    decided: float
    half_width: float


def coverage(world: World, ladders: int, beyond: float = 3.0, sizes: Sequence[float] = SIZES, seeds: int = 3,
             margin: float = defaults.MARGIN_BITS_PER_BYTE, confidence: float = defaults.CONFIDENCE,
             widened: bool = True) -> Coverage:
    """Return how forecasts do in a world: of the top rung from those below it, and of ``beyond`` times its size.

    Without ``widened`` intervals are not widened by rates that moved, to see what that is worth.
    """
    rule = Rule(margin, confidence, seeds)
    tops, targets, each, false, decided, widths = [], [], [], [], [], []
    for number in range(ladders):
        ladder = Ladder(world, number, sizes, seeds)
        ladder.run()
        widening = ladder.widening() if widened else None
        top = ladder.rungs[-1].parameters
        measured = {arm: rungs[-1] for arm, rungs in points(ladder.finished).items()}
        made = forecast(points(ladder.finished[:-1]), top, rule, widening)
        tops.append(all(made[arm].holds(there.mean) for arm, there in measured.items()))
        far = forecast(points(ladder.finished), beyond * top, rule, widening)
        truths = dict(zip(far, ladder.truth(beyond * top)[1:], strict=True))
        holds = [far[arm].holds(truth) for arm, truth in truths.items()]
        targets.append(all(holds))
        each += holds
        false.append(any(_contradicts(far[arm].verdict, truth, margin) for arm, truth in truths.items()))
        decided += [one.verdict != "undecided" for one in far.values()]
        widths += [one.half_width or 0.0 for one in far.values()]
    return Coverage(float(np.mean(tops)), float(np.mean(targets)), float(np.mean(each)), float(np.mean(false)),
                    float(np.mean(decided)), float(np.median(widths)))


def _contradicts(verdict: str, truth: float, margin: float) -> bool:
    return {"better": truth >= 0, "worse": truth <= 0, "tie": abs(truth) > margin}.get(verdict, False)
