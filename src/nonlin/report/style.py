"""How figures look, and how one drawing serves the light page, the dark page and a paper."""

import io
import re
import threading
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator

from nonlin.files import replacing, write_atomically
from nonlin.numbers import number
from nonlin.report.palette import paint, slot_of

# Drawn in colours that stand for roles: the page replaces them by its own, a file by those of paper.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#fefefe"
_ROLES = {INK: ("var(--ink)", "#1c2024"), MUTED: ("var(--muted)", "#60646c"), GRID: ("var(--grid)", "#e0e1e6"),
          PAPER: ("var(--paper)", "#ffffff")}

_DRAWING = threading.RLock()  # the library's settings are the whole process's; pages are written in threads

WIDE, NARROW = 8.4, 4.3
"""Widths of figures in inches: on a desk and on paper, and on a phone."""

_SETTINGS: Any = {
    "font.family": ["DejaVu Sans"], "font.size": 10,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID, "axes.grid": True, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "lines.linewidth": 1.6,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False}


def settings(width: float = WIDE):
    """Return the context in which figures of this width are drawn."""
    return matplotlib.rc_context(_SETTINGS | {"figure.figsize": (width, 4.0)})


def narrow() -> bool:
    """Return whether figures are drawn for a phone: panels then stand below each other."""
    return matplotlib.rcParams["figure.figsize"][0] < 6


def new_figure(height: float) -> Figure:
    """Return an empty figure of the context's width, height in inches, laid out without overlaps."""
    return Figure(figsize=(matplotlib.rcParams["figure.figsize"][0], height), layout="constrained")


def panels(height: float, columns: int, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes in a row, or below each other on a phone; ``height`` is that of a row."""
    if narrow() and rows == 1 and columns > 1:
        options.pop("width_ratios", None)
        if options.pop("sharey", False):
            options["sharex"] = False
        figure = new_figure(0.92 * height * columns)
        return figure, figure.subplots(columns, 1, **options)
    figure = new_figure(height * (1.15 if narrow() else 1.0))
    return figure, figure.subplots(rows, columns, **options)


def colours(names: list[str]) -> dict[str, str]:
    """Return the colour of each of these activations on light paper."""
    return {name: p.light for name, p in paint(names).items()}


def markers(names: list[str]) -> dict[str, str]:
    """Return a marker for each name, so that colour is never the only difference."""
    return {name: p.marker for name, p in paint(names).items()}


def label_axes(figure: Figure) -> None:
    """Give every axis at least two labelled ticks; those that have them are left alone."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_visible() and axes.axison and _labelled(axis) < 2 and not _named(axis):
                _label(axis)


def _view(axis: Axis) -> tuple[float, float]:
    low, high = sorted(axis.get_view_interval())
    return float(low), float(high)


def _labelled(axis: Axis) -> int:
    low, high = _view(axis)
    room = 1e-9 * (high - low)
    places = [place for place in axis.get_majorticklocs() if low - room <= place <= high + room]
    return sum(map(bool, axis.get_major_formatter().format_ticks(places)))


def _named(axis: Axis) -> bool:
    """Whether the ticks are names or chosen values, as of rows, and not places on a scale."""
    return isinstance(axis.get_major_formatter(), FixedFormatter) or (
        axis.get_scale() == "linear" and isinstance(axis.get_major_locator(), FixedLocator))


def _label(axis: Axis) -> None:
    low, high = _view(axis)
    if axis.get_scale() == "log":
        whole = np.array([m * 10.0 ** e for e in range(-40, 40) for m in (1, 2, 5)])
        inside = whole[(whole >= low) & (whole <= high)]
        if len(inside) >= 2:
            axis.set_major_locator(FixedLocator(inside.tolist()))
            axis.set_major_formatter(FuncFormatter(lambda v, _: number(v, "g")))
            return
    axis.set_major_locator(FixedLocator([v for v in MaxNLocator(4).tick_values(low, high) if low <= v <= high]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: number(v, ".6g")))


def inline(draw: Callable[[], Figure], name: str, title: str, folder: Path | None = None,
           look: Callable[[Figure], None] | None = None) -> str:
    """Return a figure as SVG elements, one for a desk and one for a phone; into a folder also as SVG and PNG.

    ``look`` is given the drawing for a desk, laid out, in the colours that stand for roles.
    """
    made = []
    for kind, width in (("wide", WIDE), ("narrow", NARROW)):
        with _DRAWING, settings(width):
            figure = draw()
            label_axes(figure)
            made.append(inline_svg(figure, name if kind == "wide" else f"{name}-{kind}", title, kind))
            if look and kind == "wide":
                look(figure)
            if folder and kind == "wide":
                write_files(figure, folder, name)
    return "".join(made)


def inline_svg(figure: Figure, name: str, title: str, kind: str = "wide") -> str:
    """Return the figure as an SVG element whose colours follow the page's; ids are its own, its words are text."""
    text = _svg(figure, name, "none")
    text = text[text.index("<svg"):]
    text = re.sub(r"#[0-9a-f]{6}(?![0-9a-f])", _on_a_page, text)
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*pt"([^>]*?)height="[^"]*pt"', r"<svg \1\2", text, count=1)
    text = re.sub(r'height="[^"]*pt" ', "", text, count=1)
    opening = f'<svg class="{kind}" role="img" aria-label="{escape(title)}" '
    return text.replace("<svg ", opening, 1)


def _on_a_page(found: re.Match[str]) -> str:
    """The page's name of a colour: a role's, an activation's, else the colour itself."""
    if found[0] in _ROLES:
        return _ROLES[found[0]][0]
    slot = slot_of(found[0])
    return found[0] if slot is None else f"var(--c{slot})"


def write_files(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as NAME.svg and NAME.png in the colours of paper."""
    text = _svg(figure, name, "path")
    for role, (_, paper) in _ROLES.items():
        text = text.replace(role, paper)
    write_atomically(folder / f"{name}.svg", text)
    repaint(figure)
    with replacing(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=160, facecolor="white")


def _svg(figure: Figure, name: str, fonts: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": fonts}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # it lies: what is written next need not be laid out again
    return buffer.getvalue()


def repaint(figure: Figure) -> None:
    """Turn a figure's role colours into those of paper."""
    for artist in figure.findobj():
        _repaint(artist)


def _repaint(artist) -> None:
    """Turn an artist's role colours into those of paper."""
    for part in ("color", "edgecolor", "facecolor", "markeredgecolor", "markerfacecolor"):
        get, put = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
        if not (get and put):
            continue
        try:
            value = to_hex(get(), keep_alpha=False)
        except (ValueError, TypeError):
            continue
        alpha = to_rgba(get())[3]
        if value in _ROLES:
            put((*to_rgb(_ROLES[value][1]), alpha))
