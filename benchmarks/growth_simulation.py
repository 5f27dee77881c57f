"""How often a study claims what is false, pairs of better arms and later stages counted; and whether the number of
seeds that is said to decide does. On simulated studies with known truths.

    python benchmarks/growth_simulation.py --studies 600 --out benchmarks/records/growth-simulation.json
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nonlin.study import simulated

MIXED, ALL_BETTER = (0, -0.05, -0.05, -0.05, 0, 0), (0, -0.05, -0.05, -0.05, -0.05, -0.05)
HARD = tuple(1.2 * effect for effect in MIXED)
PAIRS = {
    "2 × 96, no difference": simulated.DEFAULT,
    "1 × 48, no difference": simulated.SMALL,
    "2 × 96, three equal better arms and two that equal the baseline": replace(simulated.DEFAULT, effects=MIXED),
    "2 × 96, five equal better arms": replace(simulated.DEFAULT, effects=ALL_BETTER),
    "1 × 48, three equal better arms and two that equal the baseline": replace(simulated.SMALL, effects=HARD),
    "2 × 96, three better arms that differ": replace(simulated.DEFAULT, effects=(0, -0.04, -0.06, -0.09, 0, 0)),
}
STAGES = list(PAIRS)[:3]


def twice(results: dict[str, Any]) -> int | None:
    """From 8 seeds to 12, and from 12 to 20, whatever was found."""
    return {8: 12, 12: 20}.get(len(results["arms"][0]["judged"]))


POLICIES: dict[str, tuple[Callable[[dict[str, Any]], int | None], int]] = {
    "once, to the seeds that are said to decide": (simulated.as_advised, 2), "always, 12 then 20 seeds": (twice, 3)}


def pairs(studies: int) -> list[dict[str, Any]]:
    """Print and return the rows on pairs, as their worlds are done."""
    rows = []
    print("| world | false, of the baseline | false, of anything | pairs that differ, found |\n" + 4 * "| --- " + "|")
    for name, world in PAIRS.items():
        found = simulated.rates(world, simulated.plan(6), studies)
        rows.append({"world": name, "studies": studies, "false_verdicts": found.false_verdicts, "false": found.false,
                     "pairs_found": None if math.isnan(found.pairs_found) else found.pairs_found})
        shown = "–" if math.isnan(found.pairs_found) else f"{found.pairs_found:.0%}"
        print(f"| {name} | {found.false_verdicts:.1%} | {found.false:.1%} | {shown} |", flush=True)
    return rows


def stages(studies: int) -> list[dict[str, Any]]:
    """Print and return the rows on studies that are extended."""
    plan, rows = simulated.plan(6), []
    print("\n| world | extended | false at the first look | at the last | at any |\n| --- | --- | --- | --- | --- |")
    for name in STAGES:
        truths = {arm["name"]: effect for arm, effect in zip(plan.arms, PAIRS[name].effects, strict=True)}
        for policy, (more, looks) in POLICIES.items():
            wrong = np.array([_wrong(simulated.extended_study(PAIRS[name], plan, number, more, looks), truths)
                              for number in range(studies)])
            first, last, ever = wrong.mean(0).tolist()
            rows.append({"world": name, "policy": policy, "studies": studies, "first": first, "last": last,
                         "any": ever})
            print(f"| {name} | {policy} | {first:.1%} | {last:.1%} | {ever:.1%} |", flush=True)
    return rows


def _wrong(looks: list[dict[str, Any]], truths: dict[str, float]) -> tuple[bool, bool, bool]:
    found = [bool(simulated.false_verdicts(one, truths) or simulated.false_pairs(one, truths)) for one in looks]
    return found[0], found[-1], any(found)


def seeds(studies: int) -> dict[str, int]:
    """Return how many undecided arms were decided by as many seeds as were said to be needed, 64 at most."""
    plan, asked, decided = simulated.plan(4), 0, 0
    truths = np.random.default_rng(3).normal(0, 0.025, (studies, 3))
    for number, effects in enumerate(truths.tolist()):
        wanted: dict[str, int] = {}

        def more(results: dict[str, Any], wanted: dict[str, int] = wanted) -> int | None:
            arms = [arm for arm in results["arms"] if arm["seeds_needed"] and arm["seeds_needed"] <= 64]
            if arms:
                wanted[arms[0]["name"]] = arms[0]["seeds_needed"]
            return max(wanted.values(), default=None)

        looks = simulated.extended_study(replace(simulated.DEFAULT, effects=(0, *effects)), plan, number, more)
        if len(looks) == 2:
            asked += len(wanted)
            decided += sum(a["verdict"] != "undecided" for a in looks[1]["arms"] if a["name"] in wanted)
    print(f"\n{decided} of {asked} arms were decided by the seeds that were said to decide four times in five")
    return {"asked": asked, "decided": decided}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    made = {"command": f"python benchmarks/growth_simulation.py --studies {asked.studies}", "seeds": None}
    for name, rows in (("pairs", pairs), ("stages", stages), ("seeds", seeds)):
        made[name] = rows(asked.studies)
        if asked.out:
            asked.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
