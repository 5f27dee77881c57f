"""Where a formula has no value: roots and logarithms of negative numbers, and 0 divided by 0."""

import functools
from typing import Any

import sympy
from sympy import Expr

from nonlin.functions import primitives as p
from nonlin.functions.ties import sign_of


@functools.lru_cache(maxsize=4096)
def undefined(term: Expr) -> tuple[Expr, ...]:
    """Return expressions one of which is nan where a term has no value, other than of a nan or infinite input.

    A nan of the term where none of these is one comes of arithmetic: of a product of 0 and infinity.
    A step of 0 times infinity is 0: it is how a formula leaves a side out. So is a sum of signs, abs's derivative.

    >>> from sympy.abc import x
    >>> undefined(p.log1p(x) / x), undefined(p.step(x) / x), undefined(sympy.sqrt(p.softplus(x)))
    ((0/x, log1p(x)), (), ())
    """
    found: set[Any] = {call for call in term.atoms(p.log1p) if call.free_symbols and not _never_negative(call.args[0])}
    stepped = term.has(p.step, p.nonnegative, p.sign)
    for power in term.atoms(sympy.Pow):
        base, exponent = power.base, power.exp
        if not base.free_symbols or _never_negative(base):
            continue
        if not exponent.is_Integer:
            found.add(sympy.Pow(base, sympy.Rational(1, 2), evaluate=False))
        if exponent < 0 and not stepped and (sign_of(base) or 0) >= 0:
            found.add(sympy.Mul(0, sympy.Pow(base, -1, evaluate=False), evaluate=False))
    return tuple(sorted(found, key=sympy.default_sort_key))


def _never_negative(e: Any) -> bool:
    """Return whether an expression is nowhere below 0; if it is 0 anywhere, then by underflow or as a tie."""
    if e.func is p.maximum:
        return any(a == 0 or _never_negative(a) for a in e.args)
    if e.func is p.minimum or e.is_Add:
        return all(map(_never_negative, e.args))
    return _never_negative(e.base) if e.is_Pow and not _is_square(e) else (sign_of(e) or 0) > 0


def _is_square(e: Any) -> bool:
    return bool(e.exp.is_Integer and e.exp % 2 == 0)
