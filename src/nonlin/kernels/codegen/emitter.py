"""From a formula to statements of a language: what the C++ and the Triton generators share.

The formula is folded with a table whose entries write; equal parts are computed once. A value knows what its rounding
lost, and writes that down only for a primitive that would magnify it. A language says how it spells these things.
Needs neither torch nor Triton: it also runs when the package is built.
"""

import abc
import dataclasses
import functools
import math
import struct as packing
from collections.abc import Callable
from typing import Any

import sympy

from nonlin.functions import Definition
from nonlin.functions.expression import common, fold, terms
from nonlin.functions.primitives import NAMES, absolute, maximum, minimum, sign, step

_LONG = 3  # roundings after which a term is settled: its lost parts are added
_CHEAP = {maximum, minimum, absolute, sign, step}
# What rounding took from the arguments of these is put back: their tails decay like exp.
_MAGNIFY = ("sigmoid", "exp", "expm1", "Phi", "phi", "softplus", "tanh")


@dataclasses.dataclass(frozen=True)
class Value:
    """The name of a constant, and how to write what its rounding lost (None: nothing)."""

    name: str
    low: Callable[[], str | None] = lambda: None
    scale: float = 0.0  # its value, where that is a power of two: a product with it loses nothing
    roundings: int = 0  # how many, since the last primitive
    number: sympy.Expr | None = None
    whole: bool = False  # it is 0, 1, -1 or nan: a product with it loses nothing
    negated: "Value | None" = None  # what it is the negative of
    factors: tuple[str, str] | None = None  # what it is the product of
    inverted: "Value | None" = None  # what it is the reciprocal of


