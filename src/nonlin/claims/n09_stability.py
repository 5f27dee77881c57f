"""Claim 9: smooth functions train more stably than ReLU."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw
from nonlin.claims.definition import NO, UNSURE, YES, Claim, Found, Table, Verdict, combine, effects
from nonlin.claims.needs import Question
from nonlin.errors import UserError

SMOOTH, BASE = ("gelu", "silu"), "relu"
SHARE = 0.1  # of ReLU's own sensitivity


def measure(found: Found) -> dict[str, Any]:
    """Return each arm's loss by rate, its sensitivity by seed, its highest working rate and its spikes."""
    results, rows = found.study("core"), {}
    rates = results["plan"]["learning_rates"]
    for arm in results["arms"]:
        if arm["name"] not in (*SMOOTH, BASE, "swiglu"):
            continue
        if arm["learning_rate"] is None:
            raise UserError(f"{arm['name']} diverged at every learning rate. Use smaller ones.")
        runs = {(t["seed"], t["learning_rate"]): t for t in arm["tuning"]}
        seeds = sorted({seed for seed, _ in runs})
        capped = {s: [min(v if (v := runs[s, r]["bits_per_byte"]) is not None else math.inf,
                          runs[s, r]["initial_bits_per_byte"]) for r in rates] for s in seeds}
        spikes = [found.records[t["config_hash"]]["spike_score"] for t in arm["tuning"]]
        best = min(sum(capped[s][i] for s in seeds) for i in range(len(rates))) / len(seeds)
        means = [sum(capped[s][i] for s in seeds) / len(seeds) for i in range(len(rates))]
        works = [r for r, v in zip(rates, means, strict=True) if v < best + 1.0]
        rows[arm["name"]] = {
            "losses": means, "sensitivity": [sum(capped[s]) / len(rates) - min(capped[s]) for s in seeds],
            "highest": max(works), "diverged": sum(t["bits_per_byte"] is None for t in arm["tuning"]),
            "spikes": sum(spikes) / len(spikes)}
    less = {n: [a - b for a, b in zip(rows[n]["sensitivity"], rows[BASE]["sensitivity"], strict=True)] for n in SMOOTH}
    base = rows[BASE]["sensitivity"]
    return {"rates": rates, "activations": rows, "differences": effects(less), "each": less,
            "margin": SHARE * sum(base) / len(base)}


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    rows, margin, parts = measures["activations"], measures["margin"], {}
    for name in SMOOTH:
        effect = measures["differences"][name]
        better = effect["high"] < 0 and effect["mean"] < -margin
        parts[f"{name} is less sensitive"] = YES if better else NO if effect["low"] > -margin else UNSURE
        parts[f"{name} bears a higher rate"] = YES if rows[name]["highest"] > rows[BASE]["highest"] else NO
        parts[f"{name} spikes less"] = YES if rows[name]["spikes"] < rows[BASE]["spikes"] - 0.001 else NO
    base = rows[BASE]
    told = ", ".join(f"{n} {draw.span(measures['differences'][n])}" for n in SMOOTH)
    summary = (f"A learning rate from the grid instead of the best costs ReLU {_mean(base['sensitivity']):.3f} "
               f"bits per byte on average; the smooth ones differ by {told}. Highest rate that still trains: "
               + ", ".join(f"{n} {rows[n]['highest']:g}" for n in (BASE, *SMOOTH))
               + f". Runs that diverged: {sum(r['diverged'] for r in rows.values())}.")
    return combine(parts, summary, "the measure: " + "; ".join(k for k, v in parts.items() if v == YES))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def questions(measures: Mapping[str, Any]) -> list[Question]:
    """Less sensitive than ReLU, or not."""
    return [Question.below(measures["differences"][name], measures["margin"]) for name in SMOOTH]


def figure(measures: Mapping[str, Any]) -> Figure:
    """Loss against learning rate, and the paired differences of sensitivity."""
    made, (left, right) = draw.figure(3.5, 2, width_ratios=(1.3, 1))
    for name, row in measures["activations"].items():
        left.plot(measures["rates"], row["losses"], color=draw.colour(name), marker=draw.marker(name), label=name)
    draw.plain_log(left, "x")
    left.set_xticks(measures["rates"], [f"{r:.2g}" for r in measures["rates"]])
    left.set_xlabel("learning rate")
    left.set_title("bits per byte")
    left.legend(fontsize=8)
    names = {n: measures["differences"][n] for n in SMOOTH}
    draw.intervals(right, names, {n: draw.colour(n) for n in names}, round(measures["margin"], 4), measures["each"])
    right.set_title("sensitivity less ReLU's, bits per byte")
    right.set_xlabel("left of zero: more forgiving")
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Losses by rate, sensitivity, highest working rate, spikes."""
    rows = [[name, *(f"{v:.3f}" for v in r["losses"]), f"{_mean(r['sensitivity']):.4f}", f"{r['highest']:g}",
             f"{r['spikes']:.3%}", str(r["diverged"])] for name, r in measures["activations"].items()]
    return ["activation", *(f"{r:g}" for r in measures["rates"]), "sensitivity", "highest", "spikes", "diverged"], rows


CLAIM = Claim(
    number=9, slug="stability",
    statement="Smooth functions (GELU, SiLU) train more stably than ReLU.",
    background="A stable training forgives a learning rate that is too high, and its loss does not jump.",
    tested="The small language model with each activation at learning rates from much too low to much too high, "
    "several seeds each. Sensitivity is the mean over the rates of the loss (at most the untrained model's), less "
    "the best: what a wrong rate costs (arXiv:2309.14322). Also the highest rate whose loss is within one bit of the "
    "best, and the share of steps whose loss jumps seven standard deviations above its rolling mean.",
    rule="For GELU and SiLU: less sensitive where the paired 95 % interval (Holm) of sensitivity less ReLU's lies "
    f"below zero and its mean is more than {SHARE:.0%} of ReLU's below, not where the interval ends above that; "
    "bears a higher rate where its highest working rate is higher; spikes less where its share is lower by 0.1 % of "
    "steps. All yes: holds; none: fails; some: depends on the measure; one undecided: not settled.",
    change="Without gradient clipping, normalized queries and keys, and warm-up, which all steady the training here; "
    "or at a scale where instabilities first appear.",
    caption="Left: loss at each learning rate. Right: how much less (or more) a wrong rate costs "
    "than with ReLU.",
    studies=("core",), measure=measure, decide=decide, draw=figure, table=table, questions=questions)
