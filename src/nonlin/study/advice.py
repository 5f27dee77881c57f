"""One sentence that says what to do, no surer than the study is."""

from collections.abc import Mapping, Sequence
from typing import Any

from nonlin.study.plan import Plan


def advice(plan: Plan, arms: Sequence[Mapping[str, Any]], runs_left: int = 0) -> str:
    """Return the advice for finished arms, or what is missing (``runs_left`` judged runs).

    ``arms`` are those of results.json.
    """
    base = plan.baseline
    if runs_left:
        total = len(plan.arms) * len(plan.judge_seeds)
        return (f"No advice yet: {total - runs_left} of {total} judged runs are done, and the rule was fixed for all "
                "of them; give the same command again to continue.")
    groups = {v: [a for a in arms if a["verdict"] == v] for v in ("better", "worse", "tie", "undecided")}
    for group in groups.values():
        group.sort(key=lambda a: float("inf") if a["bits_per_byte"] is None else a["bits_per_byte"])
    if not any(arm["judged"] for arm in arms):
        return "No advice: every activation diverged at every learning rate; try much lower ones."
    rest = _undecided(groups["undecided"])
    if groups["better"]:
        return _winner(groups["better"], base) + (f"; {rest}" if rest else "") + "."
    kept = f"Keep {base}: no other activation was found better" + (
        f", {_names(groups['tie'])} {_are(groups['tie'])} as good within {plan.rule['margin']:g} bits per byte"
        if groups["tie"] else "")
    return kept + (f"; {rest}" if rest else "") + "."


def winner(arms: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return the activation to use by these verdicts: the best of those found better, else the baseline."""
    better = [a for a in arms if a["verdict"] == "better"]
    return min(better, key=lambda a: a["bits_per_byte"])["name"] if better else baseline


def _winner(better: Sequence[Mapping[str, Any]], base: str) -> str:
    best, difference = better[0], better[0]["difference"]
    if difference is None:
        return f"Use {best['name']}: it trains where {base} diverges"
    text = (f"Use {best['name']}: {-difference['mean']:.3f} bits per byte better than {base} "
            f"({difference['confidence']:.0%} interval {-difference['high']:.3f} to {-difference['low']:.3f})")
    others = better[1:]
    if others:
        text += (f"; {_names(others)} {_are(others)} better than {base} too, and this study does not compare the "
                 "better ones with each other")
    return text


def _undecided(arms: Sequence[Mapping[str, Any]]) -> str:
    if not arms:
        return ""
    needed = [arm["seeds_needed"] for arm in arms if arm["seeds_needed"]]
    text = f"{_names(arms)} {_are(arms)} undecided"
    if len(needed) == len(arms):
        text += f" (about {max(needed)} seeds would decide{'' if len(arms) == 1 else ' them all'})"
    return text


def _names(arms: Sequence[Mapping[str, Any]]) -> str:
    names = [arm["name"] for arm in arms]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _are(arms: Sequence[Mapping[str, Any]]) -> str:
    return "is" if len(arms) == 1 else "are"
