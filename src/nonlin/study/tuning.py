"""The trials that a plan asks for next, as a pure function of the records so far."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nonlin.study import defaults
from nonlin.study.plan import Plan, next_rate
from nonlin.training.config import config_hash

#: Records of trials by the hash of their configuration.
Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """One run of the plan; ``key`` is the hash of ``config``."""

    key: str
    arm: str
    purpose: str
    learning_rate: float
    seed: int
    config: dict[str, Any]
    request: str = "trial"

    @property
    def name(self) -> str:
        """The trial in words."""
        return f"{self.arm}, {self.purpose}, learning rate {self.learning_rate:g}, seed {self.seed}"


def trial(plan: Plan, arm: str, purpose: str, learning_rate: float, seed: int) -> Trial:
    """Return the trial of these values; made once for a plan, since every look at a study asks for all of them."""
    place = arm, purpose, learning_rate, seed
    if place not in plan.made:
        config = plan.config(*place)
        plan.made[place] = Trial(config_hash(config), *place, config)
    return plan.made[place]


def tune_trials(plan: Plan, arm: str, rates: Iterable[float]) -> list[Trial]:
    """Return the tuning trials of an arm at these rates."""
    return [trial(plan, arm, "tune", rate, seed) for rate in rates for seed in plan.tune_seeds]


def tune_loss(plan: Plan, arm: str, rate: float, records: Records) -> float | None:
    """Return the mean final bits per byte at a rate: infinite if a run diverged, None if one is missing."""
    found = [records.get(t.key) for t in tune_trials(plan, arm, [rate])]
    if any(record is None for record in found):
        return None
    losses = [record["bits_per_byte"] if record["status"] == "finished" else None for record in found if record]
    return math.inf if any(x is None for x in losses) else math.fsum(losses) / len(losses)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Tuning:
    """The state of an arm's tuning: the rates it asks for so far, in order, and their losses.

    ``done``: nothing is missing. ``best``: the rate that judged runs take (see :func:`vertex`), None while not done
    and where every run diverged. ``near``: the rates that decided it. ``at_edge``: the best has no worse neighbour on
    one side, though the grid grew as far as it may.
    """

    rates: list[float]
    losses: list[float | None]
    done: bool
    best: float | None
    at_edge: bool
    near: tuple[float, ...] = ()


def tuning(plan: Plan, arm: str, records: Records) -> Tuning:
    """Return the state of an arm's tuning.

    The grid grows by one point towards the edge that holds the best, and downwards where every run diverged,
    ``plan.learning_rate_extensions`` times at most. An arm whose rate was carried here keeps it, whatever its
    neighbours say.
    """
    rates, carried = plan.tuning_rates(arm), plan.arm(arm).get("learning_rate")
    for grown in range(plan.learning_rate_extensions + 1):
        losses = [tune_loss(plan, arm, rate, records) for rate in rates]
        if None in losses:
            return Tuning(rates, losses, False, None, False)
        if carried is not None:
            near = tuple(rate for rate, loss in zip(rates, losses, strict=True) if loss is not None and loss < math.inf)
            return Tuning(rates, losses, True, carried, False, near)
        best = min(range(len(rates)), key=losses.__getitem__)  # type: ignore[arg-type]
        diverged = losses[best] == math.inf
        low, high = best == 0 or diverged, best == len(rates) - 1 and not diverged
        if grown == plan.learning_rate_extensions or not (low or high):
            chosen, near = _choose(plan, rates, losses, best)  # type: ignore[arg-type]
            return Tuning(rates, losses, True, None if diverged else chosen, low or high, near)
        if low:
            rates.insert(0, next_rate(rates[0], plan.learning_rate_factor, -1))
        else:
            rates.append(next_rate(rates[-1], plan.learning_rate_factor, 1))
    raise AssertionError("the loop returns")


def _choose(plan: Plan, rates: list[float], losses: list[float], best: int) -> tuple[float, tuple[float, ...]]:
    """Return the rate of the judged runs, and the grid's rates that it was chosen from: the best and its neighbours."""
    near = [i for i in (best - 1, best, best + 1) if 0 <= i < len(rates) and losses[i] < math.inf]
    if plan.rule.get("method") != "response":
        return rates[best], ()
    places = vertex([losses[i] for i in near]) if len(near) == 3 else 0.0
    steps = round(places * defaults.RATE_STEPS)
    return next_rate(rates[best], plan.learning_rate_factor, steps / defaults.RATE_STEPS), tuple(rates[i] for i in near)


def vertex(losses: Sequence[float]) -> float:
    """Return where the parabola through three losses is least, in grid steps from the middle one, the least of them.

    It lies within half a step. The mean of two noisy seeds tells neighbouring rates apart badly, and the place of their
    parabola well. Choosing the least point of the grid costs a study several times as much error.

    >>> vertex([2.0, 1.0, 2.0]), round(vertex([1.5, 1.0, 2.0]), 3)
    (0.0, -0.167)
    """
    low, middle, high = losses
    bend = low + high - 2 * middle
    return max(-0.5, min(0.5, (low - high) / (2 * bend))) if bend > 0 else 0.0


def judge_trials(plan: Plan, arm: str, records: Records) -> list[Trial]:
    """Return an arm's judged trials: none before its tuning is done, or where every tuning run diverged."""
    best = tuning(plan, arm, records).best
    return [] if best is None else [trial(plan, arm, "judge", best, seed) for seed in plan.judge_seeds]


def trials_of(plan: Plan, stage: str, records: Records) -> list[Trial]:
    """Return the trials of a stage ("tune" or "judge") that can run now and have no record yet.

    An arm's trials depend on its own records alone. So the set of all trials that a study runs does not depend on the
    order in which they end.
    """
    found: list[Trial] = []
    for arm in (a["name"] for a in plan.arms):
        state = tuning(plan, arm, records)
        if stage == "tune":
            found += tune_trials(plan, arm, state.rates)
        elif state.best is not None:
            found += [trial(plan, arm, "judge", state.best, seed) for seed in plan.judge_seeds]
    return [t for t in found if t.key not in records]


def complete(plan: Plan, records: Records) -> bool:
    """Return whether nothing is left to run."""
    return all(tuning(plan, a["name"], records).done for a in plan.arms) and not (
        trials_of(plan, "tune", records) or trials_of(plan, "judge", records))
