"""A small plot of an activation for the terminal, in braille dots."""

import numpy as np

from nonlin.functions import Definition
from nonlin.functions.numeric import numeric
from nonlin.numbers import number

_WIDTH, _HEIGHT, _SPAN = 64, 14, 5.0
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def plot(definition: Definition) -> str:
    """Return the value on [-5, 5] (of the gate, with up = 1, for a gated activation), its axes and its bounds."""
    x = np.linspace(-_SPAN, _SPAN, 2 * _WIDTH)
    with np.errstate(all="ignore"):
        y = np.broadcast_to(numeric(definition)(x), x.shape).astype(float)
    finite = y[np.isfinite(y)]
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    high = high if high > low else low + 1.0
    cells = np.zeros((_HEIGHT, _WIDTH), dtype=int)
    rows = 4 * _HEIGHT - 1
    for column, value in enumerate(y):
        if np.isfinite(value):
            _dot(cells, round((high - value) / (high - low) * rows), column)
    zero = round(high / (high - low) * rows)
    for column in range(0, 2 * _WIDTH, 4):
        _dot(cells, zero, column)
    for row in range(0, rows, 4):
        _dot(cells, row, _WIDTH)
    lines = ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
    lines[0] += f" {number(high, '.3g')}"
    lines[-1] += f" {number(low, '.3g')}"
    variable = definition.variables[0]
    return "\n".join([*lines, f"{number(-_SPAN, '+g'):<8}{variable:^{_WIDTH - 16}}{_SPAN:>+8g}"])


def _dot(cells: np.ndarray, row: int, column: int) -> None:
    cells[row // 4, column // 2] |= _DOTS[row % 4][column % 2]
