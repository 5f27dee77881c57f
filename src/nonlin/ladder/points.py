"""From the results of rungs to what a forecast takes: each arm's difference at each size."""

from collections.abc import Mapping, Sequence
from typing import Any

from nonlin.ladder.design import Rung
from nonlin.ladder.forms import Point

#: A rung with the values of its results.json.
Finished = tuple[Rung, Mapping[str, Any]]


def points(finished: Sequence[Finished]) -> dict[str, list[Point]]:
    """Return each arm's differences to the baseline by size, the smallest first; rungs of longer horizon left out.

    An arm whose judged runs diverged at a rung, or whose baseline's did, has no difference there.
    """
    found: dict[str, list[Point]] = {}
    for one, results in sorted((f for f in finished if f[0].longer == 1), key=lambda f: f[0].parameters):
        lost = {arm["name"] for arm in results["arms"] if arm["diverged_runs"] or not arm["judged"]}
        for arm in results["arms"]:
            if arm["name"] == results["baseline"]:
                continue
            rungs, difference = found.setdefault(arm["name"], []), arm["difference"]
            if difference is not None and not {arm["name"], results["baseline"]} & lost:
                rungs.append(Point(one.parameters, difference["mean"], difference["standard_error"],
                                   difference["seeds"]))
    return found


def diverged(finished: Sequence[Finished]) -> dict[str, list[str]]:
    """Return the rungs at which an arm's judged runs diverged, by arm."""
    found: dict[str, list[str]] = {}
    for one, results in finished:
        for arm in results["arms"]:
            if arm["diverged_runs"] or (not arm["judged"] and results["status"] == "complete"):
                found.setdefault(arm["name"], []).append(one.name)
    return found
