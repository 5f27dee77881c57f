"""The figures of a health record: heat maps of layers against measures, of units, of magnitudes; gradients."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nonlin.numbers import number
from nonlin.report.style import INK, MUTED, narrow, new_figure, panels

Record = Mapping[str, Any]
_BLUE, _RED = "#0072b2", "#d55e00"  # of quantities, not of activations


def _of(stream: str, key: str) -> Callable[[Record], float | None]:
    return lambda b: b["streams"][stream][key] if stream in b["streams"] else None


def _outlier(b: Record) -> float | None:
    return b["outliers"]["channels"][0]["ratio"] if b["outliers"] else None


MEASURES: tuple[tuple[str, Callable[[Record], float | None], str, bool], ...] = (
    ("dead units", lambda b: b["dead"]["share"], ".1%", False),
    ("saturated gates", lambda b: b["saturated"]["share"], ".1%", False),
    ("always-on units", lambda b: b["always_on"]["share"], ".1%", False),
    ("sparsity at 20 % error", lambda b: b["sparsity"], ".1%", False),
    ("gate: root mean square", _of("gate", "rms"), "#.3g", True),
    ("up: root mean square", _of("up", "rms"), "#.3g", True),
    ("hidden: root mean square", _of("hidden", "rms"), "#.3g", True),
    ("gate: largest", _of("gate", "largest"), "#.3g", True),
    ("up: largest", _of("up", "largest"), "#.3g", True),
    ("hidden: largest", _of("hidden", "largest"), "#.3g", True),
    ("hidden: kurtosis", _of("hidden", "kurtosis"), "#.3g", True),
    ("hidden: zero in float8 e4m3", _of("hidden", "flushed_float8"), ".1%", False),
    ("residual: largest", _of("residual", "largest"), "#.3g", True),
    ("residual: top channel / median", _outlier, "#.3g", True),
    ("gradient: root mean square", lambda b: b["gradients"] and b["gradients"]["rms"], "#.3g", True),
)
"""Name, value of a block, format, and whether it is shaded by its logarithm."""


def _image(axes: Any, shades: np.ndarray, colour: str, extent: Sequence[float] | None = None) -> None:
    """Shade a grid by how opaque one colour is, so that it reads on light and on dark."""
    rgba = np.empty((*shades.shape, 4))
    rgba[..., :3] = to_rgb(colour)
    rgba[..., 3] = np.where(np.isnan(shades), 0.0, 0.05 + 0.95 * np.clip(np.nan_to_num(shades), 0, 1))
    axes.imshow(rgba, aspect="auto", interpolation="none", extent=extent, origin="upper")
    axes.grid(visible=False)


def _layers(axes: Any, count: int) -> None:
    axes.set_xlabel("feed-forward block")
    axes.xaxis.set_major_locator(MaxNLocator(min(count, 6 if narrow() else 16), integer=True))


def measures(record: Record) -> Figure:
    """Every measure (a row) of every block (a column), each row shaded from its least to its greatest value."""
    blocks = record["blocks"]
    rows = [(name, [value(b) for b in blocks], form, log) for name, value, form, log in MEASURES]
    rows = [row for row in rows if any(v is not None for v in row[1])]
    shades = np.full((len(rows), len(blocks)), np.nan)
    for i, (_, values, _, log) in enumerate(rows):
        x = np.array([math.nan if v is None else v for v in values], dtype=float)
        if log:
            x = np.log10(np.where(x > 0, x, np.nan))
        low, high = (0.0 if not log else np.nanmin(x), np.nanmax(x)) if np.isfinite(x).any() else (0.0, 0.0)
        shades[i] = (x - low) / (high - low) if high > low else np.where(np.isnan(x), np.nan, 0.0)
    figure = new_figure(0.9 + (0.36 if narrow() else 0.3) * len(rows))
    axes = figure.subplots()
    _image(axes, shades, _BLUE)
    spans = []
    for _, values, form, _ in rows:
        known = [v for v in values if v is not None]
        low, high = number(min(known), form), number(max(known), form)
        spans.append(low if low == high else f"{low} … {high}")
    names = [name for name, *_ in rows]
    sides = [axes] if narrow() else [axes, axes.secondary_yaxis("right")]
    # A phone has no room at both sides: the values stand below the names.
    axes.set_yticks(range(len(rows)), [f"{a}\n{b}" for a, b in zip(names, spans, strict=True)] if narrow() else names,
                    fontsize=8 if narrow() else None)
    if not narrow():
        sides[1].set_yticks(range(len(rows)), spans)
    for side in sides:
        side.tick_params(length=0)
        for spine in side.spines.values():
            spine.set_visible(False)
    _layers(axes, len(blocks))
    return figure


def units(record: Record) -> Figure:
    """How many of each block's units are positive before the activation on how many of the tokens."""
    blocks = record["blocks"]
    counts = np.array([b["positive"] for b in blocks], dtype=float).T[::-1]
    shares = counts / np.maximum(counts.sum(0), 1)
    figure = new_figure(3.0)
    axes = figure.subplots()
    _image(axes, np.sqrt(shares / max(float(shares.max()), 1e-12)), _BLUE, (-0.5, len(blocks) - 0.5, 0, 100))
    axes.set_ylabel("share of tokens on which\na unit is positive, %")
    axes.set_title(f"strongest shade: {number(float(shares.max()), '.0%')} of a block's units")
    _layers(axes, len(blocks))
    return figure


