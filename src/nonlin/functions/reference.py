"""The high-precision reference: a definition evaluated by mpmath."""

from collections.abc import Callable
from typing import Any

import mpmath
import sympy

from nonlin.functions.definition import Definition
from nonlin.functions.expression import fold

_mp = mpmath.mp


def _power(base: Any, exponent: Any) -> Any:
    if exponent.is_negative and base == 0:
        return _mp.inf
    return base ** _number(exponent)


def _number(e: Any) -> Any:
    if e.is_Rational:
        return _mp.mpf(int(e.p)) / int(e.q)
    return _mp.mpf(sympy.N(e, _mp.dps + 5)._mpf_)


TABLE: dict[str, Callable[..., Any]] = {
    "number": _number, "add": lambda a, b: a + b, "mul": lambda a, b: a * b, "pow": _power,
    "sigmoid": lambda x: 1 / (1 + _mp.exp(-x)), "tanh": _mp.tanh, "exp": _mp.exp, "expm1": _mp.expm1,
    "Phi": lambda x: _mp.erfc(-x / _mp.sqrt(2)) / 2, "phi": lambda x: _mp.exp(-x * x / 2) / _mp.sqrt(2 * _mp.pi),
    "erf": _mp.erf, "log1p": _mp.log1p, "atan": _mp.atan, "cauchy": lambda x: _mp.atan2(1, -x) / _mp.pi,
    "softplus": lambda x: x + _mp.log1p(_mp.exp(-x)) if x > 0 else
    _mp.log1p(_mp.exp(x)), "step": lambda x: _mp.mpf(x > 0), "nonnegative": lambda x: _mp.mpf(x >= 0),
    "sign": _mp.sign, "abs": abs, "max": max, "min": min,
}


def evaluate(definition: Definition, *inputs: Any, variable: str | None = None, digits: int = 50) -> Any:
    """Return the value at finite inputs, or the derivative by ``variable``, to that many digits.

    Learnable parameters are at their start.

    >>> from nonlin.functions import get
    >>> mpmath.nstr(evaluate(get("gelu"), -10.0), 8)
    '-7.619853e-23'
    """
    expr = definition.expr if variable is None else definition.derivative(variable)
    with mpmath.workdps(digits):
        leaves = dict(zip(definition.variables, map(_mp.mpf, inputs), strict=True))
        leaves |= {q.name: _mp.mpf(q.initial) for q in definition.parameters}
        return +fold(expr, leaves, TABLE)
