"""The derivative of a formula that has ties: points where a max, min, abs, step or sign changes sides.

Each primitive alone could take any derivative between its two one-sided ones. Together they must agree on a side:
max(x, 0) + min(x, 0)/100 is differentiated from the left at 0 or from the right, never half of each. So:

* A tie that no other can meet takes the derivative of the second argument: 0 for max(x, 0), min(x, 6) and abs(x).
  PyTorch does so for relu, relu6, hardtanh and hardswish.
* Ties that meet at one point, and would pick different sides, all take the derivative from the left. PyTorch does so
  for leaky_relu, prelu, elu and selu.

A derivative chosen so always lies between the two one-sided derivatives of the whole formula.
"""

import functools
import math
from collections.abc import Iterable

import numpy as np
import sympy
from sympy import Expr, Integer, Symbol

from nonlin.functions import primitives as p
from nonlin.functions.expression import fold
from nonlin.functions.numeric import TABLE

_CHOICES = (p.maximum, p.minimum)
_JUMPS = (p.step, p.nonnegative, p.sign)
KINKED = (*_CHOICES, p.absolute, *_JUMPS)
"""The primitives that change sides."""

_POSITIVE = (p.sigmoid, p.Phi, p.phi, p.exp, p.softplus, p.cauchy)
_NONNEGATIVE = (p.step, p.nonnegative, p.absolute)
_ODD = (p.Tanh, p.erf, p.atan, p.expm1, p.log1p)  # they have the sign of their argument


class _FromTheLeft(sympy.Function):
    """A kinked primitive's stand-in while a formula is differentiated; arguments: value, side, then what it had."""

    def fdiff(self, argindex: int = 1) -> Expr:
        value, side = self.args[0], self.args[1]
        if value.func in _CHOICES:
            return {3: side, 4: _other(side)}.get(argindex, Integer(0))
        if value.func is p.absolute and argindex == 3:
            return side - _other(side)
        return Integer(0)


@functools.lru_cache(maxsize=4096)
def derivative(expr: Expr, symbol: Symbol, left: bool = False) -> Expr:
    """Return the derivative by a symbol, at ties between the one-sided derivatives; or, with ``left``, the left one.

    >>> from sympy.abc import x
    >>> derivative(p.maximum(x, 0) + p.minimum(x, 0) / 100, x)
    nonnegative(-x)/100 + step(x)
    """
    sided = _sided(expr, symbol, left)
    if not sided:
        return _plain(sympy.diff(expr, symbol))
    marked = _replaced(expr, lambda e, args: _FromTheLeft(e, sided[e], *args) if e in sided else None)
    return _plain(_replaced(sympy.diff(marked, symbol), _unmarked))


def _plain(e: Expr) -> Expr:
    """Return the expression, SymPy's own absolute value (a root of a square) written as ours."""
    return e.replace(sympy.Abs, p.absolute) if e.has(sympy.Abs) else e


def _unmarked(e: Expr, args: tuple[Expr, ...]) -> Expr | None:
    if e.func is not _FromTheLeft:
        return None
    value, side, *own = args
    if value.func not in _JUMPS:
        return value.func(*own)
    # A factor that jumps has its value on the left, even where its own value is another.
    return side


def _replaced(expr: Expr, change: object) -> Expr:
    """Return the expression with every part that ``change`` answers replaced, from the leaves up."""
    memo: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        if e not in memo:
            args = tuple(visit(a) for a in e.args)
            new = change(e, args)  # type: ignore[operator]
            memo[e] = new if new is not None else e if args == e.args else e.func(*args)
        return memo[e]

    return visit(expr)


def switch_of(e: Expr) -> Expr:
    """Return the number whose sign chooses the side: the first argument, or 1, where it is positive."""
    if e.func is p.minimum:
        return e.args[1] - e.args[0]
    return e.args[0] - e.args[1] if e.func is p.maximum else e.args[0]


