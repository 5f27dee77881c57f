"""Bound the cost of a formula while it is read, by counting: nothing is computed before its size is known.

The limits leave every activation of the catalog, and its gated form, well inside. Formulas within them are
differentiated, described, and compiled in a few seconds.
"""

import functools
import math

import mpmath
import numpy as np
import sympy
from sympy import Expr, Symbol

from nonlin.functions import primitives as p
from nonlin.functions import reference
from nonlin.functions.expression import fold
from nonlin.functions.numeric import TABLE
from nonlin.functions.ties import KINKED, derivative, switch_of

SIZE = 120
"""Parts of a formula: symbols, numbers and operations, each as often as it is written out."""
DEPTH = 14
"""Operations inside each other."""
DEGREE = 64
"""The largest exponent, and the largest degree of a polynomial."""
DIGITS = 120
"""Digits of a number as it is written."""
EXPONENT = 60
"""The size of a written number's exponent."""
BITS = 398
"""Bits of the numerator or denominator of an exact number: as many as its digits need when it is written out."""
DERIVATIVE_SIZE = 2500
"""Parts of all first derivatives together."""
CALLS = 26
"""Different primitives with an exponential or the like in the value and the first derivatives together."""

ROOT = 10**6
"""The largest denominator of an exponent."""

_UNDERFLOW = mpmath.mpf(10) ** -400

_CHEAP = (p.maximum, p.minimum, p.absolute, p.step, p.nonnegative, p.sign)


@functools.lru_cache(maxsize=65536)
def size(e: Expr) -> int:
    """Return the number of parts of an expression, written out.

    >>> from sympy.abc import x
    >>> size(x**2 + 1)
    5
    """
    return 1 + sum(map(size, e.args))


@functools.lru_cache(maxsize=65536)
def depth(e: Expr) -> int:
    """Return how many operations lie inside each other."""
    return 1 + max(map(depth, e.args)) if e.args else 0


@functools.lru_cache(maxsize=65536)
def degree(e: Expr) -> float:
    """Return the degree as a polynomial; primitives that level off have none."""
    if e.is_Pow:
        return abs(float(e.exp)) * degree(e.base)
    if e.is_Mul:
        return sum(map(degree, e.args))
    if isinstance(e, sympy.Function) and not isinstance(e, (p.maximum, p.minimum, p.absolute, p.softplus)):
        return 0.0
    return 1.0 if e.is_Symbol else max([0.0, *map(degree, e.args)])


def _bits(e: Expr) -> int:
    return max((max(abs(n.p).bit_length(), n.q.bit_length()) for n in e.atoms(sympy.Rational)), default=0)


def power_problem(base: Expr, exponent: Expr) -> str | None:
    """Return why a power must not be computed, or None."""
    if exponent.free_symbols or not exponent.is_Rational or abs(exponent) > DEGREE or exponent.q > ROOT:
        return f"a power must be a number from -{DEGREE} to {DEGREE}"
    fractional = not exponent.is_Integer and (base.is_number or base.is_Mul) and _bits(base) > 64
    if fractional or _bits(base) * math.ceil(abs(exponent)) > BITS:
        return "a power of a number too long"
    if degree(base) * abs(float(exponent)) > DEGREE:
        return f"a degree above {DEGREE}"
    return None


def problem(e: Expr) -> str | None:
    """Return why an expression that was just put together must go no further, or None."""
    if e.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo, sympy.I):
        return "division by zero, or no real number,"
    if size(e) > SIZE:
        return f"more than {SIZE} parts"
    if depth(e) > DEPTH:
        return f"more than {DEPTH} operations inside each other"
    if _bits(e) > BITS:
        return f"a number of more than {BITS} bits"
    exponents = [power.exp for power in e.atoms(sympy.Pow) if power.exp.is_Rational]
    if degree(e) > DEGREE or any(abs(n) > DEGREE or n.q > ROOT for n in exponents):
        return f"a degree above {DEGREE}, or a root beyond {ROOT},"
    if not e.free_symbols:
        return _constant_problem(e)
    constants = [a for a in e.args if not a.free_symbols] if e.is_Add or e.is_Mul else []
    return _constant_problem(e.func(*constants)) if constants else None


def _constant_problem(e: Expr) -> str | None:
    with np.errstate(all="ignore"):
        try:
            ordinary = math.isfinite(float(fold(e, {}, TABLE)))
            value, sharper = (_exact(e, digits) for digits in (30, 60))
        except (TypeError, OverflowError, ZeroDivisionError, ValueError, AttributeError):
            ordinary = False
    if not ordinary:
        return "a constant that is no finite real number"
    # Terms that cancel in truth leave a remainder of each precision.
    same = abs(value - sharper) <= max(abs(sharper) * mpmath.mpf(10) ** -9, _UNDERFLOW)
    return None if same else "a constant that cannot be told from 0"


def _exact(e: Expr, digits: int) -> mpmath.mpf:
    with mpmath.workdps(digits):
        return mpmath.mpf(fold(e, {}, reference.TABLE))


def _nested_problem(e: Expr, symbol: Symbol) -> str | None:
    """Return why the derivatives that choose the sides of ties would be too long, or None.

    From the inside out: each is several times as long as the one inside it, and is not made where that was too long.
    """
    for part in sorted(e.atoms(*KINKED), key=size):
        if any(size(derivative(switch_of(part), symbol, left)) > DERIVATIVE_SIZE for left in (False, True)):
            return f"ties inside each other with derivatives of more than {DERIVATIVE_SIZE} parts"
    return None


def whole_problem(e: Expr, names: tuple[str, ...]) -> str | None:
    """Return why a formula that has been read must not be accepted, or None; it counts its first derivatives."""
    symbols = [Symbol(name, real=True) for name in names]
    if refused := next(filter(None, (_nested_problem(e, symbol) for symbol in symbols)), None):
        return refused
    outs = [derivative(e, symbol) for symbol in symbols]
    if any(not _known(out) for out in (e, *outs)):
        return "no real derivative"
    if sum(map(size, outs)) > DERIVATIVE_SIZE:
        return f"derivatives of more than {DERIVATIVE_SIZE} parts"
    calls = {call for out in (e, *outs) for call in out.atoms(sympy.Function) if not isinstance(call, _CHEAP)}
    return f"value and derivatives of more than {CALLS} primitives" if len(calls) > CALLS else None


def _known(e: Expr) -> bool:
    """Return whether an expression has nothing in it but the grammar's own parts."""
    return all(part.is_Symbol or part.is_Rational or part is sympy.pi or part.is_Add or part.is_Mul
               or (part.is_Pow and part.exp.is_Rational) or part.func in p.NAMES
               for part in sympy.preorder_traversal(e))
