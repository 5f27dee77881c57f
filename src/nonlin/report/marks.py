"""A drawing's marks as numbers, so that a person can question it: matplotlib's figure in, data of marks.js out."""

import functools
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryFormatter
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.ticker import FixedFormatter, FuncFormatter

from nonlin.report import style
from nonlin.report.explorer import in_script
from nonlin.report.palette import OWN, slot_of
from nonlin.report.style import GRID, INK, MUTED, PAPER

Cells = Sequence[Sequence[str]]
_ROLE = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FORMATS = ((r"^\+", "signed"), (r"%$", "percent"), (r" ?[kMG]$", "tokens"), (r"^2\^", "binary"))  # of a tick's label


def names_of(slots: Mapping[str, int]) -> dict[int, str]:
    """Return the activation of each slot; the well-known ones where ``slots`` says nothing."""
    return {slot: name for name, slot in OWN.items()} | {slot: name for name, slot in slots.items()}


#: The places of a line that is drawn beside them, so that it does not hide others: they are what its words say.
_TRUE: "weakref.WeakKeyDictionary[Line2D, Sequence[float]]" = weakref.WeakKeyDictionary()


def stands_for(line: Line2D, x: Sequence[float]) -> None:
    """Say which places on the horizontal axis a line's points stand for, where they are drawn beside them."""
    _TRUE[line] = list(x)


def panels(figure: Figure, names: Mapping[int, str], cells: Cells | None = None) -> list[dict[str, Any]]:
    """Return a panel for each of the figure's axes: its scales, marks, rules, words.

    ``names`` are the activations by slot, so that they go and come; ``cells`` are the words of a grid's cells.
    """
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.axison]
    if any(not isinstance(one, PolyCollection) for axes in shown for one in axes.collections) or any(
            not isinstance(one, Rectangle) for axes in shown for one in axes.patches):
        return []  # something here cannot be drawn from its numbers: the still figure stays
    found = [_panel(axes, names, cells) for axes in shown]
    return [panel for panel in found if panel["marks"]]


class Drawings:
    """The figures of a page: each still, as SVG, and as the numbers of its marks.

    ``slots`` are the activations' places in the palette.
    """

    def __init__(self, slots: Mapping[str, int]):
        self.slots = slots
        self.panels: dict[str, list[dict[str, Any]]] = {}

    def inline(self, draw: Callable[[], Figure], name: str, title: str, folder: Path | None = None,
               cells: Cells | None = None) -> str:
        """Return a figure as SVG elements, as :func:`nonlin.report.style.inline` does, and keep its marks."""
        def look(figure: Figure) -> None:
            self.panels[name] = panels(figure, names_of(self.slots), cells)

        return style.inline(draw, name, title, folder, look)

    def data(self) -> Markup | None:
        """Return the JSON of the page's figures, None where there are none."""
        return data(self.panels, self.slots)


def data(figures: Mapping[str, list[dict[str, Any]]], slots: Mapping[str, int]) -> Markup | None:
    """Return the JSON of a page's figures, None where there are none."""
    shown = {name: made for name, made in figures.items() if made}
    seen = {mark["arm"]: mark["slot"] for made in shown.values() for panel in made for mark in panel["marks"]
            if mark.get("arm")}
    ordered = {name: slot for name, slot in slots.items() if name in seen} | seen
    arms = [{"name": name, "slot": slot} for name, slot in ordered.items()]
    return in_script({"arms": arms, "figures": shown}) if shown else None


def _panel(axes: Axes, names: Mapping[int, str], cells: Cells | None) -> dict[str, Any]:
    marks: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for image in axes.images:
        marks.append(_grid(image, cells))
    for patch in (one for one in axes.patches if isinstance(one, Rectangle)):
        across = _across(axes, patch)
        (rules if across else marks).append(_box(patch, names) | across)
    for one in axes.collections:
        for corners in (np.asarray(path.vertices) for path in one.get_paths()):
            marks.append({"kind": "area", **_paint(np.asarray(one.get_facecolor())[0], names),
                          "x": _short(corners[:, 0]), "y": _short(corners[:, 1])})
    for line in axes.lines:
        if len(np.atleast_1d(line.get_xdata())):
            across = _across(axes, line)
            (rules if across else marks).append(_line(axes, line, names) | across)
    figure = axes.get_figure(root=True)
    above = [axes.get_title(loc) for loc in ("left", "center", "right")]
    vertical = axes.get_ylabel() or (figure.get_supylabel() if figure else "")
    horizontal = axes.get_xlabel() or (figure.get_supxlabel() if figure else "")
    title = " – ".join(" ".join(part.split()) for part in (*above, vertical) if part)
    return {"title": title, "both": True, "x": _axis(axes, axes.xaxis, horizontal), "y": _axis(axes, axes.yaxis, ""),
            "tall": round(84 * float(figure.get_size_inches()[1]) / _rows(axes)) if figure else 300,
            "lines": [], "marks": marks, "rules": rules,
            "texts": [t for t in map(_text, axes.texts) if t], "keys": _keys(axes, names)}


def _rows(axes: Axes) -> int:
    spec = axes.get_subplotspec()
    return spec.get_gridspec().nrows if spec else 1