class Emitter(abc.ABC):
    """Collects statements; every distinct expression becomes one constant. Languages are subclasses."""

    def __init__(self, careful: bool = False) -> None:
        self.careful = careful  # errors of its primitives add up: each of several terms is settled sooner
        self.alone = False  # the primitive being written is the result
        self.lines: list[str] = []
        self.known: dict[str, str] = {}

    @abc.abstractmethod
    def statement(self, name: str, text: str, kind: str) -> str:
        """Return the statement that gives ``text`` that name; ``kind`` is "value" or "pair" (of sigmoids)."""

    @abc.abstractmethod
    def literal(self, single: float, double: float) -> str:
        """Return a number that is ``single`` in float32 and ``double`` in float64."""

    def constant(self, literal: str) -> str:
        """Return how a number is named where it is used."""
        return self.emit(literal)

    def helper(self, name: str, *arguments: str) -> str:
        """Return a call of one of the functions that find what a rounding lost."""
        return f"{name}({', '.join(arguments)})"

    @abc.abstractmethod
    def quotient(self, a: str, b: str) -> str:
        """Return a / b, rounded once."""

    @abc.abstractmethod
    def root(self, a: str) -> str:
        """Return the square root, rounded once."""

    def added(self, a: str, b: str, factors: tuple[str, str] | None, last: bool = False) -> str:
        """Return a + b. ``b`` is the product of the factors, where there are any, perhaps settled.

        ``last`` says that it was not settled, and that nobody asks what the sum's rounding lost.
        """
        return f"{a} + {b}"

    def joined(self, total: str, part: str, value: Value) -> str:
        """Return a sum and one more term of it: ``part``, the value settled."""
        return f"{total} + {part}"

    @abc.abstractmethod
    def chosen(self, name: str, a: Value, b: Value) -> str:
        """Return the larger ("max") or smaller ("min") of two, or nan where either is."""

    @abc.abstractmethod
    def settled_sum(self, value: str, low: str) -> str:
        """Return value + low where results are exact, else the value."""

    def magnified(self, a: str, b: str, low: str) -> str:
        """Return a b, or (a + low) b where the language is careful."""
        return f"{a} * {b}"

    @abc.abstractmethod
    def primitive(self, name: str, a: Value, low: str | None) -> str:
        """Return a primitive of ``a``, whose low part is put back where results are exact."""

    @abc.abstractmethod
    def sigmoid(self, a: Value, of: Value, low: str | None) -> Value:
        """Return sigmoid(a), by the pair of sigmoids of ``of``: ``a`` itself, or what it is the negative of."""

    def within_range(self, value: Value, other: Callable[[], Value]) -> Value:
        """Return the value, or, where a product in it left the range, what ``other`` writes: divided before it."""
        return value

    @abc.abstractmethod
    def mended(self, term: sympy.Expr, text: str, variables: tuple[str, ...]) -> str:
        """Return the term with a nan that no input brought (0 x infinity) made 0."""

    def emit(self, text: str, kind: str = "value") -> str:
        if text.isidentifier():  # a name already
            return text
        if text not in self.known:
            self.known[text] = f"t{len(self.known)}"
            self.lines.append(self.statement(self.known[text], text, kind))
        return self.known[text]

    def table(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            name: functools.partial(self.call, name) for name in NAMES.values() if name not in ("max", "min")}
        return made | {"max": functools.partial(self.choose, "max"), "min": functools.partial(self.choose, "min"),
                       "number": self.number, "add": self.add, "mul": self.mul, "pow": self.power}

    def number(self, e: sympy.Expr) -> Value:
        exact = sympy.N(e, 60)
        single, double = exact - sympy.Float(float32(e), 60), exact - sympy.Float(float(e), 60)

        def low() -> str | None:
            if abs(single) < 1e-45 or not single.is_finite:
                return None
            return self.constant(self.literal(float(single), float(double)))

        power = math.frexp(float(e))[0] in (0.5, -0.5) and single == double == 0
        name = self.constant(self.literal(float32(e), float(e)))
        return Value(name, low, float(e) if power else 0.0, int(bool(single)), e)

    def both(self, first: str | None, second: str | None) -> str | None:
        return self.emit(f"{first} + {second}") if first and second else first or second

    def add(self, a: Value, b: Value) -> Value:
        if a.factors and not b.factors:
            a, b = b, a
        out = self.emit(self.added(a.name, b.name, b.factors))
        return Value(out, lambda: self.both(self.emit(self.helper("sum_error", a.name, b.name, out)),
                                             self.both(a.low(), b.low())), roundings=max(a.roundings, b.roundings) + 1)

    def mul(self, a: Value, b: Value) -> Value:
        for one, other in ((a, b), (b, a)):
            # -2x as the negative of 2x, which another part may need.
            if one.number is not None and one.number < 0:
                return self.negative(other if one.number == -1 else self.mul(self.number(-one.number), other))
        for one, other in ((a, b), (b, a)):
            if other.inverted is not None:
                return self.ratio(one, other.inverted)
        out = self.emit(f"{a.name} * {b.name}")
        exact = bool(a.scale or b.scale or a.whole or b.whole)

        def low() -> str | None:
            total = None if exact else self.emit(self.helper("product_error", a.name, b.name, out))
            for one, other in ((a, b), (b, a)):
                part = other.low()
                if part:
                    total = self.both(total, self.emit(f"{one.name} * {part}"))
            return total

        return Value(out, low, roundings=a.roundings + b.roundings + (not exact), factors=(a.name, b.name))

    def negative(self, a: Value) -> Value:
        if a.negated is not None:
            return a.negated

        def low() -> str | None:
            part = a.low()
            return self.emit(f"-{part}") if part else None

        return Value(self.emit(f"-{a.name}"), low, roundings=a.roundings, whole=a.whole, negated=a)

    def ratio(self, a: Value, b: Value) -> Value:
        """Write a / b, rounded once: where the exact quotient has few bits, the result is it."""
        out = self.emit(self.quotient(a.name, b.name))

        def low() -> str | None:
            total = self.emit(self.helper("remainder", a.name, b.name, out))
            part = b.low()
            if part:
                total = self.emit(f"{total} - {out} * {part}")
            return self.emit(self.quotient(self.both(total, a.low()) or total, b.name))

        return Value(out, low, roundings=a.roundings + b.roundings + 1)

    def divide(self, b: Value) -> Value:
        # A reciprocal that is multiplied is a division, and then this statement is not needed.
        return dataclasses.replace(self.ratio(self.number(sympy.Integer(1)), b), inverted=b)

    def power(self, base: Value, exponent: sympy.Expr) -> Value:
        if not (2 * exponent).is_Integer:
            raise NotImplementedError(f"a power of {exponent}")
        if not exponent.is_Integer:
            base, exponent = Value(self.emit(self.root(base.name))), 2 * exponent
        result, left = None, abs(int(exponent))
        while left:
            if left & 1:
                result = base if result is None else self.mul(result, base)
            left >>= 1
            base = self.mul(base, base) if left else base
        assert result is not None
        return self.divide(result) if exponent < 0 else result

    def choose(self, name: str, a: Value, b: Value) -> Value:
        out = self.emit(self.chosen(name, a, b))

        def low() -> str | None:
            first, second = a.low(), b.low()
            if not (first or second):
                return None
            zero = self.number(sympy.Integer(0)).name
            return self.emit(self.helper("low_of", out, a.name, first or zero, second or zero))

        return Value(out, low)

    def settled(self, a: Value, long: int = _LONG) -> str:
        low = a.low() if a.roundings >= long else None
        return self.emit(self.settled_sum(a.name, low)) if low else a.name

    def call(self, name: str, a: Value) -> Value:
        # sigmoid(x) and sigmoid(-x), which its derivative is made of, share all their work.
        of = a.negated if name == "sigmoid" and a.negated is not None else a
        low = of.low() if name in _MAGNIFY else None
        if name == "sigmoid":
            return self.sigmoid(a, of, low)
        return Value(self.emit(self.primitive(name, a, low)), whole=name in ("step", "sign"))

    def term(self, term: sympy.Expr, leaves: dict[str, Value], table: dict[str, Any]) -> Value:
        """Write one term. A sixth of something is it divided by six: a sixth is no number of two's powers."""
        if divisor(term) == 1:
            return fold(term, leaves, table)
        factor, rest = term.as_coeff_Mul()
        number = self.number(sympy.Integer(factor.q))
        value = self.ratio(fold(rest, leaves, table), number)
        if rest.is_Mul:
            first, others = rest.as_two_terms()
            value = self.within_range(value, lambda: self.mul(self.ratio(fold(first, leaves, table), number),
                                                              fold(others, leaves, table)))
        return value if factor > 0 else self.negative(value)

    def sum(self, expr: sympy.Expr, leaves: dict[str, Value], variables: tuple[str, ...]) -> str:
        """Write the sum of the expression's terms, each mended, times the factors that all share; return its name."""
        table, parts = self.table(), terms(expr)
        shared, rests = common(parts) if len(parts) > 1 else ((), parts)
        total = self.total(rests, leaves, table, variables)
        if not shared:
            return total
        factor = sympy.Mul(*shared)
        outer = fold(factor, leaves, table)
        low = outer.low() if self.careful and outer.factors and outer.roundings else None
        product = self.magnified(outer.name, total, low) if low else f"{outer.name} * {total}"
        # A sum that is nan (infinity less infinity) stays one.
        return self.emit(self.mended(factor * sympy.Add(*rests), self.emit(product), (*variables, total)))

    def total(self, parts: tuple[sympy.Expr, ...], leaves: dict[str, Value], table: dict[str, Any],
              variables: tuple[str, ...]) -> str:
        """Write the sum of terms, each mended."""
        total, first = "", None  # the sum so far; the factors of its only term, where that is their product as it is
        long = _LONG - 1 if self.careful and len(parts) > 1 else _LONG
        for term in parts:
            self.alone = len(parts) == 1 and _alone(term)
            value = self.term(term, leaves, table)
            settled = self.settled(value, long)
            part = self.emit(self.mended(term, settled, variables))
            factors, as_it_is = value.factors, settled == value.name
            if not total:
                total, first = part, factors if as_it_is else None
                continue
            if not as_it_is:
                text = self.joined(total, part, value)
            elif first and not factors:
                text = self.added(part, total, first, last=True)
            else:
                text = self.added(total, part, factors, last=True)
            total, first = self.emit(text), None
        self.alone = False
        return total


