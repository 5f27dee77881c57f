"""Quotients of exponentials, read as functions that do not overflow: mostly sigmoid, tanh and softplus.

``exp(x)/(1 + exp(x))`` is infinity by infinity at 800, in double precision too; ``sigmoid(x)`` is 1.
"""

import functools
import math
from typing import Any

import sympy
from sympy import Expr, Integer

from nonlin.functions import primitives as p

_EXPANDED = (Integer(1), Integer(2), Integer(3))
"""Powers of sums of exponentials that are multiplied out."""
_TERMS = 6
"""The most of a sum that is divided by another."""
_MULTIPLIED = 40
"""The most of a product of sums before equal exponentials are joined."""

Powers = dict[Any, Any]
"""A product's factors with their exponents, or the arguments of a sum's exponentials with what multiplies each."""


def simplified(expr: Expr) -> Expr:
    """Return the same function of fewer exponentials that may overflow.

    >>> x = sympy.Symbol("x", real=True)
    >>> simplified(x / (1 + p.exp(-x))), simplified(p.expm1(x) / (1 + p.exp(x))), simplified(p.log1p(p.exp(x)))
    (x*sigmoid(x), Tanh(x/2), softplus(x))
    >>> simplified(p.exp(x) / (2 + p.exp(x)))
    1/(2*exp(-x) + 1)
    """
    memo: dict[Expr, Expr] = {}

    def visit(e: Any) -> Any:
        if e not in memo:
            # A divisor is rewritten with its product, not before: the rest says what it becomes.
            args = tuple(_rooted(visit(a.base) ** a.exp) if e.is_Mul and a.is_Pow else visit(a) for a in e.args)
            memo[e] = _rewritten(e if args == e.args else e.func(*args))
        return memo[e]

    return _differences(visit(expr)) if expr.has(p.exp, p.expm1) else expr


def _differences(e: Any) -> Any:
    """Return the expression with expm1(a) for exp(a) - 1, which is 0 where a is small, and then has a tie at 0.

    Last of all: to divide a sum by an exponential is easier where it has exponentials alone.
    """
    def one_less(*terms: Any) -> Any:
        number, rest = sympy.Add(*terms).as_coeff_Add()
        found = [t for t in sympy.Add.make_args(rest) if (c := t.as_coeff_Mul())[0] == -number and c[1].func is p.exp]
        if number == 0 or len(found) != 1:
            return sympy.Add(*terms)
        return rest - found[0] - number * p.expm1(found[0].as_coeff_Mul()[1].args[0])

    return e.replace(sympy.Add, one_less)


def _rewritten(e: Any) -> Any:
    if e.func is p.log1p and e.args[0].func is p.exp:
        return p.softplus(e.args[0].args[0])
    e = _rooted(e)
    if (e.is_Mul or e.is_Pow) and e.has(p.exp, p.expm1):
        for rule in (_joined, _hyperbolic, _divided, _logistic, _turned, _taken_in):
            if (made := rule({base: n for base, n in e.as_powers_dict().items() if n != 0})) is not None:
                return made.func(*map(_rewritten, made.args)) if made.is_Add else _rewritten(made)
    return e


def _rooted(e: Any) -> Any:
    """Return exp(a/2) for a root of exp(a)."""
    root = e.is_Pow and e.base.func is p.exp and not e.exp.is_Integer
    return p.exp(e.base.args[0] * e.exp) if root else e


def _product(powers: Powers, *others: Any) -> Any:
    return sympy.Mul(*(base**n for base, n in powers.items()), *others)


def _exp(at: Any) -> Any:
    return p.exp(at) if at != 0 else Integer(1)


@functools.lru_cache(maxsize=4096)
def _sum(e: Any) -> Powers:
    """Return what multiplies each exponential of a sum, by its argument (0: there is none); empty without any."""
    if not e.has(p.exp, p.expm1) or any(power.exp not in _EXPANDED for power in e.atoms(sympy.Pow) if power.has(p.exp)):
        return {}
    found: Powers = {}
    for term in sympy.Add.make_args(sympy.expand_mul(sympy.expand_multinomial(_spread(e)))):
        powers = term.as_powers_dict()
        exps = [base for base, n in powers.items() if base.func is p.exp and n.is_Integer]
        at = sympy.Add(*(powers[base] * base.args[0] for base in exps))
        found[at] = found.get(at, 0) + _product(powers | dict.fromkeys(exps, 0))
    return {at: factor for at, factor in found.items() if factor != 0}


def _spread(e: Any) -> Any:
    """Return the expression with exp(x) - 1 for expm1(x)."""
    return e.replace(p.expm1, lambda a: sympy.Add(p.exp(a), -1))


def _divisors(powers: Powers) -> list[tuple[Any, Powers]]:
    """Return the divisors that are sums of several exponentials."""
    sums = [(base, _sum(base)) for base, n in powers.items() if n.is_Integer and n < 0]
    return [(base, parts) for base, parts in sums if 1 < len(parts) <= _TERMS]


def _halves(powers: Powers) -> list[tuple[Any, Powers]]:
    """Return the divisors c exp(a) + c exp(b)."""
    return [(base, parts) for base, parts in _divisors(powers) if len(parts) == 2 and len(set(parts.values())) == 1]


