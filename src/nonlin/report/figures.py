"""The figures of a study, each a function from its records to a drawing."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from nonlin.numbers import alike, interval, number, places
from nonlin.report import recovery
from nonlin.report.palette import hidden
from nonlin.report.records import Study, smooth, tuned
from nonlin.report.style import GRID, INK, MUTED, PAPER, colours, markers, narrow, new_figure, panels

_FAR = 6.0  # what lies that many times farther out than the rest would squeeze it: it is drawn at the edge


def names(study: Study) -> list[str]:
    return [arm["name"] for arm in study.results["arms"]]  # the plan's order: colours stay when the ranking changes


def _legend(figure: Figure, axes, count: int) -> None:
    """Put the legend above the drawing, where it can hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=min(count, 2 if narrow() else 4),
                      fontsize=8)


def reach_of(extents: list[float], least: float) -> float:
    """Return how far an axis must reach: over all of them, or over the lower half and what lies near it.

    >>> reach_of([0.01, 0.02, 0.05, 0.9], 0.01), reach_of([0.01, 0.02, 0.05, 0.2], 0.01)
    (0.05, 0.2)
    """
    ordered = [max(least, x) for x in sorted(extents)] or [least]
    for lower, higher in itertools.pairwise(ordered[(len(ordered) - 1) // 2:]):
        if higher > _FAR * lower:
            return lower
    return ordered[-1]


def effects(study: Study) -> list[Mapping[str, Any]]:
    """Return the arms that have a difference to the baseline, best first."""
    return [arm for arm in study.others if arm["difference"]]


def seeds_differences(study: Study, arm: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return each judged seed's difference of an arm to the baseline, where both have finished."""
    losses = {run["seed"]: run["bits_per_byte"] for other in study.arms if other["name"] == study.baseline
              for run in other["judged"]}
    return [(run["seed"], run["bits_per_byte"] - losses[run["seed"]]) for run in arm["judged"]
            if run["bits_per_byte"] is not None and losses.get(run["seed"]) is not None]


def digits(study: Study) -> int:
    """Return how many decimals the study's differences mean."""
    return places((arm["difference"]["high"] - arm["difference"]["low"]) / 2 for arm in effects(study))


def interval_words(study: Study, arm: Mapping[str, Any]) -> str:
    """Return an arm's difference and its interval, with the digits that they mean."""
    d, form = arm["difference"], f"+.{digits(study)}f"
    return f"{number(d['mean'], form)} ({interval(d['low'], d['high'], form)})"


def differences(study: Study) -> Figure:
    """Paired differences to the baseline: each seed's, their mean, its interval, and the margin.

    An interval far outside of the others' is an arrow at the edge: its numbers stand beside it in any case.
    """
    arms = effects(study)
    paint, small = colours(names(study)), narrow()
    figure = new_figure(1.3 + (0.62 if small else 0.46) * max(1, len(arms)))
    axes = figure.subplots()
    margin = study.results["rule"]["margin"]
    axes.axvspan(-margin, margin, color=MUTED, alpha=0.16, lw=0, label=f"counts as equal (±{margin:g})")
    axes.axvline(0, color=MUTED, lw=1)
    reach = reach_of([max(abs(arm["difference"]["low"]), abs(arm["difference"]["high"])) for arm in arms], 2 * margin)
    shown, far = [-2 * margin, 2 * margin], []
    for row, arm in enumerate(reversed(arms)):
        d, colour = arm["difference"], paint[arm["name"]]
        words = interval_words(study, arm)
        if small:
            axes.annotate(f"{arm['name']}: {arm['verdict']}, {words}", (0, row + 0.3), va="center",
                          xycoords=("axes fraction", "data"), fontsize=8.5, color=INK)
        else:
            axes.annotate(words, (1.02, row), va="center", xycoords=("axes fraction", "data"), fontsize=8.5, color=INK)
        if abs(d["mean"]) > reach:
            far.append((row, d["mean"], colour))
            continue
        each = [difference for _, difference in seeds_differences(study, arm)]
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
    axes.set_yticks(range(len(arms)), ["" if small else f"{arm['name']} – {arm['verdict']}" for arm in reversed(arms)])
    axes.set_ylim(-0.6, max(1, len(arms)) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"bits per byte less {study.baseline}'s on the same seed" + (
        "\n(left of zero is better)" if small else "   (left of zero is better)"))
    _legend(figure, axes, 1)
    return figure


def _dash(hidden_names: set[str], name: str) -> Any:
    """A dash for a line that lies on another, so that both are seen."""
    return (0, (3, 3)) if name in hidden_names else "-"


def curves(study: Study) -> Figure:
    """Training loss against tokens from the tenth value on, every seed thin, their mean thick; and its end closer."""
    figure, (whole, close) = panels(3.6, 2)
    paint, marks = colours(names(study)), markers(names(study))
    means = study.means()
    covered = hidden({name: mean[len(mean) // 2:] for name, (_, mean) in means.items()})
    halves: list[np.ndarray] = []
    start = 0
    for name in names(study):
        if name not in means:
            continue
        tokens, mean = means[name]
        first = min(study.FIRST, len(tokens) - 2) if len(tokens) > 2 else 0
        start = max(start, tokens[first])
        if not narrow():
            for run in (c for c in study.curves if c.arm == name and len(c.tokens) > first):
                whole.plot(run.tokens[first:], smooth(run.loss)[first:], color=paint[name], lw=0.6, alpha=0.3)
        halves.append(np.array(mean[len(mean) // 2:]))
        for axes in (whole, close):
            axes.plot(tokens[first:], mean[first:], color=paint[name], lw=1.8, label=name, marker=marks[name],
                      markevery=max(1, (len(mean) - first) // 8), ms=4, ls=_dash(covered, name))
    outside = False
    if halves:
        low = min(float(half.min()) for half in halves)
        high = low + reach_of([float(half.max()) - low for half in halves], 1e-6)
        outside = any(half.min() > high for half in halves)
        close.set_ylim(low - 0.05 * (high - low), high + 0.02 * (high - low))
        close.set_xlim(left=max(c.tokens[-1] for c in study.curves if c.tokens) / 2)
    for axes, title in ((whole, f"from {_tokens(start, 0)} tokens on" if start else "all of training"),
                        (close, "means of the second half" + (", without those far above" if outside else ""))):
        axes.set_title(title)
        axes.set_xlabel("tokens")
        _token_axis(axes)
    whole.set_ylabel("training loss, bits per byte")
    _legend(figure, whole, len(study.arms))
    return figure


def _token_axis(axes: Any) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow() else 5))
    axes.xaxis.set_major_formatter(FuncFormatter(_tokens))


def _tokens(value: float, _: int) -> str:
    return f"{number(value / 1e6, '.4g')} M" if value >= 1e6 else f"{value / 1e3:.4g} k" if value else "0"


def paired(study: Study) -> Figure:
    """The paired difference of the training loss to the baseline's against tokens, with the band of its mean."""
    figure = new_figure(3.6)
    axes = figure.subplots()
    paint, marks = colours(names(study)), markers(names(study))
    margin = study.results["rule"]["margin"]
    axes.axhspan(-margin, margin, color=MUTED, alpha=0.16, lw=0, label=f"counts as equal (±{margin:g})")
    axes.axhline(0, color=MUTED, lw=1)
    bands = study.bands()
    covered = hidden({name: band.mean for name, band in bands.items()})
    reach = reach_of([max(map(abs, band.mean[len(band.mean) // 4:])) for band in bands.values()], 2 * margin)
    low, high = -2 * margin, 2 * margin
    for name, band in bands.items():
        late = len(band.mean) // 4
        axes.plot(band.tokens, band.mean, color=paint[name], lw=1.8, label=name, marker=marks[name],
                  markevery=max(1, len(band.mean) // 8), ms=4, ls=_dash(covered, name))
        axes.fill_between(band.tokens, band.low, band.high, color=paint[name], alpha=0.16, lw=0)
        if max(map(abs, band.mean[late:])) <= reach:
            low, high = min(low, *band.low[late:]), max(high, *band.high[late:])
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.set_xlabel("tokens")
    axes.set_ylabel(f"training loss less {study.baseline}'s,\nbits per byte (below 0 is better)")
    _token_axis(axes)
    _legend(figure, axes, len(bands) + 1)
    return figure


def learning_rates(study: Study) -> Figure:
    """Loss of the tuning runs against the learning rate: seeds faint, their mean marked.

    A filled diamond is an arm's chosen rate with the loss of its judged runs.

    Rates at which a run diverged stand at the top.
    """
    if not any(arm["tuning"] for arm in study.results["arms"]):
        return _nothing_tuned()
    figure = new_figure(3.6)
    axes = figure.subplots()
    paint, marks = colours(names(study)), markers(names(study))
    covered = hidden({arm["name"]: [mean for _, mean, _ in tuned(arm)] for arm in study.results["arms"]})
    diverged = []
    for arm in study.results["arms"]:
        name, by_rate = arm["name"], tuned(arm)
        good = [(rate, mean) for rate, mean, _ in by_rate if mean is not None]
        diverged += [(rate, name) for rate, mean, _ in by_rate if mean is None]
        for rate, _, losses in by_rate:
            axes.plot([rate] * len(losses), losses, ".", ms=4, color=paint[name], alpha=0.45, mec="none")
        axes.plot([g[0] for g in good], [g[1] for g in good], marker=marks[name], color=paint[name], mfc=PAPER,
                  ms=6, label=name, ls=_dash(covered, name))
        if arm["learning_rate"] and arm["bits_per_byte"]:
            axes.plot(arm["learning_rate"], arm["bits_per_byte"], "D", color=paint[name], ms=7, mec=PAPER)
    losses = [run["bits_per_byte"] for arm in study.results["arms"] for run in arm["tuning"]
              if run["bits_per_byte"] is not None]
    cut = False
    if losses:
        low = min(losses)
        reach = reach_of([loss - low for loss in losses], 1e-3)
        cut = max(losses) > low + 1.06 * reach
        axes.set_ylim(low - 0.06 * reach, low + 1.06 * reach)
    top = axes.get_ylim()[1]
    for i, (rate, name) in enumerate(diverged):  # beside each other, not on top of each other
        axes.plot(rate * 1.04 ** (i % 5 - 2), top, marker="x", color=paint[name], ms=8, ls="none", clip_on=False)
    rates = sorted({run["learning_rate"] for arm in study.results["arms"] for run in arm["tuning"]})
    if rates:
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45 if narrow() and len(rates) > 6 else 0)
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate" + ("   (× at the top: diverged)" if diverged else "")
                    + ("   (lines that leave at the top: far worse)" if cut else ""))
    axes.set_ylabel("bits per byte after tuning")
    _legend(figure, axes, len(study.arms))
    return figure


def _nothing_tuned() -> Figure:
    figure = new_figure(0.6)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0, 0.5, "No rate was tuned here.", transform=axes.transAxes, va="center")
    return figure


def layers(study: Study) -> Figure:
    """Gradient norm and dead units by layer, at the end of training."""
    figure, (left, right) = panels(3.3, 2)
    paint, marks = colours(names(study)), markers(names(study))
    covered = {key: hidden({arm["name"]: [layer[key] for layer in arm["layers"]] for arm in study.results["arms"]})
               for key in ("gradient_rms", "dead_share")}
    for arm in study.results["arms"]:
        for axes, key in ((left, "gradient_rms"), (right, "dead_share")):
            values = [math.nan if layer[key] is None else layer[key] for layer in arm["layers"]]
            axes.plot(range(1, len(values) + 1), values, marker=marks[arm["name"]], color=paint[arm["name"]], ms=5,
                      label=arm["name"], ls=_dash(covered[key], arm["name"]))
    depth = max((len(arm["layers"]) for arm in study.arms), default=0)
    for axes in (left, right):
        axes.set_xticks(range(1, depth + 1))
        axes.set_xlabel("layer")
    if any(layer["gradient_rms"] for arm in study.arms for layer in arm["layers"]):
        left.set_yscale("log")
        low, high = left.get_ylim()
        ticks = [m * 10.0 ** e for e in range(-30, 10) for m in (1, 2, 5) if low <= m * 10.0 ** e <= high]
        left.set_yticks(ticks if len(ticks) <= 8 else [t for t in ticks if f"{t:e}".startswith("1.")])
        left.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, ".0e")))
        left.yaxis.set_minor_formatter(NullFormatter())
    left.set_title("gradient at the block's output (root mean square)")
    right.set_title("dead units")
    right.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, ".1%")))
    right.set_ylim(bottom=0, top=max(0.01, right.get_ylim()[1]))
    if depth:
        _legend(figure, left, len(study.arms))
    return figure


#: What an arm costs: name, how it is read, unit, format, what of it is better.
COSTS: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None], str, str], ...] = (
    ("time per million tokens", lambda arm: 1e6 / arm["timing"]["tokens_per_second"]
     if arm["timing"]["tokens_per_second"] else None, "s", ".3g"),
    ("peak memory of the process", lambda arm: arm["timing"]["peak_memory_bytes"] / 2**20
     if arm["timing"]["peak_memory_bytes"] else None, "MB", ",.0f"),
    ("parameters", lambda arm: arm["parameters"] / 1e3, "thousand", ",.4g"))


def differing_costs(study: Study) -> list[tuple[str, Callable[[Mapping[str, Any]], float | None], str, str]]:
    """Return the costs in which the arms differ by more than 1 %, and which are known of two arms at least."""
    found = []
    for cost in COSTS:
        values = [v for v in map(cost[1], study.arms) if v is not None]
        if len(values) > 1 and not alike(values):
            found.append(cost)
    return found


def costs_words(study: Study) -> str:
    """Return the sentence of the costs in which the arms are equal within 1 %, empty where there is none."""
    told = []
    for name, value, unit, form in COSTS:
        values = [v for v in map(value, study.arms) if v is not None]
        if values and alike(values):
            told.append(f"{name} ({number(sum(values) / len(values), form)} {unit})")
    if not told:
        return ""
    listed = " and in ".join(filter(None, (", in ".join(told[:-1]), told[-1])))
    return f"All activations are equal within 1 % in {listed}: no bars are drawn for that."


def quality(study: Study) -> Figure:
    """Bits per byte against each cost in which the arms differ: time, memory, parameters. Lower left is better."""
    shown = differing_costs(study)
    figure, found = panels(3.2, max(1, len(shown)))
    paint, marks = colours(names(study)), markers(names(study))
    arms = [arm for arm in study.results["arms"] if arm["bits_per_byte"] is not None]
    for axes, (name, value, unit, _) in zip(np.atleast_1d(found), shown, strict=False):
        for arm in (a for a in arms if value(a) is not None):
            error = (arm["standard_deviation"] or 0) / max(1, len(arm["judged"])) ** 0.5
            axes.errorbar(value(arm), arm["bits_per_byte"], yerr=error, color=paint[arm["name"]],
                          marker=marks[arm["name"]], ms=7, lw=1.2, ls="none", label=arm["name"])
        axes.set_xlabel(f"{name}, {unit}")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.12, y=0.12)
        losses = sorted(arm["bits_per_byte"] for arm in arms)
        if losses:
            reach = reach_of([loss - losses[0] for loss in losses], 0.02)
            if losses[-1] > losses[0] + reach:
                axes.set_ylim(losses[0] - 0.12 * reach, losses[0] + 1.12 * reach)
    np.atleast_1d(found)[0].set_ylabel("bits per byte (± standard error)")
    _legend(figure, np.atleast_1d(found)[0], len(arms))
    return figure


def costs(study: Study) -> Figure:
    """Tokens per second of one process, and its peak memory, where the arms differ in it."""
    known = [name for name, *_ in differing_costs(study)]
    shown = [(title, read) for name, title, read in (
        ("time per million tokens", "training tokens per second, one process",
         lambda arm: arm["timing"]["tokens_per_second"] or 0),
        ("peak memory of the process", "peak memory of the process, MB",
         lambda arm: (arm["timing"]["peak_memory_bytes"] or 0) / 2**20)) if name in known]
    figure, found = panels(1.0 + 0.36 * len(study.arms), max(1, len(shown)), sharey=True)
    paint, arms = colours(names(study)), list(reversed(study.arms))
    for axes, (title, read) in zip(np.atleast_1d(found), shown, strict=False):
        for row, arm in enumerate(arms):
            axes.barh(row, read(arm), color=paint[arm["name"]], height=0.62)
            axes.text(read(arm), row, f" {read(arm):,.0f}", va="center", fontsize=8, color=INK)
        axes.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, ",.6g")))
        axes.margins(x=0.18)
    return figure


def _judged(study: Study) -> bool:
    return any(arm["judged"] for arm in study.arms)


def _has_costs(study: Study) -> bool:
    return _judged(study) and any(name != "parameters" for name, *_ in differing_costs(study))


FIGURES: dict[str, tuple[Callable[[Study], Figure], str, Callable[[Study], bool]]] = {
    "differences": (differences, "Differences to the baseline", _judged),
    "paired": (paired, "Difference during training", lambda study: bool(study.bands())),
    "curves": (curves, "Loss during training", lambda study: bool(study.means())),
    "recovery": (recovery.figure, recovery.TITLE, recovery.has),
    "learning_rates": (learning_rates, "Loss against learning rate", lambda study: True),  # an early look has it first
    "layers": (layers, "Gradients and dead units by layer", _judged),
    "quality": (quality, "Quality against cost", lambda study: _judged(study) and bool(differing_costs(study))),
    "costs": (costs, "Speed and memory", _has_costs),
}
"""Draws a figure; its title; whether this study has it."""