def _alone(term: sympy.Expr) -> bool:
    """Return whether a result is a primitive of what has none, times at most a small number.

    Then a subnormal one is as good as any: nothing magnifies what its rounding lost.
    """
    factor, call = term.as_coeff_Mul()
    return abs(factor) <= 4 and isinstance(call, sympy.Function) and not call.args[0].has(sympy.Function)


def float32(e: sympy.Expr) -> float:
    """Return the number rounded to float32, infinite beyond its range."""
    try:
        return packing.unpack("f", packing.pack("f", float(e)))[0]
    except OverflowError:
        return math.copysign(math.inf, float(e))


def divisor(term: sympy.Expr) -> int:
    """Return by which whole number a term is divided in the end; 1 where it is not, or by a power of two."""
    factor = sympy.Integer(1) if term.is_number else term.as_coeff_Mul()[0]
    return factor.q if factor.is_Rational and abs(factor.p) == 1 and factor.q & (factor.q - 1) else 1


def rooted(definition: Definition) -> bool:
    """Return whether a formula has a root: its sixteen-bit results are often ties to round, worth the exact way."""
    assert definition.expr is not None
    return any(not p.exp.is_Integer for p in definition.expr.atoms(sympy.Pow) if p.free_symbols)


def cheap(definition: Definition) -> bool:
    """Return whether a formula has no primitive that takes long: where memory is what limits, exactness is free."""
    assert definition.expr is not None
    return {call.func for call in definition.expr.atoms(sympy.Function)} <= _CHEAP