def _joined(powers: Powers) -> Any:
    """exp(a) exp(b) is exp(a + b)."""
    exps = [base for base, n in powers.items() if base.func is p.exp and n.is_Integer]
    if len(exps) < 2:
        return None
    return _product({b: n for b, n in powers.items() if b not in exps}, _exp(sum(b.args[0] * powers[b] for b in exps)))


def _hyperbolic(powers: Powers) -> Any:
    """(exp(a) - exp(b))/(exp(a) + exp(b)) is tanh((a - b)/2)."""
    for base, parts in _halves(powers):
        for top, n in powers.items():
            above = _sum(top) if n.is_Integer and n > 0 else {}
            if above.keys() == parts.keys() and all(c.is_number for c in above.values()) and sum(above.values()) == 0:
                a, b = sorted(above, key=lambda at: -above[at])
                return _product(powers | {top: n - 1, base: powers[base] + 1}, above[a] / parts[a],
                                p.Tanh((a - b) / 2))
    return None


def _logistic(powers: Powers) -> Any:
    """1/(1 + exp(a)) is sigmoid(-a)."""
    for base, parts in _halves(powers):
        if 0 in parts:
            (at,), n = (a for a in parts if a != 0), powers[base]
            return _product(powers | {base: 0}, parts[Integer(0)] ** n, p.sigmoid(-at) ** -n)
    return None


def _turned(powers: Powers) -> Any:
    """exp(a) sigmoid(-a) is sigmoid(a)."""
    for call, n in powers.items():
        for base, m in powers.items():
            if call.func is p.sigmoid and base.func is p.exp and n.is_Integer and m.is_Integer and n > 0:
                count = -base.args[0] * m / call.args[0]
                if count.is_Rational and count >= 1:
                    count = min(sympy.floor(count), n)
                    return _product(powers | {base: 0, call: n - count}, p.sigmoid(-call.args[0]) ** count,
                                    _exp(base.args[0] * m + call.args[0] * count))
    return None


def _divided(powers: Powers) -> Any:
    """exp(a)/(2 + exp(a)) is 1/(2 exp(-a) + 1): nothing is infinite both above and below."""
    tops = {top: n for top, n in powers.items() if n in _EXPANDED and _sum(top) and not _cancels(top)
            and (n == 1 or not _may_vanish(top))}
    divisors = [(base, parts) for base, parts in _divisors(powers) if powers[base] == -1]
    if not divisors or not tops or math.prod(len(_sum(top)) ** n for top, n in tops.items()) > _MULTIPLIED:
        return None
    above = _sum(_product(tops))
    for base, parts in divisors if len(above) <= _TERMS else ():
        if any(_ratio(at, a) > 0 for a in above for at in parts):
            rest = _product(powers | {base: 0} | dict.fromkeys(tops, 0))
            by = {a: max((at for at in parts if 0 < _ratio(at, a) < 1), key=lambda at: _ratio(at, a), default=a)
                  for a in above}
            if len(above) > 1 and _may_vanish(base):  # the terms would be large, and cancel
                continue
            if _cancels(base) and not (len(above) == 1 and len(parts) == 2 and sum(parts.values()) == 0
                                       and set(by.values()) <= parts.keys()):
                continue
            return sympy.Add(*(rest * c * _exp(a - by[a]) / _relative(parts, by[a]) for a, c in above.items()))
    return None


def _taken_in(powers: Powers) -> Any:
    """exp(-a) (exp(a) + 2) is 1 + 2 exp(-a), and exp(a)/sqrt(exp(2 a) + 1) is 1/sqrt(1 + exp(-2 a))."""
    for call, n in powers.items():
        for base, m in powers.items() if call.func is p.exp and n.is_Integer else ():
            parts, at = _sum(base), -call.args[0] * n / m
            if at in parts and 1 < len(parts) <= _TERMS \
                    and (not _cancels(base) or (len(parts) == 2 and sum(parts.values()) == 0)):
                return _product(powers | {call: 0, base: 0}, _relative(parts, at) ** m)
    return None


def _cancels(e: Any) -> bool:
    """Return whether a sum may be near 0, where its expm1 has digits that exp(x) - 1 has not."""
    return e.has(p.expm1) and _may_vanish(e)


def _may_vanish(e: Any) -> bool:
    """Return whether a sum of exponentials may be near 0: not all of its factors are positive."""
    return not all(factor.is_positive for factor in _sum(e).values())


def _ratio(a: Any, b: Any) -> Any:
    """Return a / b, constants of both left out, where it is a number; else 0, as where either is 0."""
    a, b = (e.as_coeff_Add()[1] for e in (a, b))
    found = a / b if b != 0 else Integer(0)
    return found if found.is_Rational else Integer(0)


def _relative(parts: Powers, at: Any) -> Any:
    """Return a sum of exponentials divided by one of them."""
    if len(parts) == 2 and at in parts and sum(parts.values()) == 0:
        (other,) = (a for a in parts if a != at)
        return parts[other] * p.expm1(other - at)
    return sympy.Add(*(c * _exp(a - at) for a, c in parts.items()))
