"""The figures of a study, each a function from its records to a drawing."""

import itertools
import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from nonlin.report.records import Study, smooth, tuned
from nonlin.report.style import GRID, INK, MUTED, PAPER, colours, markers, new_figure

_WIDTH = 8.4
_FAR = 6.0  # what lies that many times farther out than the rest would squeeze it: it is drawn at the edge


def _names(study: Study) -> list[str]:
    return [arm["name"] for arm in study.results["arms"]]  # the plan's order: colours stay when the ranking changes


def _legend(figure: Figure, axes, count: int) -> None:
    """Put the legend above the drawing, where it can hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=min(count, 4), fontsize=8)


def _reach(extents: list[float], least: float) -> float:
    """Return how far an axis must reach: over all of them, or over the lower half and what lies near it.

    >>> _reach([0.01, 0.02, 0.05, 0.9], 0.01), _reach([0.01, 0.02, 0.05, 0.2], 0.01)
    (0.05, 0.2)
    """
    ordered = [max(least, x) for x in sorted(extents)] or [least]
    for lower, higher in itertools.pairwise(ordered[(len(ordered) - 1) // 2:]):
        if higher > _FAR * lower:
            return lower
    return ordered[-1]


def differences(study: Study) -> Figure:
    """Paired differences to the baseline: each seed's, their mean, its interval, and the margin.

    An interval far outside of the others' is an arrow at the edge: its numbers stand at the right in any case.
    """
    arms = [arm for arm in study.others if arm["difference"]]
    paint = colours(_names(study))
    figure = new_figure(_WIDTH, 1.3 + 0.46 * max(1, len(arms)))
    axes = figure.subplots()
    margin = study.results["rule"]["margin"]
    axes.axvspan(-margin, margin, color=MUTED, alpha=0.16, lw=0, label=f"counts as equal (±{margin:g})")
    axes.axvline(0, color=MUTED, lw=1)
    losses = {run["seed"]: run["bits_per_byte"] for arm in study.arms if arm["name"] == study.baseline
              for run in arm["judged"]}
    reach = _reach([max(abs(arm["difference"]["low"]), abs(arm["difference"]["high"])) for arm in arms], 2 * margin)
    shown, far = [-2 * margin, 2 * margin], []
    for row, arm in enumerate(reversed(arms)):
        d, colour = arm["difference"], paint[arm["name"]]
        text = f"{d['mean']:+.4f}   ({d['low']:+.4f} … {d['high']:+.4f})".replace("-", "−")
        axes.annotate(text, (1.02, row), va="center", xycoords=("axes fraction", "data"), fontsize=8.5, color=INK)
        if abs(d["mean"]) > reach:
            far.append((row, d["mean"], colour))
            continue
        each = [run["bits_per_byte"] - losses[run["seed"]] for run in arm["judged"]
                if run["bits_per_byte"] is not None and losses.get(run["seed"]) is not None]
        axes.plot(each, [row] * len(each), "o", ms=4, color=colour, alpha=0.55, mec="none")
        axes.plot([d["low"], d["high"]], [row, row], color=colour, lw=2.6, solid_capstyle="butt")
        axes.plot(d["mean"], row, "D", ms=7, color=colour, mec=PAPER, mew=1)
        shown += [*each, d["low"], d["high"]]
    low, high = min(shown), max(shown)
    axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for row, mean, colour in far:
        tip, tail = (0.998, 0.9) if mean > 0 else (0.002, 0.1)
        axes.annotate("", (tip, row), (tail, row), xycoords=("axes fraction", "data"),
                      arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.6})
    labels = [f"{arm['name']} – {arm['verdict']}" for arm in reversed(arms)]
    axes.set_yticks(range(len(arms)), labels)
    axes.set_ylim(-0.6, max(1, len(arms)) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"bits per byte less {study.baseline}'s on the same seed   (left of zero is better)")
    _legend(figure, axes, 1)
    return figure


def curves(study: Study) -> Figure:
    """Training loss against tokens, every seed thin and their mean thick; and the means of the end of it closer."""
    figure = new_figure(_WIDTH, 3.6)
    whole, close = figure.subplots(1, 2, width_ratios=(1, 1))
    paint, marks = colours(_names(study)), markers(_names(study))
    halves: list[np.ndarray] = []
    for name in _names(study):
        runs = [c for c in study.curves if c.arm == name and c.tokens]
        for run in runs:
            whole.plot(run.tokens, smooth(run.loss), color=paint[name], lw=0.6, alpha=0.3)
        if runs:
            length = min(len(run.tokens) for run in runs)
            mean = np.mean([smooth(run.loss)[:length] for run in runs], axis=0)
            halves.append(mean[length // 2:])
            for axes in (whole, close):
                axes.plot(runs[0].tokens[:length], mean, color=paint[name], lw=1.8, label=name, marker=marks[name],
                          markevery=max(1, length // 8), ms=4)
    outside = False
    if halves:
        low = min(float(half.min()) for half in halves)
        high = low + _reach([float(half.max()) - low for half in halves], 1e-6)
        outside = any(half.min() > high for half in halves)
        close.set_ylim(low - 0.05 * (high - low), high + 0.02 * (high - low))
        close.set_xlim(left=max(c.tokens[-1] for c in study.curves if c.tokens) / 2)
    for axes, title in ((whole, "all of training"),
                        (close, "means of the second half" + (", without those far above" if outside else ""))):
        axes.set_title(title)
        axes.set_xlabel("tokens")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_tokens))
    whole.set_ylabel("training loss, bits per byte")
    _legend(figure, whole, len(study.arms))
    return figure


def _tokens(value: float, _: int) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value else "0"


def learning_rates(study: Study) -> Figure:
    """Loss of the tuning runs against the learning rate: seeds faint, their mean marked, each arm's choice filled.

    Rates at which a run diverged stand at the top.
    """
    figure = new_figure(_WIDTH, 3.6)
    axes = figure.subplots()
    paint, marks = colours(_names(study)), markers(_names(study))
    diverged = []
    for arm in study.results["arms"]:
        name, by_rate = arm["name"], tuned(arm)
        good = [(rate, mean) for rate, mean, _ in by_rate if mean is not None]
        diverged += [(rate, name) for rate, mean, _ in by_rate if mean is None]
        for rate, _, losses in by_rate:
            axes.plot([rate] * len(losses), losses, ".", ms=4, color=paint[name], alpha=0.45, mec="none")
        axes.plot([g[0] for g in good], [g[1] for g in good], marker=marks[name], color=paint[name], mfc=PAPER,
                  ms=6, label=name)
        best = [g for g in good if g[0] == arm["learning_rate"]]
        axes.plot([g[0] for g in best], [g[1] for g in best], marker=marks[name], color=paint[name], ms=8, ls="none")
    losses = [run["bits_per_byte"] for arm in study.results["arms"] for run in arm["tuning"]
              if run["bits_per_byte"] is not None]
    cut = False
    if losses:
        low = min(losses)
        reach = _reach([loss - low for loss in losses], 1e-3)
        cut = max(losses) > low + 1.06 * reach
        axes.set_ylim(low - 0.06 * reach, low + 1.06 * reach)
    top = axes.get_ylim()[1]
    for i, (rate, name) in enumerate(diverged):  # beside each other, not on top of each other
        axes.plot(rate * 1.04 ** (i % 5 - 2), top, marker="x", color=paint[name], ms=8, ls="none", clip_on=False)
    axes.set_xscale("log")
    rates = sorted({run["learning_rate"] for arm in study.results["arms"] for run in arm["tuning"]})
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate" + ("   (× at the top: diverged)" if diverged else "")
                    + ("   (lines that leave at the top: far worse)" if cut else ""))
    axes.set_ylabel("bits per byte after tuning")
    _legend(figure, axes, len(study.arms))
    return figure


def layers(study: Study) -> Figure:
    """Gradient norm and dead units by layer, at the end of training."""
    figure = new_figure(_WIDTH, 3.3)
    left, right = figure.subplots(1, 2)
    paint, marks = colours(_names(study)), markers(_names(study))
    for arm in study.results["arms"]:
        for axes, key in ((left, "gradient_rms"), (right, "dead_share")):
            values = [math.nan if layer[key] is None else layer[key] for layer in arm["layers"]]
            axes.plot(range(1, len(values) + 1), values, marker=marks[arm["name"]], color=paint[arm["name"]], ms=5,
                      label=arm["name"])
    depth = max((len(arm["layers"]) for arm in study.arms), default=0)
    for axes in (left, right):
        axes.set_xticks(range(1, depth + 1))
        axes.set_xlabel("layer")
    if any(layer["gradient_rms"] for arm in study.arms for layer in arm["layers"]):
        left.set_yscale("log")
        low, high = left.get_ylim()
        ticks = [m * 10.0 ** e for e in range(-30, 10) for m in (1, 2, 5) if low <= m * 10.0 ** e <= high]
        left.set_yticks(ticks if len(ticks) <= 8 else [t for t in ticks if f"{t:e}".startswith("1.")])
        left.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0e}".replace("e-0", "e-")))
        left.yaxis.set_minor_formatter(NullFormatter())
    left.set_title("gradient at the block's output (root mean square)")
    right.set_title("dead units")
    right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.1%}"))
    right.set_ylim(bottom=0, top=max(0.01, right.get_ylim()[1]))
    if depth:
        _legend(figure, left, len(study.arms))
    return figure


def costs(study: Study) -> Figure:
    """Tokens per second of one process, and its peak memory."""
    figure = new_figure(_WIDTH, 1.0 + 0.36 * len(study.arms))
    left, right = figure.subplots(1, 2, sharey=True)
    paint = colours(_names(study))
    arms = list(reversed(study.arms))
    for row, arm in enumerate(arms):
        speed, memory = arm["timing"]["tokens_per_second"] or 0, (arm["timing"]["peak_memory_bytes"] or 0) / 2**20
        for axes, value, form in ((left, speed, ",.0f"), (right, memory, ",.0f")):
            axes.barh(row, value, color=paint[arm["name"]], height=0.62)
            axes.text(value, row, f" {value:{form}}", va="center", fontsize=8, color=INK)
    left.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    left.set_title("training tokens per second, one process")
    right.set_title("peak memory of the process, MB")
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID)
        axes.margins(x=0.18)
    return figure


FIGURES = {
    "differences": (differences, "Differences to the baseline"),
    "curves": (curves, "Loss during training"),
    "learning_rates": (learning_rates, "Loss against learning rate"),
    "layers": (layers, "Gradients and dead units by layer"),
    "costs": (costs, "Speed and memory"),
}
