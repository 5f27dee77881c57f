"""A formula computed by numpy in float64: its value, a derivative, and the first three derivatives as numbers."""

import functools
import math
from typing import Any, Protocol

import numpy as np
import sympy
from scipy import special

from nonlin.functions.expression import fold
from nonlin.functions.primitives import ONE_ARGUMENT


class Formula(Protocol):
    """The attributes of an activation that the numeric forms read."""

    @property
    def kind(self) -> str: ...
    @property
    def expr(self) -> sympy.Expr | None: ...
    @property
    def variables(self) -> tuple[str, ...]: ...
    @property
    def parameters(self) -> tuple[Any, ...]: ...
    def derivative(self, variable: str | None = None, order: int = 1) -> sympy.Expr:
        """Return the symbolic derivative."""
        ...


def _power(a: Any, n: Any) -> Any:
    return np.power(a, float(n))


TABLE = {
    "number": float, "add": np.add, "mul": np.multiply, "div": np.divide, "pow": _power,
    "sigmoid": special.expit, "tanh": np.tanh,
    "Phi": special.ndtr, "phi": lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi), "erf": special.erf,
    "atan": np.arctan, "cauchy": lambda x: np.arctan2(1, -x) / math.pi, "exp": np.exp,
    "expm1": np.expm1, "log1p": np.log1p, "softplus": lambda x: np.logaddexp(x, 0.0),
    "step": lambda x: np.heaviside(x, 0.0), "nonnegative": lambda x: np.heaviside(x, 1.0),
    "sign": np.sign, "abs": np.abs, "max": np.maximum, "min": np.minimum,
}
"""The primitives in float64 by numpy and scipy."""


def start(formula: Formula) -> dict[str, Any]:
    """Return the learnable parameters at their start, and up at 1."""
    return {q.name: q.initial for q in formula.parameters} | {"up": 1.0}


def numeric(formula: Formula, order: int = 0) -> Any:
    """Return the value's (or a derivative's) numpy function of x, parameters at their start, up at 1.

    >>> from nonlin.functions import get
    >>> float(numeric(get("relu"), 1)(2.0))
    1.0
    """
    expr = formula.expr if order == 0 else formula.derivative(None, order)
    leaves = start(formula)

    def function(x: Any) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            return np.broadcast_to(fold(expr, leaves | {formula.variables[0]: x}, TABLE), x.shape)

    return function


def derivatives(formula: Formula, x: Any) -> list[np.ndarray]:
    """Return the value and the first three derivatives at points that are no ties.

    By the chain rule of numbers, not of symbols: the third symbolic derivative of a long formula takes seconds.

    >>> from nonlin.functions import get
    >>> [float(d) for d in derivatives(get("relu_squared"), 3.0)]
    [9.0, 6.0, 2.0, 0.0]
    """
    x = np.asarray(x, dtype=np.float64)
    leaves: dict[str, Any] = {name: [np.full(x.shape, v), *[np.zeros(x.shape)] * 3]
                              for name, v in start(formula).items()}
    leaves[formula.variables[0]] = [x, np.ones(x.shape), np.zeros(x.shape), np.zeros(x.shape)]
    with np.errstate(all="ignore"):
        return [np.broadcast_to(part, x.shape) for part in fold(formula.expr, leaves, _CHAIN)]


def _composed(outer: list[Any], u: list[Any]) -> list[Any]:
    """Return the derivatives of f(u) from those of f at u[0] (Faà di Bruno's formula)."""
    f, f1, f2, f3 = outer
    return [f, f1 * u[1], f2 * u[1] ** 2 + f1 * u[2], f3 * u[1] ** 3 + 3 * f2 * u[1] * u[2] + f1 * u[3]]


@functools.cache
def _outer(name: str) -> list[sympy.Expr]:
    t = sympy.Symbol("t", real=True)
    made = [ONE_ARGUMENT[name](t)]
    for _ in range(3):
        made.append(sympy.diff(made[-1], t))
    return made


def _of_one(name: str) -> Any:
    return lambda u: _composed([fold(e, {"t": u[0]}, TABLE) for e in _outer(name)], u)


def _product(a: list[Any], b: list[Any]) -> list[Any]:
    return [sum(math.comb(n, k) * a[k] * b[n - k] for k in range(n + 1)) for n in range(4)]


def _raised(a: list[Any], n: sympy.Expr) -> list[Any]:
    made, factor, exponent = [], 1.0, float(n)
    for _ in range(4):
        made.append(factor * np.power(a[0], exponent) if factor else np.zeros_like(a[0]))
        factor, exponent = factor * exponent, exponent - 1
    return _composed(made, a)


def _chosen(better: Any) -> Any:
    return lambda a, b: [np.where(better(a[0], b[0]), p, q) for p, q in zip(a, b, strict=True)]


_CHAIN: dict[str, Any] = {name: _of_one(name) for name in ONE_ARGUMENT} | {
    "number": lambda e: [np.float64(float(e)), np.float64(0), np.float64(0), np.float64(0)],
    "add": lambda a, b: [p + q for p, q in zip(a, b, strict=True)], "mul": _product, "pow": _raised,
    "max": _chosen(np.greater), "min": _chosen(np.less),
}
