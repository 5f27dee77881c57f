"""One colour, marker and dash for each activation: on figures, in the explorer, in tables and in the terminal.

The colours keep apart for readers with deuteranopia and protanopia too, in light and in dark; a test measures it.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

#: Each slot's colour on light and on dark paper. The first six are farthest apart: those of the default study.
SLOTS = (
    ("#4878f6", "#c8cbfe"), ("#4aa10d", "#9ff466"), ("#731a43", "#c7688c"), ("#1da081", "#7ef3d0"),
    ("#520bb8", "#ab6bfb"), ("#7f1a04", "#da6949"), ("#935149", "#e89d93"), ("#1a636a", "#6eb0b8"),
    ("#83919d", "#d2e1ee"), ("#5857b0", "#aba3fe"), ("#62322b", "#b37b71"), ("#aa3a12", "#fe8d63"),
    ("#2b3c6c", "#7985bb"), ("#6c9759", "#bbe7a4"))
MARKERS = "osD^vPX*<>phdH"

#: Whose slots are their own wherever they are shown.
OWN = {"gelu": 0, "relu": 1, "relu_squared": 2, "silu": 3, "geglu": 4, "swiglu": 5, "tanh": 6, "sigmoid": 7,
       "identity": 8, "leaky_relu": 9, "selu": 10, "mish": 11}
_SPARE = (12, 13, 9, 10, 11, 6, 7, 8, 2, 4, 5, 3, 1, 0)  # in which order the others take what is free


_OF_LIGHT = {light: slot for slot, (light, _) in enumerate(SLOTS)}  # grows with the further slots


@functools.cache
def slot_colours(slot: int) -> tuple[str, str]:
    """Return a slot's colours on light and on dark paper; from the fifteenth on, made by turning the hue.

    No two slots have one colour. No eye distinguishes so many: markers and names help.

    >>> slot_colours(0) == SLOTS[0], len({slot_colours(k) for k in range(60)})
    (True, 60)
    """
    if slot < len(SLOTS):
        return SLOTS[slot]
    for below in range(len(SLOTS), slot):
        slot_colours(below)
    turn, k = math.pi * (3 - math.sqrt(5)), slot - len(SLOTS)  # the golden angle: neighbours are far apart
    while True:
        light, dark = (_of_lab((0.42, 0.55, 0.63)[k % 3] + step, 0.13, k * turn) for step in (0.0, 0.22))
        if light not in _OF_LIGHT:
            _OF_LIGHT[light] = slot
            return light, dark
        k += 1


def _of_lab(lightness: float, chroma: float, hue: float) -> str:
    """Return a colour of Oklab (Ottosson, 2020) in hexadecimal, clipped to what a screen shows."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long, middle_, short = ((lightness + x * a + y * b) ** 3 for x, y in (
        (0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480)))
    linear = (4.0767416621 * long - 3.3077115913 * middle_ + 0.2309699292 * short,
              -1.2684380046 * long + 2.6097574011 * middle_ - 0.3413193965 * short,
              -0.0041960863 * long - 0.7034186147 * middle_ + 1.7076147010 * short)
    curved = (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in (max(0.0, u) for u in linear))
    return "#" + "".join(f"{round(255 * min(1.0, v)):02x}" for v in curved)


def slot_of(light: str) -> int | None:
    """Return the slot whose colour on light paper this is, None where it is none's."""
    return _OF_LIGHT.get(light)


class Paint(NamedTuple):
    """How one activation is drawn; ``slot`` is its place in the palette."""

    slot: int
    light: str
    dark: str
    marker: str


def paint(names: Sequence[str]) -> dict[str, Paint]:
    """Return how to draw each of these activations, which are shown together.

    The well-known ones have a slot of their own. Others take, in order, a slot that nothing here has: first those of
    the palette, then further ones, so that no two have one slot.

    >>> [paint(["gelu", "mine", "relu"])[name].slot for name in ("gelu", "mine", "relu")]
    [0, 12, 1]
    """
    taken = {OWN[name] for name in names if name in OWN}
    found: dict[str, Paint] = {}
    for name in names:
        slot = OWN.get(name)
        if slot is None:
            slot = next(k for k in itertools.chain(_SPARE, itertools.count(len(SLOTS))) if k not in taken)
        taken.add(slot)
        found[name] = Paint(slot, *slot_colours(slot), MARKERS[slot % len(MARKERS)])
    return found


def middle(name: Paint) -> str:
    """Return a colour between the one for light and the one for dark: a terminal does not say which it is."""
    both = [[int(text[i:i + 2], 16) for i in (1, 3, 5)] for text in (name.light, name.dark)]
    return "#" + "".join(f"{(a + b) // 2:02x}" for a, b in zip(*both, strict=True))


def variables(slots: Mapping[str, int] | None = None) -> Markup:
    """Return the palette as CSS variables, --c0 and so on, light and dark; with the further ones of ``slots``."""
    pairs = [slot_colours(k) for k in range(max([len(SLOTS), *(k + 1 for k in (slots or {}).values())]))]
    light, dark = (";".join(f"--c{i}:{pair[k]}" for i, pair in enumerate(pairs)) for k in (0, 1))
    return Markup(f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}")


def hidden(lines: Mapping[str, Sequence[float | None]], share: float = 0.004) -> set[str]:
    """Return which lines lie on an earlier one, so that they must be drawn otherwise to be seen.

    Lines are the values at common places. One is hidden where, for more than half of the places, it is nearer to
    an earlier line than this share of the whole range.

    >>> sorted(hidden({"a": [1, 2, 3], "b": [1, 2, 3.001], "c": [3, 2, 1]}))
    ['b']
    """
    known = {name: np.array([np.nan if v is None else v for v in values], dtype=float)
             for name, values in lines.items() if len(values)}
    finite = [v[np.isfinite(v)] for v in known.values()]
    everything = np.concatenate(finite) if finite else np.zeros(0)
    if not len(everything):
        return set()
    near = share * max(float(everything.max() - everything.min()), 1e-12)
    found: set[str] = set()
    names = list(known)
    for i, name in enumerate(names):
        for other in names[:i]:
            length = min(len(known[name]), len(known[other]))
            gaps = np.abs(known[name][:length] - known[other][:length])
            gaps = gaps[np.isfinite(gaps)]
            if len(gaps) and np.mean(gaps <= near) > 0.5:
                found.add(name)
    return found
