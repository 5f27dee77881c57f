"""Fold a symbolic expression with a table of operations: every backend evaluates a definition this way.

A table maps names ("add", "mul", "pow", "number", and the primitives' names) to the backend's operations. It may have
"div"; without it a quotient is a product with a power of -1.
"""

from collections.abc import Callable, Mapping
from typing import Any

import sympy
from sympy import Integer

from nonlin.functions.primitives import NAMES

Table = Mapping[str, Callable[..., Any]]
_DECAYING = ("exp", "sigmoid", "Phi", "phi", "softplus")


def _is_number(e: sympy.Expr) -> bool:
    return bool(e.is_number) and not e.has(sympy.Function)


def fold(expr: sympy.Expr, leaves: Mapping[str, Any], table: Table) -> Any:
    """Return the expression evaluated by ``table`` with ``leaves`` for its symbols; each subexpression once.

    >>> from sympy.abc import x
    >>> fold(x**2 + 1, {"x": 3}, {"number": int, "add": lambda a, b: a + b, "pow": lambda a, n: a**int(n)})
    10
    """
    memo: dict[sympy.Basic, Any] = {}

    def visit(e: Any) -> Any:
        if e not in memo:
            memo[e] = compute(e)
        return memo[e]

    def chain(name: str, values: list[Any]) -> Any:
        total = values[0]
        for value in values[1:]:
            total = table[name](total, value)
        return total

    def quotient(top: Any, bottom: Any, n: Any) -> Any:
        if "div" in table:  # the reciprocal of what is subnormal would be infinite
            return table["div"](top, visit(bottom) if n == 1 else table["pow"](visit(bottom), n))
        return table["mul"](top, table["pow"](visit(bottom), -n))

    def compute(e: Any) -> Any:
        if e.is_Symbol:
            return leaves[e.name]
        if _is_number(e):
            return table["number"](e)
        if e.is_Add:
            # Numbers last (SymPy puts them first), so x - 1 rounds as it is written.
            return chain("add", [visit(a) for a in sorted(e.args, key=lambda a: bool(a.is_number))])
        if e.is_Mul:
            # One constant factor, so it is rounded once.
            numbers = [a for a in e.args if _is_number(a)]
            rest = [a for a in e.args if not _is_number(a)]
            rest, raised = _raised_quotients(rest)
            below = [a for a in rest if a.is_Pow and a.exp.is_negative] if "div" in table else []
            values = [visit(a) for a in ([sympy.Mul(*numbers)] if numbers else []) + rest if a not in below]
            values += (table["pow"](quotient(visit(top), bottom, Integer(1)), n) for top, bottom, n in raised)
            value = chain("mul", values) if values else visit(below.pop(0))
            for a in below:
                value = quotient(value, a.base, -a.exp)
            return value
        if e.is_Pow:
            return table["pow"](visit(e.base), e.exp)
        return table[NAMES[e.func]](*(visit(a) for a in e.args))

    return visit(sympy.sympify(expr))


def _raised_quotients(factors: list[Any]) -> tuple[list[Any], list[tuple[Any, Any, Any]]]:
    """Return the factors without those that make (a/b)**n, and each a, b, n: a**n and b**n may not fit, a/b does."""
    powers = {a.base: a.exp for a in factors if a.is_Pow and a.exp.is_Integer and abs(a.exp) >= 2}
    tops, bottoms = [b for b, n in powers.items() if n > 0], [b for b, n in powers.items() if n < 0]
    raised = [(a, b, min(powers[a], -powers[b])) for a, b in zip(tops, bottoms, strict=False)]
    used = {base: n if base is a else -n for a, b, n in raised for base in (a, b)}
    rest = [a.base ** (a.exp - used[a.base]) if a.is_Pow and a.base in used else a for a in factors]
    return [a for a in rest if a != 1], raised


def terms(expr: sympy.Expr) -> tuple[sympy.Expr, ...]:
    """Return the terms of a sum, numbers last.

    >>> from sympy.abc import x
    >>> terms(x**2 - 1)
    (x**2, -1)
    """
    return tuple(sorted(expr.args, key=lambda a: bool(a.is_number))) if expr.is_Add else (expr,)


def common(parts: tuple[sympy.Expr, ...]) -> tuple[tuple[sympy.Expr, ...], tuple[sympy.Expr, ...]]:
    """Return the common factors of all terms, numbers excluded, and each term divided by them.

    At most one exponentially decaying factor is taken, once: the product of two may be 0 although a term is not. None
    is taken from above another that divides it.

    >>> from sympy.abc import x, y
    >>> common((2 * x**2 * y, x * y))
    ((x, y), (2*x, 1))
    """
    powers = [{base: e for base, e in part.as_powers_dict().items() if not base.is_number} for part in parts]
    shared: list[sympy.Expr] = []
    decaying = int(any(NAMES.get(base.func) in _DECAYING and e.is_negative for p in powers for base, e in p.items()))
    for base, exponent in sorted(powers[0].items(), key=lambda item: sympy.default_sort_key(item[0])):
        all_of = [p.get(base, Integer(0)) for p in powers]
        if any(e * exponent <= 0 for e in all_of):
            continue
        least = min(all_of, key=abs)
        if NAMES.get(base.func) in _DECAYING:
            decaying += 1
            if decaying > 1 or least < 0:
                continue
            least = min(least, Integer(1))
        shared.append(base**least)
    return tuple(shared), tuple(part / sympy.Mul(*shared) for part in parts)
