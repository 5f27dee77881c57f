"""Drawings that several claims share: intervals by row, and values by column."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from nonlin.numbers import number
from nonlin.report.palette import paint
from nonlin.report.style import MUTED, PAPER, panels

OTHER = "#7f7f7f"


def colour(name: str) -> str:
    """Return the activation's colour; grey where there is no name."""
    return paint([name])[name].light if name else OTHER


def marker(name: str) -> str:
    """Return the activation's marker."""
    return paint([name])[name].marker if name else "."


def intervals(axes: Axes, rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str], margin: float | None,
              points: Mapping[str, Sequence[float]] | None = None) -> None:
    """Draw each row's mean, interval and single values; the first row on top, the margin shaded."""
    names = list(rows)[::-1]
    if margin is not None:
        axes.axvspan(-margin, margin, color=MUTED, alpha=0.16, lw=0, label=f"counts as equal (±{margin:g})")
    axes.axvline(0, color=MUTED, lw=1)
    for i, name in enumerate(names):
        effect, paint = rows[name], colours[name]
        each = (points or {}).get(name, [])
        axes.plot(each, [i] * len(each), "o", ms=4, color=paint, alpha=0.5, mec="none")
        axes.plot([effect["low"], effect["high"]], [i, i], color=paint, lw=2.6, solid_capstyle="butt")
        axes.plot(effect["mean"], i, "D", ms=7, color=paint, mec=PAPER, mew=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)


def plain_log(axes: Axes, which: str = "both") -> None:
    """Make axes logarithmic with plain numbers at their ticks."""
    for name, axis, scale in (("x", axes.xaxis, axes.set_xscale), ("y", axes.yaxis, axes.set_yscale)):
        if which in ("both", name):
            scale("log")
            axis.set_major_formatter(FuncFormatter(lambda v, _: number(v, "g")))
            axis.set_minor_formatter(NullFormatter())


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Return the places of labels, moved up as little as keeps them so far apart, in their order.

    >>> apart([0.2, 0.1, 0.12, 0.11], 0.05)
    [0.25, 0.1, 0.2, 0.15]
    """
    found = list(places)
    least = -math.inf
    for i in sorted(range(len(found)), key=found.__getitem__):
        found[i] = least = round(max(found[i], least + gap), 12)
    return found


def figure(height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes in a row, or on a phone below each other."""
    return panels(height, columns, **options)


def span(effect: Mapping[str, float], form: str = "+.3f", factor: float = 1.0) -> str:
    """Return an effect in words: mean (low to high).

    >>> span({"mean": 0.1, "low": -0.05, "high": 0.25})
    '+0.100 (−0.050 to +0.250)'
    """
    mean, low, high = (number(factor * effect[key], form) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
