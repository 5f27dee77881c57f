"""Fold a symbolic expression with a table of operations: every backend evaluates a definition this way.

A table maps names ("add", "mul", "pow", "number", and the primitives' names) to the backend's operations.
"""

from collections.abc import Callable, Mapping
from typing import Any

import sympy

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

    def chain(name: str, args: Any) -> Any:
        values = [visit(a) for a in args]
        total = values[0]
        for value in values[1:]:
            total = table[name](total, value)
        return total

    def compute(e: Any) -> Any:
        if e.is_Symbol:
            return leaves[e.name]
        if _is_number(e):
            return table["number"](e)
        if e.is_Add:
            # Numbers last (SymPy puts them first), so x - 1 rounds as it is written.
            return chain("add", sorted(e.args, key=lambda a: bool(a.is_number)))
        if e.is_Mul:
            # One constant factor, so it is rounded once.
            numbers = [a for a in e.args if _is_number(a)]
            rest = [a for a in e.args if not _is_number(a)]
            return chain("mul", [sympy.Mul(*numbers), *rest] if numbers else rest)
        if e.is_Pow:
            return table["pow"](visit(e.base), e.exp)
        return table[NAMES[e.func]](*(visit(a) for a in e.args))

    return visit(sympy.sympify(expr))


def terms(expr: sympy.Expr) -> tuple[sympy.Expr, ...]:
    """Return the terms of a sum, numbers last.

    >>> from sympy.abc import x
    >>> terms(x**2 - 1)
    (x**2, -1)
    """
    return tuple(sorted(expr.args, key=lambda a: bool(a.is_number))) if expr.is_Add else (expr,)


def common(parts: tuple[sympy.Expr, ...]) -> tuple[tuple[sympy.Expr, ...], tuple[sympy.Expr, ...]]:
    """Return the common factors of all terms, numbers excluded, and each term divided by them.

    At most one exponentially decaying factor is taken, once: the product of two may be 0 although a term is not.

    >>> from sympy.abc import x, y
    >>> common((2 * x**2 * y, x * y))
    ((x, y), (2*x, 1))
    """
    powers = [{base: e for base, e in part.as_powers_dict().items() if not base.is_number} for part in parts]
    shared, decaying = [], 0
    for base, exponent in sorted(powers[0].items(), key=lambda item: sympy.default_sort_key(item[0])):
        all_of = [p.get(base, sympy.Integer(0)) for p in powers]
        if any(e * exponent <= 0 for e in all_of):
            continue
        least = min(all_of, key=abs)
        if NAMES.get(base.func) in _DECAYING:
            decaying += 1
            if decaying > 1 or least < 0:
                continue
            least = min(least, sympy.Integer(1))
        shared.append(base**least)
    return tuple(shared), tuple(part / sympy.Mul(*shared) for part in parts)
