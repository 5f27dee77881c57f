"""Claim 8: SwiGLU's gate is more expressive: at equal width, at equal parameters, at equal time?"""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw, literature
from nonlin.claims.definition import NO, UNSURE, YES, Claim, Found, Table, Verdict, combine
from nonlin.claims.needs import Question
from nonlin.study.advice import EQUAL_TIMES, over_baselines_time

MATCHES = {"width": "equal width", "params": "equal parameters", "time": "equal time"}
_ANSWER = {"better": YES, "worse": NO, "tie": NO, "undecided": UNSURE}


def measure(found: Found) -> dict[str, Any]:
    """Return SwiGLU's verdict against SiLU and its numbers, for each way of making them equal."""
    rows = {}
    for match in MATCHES:
        results = found.study(f"gate-{match}")
        arms = {arm["name"]: arm for arm in results["arms"]}
        silu, swiglu = arms["silu"], arms["swiglu"]
        base = {run["seed"]: run["bits_per_byte"] for run in silu["judged"]}
        planned = {a["name"]: a for a in results["plan"]["arms"]}
        rows[match] = {
            "verdict": swiglu["verdict"], "reason": swiglu["reason"], "difference": swiglu["difference"],
            "each": [run["bits_per_byte"] - base[run["seed"]] for run in swiglu["judged"]
                     if run["bits_per_byte"] is not None and base.get(run["seed"]) is not None],
            "silu": silu["bits_per_byte"], "swiglu": swiglu["bits_per_byte"], "hidden": swiglu["hidden"],
            "parameters": swiglu["parameters"], "more_parameters": swiglu["parameters_relative_error"],
            "steps": planned["swiglu"]["judge_steps"], "silu_steps": planned["silu"]["judge_steps"],
            "rates": [silu["learning_rate"], swiglu["learning_rate"]], "margin": results["rule"]["margin"],
            "time": over_baselines_time(found.plan.study(f"gate-{match}"), results["arms"]).get("swiglu")}
    wide = {arm["name"]: arm["hidden"] for arm in found.plan.study("gate-width").arms}
    core = {arm["name"]: arm["bits_per_byte"] for arm in found.study("core")["arms"]}
    return {"matches": rows, "block_parameters": 3 * wide["swiglu"] / (2 * wide["silu"]), "core": core}


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule: each comparison by the study's own verdict."""
    rows = measures["matches"]
    parts = {f"better at {MATCHES[m]}": UNSURE if m == "time" and _favoured(row) else _ANSWER[row["verdict"]]
             for m, row in rows.items()}
    told = "; ".join(f"at {MATCHES[m]} {draw.span(row['difference'], '+.4f')}" if row["difference"] else
                     f"at {MATCHES[m]} {row['verdict']}" for m, row in rows.items())
    summary = (f"SwiGLU less SiLU in bits per byte: {told}. At equal width its blocks have "
               f"{measures['block_parameters']:g} times as many parameters.")
    if _favoured(rows["time"]):
        summary += (f" Its runs at equal time took {rows['time']['time']:.2f} times SiLU's, since speeds were "
                    "measured wrongly before the runs: nothing is said at equal time.")
    return combine(parts, summary, "what is held equal: " + ", ".join(
        f"{MATCHES[m]} ({row['verdict']})" for m, row in rows.items()))


def _favoured(row: Mapping[str, Any]) -> bool:
    """Whether training times that were to be equal were not, in favour of what was found."""
    time = row.get("time")
    return time is not None and ((time > 1 + EQUAL_TIMES and row["verdict"] == "better")
                                 or (time < 1 - EQUAL_TIMES and row["verdict"] in ("worse", "tie")))


def questions(measures: Mapping[str, Any]) -> list[Question]:
    """Better, worse or a tie, in each comparison.

    None where seeds would not decide: an open one has no difference, or times were not equal.
    """
    rows = measures["matches"].values()
    unequal = _favoured(measures["matches"].get("time", {}))
    if unequal or any(_ANSWER[row["verdict"]] == UNSURE and not row["difference"] for row in rows):
        return []
    return [Question(row["difference"], row["margin"], 2) for row in rows if row["difference"]]


def figure(measures: Mapping[str, Any]) -> Figure:
    """The paired differences, one row a way of making the two equal."""
    rows = {MATCHES[m]: row for m, row in measures["matches"].items() if row["difference"]}
    made, axes = draw.figure(2.5)
    draw.intervals(axes, {k: r["difference"] for k, r in rows.items()}, dict.fromkeys(rows, draw.colour("swiglu")),
                   measures["matches"]["params"]["margin"], {k: r["each"] for k, r in rows.items()})
    axes.set_xlabel("bits per byte, SwiGLU less SiLU on the same seed   (left of zero: SwiGLU is better)")
    axes.legend(fontsize=8)
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Every comparison's numbers."""
    rows = []
    for match, r in measures["matches"].items():
        rows.append([MATCHES[match], f"{r['hidden']}", f"{r['parameters']:,} ({r['more_parameters']:+.1%})",
                     f"{r['steps']}", *(f"{r[n]:.4f}" if r[n] else "–" for n in ("silu", "swiglu")),
                     draw.span(r["difference"], "+.4f") if r["difference"] else "–", r["verdict"]])
    return ["compared at", "SwiGLU's width", "its parameters", "its steps", "SiLU", "SwiGLU", "difference (95 %)",
            "verdict"], rows


CLAIM = Claim(
    number=8, slug="gating",
    statement="SwiGLU's gate makes the block more expressive: better at equal width, for half as many parameters "
    "again.",
    background="A gated block multiplies two projections of its input, one of them through SiLU. The third weight "
    "matrix adds half to its size, unless its width is cut to two thirds.",
    tested="The small language model with SiLU and with SwiGLU in its blocks, three times: at the same hidden width; "
    "at the same number of parameters (two thirds of the width); and with as many training steps as take the same "
    "time on this machine. Each block has its own learning rate; judged on fresh seeds, paired.",
    rule="Each comparison by compare's rule: better or worse where the 95 % interval of the paired difference leaves "
    "out zero and its mean exceeds 0.005 bits per byte, a tie where the interval lies within ±0.005, else undecided. "
    "Better in all three: holds; in none (worse or tied): fails; in some: depends on what is held equal; one "
    "undecided: not settled. At equal time it counts only if the runs' times were equal within 5 %, or against it.",
    change="Larger models and longer training: published gains at equal parameters are about 0.04 nats per token. "
    "Faster kernels change what equal time means.",
    caption="Each dot is a seed, the diamond their mean, the bar its interval. In the shaded margin a difference "
    "counts as none.",
    studies=("gate-width", "gate-params", "gate-time", "core"), measure=measure, decide=decide, draw=figure,
    table=table, questions=questions, literature=lambda measures: literature.beside(measures["core"]))
