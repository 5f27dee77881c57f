"""Compute an activation's properties: smoothness, minimum, range, dead region, moments under a unit normal.

Nothing is typed in. Kinks come from the symbolic tree. The rest is computed numerically from the definition (to about
1e-6), on the interval from -40 to 40. Limits are told from ±1e4 to ±1e64.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
from scipy import optimize

from nonlin.functions.expression import fold
from nonlin.functions.numeric import TABLE, Formula, derivatives, numeric, start
from nonlin.functions.primitives import absolute, log1p
from nonlin.functions.ties import KINKED, switch_of

FAR = 1e4


@dataclass(frozen=True)
class Properties:
    """Computed facts of an activation; a gated one is described by its gate, with up = 1.

    ``smoothness`` is "undefined" (it has no finite value at some x), "discontinuous", "C0", "C1", ... or "smooth".
    ``minimum`` is (place, value), or None if there is none below the far ends. ``zero_gradient`` lists intervals.
    Moments are under a unit normal: nan where they do not exist.
    """

    smoothness: str
    monotonic: bool
    minimum: tuple[float, float] | None
    range: tuple[float, float]
    zero_gradient: tuple[tuple[float, float], ...]
    mean: float
    second_moment: float
    derivative_mean: float
    derivative_second_moment: float


def _kinks(formula: Formula, grid: np.ndarray) -> list[float]:
    """The zeros of the arguments of kinked primitives."""
    assert formula.expr is not None
    return _zeros(formula, grid, {switch_of(part) for part in formula.expr.atoms(*KINKED)})


def _singular(formula: Formula, grid: np.ndarray) -> list[float]:
    """The zeros of divisors and of what stands under a root or in a logarithm: there it may be infinite, or end."""
    assert formula.expr is not None
    powers = {power.base for power in formula.expr.atoms(sympy.Pow)
              if power.base.free_symbols and (power.exp.is_negative or not power.exp.is_Integer)}
    inners = powers | {call.args[0] + 1 for call in formula.expr.atoms(log1p)}
    # |u| touches 0 between two points of the grid, where u crosses it.
    return _zeros(formula, grid, {e.args[0] if e.func is absolute else e for e in inners})


def _zeros(formula: Formula, grid: np.ndarray, inners: set[Any]) -> list[float]:
    found: set[float] = set()
    for inner in inners:
        def switch(x: np.ndarray, inner: Any = inner) -> np.ndarray:
            return np.broadcast_to(fold(inner, start(formula) | {formula.variables[0]: x}, TABLE), x.shape)

        with np.errstate(all="ignore"):
            values = switch(grid)
            found.update(float(x) for x in grid[values == 0] if np.count_nonzero(values == 0) < 20)
            at = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
            low, high, below = grid[at], grid[at + 1], values[at]
            for _ in range(60 if len(at) else 0):  # all crossings bisected at once
                middle = (low + high) / 2
                left = np.sign(switch(middle)) == np.sign(below)
                low, high = np.where(left, middle, low), np.where(left, high, middle)
        found.update(round(float(x), 12) for x in high)
    return sorted(found)


_STEPS = (1e-10, 1e-7, 1e-4)


def _beside(points: list[float]) -> np.ndarray:
    """Return arguments (point, side, distance) on both sides of each point."""
    return np.array([[[k + side * h for h in _STEPS] for side in (-1, 1)] for k in points])


def _unbounded(values: np.ndarray) -> np.ndarray:
    """Return for values at :func:`_beside` on which sides they grow without bound, if only as a logarithm does."""
    with np.errstate(all="ignore"):
        near, far = np.abs(values[..., 0] - values[..., 1]), np.abs(values[..., 1] - values[..., 2])
        grows = (near > 0.9 * far) & (np.abs(values[..., 0]) > np.abs(values[..., 1])) \
            & (near > 1e-6 * (1 + np.abs(values[..., 1])))
    return grows | np.isinf(values[..., 0])


def _smoothness(formula: Formula, points: list[float], defined: bool) -> str:
    if not points:
        return "smooth" if defined else "undefined"
    for order, values in enumerate(derivatives(formula, _beside(points))):
        with np.errstate(all="ignore"):
            near, _, far = np.abs(values[:, 0] - values[:, 1]).T
            unbounded = _unbounded(values).any()
        if order == 0 and (unbounded or not (defined and np.isfinite(near).all())):
            return "undefined"
        # A continuous difference shrinks with the distance, if only as its root.
        if unbounded or not (np.isfinite(near) & (near < np.maximum(1e-6, 0.3 * far))).all():
            return "discontinuous" if order == 0 else f"C{order - 1}"
    return "C3"


def first_undefined(formula: Formula) -> float | None:
    """Return a point from -8 to 8 (of x, or of gate with up = 1) where the value or its derivative is not finite.

    None if there is none: the activation can be trained with.

    >>> from nonlin.functions.definition import Definition
    >>> from nonlin.functions.grammar import parse
    >>> first_undefined(Definition("root", "pointwise", parse("sqrt(x)")))
    -8.0
    """
    grid = np.linspace(-8.0, 8.0, 321)
    both = numeric(formula), numeric(formula, 1)
    bad = [float(x) for x in grid[~np.isfinite([f(grid) for f in both]).all(0)]]
    singular = [k for k in _singular(formula, grid) if abs(k) <= 8]
    if singular:  # the grid steps over most of them
        infinite = np.any([_unbounded(f(_beside(singular))).any(-1) for f in both], 0)
        bad += [k for k, found in zip(singular, infinite, strict=True) if found]
    return min(bad, default=None)


def _zero_regions(grid: np.ndarray, derivative: np.ndarray, kinks: list[float]) -> tuple[tuple[float, float], ...]:
    zero = derivative == 0
    regions, start = [], None
    for i, flag in enumerate([*zero, False]):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            if i - start > 50:  # a region, not a point; underflow is not a region of the formula
                low = -math.inf if start == 0 else _snap(grid[start], kinks)
                high = math.inf if i == len(grid) else _snap(grid[i - 1], kinks)
                if any(math.isclose(edge, kink, abs_tol=1e-9) for edge in (low, high) for kink in kinks) or (
                        math.isinf(low) and math.isinf(high)):
                    regions.append((low, high))
            start = None
    return tuple(regions)


def _snap(x: float, kinks: list[float]) -> float:
    near = min(kinks, key=lambda k: abs(k - x), default=x)
    return float(near) if abs(near - x) < 0.02 else float(x)


def _moments(function: Any, cuts: list[float], singular: list[float]) -> tuple[float, float]:
    """The mean of function(z) and of its square under a unit normal, by Gauss-Legendre between the kinks.

    nan for a mean that does not exist, and infinity for that of a square, where the function is infinite somewhere.
    """
    singular = [c for c in singular if abs(c) < 12]
    order = 0.0  # of the worst pole: 1 for 1/x
    if singular:
        values = np.abs(function(_beside(singular)))
        with np.errstate(all="ignore"):
            orders = np.log10(values[..., 0] / values[..., 1]) / 3
        order = float(np.max(orders, initial=0.0, where=_unbounded(values) & np.isfinite(orders)))
    closer = [c + side * 10.0**-k for c in singular for side in (-1, 1) for k in range(1, 16)]
    edges = np.array(sorted({-38.0, *np.arange(-12.0, 12.1, 1.0), 38.0, *(c for c in cuts if abs(c) < 38),
                             *singular, *closer}))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half = np.diff(edges)[:, None] / 2
    z = half * nodes + (edges[1:, None] + edges[:-1, None]) / 2
    density = half * weights * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    values = function(z)
    # Far out it underflows, or is undefined for none of a number's likely values; so near a singular point it rounds.
    unlikely = (np.abs(z) > 12) | (np.abs(z[..., None] - np.array([*singular, math.inf])) < 1e-13).any(-1)
    values = np.where(~np.isfinite(values) & unlikely, 0.0, values)
    with np.errstate(all="ignore"):
        terms = values * density
        mean, rounding = float(terms.sum()), 1e-15 * float(np.abs(terms).sum())
        square = float((values**2 * density).sum())
        mean = 0.0 if abs(mean) < rounding else mean  # odd functions cancel
        return math.nan if order > 0.99 else mean, math.inf if order > 0.495 and not math.isnan(square) else square


def _limit(value: Any, side: int) -> float:
    """Return the limit at an end, as told from where the value goes; nan where double precision cannot tell."""
    with np.errstate(all="ignore"):
        found = value(side * 10.0 ** np.array([4, 8, 16, 32, 64]))
    found = found[~np.isnan(found)]
    if not len(found):
        return math.nan
    before, last = float(found[max(0, len(found) - 2)]), float(found[-1])
    if abs(last) > max(1.0, 1.5 * abs(before)):  # a logarithm doubles where its argument is squared
        return math.copysign(math.inf, last)
    return last if abs(last) > 1e-9 else 0.0


def _trend(grid: np.ndarray, y: np.ndarray, side: int) -> float:
    """Return where the values go that double precision has: infinity where they still grow as fast as x."""
    found = np.flatnonzero(np.isfinite(y))
    if not len(found):
        return 0.0
    last = found[-1 if side > 0 else 0]
    half = int(np.argmin(np.abs(grid - grid[last] / 2)))
    grows = side * grid[last] > 8 and abs(y[last]) > max(1.0, 1.5 * abs(y[half]))
    return math.copysign(math.inf, y[last]) if grows else float(y[last])


def compute(formula: Formula) -> Properties | None:
    """Return the properties, or None if the activation is not pointwise."""
    if formula.expr is None:
        return None
    grid = np.round(np.arange(-40.0, 40.005, 0.01), 10)
    value, derivative = numeric(formula), numeric(formula, 1)
    kinks, singular = _kinks(formula, grid), _singular(formula, grid)
    y, dy = value(grid), derivative(grid)
    ends = value([-FAR, FAR])
    poles = []  # the infinities that it tends to at finite x
    if singular:
        around = value(_beside(singular))
        poles = [math.copysign(math.inf, v) for v in around[..., 0][_unbounded(around)] if not math.isnan(v)]
    best = int(np.nanargmin(y)) if not np.isnan(y).all() else 0
    # Values within rounding of the least one are the minimum; an end that still falls has none.
    minimum = None
    if not (best in (0, len(grid) - 1) or np.fmin(*ends) <= y[best] or -math.inf in poles):
        with np.errstate(all="ignore"):
            found = optimize.minimize_scalar(
                lambda t: float(value(t)), bounds=(grid[best - 1], grid[best + 1]), method="bounded",
                options={"xatol": 1e-10})
        at, low = float(found.x), float(found.fun)  # type: ignore[attr-defined]
        minimum = (at, low) if low < y[best] else (float(grid[best]) + 0.0, float(y[best]) + 0.0)
    with np.errstate(all="ignore"):
        steps = np.diff(y)
    falls, rises = bool((steps < -1e-12).any()), bool((steps > 1e-12).any())

    limits = [_limit(value, side) for side in (-1, 1)]
    limits = [_trend(grid, y, side) if math.isnan(limit) else limit
              for side, limit in zip((-1, 1), limits, strict=True)]
    reached = [*map(float, y[np.isfinite(y)]), *limits, *poles, *(minimum or ())[1:]]
    mean, second_moment = _moments(value, kinks, singular)
    derivative_mean, derivative_second_moment = _moments(derivative, kinks, singular)
    points = sorted({*kinks, *singular})
    defined = bool(np.isfinite(y[np.abs(grid) <= 8]).all())
    return Properties(
        smoothness=_smoothness(formula, points, defined), monotonic=not (falls and rises), minimum=minimum,
        range=(min(reached) + 0.0, max(reached) + 0.0) if reached else (math.nan, math.nan),
        zero_gradient=_zero_regions(grid, dy, kinks),
        mean=mean, second_moment=second_moment, derivative_mean=derivative_mean,
        derivative_second_moment=derivative_second_moment)


@functools.cache
def derivative_from_output(formula: Formula) -> str | None:
    """Return whether f'(f(x)) = f'(x) for every x, so that the output determines the derivative.

    "exact" if f is the identity on its range (relu, relu6, hardtanh), "scaled" if it scales by a factor between 1e-3
    and 1e3 there (leaky_relu), else None. Only piecewise linear activations without parameters can have the property;
    all their pieces and kinks are checked.

    >>> from nonlin.functions import get
    >>> [derivative_from_output(get(name)) for name in ("relu", "leaky_relu", "gelu")]
    ['exact', 'scaled', None]
    """
    if formula.kind != "pointwise" or formula.parameters or formula.derivative(None, 2) != 0:
        return None
    grid = np.round(np.arange(-40.0, 40.005, 0.01), 10)
    kinks = _kinks(formula, grid)
    near = [k + side * (1 + abs(k)) * 2.0**-40 for k in kinks for side in (-1, 0, 1)]
    x = np.concatenate([grid, near, [-1e30, -FAR, -1e-30, 0.0, 1e-30, FAR, 1e30]])
    value, derivative = numeric(formula), numeric(formula, 1)
    y, dy = value(x), derivative(x)
    scales = np.abs(dy[dy != 0])
    if not np.array_equal(derivative(y), dy) or (len(scales) and not 1e-3 <= scales.min() <= scales.max() <= 1e3):
        return None
    return "exact" if np.array_equal(value(y), y) else "scaled"
