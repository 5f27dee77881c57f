"""The figures of a ladder: differences over sizes with their forecast, best learning rates over sizes."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from nonlin.report.marks import stands_for
from nonlin.report.style import INK, MUTED, PAPER, colours, markers, narrow, new_figure

_LINES = {"constant": ":", "power law": "--", "changing sign": "-"}
_ROOM = 2.5  # how far an interval may lie outside of what was measured and still set the axis


def size_text(value: float) -> str:
    """Return a number of parameters in the form that people use.

    >>> size_text(55_000), size_text(1_200_000), size_text(125e6), size_text(7e9)
    ('55 k', '1.2 M', '125 M', '7 G')
    """
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def differences(results: Mapping[str, Any]) -> Figure:
    """A panel an activation: every seed, each rung's mean and interval, the forms, the interval up to the target."""
    arms = [arm for arm in results["plan"]["request"]["arms"] if arm["name"] != results["baseline"]]
    names = [arm["name"] for arm in arms]
    paint = colours([arm["name"] for arm in results["plan"]["request"]["arms"]])
    columns = 1 if narrow() or len(names) == 1 else 2
    lines = math.ceil(len(names) / columns)
    figure = new_figure(1.0 + 2.5 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for index, name in enumerate(names):
        _panel(panels[index // columns][index % columns], results, name, paint[name])
    for index in range(len(names), lines * columns):
        panels[index // columns][index % columns].set_visible(False)
        if lines > 1:
            panels[index // columns - 1][index % columns].tick_params(labelbottom=True)
    figure.supxlabel("parameters without embeddings", fontsize=10)
    figure.supylabel(f"bits per byte less {results['baseline']}'s (below zero is better)", fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1 if narrow() else 3, fontsize=8)
    return figure


def _panel(axes: Axes, results: Mapping[str, Any], name: str, colour: str) -> None:
    margin = results["rule"]["margin"]
    axes.axhspan(-margin, margin, color=MUTED, alpha=0.16, lw=0, label=f"counts as equal (±{margin:g})")
    axes.axhline(0, color=MUTED, lw=1)
    shown = [-2 * margin, 2 * margin]
    plain = [one for one in results["rungs"] if one["longer"] == 1 and name in one["arms"]]
    top = max((one["parameters"] for one in results["plan"]["rungs"] if one["longer"] == 1), default=0)
    first = {"seed": True, "mean": True, "held": True}
    for one in plain:
        arm, x = one["arms"][name], one["parameters"]
        held = x == top
        seeds, = axes.plot([0.93 * x] * len(arm["each"]), arm["each"], "o", ms=3.5, color=colour, alpha=0.5, mec="none",
                           label="a seed" if first.pop("seed", False) else None)
        stands_for(seeds, [x] * len(arm["each"]))
        shown += arm["each"]
        if arm["difference"]:
            d = arm["difference"]
            word = ("the held-out rung" if first.pop("held", False) else None) if held else (
                "a rung's mean, its interval" if first.pop("mean", False) else None)
            axes.plot([x, x], [d["low"], d["high"]], color=colour, lw=2.2, solid_capstyle="butt")
            axes.plot(x, d["mean"], "s" if held else "D", ms=6.5, color=colour, mec=INK if held else PAPER,
                      mew=1.4 if held else 1, ls="none", label=word)
            shown += [d["mean"]]
    target = _curves(axes, results, name, colour, shown)
    low, high = min(shown), max(shown)
    for end in target:  # a wide interval must not squeeze what was measured
        if low - _ROOM * (high - low) <= end <= high + _ROOM * (high - low):
            shown.append(end)
    low, high = min(shown), max(shown)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    verdict = next((v for v in results["verdicts"] if v["arm"] == name), None)
    axes.set_title(name + (f": {verdict['verdict']} at {size_text(results['target'])}" if verdict else ""))
    _sizes(axes, results)


def _curves(axes: Axes, results: Mapping[str, Any], name: str, colour: str, shown: list[float]) -> list[float]:
    """Draw the forms and the forecast's interval; return the interval's ends at the target."""
    rows = [(row["parameters"], row["arms"][name]) for row in results["curves"]
            if row["arms"].get(name, {}).get("low") is not None]
    if not rows:
        return []
    sizes = [size for size, _ in rows]
    axes.fill_between(sizes, [arm["low"] for _, arm in rows], [arm["high"] for _, arm in rows], color=colour,
                      alpha=0.13, lw=0, label="forecast's interval, all rungs")
    for form, line in _LINES.items():
        rejected = form in rows[0][1]["rejected"]
        axes.plot(sizes, [arm["forms"][form] for _, arm in rows], ls=line, lw=1.1, color=colour,
                  alpha=0.3 if rejected else 0.9, label=form)
    axes.axvline(results["target"], color=MUTED, lw=1, ls=(0, (2, 3)), label="the target")
    for row in results["comparisons"]:
        if row["arm"] == name and row["before"] and row["low"] is not None:
            axes.plot([row["parameters"]] * 2, [row["low"], row["high"]], color=INK, lw=1, marker="_", ms=9,
                      label="what was forecast of the held-out rung")
    last = rows[-1][1]
    return [last["low"], last["high"]]


def _sizes(axes: Axes, results: Mapping[str, Any]) -> None:
    axes.set_xscale("log")
    sizes = [one["parameters"] for one in results["plan"]["rungs"] if one["longer"] == 1]
    shown = [*sizes, results["target"]] if results["curves"] else sizes  # no forecast yet: the rungs alone
    low, high = math.log10(min(shown)), math.log10(max(shown))
    decades = [m * 10.0**e for e in range(int(low), int(high) + 2) for m in ((1,) if high - low > 2 else (1, 2, 5))]
    axes.xaxis.set_major_locator(FixedLocator([d for d in decades if 0.8 * 10**low <= d <= 1.3 * 10**high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: size_text(v)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    room = 0.04 * max(high - low, 0.3)
    axes.set_xlim(10 ** (low - room), 10 ** (high + room))


def rates(results: Mapping[str, Any]) -> Figure:
    """Best learning rates over sizes with their intervals, and the rates that were carried."""
    figure = new_figure(3.9)
    axes = figure.subplots()
    names = [arm["name"] for arm in results["plan"]["request"]["arms"]]
    paint, marks = colours(names), markers(names)
    sizes = {one["name"]: one["parameters"] for one in results["plan"]["rungs"]}
    plain = {one["name"] for one in results["plan"]["rungs"] if one["longer"] == 1}
    for index, row in enumerate(results["rates"]):
        beside = 1.025 ** (index - (len(results["rates"]) - 1) / 2)  # beside each other, not on top of each other
        carried = sorted((sizes[rung], rate) for rung, rate in row["carried"].items() if rung in plain)
        axes.plot([size for size, _ in carried], [rate for _, rate in carried], color=paint[row["arm"]], lw=1,
                  alpha=0.7)
        for one in row["at"]:
            x = sizes[one["rung"]] * beside
            bar, = axes.plot([x, x], [one["low"], one["high"]], color=paint[row["arm"]], lw=1.6, alpha=0.7)
            stands_for(bar, [sizes[one["rung"]]] * 2)
        at = [sizes[one["rung"]] for one in row["at"]]
        points, = axes.plot([x * beside for x in at], [one["rate"] for one in row["at"]], ls="none",
                            marker=marks[row["arm"]], ms=6.5, color=paint[row["arm"]], mec=PAPER, label=row["arm"])
        stands_for(points, at)
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-6, 1) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    _rungs_only(axes, [sizes[name] for name in plain])
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("best learning rate")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=2 if narrow() else 4, fontsize=8)
    return figure


def _rungs_only(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sorted(sizes), [size_text(size) for size in sorted(sizes)])
    axes.xaxis.set_minor_locator(NullLocator())


FIGURES = {"differences": (differences, "Differences over sizes"), "rates": (rates, "Best learning rates")}
