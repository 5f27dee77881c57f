"""Compute an activation's properties: smoothness, minimum, range, dead region, moments under a unit normal.

Nothing is typed in. Kinks come from the symbolic tree; the rest is computed numerically from the definition (to about
1e-6), on the interval from -40 to 40 and at ±1e4 for the limits.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

from nonlin.functions.definition import Definition
from nonlin.functions.expression import fold

FAR = 1e4


def _power(a: Any, n: Any) -> Any:
    return np.power(a, float(n))


TABLE = {
    "number": float, "add": np.add, "mul": np.multiply, "pow": _power, "sigmoid": special.expit, "tanh": np.tanh,
    "Phi": special.ndtr, "phi": lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi), "erf": special.erf,
    "atan": np.arctan, "cauchy": lambda x: np.arctan2(1, -x) / math.pi, "exp": np.exp,
    "expm1": np.expm1, "log1p": np.log1p, "softplus": lambda x: np.logaddexp(x, 0.0),
    "step": lambda x: np.where(x > 0, 1.0, 0.0), "sign": np.sign, "abs": np.abs, "max": np.maximum,
    "min": np.minimum,
}
"""The primitives in float64 by numpy and scipy."""

_KINKED = ("maximum", "minimum", "absolute", "step", "sign")


@dataclass(frozen=True)
class Properties:
    """Computed facts of an activation; a gated one is described by its gate, with up = 1.

    ``smoothness`` is "discontinuous", "C0", "C1", ... or "smooth"; ``minimum`` is (place, value), or None if
    there is none below the far ends; ``zero_gradient`` lists intervals; moments are under a unit normal.
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


def numeric(definition: Definition, order: int = 0) -> Any:
    """Return the value's (or a derivative's) numpy function of x, parameters at their start, up at 1.

    >>> from nonlin.functions import get
    >>> float(numeric(get("relu"), 1)(2.0))
    1.0
    """
    expr = definition.expr if order == 0 else definition.derivative(None, order)
    leaves = {q.name: q.initial for q in definition.parameters} | {"up": 1.0}

    def function(x: Any) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            return np.broadcast_to(fold(expr, leaves | {definition.variables[0]: x}, TABLE), x.shape)

    return function


def _kinks(definition: Definition, grid: np.ndarray) -> list[float]:
    """The zeros of the arguments of kinked primitives."""
    assert definition.expr is not None
    found: set[float] = set()
    leaves = {q.name: q.initial for q in definition.parameters} | {"up": 1.0}
    for part in definition.expr.atoms(*(f for f in _functions() if f.__name__ in _KINKED)):
        inner = part.args[0] - part.args[1] if len(part.args) == 2 else part.args[0]

        def switch(x: Any, inner: Any = inner) -> Any:
            out = fold(inner, leaves | {definition.variables[0]: np.asarray(x, dtype=float)}, TABLE)
            return np.broadcast_to(out, np.shape(x))

        values = switch(grid)
        found.update(float(x) for x in grid[values == 0] if np.count_nonzero(values == 0) < 20)
        for i in np.flatnonzero(values[:-1] * values[1:] < 0):
            found.add(round(float(optimize.brentq(lambda t: float(switch(t)), grid[i], grid[i + 1])), 12))
    return sorted(found)


def _functions() -> list[Any]:
    from nonlin.functions.primitives import NAMES

    return list(NAMES)


def _smoothness(definition: Definition, kinks: list[float]) -> str:
    for order in range(4):
        function = numeric(definition, order)
        for kink in kinks:
            if _jumps(function, kink):
                return "discontinuous" if order == 0 else f"C{order - 1}"
    return "smooth" if not kinks else "C3"


def _jumps(function: Any, kink: float) -> bool:
    """Return whether the function jumps: a continuous difference shrinks with the distance, at least as its root."""
    near, far = (abs(float(np.subtract(*function([kink - h, kink + h])))) for h in (1e-8, 1e-4))
    return not (math.isfinite(near) and near < max(1e-6, 0.3 * far))


