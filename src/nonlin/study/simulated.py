"""Studies of simulated runs with known truths: how often the rule of the verdicts is right, without training anything.

A run's loss is its activation's parabola (with a cubic part) over the log of the learning rate, plus noise. The noise
is a sum: of the seed, of the seed at that rate, of the activation at that seed, and of the run alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nonlin import streams
from nonlin.study.extension import extended
from nonlin.study.plan import Plan, make_plan
from nonlin.study.request import Arm, Request
from nonlin.study.results import results
from nonlin.study.schedule import Schedule
from nonlin.study.tuning import Trial


@dataclass(frozen=True)
class World:
    """Truths and noise, in bits per byte; rates count in grid steps from the middle of the grid.

    ``effects``: each arm's least loss, less the first arm's. ``places``: how far each arm's best rate may lie from the
    others'; ``shared``: how far they may all lie from the middle. ``bends``: the standard deviation of the logarithm of
    each arm's curvature. ``kept_share``: the part of an arm's noise at a seed that is the same at all rates.
    ``growth``: of an arm's noise, a grid step. ``tails``: Student's degrees of freedom of the noise, None for normal.
    """

    effects: Sequence[float] = (0.0,) * 6
    curvature: float = 0.035
    cubic: float = 0.004
    places: float = 0.0
    shared: float = 0.5
    bends: float = 0.0
    seed_noise: float = 0.02
    arm_noise: float = 0.010
    kept_share: float = 0.3
    growth: float = 1.25
    tails: float | None = None


#: The default model of 2 × 96 and 500 steps, and 1 × 48 and 300 steps, as measured (docs/log.md).
DEFAULT = World(kept_share=0.7)
SMALL = World(curvature=0.038, seed_noise=0.025, arm_noise=0.024)


def plan(arms: int, seeds: int = 8) -> Plan:
    """Return the plan of a study of so many arms, of which nothing will be trained."""
    model = {"layers": 1, "dim": 48, "heads": 3, "kv_heads": 3, "context": 64, "vocabulary": 256}
    made = [Arm(f"arm-{i}", "pointwise", 192, 100_000, activation="gelu", stream=f"arm-{i}") for i in range(arms)]
    request = Request(made, "arm-0", model, {"sha256": "0" * 64, "tokenizer": "bytes"}, minutes=None, steps=300,
                      seeds=seeds)
    return make_plan(request, {arm.name: 1e5 for arm in made}, {"engine": "torch", "dtype": "float32", "threads": 1})


class Runs:
    """The losses of one simulated study, drawn as they are asked for.

    ``best`` are the arms' best rates, in grid steps from the plan's middle one.
    """

    def __init__(self, world: World, plan: Plan, number: int):
        self.world, self.random = world, streams.generator("simulated study", number)
        self.names = {arm["name"]: i for i, arm in enumerate(plan.arms)}
        self.middle, self.factor = plan.learning_rates[len(plan.learning_rates) // 2], plan.learning_rate_factor
        count = len(self.names)
        common = self.random.uniform(-world.shared, world.shared)
        self.best = common + self.random.uniform(-1, 1, count) * world.places
        self.bend = world.curvature * np.exp(world.bends * self.random.standard_normal(count))
        self.drawn: dict[Any, Any] = {}

    def noise(self, *key: Any) -> float:
        """Return a number of unit variance, the same for the same key."""
        if key not in self.drawn:
            tails = self.world.tails
            self.drawn[key] = float(self.random.standard_normal() if tails is None else
                                    self.random.standard_t(tails) * math.sqrt((tails - 2) / tails))
        return self.drawn[key]

    def loss(self, trial: Trial) -> float:
        """Return a trial's bits per byte."""
        w, arm = self.world, self.names[trial.arm]
        place = math.log(trial.learning_rate / self.middle) / math.log(self.factor)
        far = place - self.best[arm]
        seed = math.sqrt(0.5) * (self.noise(trial.seed) + self.noise(trial.seed, place))
        own = (math.sqrt(w.kept_share) * self.noise(trial.arm, trial.seed)
               + math.sqrt(1 - w.kept_share) * self.noise(trial.arm, trial.seed, place))
        return (2.5 + w.effects[arm] + self.bend[arm] * far**2 + w.cubic * far**3 + w.seed_noise * seed
                + w.arm_noise * w.growth**place * own)