def magnitudes(record: Record) -> Figure:
    """Magnitudes of the hidden activation by power of two, against what the number formats hold."""
    blocks = record["blocks"]
    counts = np.array([b["streams"]["hidden"]["powers"] for b in blocks], dtype=float)
    shares = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).T[::-1]
    half = counts.shape[1] // 2
    figure = new_figure(3.6)
    axes = figure.subplots()
    _image(axes, np.sqrt(shares / max(float(shares.max()), 1e-12)), _BLUE, (-0.5, len(blocks) - 0.5, -half, half))
    seen = np.flatnonzero(counts.sum(0)) - half
    low, high = (int(seen.min()), int(seen.max()) + 1) if len(seen) else (-10, 10)
    low = max(low, -34)
    axes.set_ylim(min(low, -11), max(high, 10) + 0.6)
    for power, text in ((16, "float16's largest"), (math.log2(448), "float8 e4m3's largest"),
                        (-9, "float8 e4m3's smallest, unscaled"), (-24, "float16's smallest")):
        if axes.get_ylim()[0] < power < axes.get_ylim()[1]:
            axes.axhline(power, color=_RED, lw=1, ls="--")
            axes.text(len(blocks) - 0.5, power, text, color=INK, fontsize=8, ha="right", va="bottom")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"2^{number(v, '.0f')}"))
    axes.set_ylabel("magnitude of the hidden activation")
    _layers(axes, len(blocks))
    return figure


def _zero_shares(record: Record) -> list[float | None]:
    return [b["gradients"]["zero_share"] for b in record["blocks"] if b["gradients"]]


def _zeros_are_equal(record: Record) -> bool:
    """Whether the shares of zero gradients are the same in every block: then a sentence says more than a panel."""
    known = [share for share in _zero_shares(record) if share is not None]
    return not known or max(known) - min(known) < 0.005


def gradient_words(record: Record) -> str:
    """Return the share of gradients that are zero before the activation, where it is the same in every block."""
    known = [share for share in _zero_shares(record) if share is not None]
    if not known or not _zeros_are_equal(record):
        return ""
    if not any(known):
        return "No gradient is zero before the activation, in any block."
    return f"Before the activation {number(sum(known) / len(known), '.1%')} of the gradients are zero, in every block."


