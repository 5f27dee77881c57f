"""Claim 12: activation, normalization and attention work in tandem."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw
from nonlin.claims.definition import DEPENDS, FAILS, HOLDS, NO, OPEN, UNSURE, YES, Claim, Found, Table, Verdict, effects
from nonlin.claims.needs import Question
from nonlin.claims.plan import ATTENTION, NORMS, TANDEM_ARMS
from nonlin.report.style import narrow

MARGIN = 0.02  # bits per byte
REFERENCE = {"activation": "gelu", "normalization": "rms-before", "attention": "on"}
PAIRS = ("activation × normalization", "activation × attention", "normalization × attention")
Cell = tuple[str, str, str]


def measure(found: Found) -> dict[str, Any]:
    """Return the loss of every cell by seed, and the interaction contrasts."""
    cells: dict[Cell, list[float | None]] = {}
    for norm in NORMS:
        for attention in ATTENTION:
            study = found.study(f"tandem-{norm}-{attention}")
            seeds = study["plan"]["judge_seeds"]
            for arm in study["arms"]:
                runs = {run["seed"]: run["bits_per_byte"] for run in arm["judged"]}
                cells[arm["name"], norm, attention] = [runs.get(seed) for seed in seeds]
    return {"cells": [{"activation": a, "normalization": n, "attention": t, "bits_per_byte": v}
                      for (a, n, t), v in cells.items()], **contrasts(cells)}


def contrasts(cells: Mapping[Cell, Sequence[float | None]]) -> dict[str, Any]:
    """Return every two-way contrast to the reference, averaged over the third factor, with Holm's intervals.

    A contrast is (this with that) - (this without) - (that without) + (neither), by seed; cells in which a seed
    diverged leave theirs out and are named.
    """
    levels = {"activation": [a for a in TANDEM_ARMS if a != REFERENCE["activation"]],
              "normalization": [n for n in NORMS if n != REFERENCE["normalization"]], "attention": ["off"]}
    every = {"activation": list(TANDEM_ARMS), "normalization": list(NORMS), "attention": list(ATTENTION)}
    found: dict[str, list[float]] = {}
    lost = [" ".join(cell) for cell, values in cells.items() if None in values]
    for pair in PAIRS:
        one, two = pair.split(" × ")
        third = next(f for f in every if f not in (one, two))
        for x in levels[one]:
            for y in levels[two]:
                each = [_contrast(cells, {one: x, two: y, third: z}, one, two) for z in every[third]]
                usable = [e for e in each if e is not None]
                if usable:
                    found[f"{pair}: {x}, {y}"] = [sum(v) / len(v) for v in zip(*usable, strict=True)]
    return {"contrasts": effects(found), "diverged": lost}


def _contrast(cells: Mapping[Cell, Sequence[float | None]], cell: Mapping[str, str], one: str, two: str
              ) -> list[float] | None:
    def losses(*back: str) -> Sequence[float | None]:
        at = {f: REFERENCE[f] if f in back else v for f, v in cell.items()}
        return cells[at["activation"], at["normalization"], at["attention"]]

    parts = [losses(), losses(two), losses(one), losses(one, two)]
    if any(None in p for p in parts):
        return None
    return [a - b - c + d for a, b, c, d in zip(*parts, strict=True)]  # type: ignore[operator]


def interacts(rows: Sequence[Mapping[str, float]]) -> str:
    """Return whether any contrast surely exceeds the margin (yes), all surely lie within (no), or neither (open)."""
    if any((e["low"] > 0 or e["high"] < 0) and abs(e["mean"]) > MARGIN for e in rows):
        return YES
    return NO if all(e["low"] > -MARGIN and e["high"] < MARGIN for e in rows) else UNSURE


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    by_pair = {p: {k: e for k, e in measures["contrasts"].items() if k.startswith(p)} for p in PAIRS}
    parts = {p: interacts(list(rows.values())) if rows else UNSURE for p, rows in by_pair.items()}
    largest = {p: max(rows.items(), key=lambda kv: abs(kv[1]["mean"])) for p, rows in by_pair.items() if rows}
    told = "; ".join(f"{p} up to {draw.span(e)} ({k.split(': ')[1]})" for p, (k, e) in largest.items())
    lost = f" Diverged: {', '.join(measures['diverged'])}." if measures["diverged"] else ""
    summary = f"Largest interactions in bits per byte: {told}.{lost}"
    answers = list(parts.values())
    if answers.count(YES) == len(answers):
        return Verdict(HOLDS, summary, None, parts)
    if UNSURE in answers:
        return Verdict(OPEN, summary, None, parts)
    if YES not in answers:
        return Verdict(FAILS, summary, None, parts)
    yes = ", ".join(k for k, v in parts.items() if v == YES)
    return Verdict(DEPENDS, summary, f"the pair: {yes} interact, the others do not", parts)


def questions(measures: Mapping[str, Any]) -> list[Question]:
    """Of each pair, the contrast that decides it: the first beyond the margin to be answered, else the last within.

    None where a pair has no contrast: seeds would not decide it.
    """
    found = []
    for pair in PAIRS:
        rows = [Question(e, MARGIN, 2) for key, e in measures["contrasts"].items() if key.startswith(pair)]
        if not rows:
            return []
        beyond = [q for q in rows if abs(q.effect["mean"]) > MARGIN]
        found.append(min(beyond, key=_seeds) if beyond else max(rows, key=_seeds))
    return found


def _seeds(question: Question) -> float:
    return math.inf if (seeds := question.seeds()) is None else seeds


def figure(measures: Mapping[str, Any]) -> Figure:
    """Mean loss of every cell, and the contrasts."""
    made, (left, right) = draw.figure(5.4, 2, width_ratios=(1, 1.15))
    marks = {"on": "-", "off": "--"}
    for name in TANDEM_ARMS:
        for attention in ATTENTION:
            values = []
            for norm in NORMS:
                cell = next(c for c in measures["cells"] if (c["activation"], c["normalization"], c["attention"]) == (
                    name, norm, attention))
                known = [v for v in cell["bits_per_byte"] if v is not None]
                values.append(sum(known) / len(known) if known else float("nan"))
            left.plot(range(len(NORMS)), values, marks[attention], color=draw.colour(name), marker=draw.marker(name),
                      label=f"{name}, attention {attention}")
    left.set_xticks(range(len(NORMS)), list(NORMS), rotation=35, ha="right")
    left.set_title("bits per byte")
    left.legend(fontsize=7.5, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.2 if not narrow() else -0.28))
    rows = {k.replace("activation × normalization: ", "").replace("activation × attention: ", "").replace(
        "normalization × attention: ", ""): v for k, v in measures["contrasts"].items()}
    paint = {PAIRS[0]: "#0072b2", PAIRS[1]: "#d55e00", PAIRS[2]: "#009e73"}
    colours = dict(zip(rows, [paint[k.split(":")[0]] for k in measures["contrasts"]], strict=True))
    draw.intervals(right, rows, colours, MARGIN)
    for pair, colour in paint.items():
        right.plot([], [], color=colour, lw=2.6, label=pair)
    right.set_title("interactions: departure from adding up")
    right.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.4, -0.08))
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Every cell and every contrast."""
    rows = [[c["activation"], c["normalization"], c["attention"], _mean(c["bits_per_byte"])] for c in measures["cells"]]
    rows += [["interaction", *k.split(": "), draw.span(e)] for k, e in measures["contrasts"].items()]
    return ["activation", "normalization", "attention", "bits per byte"], rows