def study(world: World, plan: Plan, number: int) -> dict[str, Any]:
    """Return the results of a study whose runs are the world's, the ``number``-th of them."""
    return finished(Runs(world, plan, number), plan)


def finished(runs: Runs, plan: Plan) -> dict[str, Any]:
    """Return the results of a plan whose every run has the loss that ``runs`` say."""
    schedule = Schedule(plan)
    waiting = list(schedule.first)
    while waiting:
        trial = waiting.pop()
        waiting += schedule.add(trial.key, _record(runs.loss(trial)))
    return results(plan, schedule.records)


def extended_study(world: World, plan: Plan, number: int, more: Callable[[dict[str, Any]], int | None], stages: int = 2
                   ) -> list[dict[str, Any]]:
    """Return the results of a study at each look; ``more`` says how many seeds in all the next one has, or None.

    At most ``stages`` looks.
    """
    runs = Runs(world, plan, number)
    found = [finished(runs, plan)]
    while len(found) < stages and (seeds := more(found[-1])) is not None:
        plan = extended(plan, seeds)
        found.append(finished(runs, plan))
    return found


def as_advised(results: Mapping[str, Any], most: int = 40) -> int | None:
    """Return the seeds at which a study would be decided that has no verdict on some arm: a person's next step."""
    needed = [arm["seeds_needed"] for arm in results["arms"] if arm["verdict"] == "undecided" and arm["seeds_needed"]]
    needed += [pair["seeds_needed"] for pair in results["pairs"] if pair["seeds_needed"]]
    return min(most, min(needed)) if needed and len(results["arms"][0]["judged"]) < most else None


def _record(loss: float) -> dict[str, Any]:
    return {"status": "finished", "bits_per_byte": loss, "initial_bits_per_byte": 8.0, "parameters": 1,
            "flops_per_token": 1, "layers": None, "timing": {"seconds": 0.0}}


@dataclass(frozen=True)
class Rates:
    """Shares over simulated studies: with a false claim, of intervals that cover the truth, of effects found.

    ``false``: studies that claim anything false, of an arm and the baseline or of two better arms; ``false_verdicts``:
    of an arm and the baseline. ``error``: the root mean square error of the differences, in bits per byte.
    ``pairs_found``: of pairs that truly differ, and are both found better, those that are called different.
    """

    false: float
    false_verdicts: float
    covered: float
    found: float
    error: float
    pairs_found: float = math.nan


def rates(world: World, plan: Plan, studies: int) -> Rates:
    """Return how a plan's rule does in a world; a claim is false where its sign is not the truth's."""
    false, verdicts, covered, found, errors, pairs = 0, 0, [], [], [], []
    truths = {arm["name"]: effect for arm, effect in zip(plan.arms, world.effects, strict=True)}
    for number in range(studies):
        results = study(world, plan, number)
        for arm in results["arms"][1:]:
            truth, difference = truths[arm["name"]], arm["difference"]
            errors.append(difference["mean"] - truth)
            covered.append(difference["low"] <= truth <= difference["high"])
            if truth:
                found.append(arm["verdict"] == ("better" if truth < 0 else "worse"))
        for pair in results["pairs"]:
            if truths[pair["first"]] != truths[pair["second"]]:
                pairs.append(pair["verdict"] == "better")
        verdicts += any(false_verdicts(results, truths))
        false += any(false_verdicts(results, truths)) or any(false_pairs(results, truths))
    return Rates(false / studies, verdicts / studies, float(np.mean(covered)), _mean(found),
                 float(np.sqrt(np.mean(np.square(errors)))), _mean(pairs))


def _mean(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else math.nan


def false_verdicts(results: Mapping[str, Any], truths: Mapping[str, float]) -> list[str]:
    """Return the arms whose "better" or "worse" is not the truth."""
    return [arm["name"] for arm in results["arms"] if (arm["verdict"] == "better" and truths[arm["name"]] >= 0)
            or (arm["verdict"] == "worse" and truths[arm["name"]] <= 0)]


def false_pairs(results: Mapping[str, Any], truths: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the pairs whose first is called better and is not."""
    return [(pair["first"], pair["second"]) for pair in results["pairs"]
            if pair["verdict"] == "better" and truths[pair["first"]] >= truths[pair["second"]]]


def older(plan: Plan) -> Plan:
    """Return the plan by the former rule: the grid's best rate, and Student's test of the judged runs alone."""
    rule = {key: value for key, value in plan.rule.items() if key != "method"}
    return replace(plan, rule=rule)