def gradients(record: Record) -> Figure:
    """The loss's gradient at each block's output, and the share of zeros before the activation where it differs."""
    blocks = [b for b in record["blocks"] if b["gradients"]]
    equal = _zeros_are_equal(record)
    figure, made = panels(2.8, 1 if equal else 2)
    shown = list(np.atleast_1d(made))
    index = [b["index"] for b in blocks]
    shown[0].plot(index, [b["gradients"]["rms"] or math.nan for b in blocks], marker="o", ms=4, color=_BLUE)
    shown[0].set_yscale("log")
    shown[0].set_title("gradient at the block's output (root mean square)")
    if not equal:
        shown[1].plot(index, [math.nan if share is None else 100 * share for share in _zero_shares(record)],
                      marker="o", ms=4, color=_BLUE)
        shown[1].set_ylim(0, 100)
        shown[1].set_title("gradients that are zero before the activation, %")
    for axes in shown:
        _layers(axes, len(blocks))
        axes.tick_params(which="minor", labelsize=7, labelcolor=MUTED)
    return figure


def alternatives(record: Record) -> Figure:
    """How much the text's loss rises with another activation in the blocks."""
    found = sorted(record["alternatives"]["others"], key=lambda o: -o["difference_nats"])
    figure = new_figure(0.9 + 0.3 * len(found))
    axes = figure.subplots()
    for row, one in enumerate(found):
        colour = _RED if one["difference_nats"] < 0 else _BLUE
        axes.barh(row, one["difference_nats"], color=colour, height=0.6)
        axes.text(max(one["difference_nats"], 0), row, f" {number(one['difference_nats'], '+.3f')}", va="center",
                  fontsize=8, color=INK)
    axes.axvline(0, color=MUTED, lw=1)
    axes.set_yticks(range(len(found)), [one["activation"] for one in found])
    axes.set_xlabel(f"loss less that with {record['alternatives']['activation']}, nats per token" + (
        "" if narrow() else " (left of 0 is better)"))
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.14)
    return figure


def _measured(record: Record) -> list[list[str]]:
    found = [(name, [value(b) for b in record["blocks"]], form) for name, value, form, _ in MEASURES]
    return [[f"{name}, block {i}: {number(v, form)}" for i, v in enumerate(values)] for name, values, form in found
            if any(v is not None for v in values)]


def _shares(rows: Any, words: Callable[[int, int], str]) -> list[list[str]]:
    """Words of a grid that is drawn from its last row down; ``rows`` are counts by block."""
    counts = np.array(rows, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return [[f"{words(k, i)}: {number(float(shares[i, k]), '.2%')}" for i in range(len(counts))]
            for k in reversed(range(counts.shape[1]))]


def _positive(record: Record) -> list[list[str]]:
    rows = [b["positive"] for b in record["blocks"]]
    step = 100 / len(rows[0])
    return _shares(rows, lambda k, i: f"block {i}, units positive on {k * step:.3g} to {(k + 1) * step:.3g} % "
                                      "of the tokens")


def _powers(record: Record) -> list[list[str]]:
    rows = [b["streams"]["hidden"]["powers"] for b in record["blocks"]]
    half = len(rows[0]) // 2
    powers = [number(k - half, ".0f") for k in range(2 * half + 2)]
    return _shares(rows, lambda k, i: f"block {i}, magnitudes from 2^{powers[k]} to 2^{powers[k + 1]}")


#: The words of each cell, of the figures that are grids.
CELLS: dict[str, Callable[[Record], list[list[str]]]] = {
    "measures": _measured, "units": _positive, "magnitudes": _powers}

FIGURES: dict[str, tuple[Callable[[Record], Figure], str, Callable[[Record], bool]]] = {
    "measures": (measures, "Measures by block", lambda r: True),
    "units": (units, "How often units are positive", lambda r: True),
    "magnitudes": (magnitudes, "Magnitudes of the hidden activation", lambda r: True),
    "gradients": (gradients, "Gradients by block", lambda r: any(b["gradients"] for b in r["blocks"])),
    "alternatives": (alternatives, "The loss with other activations", lambda r: bool(r["alternatives"])),
}

#: The sentence that stands for a panel, of the figures that leave one out.
TOLD: dict[str, Callable[[Record], str]] = {"gradients": gradient_words}
