"""Claim 11: for small models GELU is the reliable choice; SwiGLU pays off in larger ones."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import linear_regression
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw, literature
from nonlin.claims.definition import FAILS, HOLDS, NO, OPEN, UNSURE, YES, Claim, Found, Table, Verdict, effects
from nonlin.claims.needs import Question
from nonlin.claims.plan import LADDER
from nonlin.errors import UserError, rule
from nonlin.ladder.folder import load_ladder
from nonlin.ladder.forecast import FEWEST_RUNGS
from nonlin.ladder.points import diverged
from nonlin.letters import quoted

MARGIN = 0.005  # bits per byte, and bits per byte for ten times the parameters


def measure(found: Found) -> dict[str, Any]:
    """Return SwiGLU less GELU at each size, and the gap's trend over the decades of parameters by seed."""
    return _measures({size: found.study(f"ladder-{size}") for size in LADDER})


def _measures(studies: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, int] | None = None
              ) -> dict[str, Any]:
    """Return the measures of studies of both arms at several sizes, the smallest first.

    ``parameters`` are the sizes to hold them against, by default those of GELU's models.
    """
    rows, each = {}, {}
    for size, results in studies.items():
        arms = {arm["name"]: arm for arm in results["arms"]}
        base = {run["seed"]: run["bits_per_byte"] for run in arms["gelu"]["judged"]}
        gaps = {run["seed"]: run["bits_per_byte"] - base[run["seed"]] for run in arms["swiglu"]["judged"]
                if run["bits_per_byte"] is not None and base.get(run["seed"]) is not None}
        each[size] = gaps
        rows[size] = {
            "parameters": parameters[size] if parameters else arms["gelu"]["parameters"],
            "gelu": arms["gelu"]["bits_per_byte"], "swiglu": arms["swiglu"]["bits_per_byte"],
            "verdict": arms["swiglu"]["verdict"],
            "rates": [arms["gelu"]["learning_rate"], arms["swiglu"]["learning_rate"]],
            "edge": arms["gelu"]["learning_rate_at_edge"] or arms["swiglu"]["learning_rate_at_edge"]}
    seeds = sorted(set.intersection(*(set(gaps) for gaps in each.values())))
    gaps = {size: [each[size][s] for s in seeds] for size in each}
    at = [math.log10(rows[size]["parameters"]) for size in rows]
    trends = [linear_regression(at, [gaps[size][i] for size in gaps]).slope for i in range(len(seeds))]
    for size, effect in effects(gaps).items():
        rows[size]["gap"] = effect
    return {"sizes": rows, "each": gaps, "slopes": trends, "trend": effects({"trend": trends})["trend"]}


def by_ladder(directory: str | Path) -> dict[str, Any]:
    """Return this claim's verdict by a ladder of sizes: {"number", "statement", "rule", "ladder", "sizes", "verdict",
    "summary", "parts", "measures", "forecast"}.

    The same rule, on the ladder's rungs in place of the claim's own four sizes. Tokens grow with the parameters there,
    and the largest rung was forecast before it ran. "forecast" has SwiGLU's forecast at the ladder's target; it does
    not decide. UserError for a ladder without gelu and swiglu, or with fewer than three rungs that ran both.
    """
    there = load_ladder(directory)
    if missing := [name for name in ("gelu", "swiglu") if name not in there.plan.arms]:
        raise UserError(rule("claims", "ladder", "compare gelu and swiglu", f"one without {' and '.join(missing)}",
                             "Give the folder of a ladder that has both."))
    finished = there.finished()
    lost = diverged(finished)
    ran = [(one, results) for one, results in sorted(finished, key=lambda pair: pair[0].parameters)
           if one.longer == 1 and not any(one.name in lost.get(arm, ()) for arm in ("gelu", "swiglu"))]
    rungs = {one.name: results for one, results in ran}
    if len(rungs) < FEWEST_RUNGS:
        raise UserError(rule("claims", "ladder", f"have {FEWEST_RUNGS} or more finished rungs with both", len(rungs),
                             f"Continue it: nonlin ladder --resume --out {quoted(directory)}"))
    measures = _measures(rungs, {one.name: one.parameters for one, _ in ran})
    last = there.forecasts()[-1:] if there.plan.baseline == "gelu" else []
    aim = next((row for made in last for at in made["at"] if at["what"] == "target" for row in at["arms"]
                if row["arm"] == "swiglu"), None)
    return {"number": CLAIM.number, "statement": CLAIM.statement, "rule": CLAIM.rule, "ladder": str(directory),
            "sizes": list(rungs), **decide(measures).as_dict(), "measures": measures,
            "forecast": None if aim is None else {"target": there.plan.target, **aim}}


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    sizes, trend = list(measures["sizes"].values()), measures["trend"]
    small, large = sizes[0]["gap"], sizes[-1]["gap"]
    parts = {
        "GELU is as good or better in the smallest": _no_worse(small),
        "SwiGLU is better in the largest": _below(large), "the gap grows with size": _below(trend)}
    distinct = "distinguishable from none" if trend["low"] > 0 or trend["high"] < 0 else "not distinguishable from none"
    least, most = (f"{row['parameters'] / 1e3:.0f} k" for row in (sizes[0], sizes[-1]))
    summary = (f"SwiGLU less GELU: {draw.span(small, '+.4f')} bits per byte with {least} parameters, "
               f"{draw.span(large, '+.4f')} with {most}; its trend is {draw.span(trend, '+.4f')} for ten times the "
               f"parameters, {distinct}.")
    answers = list(parts.values())
    if answers[0] == NO or NO in answers[1:]:  # one part of the sentence is wrong, whatever the others are
        return Verdict(FAILS, summary, None, parts)
    return Verdict(OPEN if UNSURE in answers else HOLDS, summary, None, parts)


