"""From measured speeds to the length of runs that fits a time budget."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

from nonlin.study import defaults
from nonlin.study.request import Request

#: By arm: tokens per second of one worker, and seconds that a run takes beside its steps.
Costs = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Prediction:
    """The steps of each arm's runs, and what they take."""

    minutes: float
    steps: dict[str, dict[str, int]]
    seconds: dict[str, dict[str, float]]


def makespan(seconds: list[float], workers: int) -> float:
    """Return when the last of these jobs ends, the longest started first.

    >>> makespan([3.0, 3.0, 2.0, 2.0, 2.0], 2)
    7.0
    """
    ends = [0.0] * min(workers, max(1, len(seconds)))
    for length in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def arm_steps(request: Request, costs: Costs, steps: int) -> dict[str, dict[str, int]]:
    """Return each arm's steps: equal, or with ``match="time"`` in proportion to its speed, the baseline at 1."""
    base = costs[request.baseline][0]
    found = {}
    for arm in request.arms:
        share = costs[arm.name][0] / base if request.match == "time" else 1.0
        judge = max(1, round(steps * share))
        found[arm.name] = {"tune_steps": max(1, round(judge * defaults.TUNE_FRACTION)), "judge_steps": judge}
    return found


def predict(request: Request, costs: Costs, workers: int, steps: int) -> Prediction:
    """Return how long the study takes with judged runs of ``steps`` steps.

    Both stages share the workers without a pause between them; tuning beyond the grid counts as
    ``defaults.EXTENSION_ALLOWANCE`` of the grid.
    """
    chosen = arm_steps(request, costs, steps)
    seconds: dict[str, dict[str, float]] = {}
    jobs: list[float] = []
    for arm, (rate, overhead) in costs.items():
        sustained = defaults.SUSTAINED_SPEED * rate
        each = {kind: overhead + chosen[arm][f"{kind}_steps"] * request.tokens_per_step / sustained
                for kind in ("tune", "judge")}
        seconds[arm] = {f"{kind}_seconds": value for kind, value in each.items()}
        runs = request.tuning_rates * defaults.TUNE_SEEDS
        runs *= 1 if request.role in ("checked", "carried") else 1 + defaults.EXTENSION_ALLOWANCE  # a grid that grows
        jobs += [each["tune"]] * math.ceil(runs) + [each["judge"]] * request.seeds
    minutes = (makespan(jobs, workers) + defaults.RESERVE_SECONDS) / 60
    return Prediction(minutes, chosen, seconds)


def choose_steps(request: Request, costs: Costs, workers: int) -> int:
    """Return the most steps, a multiple of 10, that fit the request's minutes; never fewer than the minimum.

    Text is repeated at most ``defaults.MAXIMUM_EPOCHS`` times where the data says how long it is.
    """
    most = 10_000_000
    if "train_tokens" in request.data:
        tokens = defaults.MAXIMUM_EPOCHS * request.data["train_tokens"]
        longest = max(found["judge_steps"] for found in arm_steps(request, costs, 1000).values()) / 1000
        most = int(tokens / request.tokens_per_step / longest)
    low, high = defaults.MINIMUM_STEPS // 10, max(most, defaults.MINIMUM_STEPS) // 10
    while low < high:
        middle = (low + high + 1) // 2
        fits = predict(request, costs, workers, 10 * middle).minutes <= (request.minutes or 0)
        low, high = (middle, high) if fits else (low, middle - 1)
    return 10 * low
