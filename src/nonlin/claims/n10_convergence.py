"""Claim 10: smooth functions converge faster."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from nonlin.claims import draw
from nonlin.claims.definition import NO, UNSURE, YES, Claim, Found, Table, Verdict, combine, effects
from nonlin.claims.needs import Question
from nonlin.numbers import typeset

SMOOTH, BASE = ("gelu", "silu"), "relu"
MARGIN = 0.05  # of ln(tokens)
MARKS = (0.4, 0.6, 0.8)  # shares of ReLU's run whose losses are to be reached
WINDOW = 0.12  # of a run, over which the training loss is averaged


def smoothed(lines: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return (tokens, loss): the training loss averaged over a window of the run, at the window's middle."""
    train = [line for line in lines if line["kind"] == "train" and line["loss_nats"] is not None]
    width = max(1, round(WINDOW * len(train)))
    tokens, losses = [], []
    for i in range(len(train) - width + 1):
        part = train[i:i + width]
        tokens.append(sum(line["tokens"] for line in part) / width)
        losses.append(sum(line["loss_nats"] for line in part) / width)
    return tokens, losses


def tokens_to(loss: float, curve: tuple[Sequence[float], Sequence[float]]) -> float | None:
    """Return the tokens at which a curve first reaches a loss, between its points linearly; None if it never does.

    >>> tokens_to(2.5, ([10.0, 20.0], [3.0, 2.0]))
    15.0
    """
    tokens, losses = curve
    for i, value in enumerate(losses):
        if value <= loss:
            if i == 0:
                return tokens[0]
            share = (losses[i - 1] - loss) / (losses[i - 1] - value)
            return tokens[i - 1] + share * (tokens[i] - tokens[i - 1])
    return None


def measure(found: Found) -> dict[str, Any]:
    """Return ln(tokens that an arm needs over ReLU's) by seed, the mean over the marks, and the mean curves."""
    arms = {arm["name"]: arm for arm in found.study("core")["arms"]}
    curves = {name: {run["seed"]: smoothed(found.lines(run["config_hash"])) for run in arms[name]["judged"]
                     if run["bits_per_byte"] is not None} for name in (BASE, *SMOOTH, "swiglu")}
    logs: dict[str, list[float]] = {}
    for name in curves:
        if name == BASE:
            continue
        logs[name] = [_log_ratio(curves[name][s], curves[BASE][s]) for s in sorted(curves[BASE]) if s in curves[name]]
    drawn = {}
    for name, by_seed in curves.items():
        known = list(by_seed.values())
        length = min((len(c[0]) for c in known), default=0)
        drawn[name] = {"tokens": known[0][0][:length] if known else [],
                       "loss": [sum(c[1][i] for c in known) / len(known) for i in range(length)]}
    return {"each": logs, "effects": effects({n: logs[n] for n in SMOOTH}), "curves": drawn,
            "also": effects({"swiglu": logs["swiglu"]})["swiglu"]}


def _log_ratio(curve: tuple[list[float], list[float]], base: tuple[list[float], list[float]]) -> float:
    logs = []
    for mark in MARKS:
        at = min(range(len(base[0])), key=lambda i: abs(base[0][i] - mark * base[0][-1]))
        loss = min(base[1][:at + 1])
        mine, reference = tokens_to(loss, curve), tokens_to(loss, base)
        # One that never gets there needs more than the whole run: counted as the whole run, a lower bound.
        logs.append(math.log((mine or curve[0][-1]) / (reference or base[0][-1])))
    return sum(logs) / len(logs)


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    parts = {}
    for name in SMOOTH:
        effect = measures["effects"][name]
        faster = effect["high"] < 0 and effect["mean"] < -MARGIN
        parts[f"{name} is faster"] = YES if faster else NO if effect["low"] > -MARGIN else UNSURE
    told = ", ".join(f"{n} {_percent(measures['effects'][n])}" for n in SMOOTH)
    summary = (f"Tokens to the same loss, against ReLU: {told}; for comparison SwiGLU, of as many parameters, "
               f"{_percent(measures['also'])}.")
    yes = ", ".join(k for k, v in parts.items() if v == YES)
    return combine(parts, summary, f"the function: {yes}, the other not")


def _percent(effect: Mapping[str, float]) -> str:
    mean, low, high = (100 * math.expm1(effect[k]) for k in ("mean", "low", "high"))
    return typeset(f"{mean:+.1f} % ({low:+.1f} to {high:+.1f})")


def questions(measures: Mapping[str, Any]) -> list[Question]:
    """Faster than ReLU, or not."""
    return [Question.below(measures["effects"][name], MARGIN) for name in SMOOTH]


def figure(measures: Mapping[str, Any]) -> Figure:
    """Mean training curves, and the tokens saved."""
    made, (left, right) = draw.figure(3.4, 2, width_ratios=(1.2, 1))
    for name, curve in measures["curves"].items():
        left.plot([t / 1e3 for t in curve["tokens"]], curve["loss"], color=draw.colour(name), label=name)
    left.set_xlabel("thousand tokens")
    left.set_title("training loss, nats per byte, mean over seeds")
    draw.plain_log(left, "x")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a run covers little more than one decade
    left.legend(fontsize=8)
    rows = {**measures["effects"], "swiglu": measures["also"]}
    draw.intervals(right, rows, {n: draw.colour(n) for n in rows}, MARGIN, measures["each"])
    right.set_title("ln(tokens to the same loss / ReLU's)")
    right.set_xlabel("left of zero: faster")
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Tokens to the same loss against ReLU, by activation."""
    rows = [[n, _percent(e), f"{e['p_value']:.2g}", str(e["seeds"])]
            for n, e in {**measures["effects"], "swiglu": measures["also"]}.items()]
    return ["activation", "tokens, against ReLU (95 %)", "p", "seeds"], rows


CLAIM = Claim(
    number=10, slug="convergence",
    statement="Smooth functions (GELU, SiLU) converge faster than ReLU.",
    background="Faster means fewer tokens to the same loss, each activation at its own best learning rate.",
    tested="The judged runs of claim 9's language models: the same seeds and the same batches in the same order, so "
    "that the training losses can be compared directly. The losses that ReLU has at "
    f"{', '.join(f'{m:.0%}' for m in MARKS)} of its run are marks; measured is the tokens another activation needs "
    "to each, as a ratio, averaged over the marks.",
    rule=f"Faster where the paired 95 % interval (Holm) of ln(ratio) lies below zero and its mean below -{MARGIN:g} "
    f"(about {MARGIN:.0%} fewer tokens), not faster where the interval lies above -{MARGIN:g}. Both faster: holds; "
    "neither: fails; one: depends; one undecided: not settled.",
    change="Longer runs, where curves of different activations come together or cross; another schedule.",
    caption="Left: training loss, averaged over a tenth of the run and over seeds. Right: tokens to the same loss, as "
    "the logarithm of the ratio to ReLU's; SwiGLU is shown for comparison and not judged.",
    studies=("core",), measure=measure, decide=decide, draw=figure, table=table,
    questions=questions)
