"""How figures look, and how one drawing serves the light page, the dark page and a paper."""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure

from nonlin.files import write_atomically

# Drawn in colours that stand for roles: the page replaces them by its own, a file by those of paper.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#fefefe"
_ROLES = {INK: ("var(--ink)", "#1c2024"), MUTED: ("var(--muted)", "#60646c"), GRID: ("var(--grid)", "#e0e1e6"),
          PAPER: ("var(--paper)", "#ffffff")}
# Okabe and Ito's palette, distinguishable by colour-blind readers, darkened or lightened to show on both backgrounds.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#8e6bbf", "#7f7f7f", "#a0522d", "#2f9e9e")
MARKERS = "osD^vPX*<>"

_SETTINGS: Any = {
    "font.family": ["DejaVu Sans"], "font.size": 10, "svg.fonttype": "path",
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID, "axes.grid": True, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "lines.linewidth": 1.6,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False}


def settings():
    """Return the context in which figures are drawn."""
    return matplotlib.rc_context(_SETTINGS)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, laid out without overlaps."""
    return Figure(figsize=(width, height), layout="constrained")


def colours(names: list[str]) -> dict[str, str]:
    """Return a colour for each name, in order."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def markers(names: list[str]) -> dict[str, str]:
    """Return a marker for each name, so that colour is never the only difference."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def inline_svg(figure: Figure, name: str, title: str) -> str:
    """Return the figure as an SVG element whose colours follow the page's; ids are its own."""
    text = _svg(figure, name)
    text = text[text.index("<svg"):]
    for role, (page, _) in _ROLES.items():
        text = text.replace(role, page)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*pt"([^>]*?)height="[^"]*pt"', r"<svg \1\2", text, count=1)
    text = re.sub(r'height="[^"]*pt" ', "", text, count=1)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{title}" ', text, count=1)


def write_files(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as NAME.svg and NAME.png in the colours of paper."""
    text = _svg(figure, name)
    for role, (_, paper) in _ROLES.items():
        text = text.replace(role, paper)
    write_atomically(folder / f"{name}.svg", text)
    repaint(figure)
    figure.savefig(folder / f"{name}.png", dpi=160, facecolor="white")


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
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