def _axis(axes: Axes, axis: Axis, label: str) -> dict[str, Any]:
    low, high = map(float, sorted(axis.get_view_interval()))
    log = axis.get_scale() == "log"
    places = [float(p) for p in axis.get_majorticklocs() if low <= p <= high]
    texts = axis.get_major_formatter().format_ticks(places)
    made: dict[str, Any] = {"label": " ".join(label.split()), "format": "log" if log else "plain", "log": log,
                            "range": _short([low, high]), "down": bool(axis.get_inverted())}
    if any("10^{" in text for text in texts) and not log:
        made["format"] = "decades"
    for pattern, name in _FORMATS:
        if any(re.search(pattern, text) for text in texts):
            made["format"] = name
    if _worded(axis):
        made["names"] = [[place, _plain(text)] for place, text in zip(places, texts, strict=True)]
        for child in axes.child_axes if axis is axes.yaxis else ():
            made["beside"] = [text.get_text() for text in child.get_yticklabels()]
    return made


def _worded(axis: Axis) -> bool:
    """Whether the ticks' labels were given one by one."""
    form = axis.get_major_formatter()
    return isinstance(form, FixedFormatter | StrCategoryFormatter) or (
        isinstance(form, FuncFormatter) and isinstance(form.func, functools.partial))


def _plain(text: str) -> str:
    """Turn a label's mathematics into plain letters.

    >>> _plain("$10^{-10}$")
    '10⁻¹⁰'
    """
    return re.sub(r"\^\{([-\d]+)\}", lambda m: m[1].translate(_RAISED), text.replace("$", ""))


def _line(axes: Axes, line: Line2D, names: Mapping[int, str]) -> dict[str, Any]:
    marker, style = line.get_marker(), line.get_linestyle()
    x, y = (np.atleast_1d(np.asarray(axis.convert_units(v), dtype=float)) for axis, v in (
        (axes.xaxis, line.get_xdata(True)), (axes.yaxis, line.get_ydata(True))))
    ringed = to_rgba(line.get_markerfacecolor())[3] == 0 or line.get_markerfacecolor() == PAPER
    joined, pointed = style not in ("None", "none", ""), marker not in (None, "None", "none", "")
    every = line.get_markevery()
    colour = line.get_markeredgecolor() if ringed and not joined else line.get_color()
    return {"kind": "line", **_paint(colour, names, line.get_alpha()), "label": _label(line.get_label()),
            "x": _short(x), "y": _short(y), "wide": round(float(line.get_linewidth()), 2) if joined else 0,
            "dash": style not in ("-", "None", "none", "") and joined, "marker": str(marker) if pointed else "",
            "size": round(float(line.get_markersize()), 1), "open": bool(ringed),
            "every": every if isinstance(every, int) else 1} | (
                {"true": _short(_TRUE[line])} if line in _TRUE else {})


def _box(patch: Rectangle, names: Mapping[int, str]) -> dict[str, Any]:
    x, y = patch.get_xy()
    return {"kind": "box", **_paint(patch.get_facecolor(), names, patch.get_alpha()),
            "label": _label(patch.get_label()), "x": _short([x, x + patch.get_width()]),
            "y": _short([y, y + patch.get_height()])}


def _grid(image: Any, cells: Cells | None) -> dict[str, Any]:
    shown = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    red, green, blue = (float(v) for v in shown[0, 0, :3])
    return {"kind": "grid", "colour": to_hex((red, green, blue)), "words": cells, "x": [left, right],
            "y": [bottom, top],
            "shades": [[round(float(v), 2) for v in row] for row in shown[..., 3]]}


def _text(text: Any) -> dict[str, Any] | None:
    """A word beside the marks, where its place is one of the data's."""
    if not text.get_text() or (isinstance(text, Annotation) and text.xycoords != "data"):
        return None
    x, y = (text.xy if isinstance(text, Annotation) else text.get_position())
    moved = text.get_position() if isinstance(text, Annotation) and text.anncoords == "offset points" else (0, 0)
    return {"x": float(x), "y": float(y), "text": text.get_text().strip(), "by": [float(v) for v in moved],
            "above": text.get_verticalalignment() == "bottom", "align": text.get_horizontalalignment()}


def _across(axes: Axes, artist: Any) -> dict[str, str]:
    """The axis whose place a line or a band that runs across the panel has; nothing for a mark with places in both."""
    x, y = artist.get_transform().contains_branch_seperately(axes.transData)
    return {} if x and y else {"at": "x" if x else "y"}


def _keys(axes: Axes, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The legend's words but for the activations, which have switches."""
    found = []
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        if label in names.values():
            continue
        if isinstance(handle, Line2D):
            style_ = handle.get_linestyle()
            found.append({"label": label, **_paint(handle.get_color(), names, handle.get_alpha()),
                          "dash": style_ not in ("-", "None"), "as": "spot" if style_ == "None" else "line"})
        elif isinstance(handle, Rectangle | PolyCollection):
            face = np.atleast_2d(np.asarray(handle.get_facecolor()))[0]
            found.append({"label": label, **_paint(face, names, handle.get_alpha()), "dash": False, "as": "box"})
    return found


def _label(label: object) -> str:
    text = str(label)
    return "" if text.startswith("_") else text


def _paint(colour: Any, names: Mapping[int, str], alpha: float | None = None) -> dict[str, Any]:
    """A colour as the page has it: an activation's slot, a role, else the colour itself."""
    text = to_hex(colour, keep_alpha=False)
    shade = alpha if alpha is not None else to_rgba(colour)[3]
    made: dict[str, Any] = {} if shade == 1 else {"alpha": round(float(shade), 3)}
    if (slot := slot_of(text)) is not None:
        return made | {"slot": slot, "arm": names.get(slot, "")}
    return made | ({"role": _ROLE[text]} if text in _ROLE else {"colour": text})


def _short(values: Any) -> list[float | None]:
    return [float(f"{float(v):.6g}") if np.isfinite(v) else None for v in values]
