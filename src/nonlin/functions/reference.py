"""The high-precision reference: a definition evaluated by mpmath."""

from collections.abc import Callable
from typing import Any

import mpmath
import sympy

from nonlin.functions.expression import fold
from nonlin.functions.numeric import Formula

_mp = mpmath.mp
_FAR = 10**1000  # the exponential of more has as many digits as memory has bytes


def _power(base: Any, exponent: Any) -> Any:
    if exponent.is_negative and base == 0:
        return _mp.inf
    return _mp.nan if base < 0 and not exponent.is_Integer else base ** _number(exponent)


def _exp(x: Any) -> Any:
    if x > _FAR:
        return _mp.inf
    return _mp.zero if x < -_FAR else _mp.exp(x)


def _normal_cdf(x: Any) -> Any:
    return _mp.zero if x < -10**300 else _mp.erfc(-x / _mp.sqrt(2)) / 2


def _log1p(x: Any) -> Any:
    if x < -1:
        return _mp.nan
    return _mp.ninf if x == -1 else _mp.log1p(x)


def _chosen(choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Let a nan of either argument be the result, as in every other backend."""
    return lambda a, b: _mp.nan if _mp.isnan(a) or _mp.isnan(b) else choose(a, b)


def _compared(answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let nan be the result where it is compared, as in every other backend."""
    return lambda x: _mp.nan if _mp.isnan(x) else _mp.mpf(answer(x))


def _number(e: Any) -> Any:
    if e.is_Rational:
        return _mp.mpf(int(e.p)) / int(e.q)
    return _mp.mpf(sympy.N(e, _mp.dps + 5)._mpf_)


TABLE: dict[str, Callable[..., Any]] = {
    "number": _number, "add": lambda a, b: a + b, "mul": lambda a, b: a * b, "pow": _power,
    "sigmoid": lambda x: 1 / (1 + _exp(-x)), "tanh": _mp.tanh, "exp": _exp,
    "expm1": lambda x: _mp.expm1(x) if abs(x) < 1 else _exp(x) - 1,
    "Phi": _normal_cdf, "phi": lambda x: _exp(-x * x / 2) / _mp.sqrt(2 * _mp.pi),
    "erf": _mp.erf, "log1p": _log1p, "atan": _mp.atan, "cauchy": lambda x: _mp.atan2(1, -x) / _mp.pi,
    "softplus": lambda x: x + _mp.log1p(_exp(-x)) if x > 0 else
    _mp.log1p(_exp(x)), "step": _compared(lambda x: x > 0), "nonnegative": _compared(lambda x: x >= 0),
    "sign": _compared(_mp.sign), "abs": abs, "max": _chosen(max), "min": _chosen(min),
}


def evaluate(definition: Formula, *inputs: Any, variable: str | None = None, digits: int = 50) -> Any:
    """Return the value at finite inputs, or the derivative by ``variable``, to that many digits; nan where it has none.

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