def first_undefined(definition: Definition) -> float | None:
    """Return a point from -8 to 8 (of x, or of gate with up = 1) where the value or its derivative is not finite.

    None if there is none: the activation can be trained with.

    >>> from nonlin.functions.definition import Definition
    >>> from nonlin.functions.grammar import parse
    >>> first_undefined(Definition("root", "pointwise", parse("sqrt(x)")))
    -8.0
    """
    grid = np.linspace(-8.0, 8.0, 321)
    good = np.isfinite(numeric(definition)(grid)) & np.isfinite(numeric(definition, 1)(grid))
    return None if good.all() else float(grid[np.flatnonzero(~good)[0]])


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


def _moment(function: Any, cuts: list[float], power: int) -> float:
    """The mean of function(z)**power under a unit normal, by Gauss-Legendre between the kinks."""
    edges = sorted({-38.0, *np.arange(-12.0, 12.1, 1.0), 38.0, *(c for c in cuts if abs(c) < 38)})
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        z = (high - low) / 2 * nodes + (high + low) / 2
        density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        total += float((weights * function(z) ** power * density).sum() * (high - low) / 2)
    return total


def compute(definition: Definition) -> Properties | None:
    """Return the properties, or None if the activation is not pointwise."""
    if definition.expr is None:
        return None
    grid = np.round(np.arange(-40.0, 40.005, 0.01), 10)
    value, derivative = numeric(definition), numeric(definition, 1)
    kinks = _kinks(definition, grid)
    y, dy = value(grid), derivative(grid)
    ends = value([-FAR, FAR])
    best = int(np.nanargmin(y))
    # Values within rounding of the least one are the minimum; an end that still falls has none.
    minimum = None
    if not (best in (0, len(grid) - 1) or ends.min() < y[best] - 1e-12):
        found = optimize.minimize_scalar(
            lambda t: float(value(t)), bounds=(grid[best - 1], grid[best + 1]), method="bounded",
            options={"xatol": 1e-10})
        at, low = float(found.x), float(found.fun)  # type: ignore[attr-defined]
        minimum = (at, low) if low < y[best] else (float(grid[best]), float(y[best]))
    falls, rises = bool((np.diff(y) < -1e-12).any()), bool((np.diff(y) > 1e-12).any())

    def bound(end: float, extreme: float) -> float:
        return math.copysign(math.inf, end) if abs(end) > 1000 else float(extreme)

    low = min(float(y.min()), float(ends.min()), minimum[1] if minimum else math.inf)
    high = max(float(y.max()), float(ends.max()))
    return Properties(
        smoothness=_smoothness(definition, kinks), monotonic=not (falls and rises), minimum=minimum,
        range=(bound(low, low), bound(high, high)), zero_gradient=_zero_regions(grid, dy, kinks),
        mean=_moment(value, kinks, 1), second_moment=_moment(value, kinks, 2),
        derivative_mean=_moment(derivative, kinks, 1), derivative_second_moment=_moment(derivative, kinks, 2))


@functools.cache
def derivative_from_output(definition: Definition) -> str | None:
    """Return whether f'(f(x)) = f'(x) for every x, so that the output determines the derivative.

    "exact" if f is the identity on its range (relu, relu6, hardtanh), "scaled" if it scales by a factor between 1e-3
    and 1e3 there (leaky_relu), else None. Only piecewise linear activations without parameters can have the property;
    all their pieces and kinks are checked.

    >>> from nonlin.functions import get
    >>> [derivative_from_output(get(name)) for name in ("relu", "leaky_relu", "gelu")]
    ['exact', 'scaled', None]
    """
    if definition.kind != "pointwise" or definition.parameters or definition.derivative(None, 2) != 0:
        return None
    grid = np.round(np.arange(-40.0, 40.005, 0.01), 10)
    kinks = _kinks(definition, grid)
    near = [k + side * (1 + abs(k)) * 2.0**-40 for k in kinks for side in (-1, 0, 1)]
    x = np.concatenate([grid, near, [-1e30, -FAR, -1e-30, 0.0, 1e-30, FAR, 1e30]])
    value, derivative = numeric(definition), numeric(definition, 1)
    y, dy = value(x), derivative(x)
    scales = np.abs(dy[dy != 0])
    if not np.array_equal(derivative(y), dy) or (len(scales) and not 1e-3 <= scales.min() <= scales.max() <= 1e3):
        return None
    return "exact" if np.array_equal(value(y), y) else "scaled"
