"""One sentence that says what to do, no surer than the study is."""

import math
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
                "of them.")
    if not any(arm["judged"] for arm in arms):
        return "No advice: every activation diverged at every learning rate; try much lower ones."
    lost = next(a["diverged_runs"] for a in arms if a["name"] == base)
    better, open_ = _group(arms, "better"), _group(arms, "undecided")
    if lost and not better:
        return (f"No advice: {lost} of {len(plan.judge_seeds)} judged runs of the baseline {base} diverged; take "
                "another baseline, or lower learning rates.")
    if not better and open_:
        return f"Keep {base} for now: none was found better, and {_names(open_)} {_are(open_)} undecided."
    if not better:
        return f"Keep {base}: no other activation was found better."
    best, difference = better[0], better[0]["difference"]
    if difference is None:
        return f"Use {best['name']}: it trains where {base} diverges."
    return (f"Use {best['name']}: {-difference['mean']:.3f} bits per byte better than {base} "
            f"({difference['confidence']:.0%} interval {-difference['high']:.3f} to {-difference['low']:.3f}).")


def remarks(plan: Plan, arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is to be known beside the advice, a sentence each: other winners, and ties."""
    base, made = plan.baseline, []
    if plan.model.get("own", {}).get("checkpoint"):
        made.append("The runs began with trained weights: a short run measures how the model recovers from another "
                    "activation, not the activation.")
    if others := _group(arms, "better")[1:]:
        made.append(f"{_names(others)} {_are(others)} better than {base} too; this study does not compare the better "
                    "ones with each other.")
    if ties := _group(arms, "tie"):
        made.append(f"{_names(ties)} {_are(ties)} as good as {base} within {plan.rule['margin']:g} bits per byte.")
    return made


def _group(arms: Sequence[Mapping[str, Any]], verdict: str) -> list[Mapping[str, Any]]:
    """The arms of a verdict, the best first: by their differences, as verdicts are, then by their means."""
    return sorted((a for a in arms if a["verdict"] == verdict), key=_place)


def _place(arm: Mapping[str, Any]) -> tuple[float, float]:
    mean = math.inf if arm["bits_per_byte"] is None else arm["bits_per_byte"]
    return (arm["difference"]["mean"] if arm["difference"] else -math.inf), mean


def winner(arms: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return the activation to use by these verdicts: the best of those found better, else the baseline."""
    better = _group(arms, "better")
    return better[0]["name"] if better else baseline


def _names(arms: Sequence[Mapping[str, Any]]) -> str:
    names = [arm["name"] for arm in arms]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _are(arms: Sequence[Mapping[str, Any]]) -> str:
    return "is" if len(arms) == 1 else "are"