def _sided(expr: Expr, symbol: Symbol, left: bool) -> dict[Expr, Expr]:
    """Return the primitives to be taken from the left, each with its side there.

    It is 1 for the first argument and 0 for the second, or for those that jump their value.
    """
    kinked = [e for e in sorted(expr.atoms(*KINKED), key=sympy.default_sort_key) if switch_of(e).has(symbol)]
    if not kinked:
        return {}
    ways = {e: _direction(switch_of(e), symbol) for e in kinked}
    sided: dict[Expr, Expr] = {}
    for group in [kinked] if left else _groups(kinked, symbol):
        if left or not _agree(group, ways, expr):
            sided |= {e: _side(e, ways[e], symbol) for e in group}
    return sided


def _agree(group: list[Expr], ways: dict[Expr, tuple[int, bool] | None], expr: Expr) -> bool:
    """Return whether the primitives, each left to itself, take one side at the ties that they share."""
    if len(group) == 1:
        (e,) = group
        if e.func not in _JUMPS:
            return True
        way = ways[e]
        if e.func is not p.sign or way is None:
            return way is not None
        mark = sympy.Dummy()  # its middle is halfway only where it is no more than a factor
        return way[1] and sympy.diff(expr.xreplace({e: mark}), mark, 2) == 0
    sides = set()
    for e in group:
        way = ways[e]
        if way is None or e.func in (p.absolute, p.sign):
            return False
        sides.add(-way[0] if e.func is p.nonnegative else way[0])
    return len(sides) == 1


def _side(e: Expr, way: tuple[int, bool] | None, symbol: Symbol) -> Expr:
    switch = switch_of(e)
    if e.func is p.nonnegative:
        return _other(_beyond(switch, -1, symbol))
    if e.func is p.sign:
        return _sign_on_the_left(switch, symbol)
    if way is not None and e.func not in _JUMPS:
        return p.step(switch) if way[0] > 0 else p.nonnegative(switch)
    return _beyond(switch, 1, symbol)


def _other(side: Expr) -> Expr:
    """Return 1 - side."""
    if side.func is p.step:
        return p.nonnegative(-side.args[0])
    if side.func is p.nonnegative:
        return p.step(-side.args[0])
    return 1 - side


def _beyond(e: Expr, way: int, symbol: Symbol) -> Expr:
    """Return 1 where e is positive (way 1) or negative (way -1) a little to the left, else 0."""
    if e.is_Rational:
        return Integer(int(bool(way * e > 0)))
    number, e = e.as_coeff_Mul()
    way = way if number > 0 else -way
    if not e.has(symbol):
        return p.step(way * e)
    if e.func in (*_ODD, p.sign):
        return _beyond(e.args[0], way, symbol)
    if e.func in (p.step, p.nonnegative, p.absolute, *_POSITIVE):
        return _nonzero(e, symbol) if way > 0 else Integer(0)
    if e.func in _CHOICES:
        joined = p.maximum if (e.func is p.maximum) == (way > 0) else p.minimum
        return joined(*(_beyond(a, way, symbol) for a in e.args))
    if e.is_Mul or e.is_Pow:
        return p.step(way * _sign_on_the_left(e, symbol))
    known = _direction(e, symbol)
    if known is not None and known[0] == way:
        return p.step(way * e)
    if known is not None and known[1]:
        return p.nonnegative(way * e)
    falling = p.step(-way * derivative(e, symbol, left=True))
    return p.step(way * e) + (p.nonnegative(way * e) - p.step(way * e)) * falling


def _nonzero(e: Expr, symbol: Symbol) -> Expr:
    """Return 1 where what is never negative is positive a little to the left, else 0."""
    if e.func is p.step:
        return _beyond(e.args[0], 1, symbol)
    if e.func is p.nonnegative:
        return _other(_beyond(e.args[0], -1, symbol))
    if e.func is p.absolute:
        return _beyond(e.args[0], 1, symbol) + _beyond(e.args[0], -1, symbol)
    return p.step(e)