def _below(effect: Mapping[str, float]) -> str:
    better = effect["high"] < 0 and effect["mean"] < -MARGIN
    return YES if better else NO if effect["low"] > -MARGIN else UNSURE


def _no_worse(effect: Mapping[str, float]) -> str:
    """Whether SwiGLU is not better: the opposite of :func:`_below`."""
    return {YES: NO, NO: YES}.get(_below(effect), UNSURE)


def questions(measures: Mapping[str, Any]) -> list[Question]:
    """Better in the smallest, better in the largest, and the trend: each below the margin or not."""
    sizes = list(measures["sizes"].values())
    return [Question.below(effect, MARGIN) for effect in (sizes[0]["gap"], sizes[-1]["gap"], measures["trend"])]


def figure(measures: Mapping[str, Any]) -> Figure:
    """The gap against size with its interval and every seed, and the trend."""
    made, axes = draw.figure(3.5)
    sizes, paint = measures["sizes"], draw.colour("swiglu")
    axes.axhspan(-MARGIN, MARGIN, color=draw.MUTED, alpha=0.16, lw=0, label=f"counts as equal (±{MARGIN:g})")
    axes.axhline(0, color=draw.MUTED, lw=1)
    for size, row in sizes.items():
        x, values, gap = row["parameters"], measures["each"][size], row["gap"]
        axes.plot([x] * len(values), values, "o", ms=4, alpha=0.45, color=paint, mec="none")
        axes.plot([x, x], [gap["low"], gap["high"]], color=paint, lw=2.6, solid_capstyle="butt")
        axes.plot(x, gap["mean"], "D", ms=7, color=paint, mec=draw.PAPER)
    xs = [row["parameters"] for row in sizes.values()]
    logs = [math.log10(x) for x in xs]
    means = [row["gap"]["mean"] for row in sizes.values()]
    middle = sum(means) / len(means)
    trend = measures["trend"]["mean"]
    axes.plot(xs, [middle + trend * (v - sum(logs) / len(logs)) for v in logs], color=paint, lw=1, ls="--",
              label="trend")
    draw.plain_log(axes, "x")
    axes.set_xticks(xs, [f"{x / 1e3:.0f} k" for x in xs])
    axes.set_xlabel("parameters of the model")
    axes.set_ylabel("SwiGLU less GELU,\nbits per byte (below 0: SwiGLU better)")
    axes.legend(fontsize=8)
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Losses, rates and gaps by size."""
    rows = [[f"{r['parameters']:,}", f"{r['gelu']:.4f}", f"{r['swiglu']:.4f}", draw.span(r["gap"], "+.4f"),
             r["verdict"], " / ".join("–" if v is None else f"{v:g}" for v in r["rates"]) + " (edge)" * bool(r["edge"])]
            for r in measures["sizes"].values()]
    rows.append(["trend, for 10 × parameters", "", "", draw.span(measures["trend"], "+.4f"), "", ""])
    return ["parameters", "GELU", "SwiGLU", "gap (95 %, Holm)", "SwiGLU is", "learning rates"], rows


CLAIM = Claim(
    number=11, slug="size",
    statement="For small models GELU is the reliable choice; SwiGLU pays off in larger ones.",
    background="If it were so, the gap between the two would be nothing or positive in a small model, and grow in "
    "SwiGLU's favour with size.",
    tested="Four language models, fourteen times apart in size, each trained with GELU and with SwiGLU of as many "
    "parameters, on as many tokens. At every size each has a learning rate of its own, found on other seeds; judged "
    "on fresh seeds, paired. The trend is the gap's rise with the logarithm of the parameters, fitted for "
    "each seed alone; its interval is over seeds.",
    rule="Three parts: SwiGLU is not better in the smallest model; it is better in the largest; the gap grows (the "
    f"trend is negative). Better where the 95 % interval (Holm) lies below zero and its mean below -{MARGIN:g} (for "
    f"the trend: per tenfold size), not better where the interval lies above -{MARGIN:g}. One part wrong: fails; all "
    "right: holds; else not settled.",
    change="Sizes a thousand times larger, trained in proportion; here the largest still counts as tiny, and all see "
    "the same number of tokens.",
    caption="SwiGLU less GELU in each of four sizes: every seed, the mean and its interval; the dashed line is the "
    "trend.",
    studies=tuple(f"ladder-{size}" for size in LADDER), measure=measure, decide=decide, draw=figure, table=table,
    questions=questions,
    literature=lambda measures: literature.beside({k: measures["sizes"]["L"][k] for k in ("gelu", "swiglu")}))