def _mean(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.4f}" if known else "diverged"


CLAIM = Claim(
    number=12, slug="tandem",
    statement="Activation, normalization and attention work in tandem.",
    background="If they only added up, changing one would change the loss by the same amount whatever the others are. "
    "An interaction is the departure from that.",
    tested="A one-layer language model in thirty variants: GELU, ReLU or SwiGLU; no normalization, RMSNorm or "
    "LayerNorm, before each part or after it; attention on or off (queries and keys stay normalized inside "
    "attention). Each variant has its own learning rate; fresh seeds, paired. Measured are the interactions of every "
    "pair with respect to GELU, RMSNorm before, attention on, averaged over the third.",
    rule="A pair interacts where the 95 % interval (Holm over all contrasts) of one of its contrasts leaves out zero "
    f"and its mean exceeds {MARGIN:g} bits per byte; it does not where all lie within ±{MARGIN:g}; else undecided. "
    "All three pairs: holds; none: fails; some: depends on the pair; one undecided: not settled.",
    change="More layers: without normalization, and with normalization after, depth makes training harder, and then "
    "activations matter more.",
    caption="Left: the loss of all thirty variants; parallel lines would mean no interaction. Right: each interaction "
    "with its interval; inside the shaded margin it counts as none.",
    studies=tuple(f"tandem-{norm}-{attention}" for norm in NORMS for attention in ATTENTION), measure=measure,
    decide=decide, draw=figure, table=table, questions=questions)