def _sign_on_the_left(e: Expr, symbol: Symbol) -> Expr:
    if e.is_Mul:
        return sympy.Mul(*(_sign_on_the_left(f, symbol) for f in e.args))
    if e.is_Pow:
        base = _sign_on_the_left(e.base, symbol)
        even = e.exp.is_Integer and e.exp % 2 == 0
        return base * base if even else base
    return _beyond(e, 1, symbol) - _beyond(e, -1, symbol)


def _direction(e: Expr, symbol: Symbol) -> tuple[int, bool] | None:
    """Return (1 where e never falls or -1 where it never rises, whether it is never flat); None where not known."""
    found = sign_of(derivative(e, symbol))
    return None if found is None or found == 0 else (int(math.copysign(1, found)), abs(found) == 2)


def sign_of(e: Expr) -> int | None:
    """Return 2 where e is positive everywhere, 1 where it is not negative, -1 and -2 likewise; None if not known."""
    if e.is_Rational or e.is_NumberSymbol:
        return 2 * int(sympy.sign(e))
    if e.func in _POSITIVE:
        return 1  # in floating point they are 0 far out
    if e.func in _NONNEGATIVE or (e.is_Pow and e.exp.is_Integer and e.exp % 2 == 0):
        return 1
    if e.is_Add:
        found = [sign_of(a) for a in e.args]
        if None in found or (min(found) < 0 < max(found)):  # type: ignore[type-var]
            return None
        return max(found, key=abs)  # type: ignore[arg-type, type-var]
    if e.is_Mul:
        total = 2
        for part in e.args:
            found = sign_of(part)
            if found is None or found == 0:
                return found
            total = int(math.copysign(min(abs(total), abs(found)), total * found))
        return total
    if e.is_Pow:
        return sign_of(e.base) if (sign_of(e.base) or 0) > 0 else None
    return None


def _groups(kinked: list[Expr], symbol: Symbol) -> list[list[Expr]]:
    """Return the primitives in groups, so that ties of two groups never meet."""
    groups: list[list[Expr]] = []
    for e in kinked:
        met = [g for g in groups if any(_may_meet(e, other, symbol) for other in g)]
        groups = [g for g in groups if g not in met] + [[e, *(x for g in met for x in g)]]
    return groups


def _may_meet(a: Expr, b: Expr, symbol: Symbol) -> bool:
    """Return False where the two are certainly never tied at one point."""
    for one, other in ((a, b), (b, a)):
        first, second = switch_of(one), switch_of(other)
        ahead = _constant_derivative(first, symbol)
        ratios: Iterable[Expr] = {Integer(1), Integer(-1)}
        if ahead is not None and (behind := _constant_derivative(second, symbol)) is not None:
            ratios = {behind / ahead}
        if ahead is not None and _apart_at(second, symbol, symbol - first / ahead):
            return False
        # At its tie, one is its second argument; abs is 0.
        tied = {one: one.args[1]} if one.func in _CHOICES else {one: Integer(0)} if one.func is p.absolute else {}
        for form in (second, second.xreplace(tied)):
            if _apart(form) or any(_apart(form - ratio * first) for ratio in ratios):
                return False
    return True


def _apart_at(e: Expr, symbol: Symbol, root: Expr) -> bool:
    """Return whether an expression of the symbol alone is far from 0 at a number."""
    if not root.is_Rational or e.free_symbols != {symbol}:
        return False
    with np.errstate(all="ignore"):
        value = float(fold(e, {symbol.name: np.float64(float(root))}, TABLE))
    return math.isfinite(value) and abs(value) > 1e-6 * (1 + abs(float(root)))


def _apart(e: Expr) -> bool:
    """Return whether an expression is a number that is not 0."""
    return bool((e.is_Rational or (e.is_number and not e.has(sympy.Function))) and e != 0)


def _constant_derivative(e: Expr, symbol: Symbol) -> Expr | None:
    """Return the derivative of a linear expression, where it is a number that is not 0."""
    found = sympy.diff(e, symbol)
    return found if found.is_Rational and found != 0 else None
