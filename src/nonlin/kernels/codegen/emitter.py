"""Emit statements from a formula: the part that the C++ and the Triton generators share.

The formula is folded with a table whose entries emit statements; common subexpressions are computed once. Each value
can emit its rounding-error term; it is emitted only for primitives that amplify it. A subclass prints each language.
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
from nonlin.functions.domain import undefined
from nonlin.functions.expression import common, fold, terms
from nonlin.functions.primitives import NAMES, absolute, maximum, minimum, nonnegative, sign, step

_CHEAP = {maximum, minimum, absolute, sign, step, nonnegative}
# These amplify their argument's rounding error, since their tails decay like exp: they take its error term.
# log1p passes it on: a product with its result may be an exponent.
_AMPLIFYING = ("sigmoid", "exp", "expm1", "Phi", "phi", "softplus", "tanh", "log1p")


@dataclasses.dataclass(frozen=True)
class Value:
    """The name of a constant, and a function that emits its rounding-error term (None: it is exact)."""

    name: str
    low: Callable[[], str | None] = lambda: None
    scale: float = 0.0  # its value, if that is a power of two: a product with it is exact
    roundings: int = 0  # their number since the last primitive
    number: sympy.Expr | None = None
    bound: int = 0  # it is nan or an integer, which is known to be at most this in magnitude; 0: not known to be one
    negated: "Value | None" = None  # the value that it negates
    factors: "tuple[Value, Value] | None" = None  # the factors of a product
    last: int = 0  # its last operation's roundings: a sum that fuses the product omits them
    inverted: "Value | None" = None  # the value that it is the reciprocal of

    @property
    def whole(self) -> bool:
        """Whether it is a variable of 0, 1, 2, their negatives or nan: a product with it is exact."""
        return self.number is None and 0 < self.bound <= 2


class Emitter(abc.ABC):
    """Collects statements; each distinct subexpression becomes one constant. Languages are subclasses."""

    long = 3  # roundings after which a term is compensated: its error terms are added
    fuses = False  # whether a sum with a product is rounded once
    divides_sums = False  # whether terms with one divisor may be added before they are divided

    def __init__(self, careful: bool = False) -> None:
        self.careful = careful  # errors of its primitives add up: compensate each of several terms earlier
        self.alone = False  # the primitive being emitted is the result
        self.lines: list[str] = []
        self.known: dict[str, str] = {}

    @abc.abstractmethod
    def statement(self, name: str, text: str, kind: str) -> str:
        """Return the statement that names ``text``; ``kind`` is "value" or "pair" (of sigmoids)."""

    @abc.abstractmethod
    def literal(self, single: float, double: float) -> str:
        """Return a number that is ``single`` in float32 and ``double`` in float64."""

    def constant(self, literal: str) -> str:
        """Return the text that stands for a literal at its use."""
        return self.emit(literal)

    def helper(self, name: str, *arguments: str) -> str:
        """Return a call of one of the functions that compute an error term."""
        return f"{name}({', '.join(arguments)})"

    @abc.abstractmethod
    def quotient(self, a: str, b: str) -> str:
        """Return a / b, rounded once."""

    def divided(self, a: str, b: Value) -> str:
        """Return a / b, where a language may know better for a constant ``b``."""
        return self.quotient(a, b.name)

    @abc.abstractmethod
    def root(self, a: str) -> str:
        """Return the square root, rounded once."""

    def added(self, a: str, b: str, factors: tuple[Value, Value] | None) -> str:
        """Return a + b. ``b`` is the product of the factors, if there are any."""
        return f"{a} + {b}"

    def added_error(self, a: str, b: Value, total: str) -> str | None:
        """Return the rounding-error term of :meth:`added`, and of the product ``b`` that it added."""
        return self.both(self.emit(self.helper("sum_error", a, b.name, total)), self.own_error(b))

    def own_error(self, product: Value) -> str | None:
        """Return the error term of a product's last multiplication, or None if it is exact."""
        if not (product.factors and product.last):
            return None
        a, b = product.factors
        return self.emit(self.helper("product_error", a.name, b.name, product.name))

    def joined(self, total: str, part: str, value: Value) -> str:
        """Return a sum and one more term of it: ``part``, the compensated value."""
        return f"{total} + {part}"

    @abc.abstractmethod
    def chosen(self, name: str, a: Value, b: Value) -> str:
        """Return the larger ("max") or smaller ("min") of two, or nan if either is nan."""

    @abc.abstractmethod
    def compensated_sum(self, value: str, low: str) -> str:
        """Return value + low if results are exact, else the value."""

    def product_with_error(self, a: str, b: str, low: str) -> str:
        """Return a b, or (a + low) b if the language compensates it."""
        return f"{a} * {b}"

    @abc.abstractmethod
    def primitive(self, name: str, a: Value, low: str | None) -> str:
        """Return a primitive of ``a``, which adds the error term ``low`` if results are exact."""

    @abc.abstractmethod
    def sigmoid(self, a: Value, of: Value, low: str | None) -> Value:
        """Return sigmoid(a) from the pair of sigmoids of ``of``: ``a`` itself, or the value that it negates."""

    def within_range(self, value: Value, other: Callable[[], Value]) -> Value:
        """Return the value, or ``other`` (which divides first) if a product in it overflowed."""
        return value

    @abc.abstractmethod
    def nan_guarded(self, term: sympy.Expr, text: str, variables: tuple[str, ...]) -> str:
        """Return the term with 0 in place of a nan that comes from no input (0 x infinity)."""

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
        bound = max(1, abs(int(e))) if e.is_Integer and abs(e) <= 2 else 0
        return Value(name, low, float(e) if power else 0.0, int(bool(single)), e, bound)

    def both(self, first: str | None, second: str | None) -> str | None:
        return self.emit(f"{first} + {second}") if first and second else first or second

    def add(self, a: Value, b: Value) -> Value:
        if a.factors and not b.factors:
            a, b = b, a
        out = self.emit(self.added(a.name, b.name, b.factors))
        if a.bound and b.bound:
            return Value(out, bound=a.bound + b.bound)
        roundings = max(a.roundings, b.roundings - b.last * self.fuses) + 1
        if not b.factors:
            return Value(out, lambda: self.both(self.emit(self.helper("sum_error", a.name, b.name, out)),
                                                 self.both(a.low(), b.low())), roundings=roundings)
        return Value(out, lambda: self.both(self.added_error(a.name, b, out),
                                             self.both(a.low(), self.inherited(b.factors))), roundings=roundings)

    def inherited(self, factors: tuple[Value, Value]) -> str | None:
        """Return what the error terms of its factors add to a product's."""
        total = None
        for one, other in (factors, factors[::-1]):
            part = other.low()
            if part:
                total = self.both(total, self.emit(f"{one.name} * {part}"))
        return total

    def mul(self, a: Value, b: Value) -> Value:
        for one, other in ((a, b), (b, a)):
            # Emit -2x as the negative of 2x, a likely common subexpression.
            if one.number is not None and one.number < 0:
                return self.negative(other if one.number == -1 else self.mul(self.number(-one.number), other))
            if one.negated is not None:
                return self.negative(self.mul(one.negated, other))
        for one, other in ((a, b), (b, a)):
            if other.inverted is not None:
                return self.ratio(one, other.inverted)
            # The exact multiplication first: the rounded one is last, where a sum can fuse it.
            if other.whole and one.factors and one.last:
                return self.mul(one.factors[0], self.mul(one.factors[1], other))
        out = self.emit(f"{a.name} * {b.name}")
        last = int(not (a.scale or b.scale or a.whole or b.whole))
        made = Value(out, roundings=a.roundings + b.roundings + last, factors=(a, b), last=last,
                     bound=a.bound * b.bound)
        return dataclasses.replace(made, low=lambda: self.both(self.own_error(made), self.inherited((a, b))))

    def negative(self, a: Value) -> Value:
        if a.negated is not None:
            return a.negated

        def low() -> str | None:
            part = a.low()
            return self.emit(f"-{part}") if part else None

        return Value(self.emit(f"-{a.name}"), low, roundings=a.roundings, bound=a.bound, negated=a)

    def ratio(self, a: Value, b: Value) -> Value:
        """Emit a / b, rounded once: a quotient of few bits is exact."""
        out = self.emit(self.divided(a.name, b))

        def low() -> str | None:
            total = self.emit(self.helper("remainder", a.name, b.name, out))
            part = b.low()
            if part:
                total = self.emit(f"{total} - {out} * {part}")
            return self.emit(self.quotient(self.both(total, a.low()) or total, b.name))

        return Value(out, low, roundings=a.roundings + b.roundings + 1)

    def share(self, a: Value, number: Value) -> Value:
        """Emit a / number for an integer."""
        return self.ratio(a, number)

    def divide(self, b: Value) -> Value:
        # A product with a reciprocal becomes a division, and this statement is dead.
        return dataclasses.replace(self.ratio(self.number(sympy.Integer(1)), b), inverted=b)

    def power(self, base: Value, exponent: sympy.Expr) -> Value:
        if not (2 * exponent).is_Integer:
            raise NotImplementedError(f"a power of {exponent}")
        if not exponent.is_Integer:
            base, exponent = self.square_root(base), 2 * exponent
        result, left = None, abs(int(exponent))
        while left:
            if left & 1:
                result = base if result is None else self.mul(result, base)
            left >>= 1
            base = self.mul(base, base) if left else base
        assert result is not None
        return self.divide(result) if exponent < 0 else result

    def square_root(self, a: Value) -> Value:
        out = self.emit(self.root(a.name))

        def low() -> str | None:
            total = self.both(self.emit(self.helper("remainder", a.name, out, out)), a.low())
            return self.emit(self.quotient(total, self.emit(f"{out} + {out}"))) if total else None

        return Value(out, low)

    def choose(self, name: str, a: Value, b: Value) -> Value:
        out = self.emit(self.chosen(name, a, b))

        def low() -> str | None:
            first, second = a.low(), b.low()
            if not (first or second):
                return None
            zero = self.number(sympy.Integer(0)).name
            return self.emit(self.helper("low_of", out, a.name, first or zero, second or zero))

        return Value(out, low)

    def compensated(self, a: Value, long: int) -> str:
        """Return the value with its error term added, if it was rounded at least ``long`` times."""
        low = a.low() if a.roundings >= long else None
        return self.emit(self.compensated_sum(a.name, low)) if low else a.name

    def call(self, name: str, a: Value) -> Value:
        # sigmoid(x) and sigmoid(-x), the factors of its derivative, share all their work.
        of = a.negated if name == "sigmoid" and a.negated is not None else a
        low = of.low() if name in _AMPLIFYING else None
        if name == "sigmoid":
            return self.sigmoid(a, of, low)
        return Value(self.emit(self.primitive(name, a, low)), bound=int(name in ("step", "nonnegative", "sign")))

    def term(self, term: sympy.Expr, leaves: dict[str, Value], table: dict[str, Any]) -> Value:
        """Emit one term. A sixth is a division by six, since 1/6 is not exact in binary."""
        if divisor(term) == 1:
            return fold(term, leaves, table)
        factor, rest = term.as_coeff_Mul()
        number = self.number(sympy.Integer(factor.q))
        value = self.share(fold(rest, leaves, table), number)
        if rest.is_Mul:
            first, others = rest.as_two_terms()
            value = self.within_range(value, lambda: self.mul(self.ratio(fold(first, leaves, table), number),
                                                              fold(others, leaves, table)))
        return value if factor > 0 else self.negative(value)

    def sum(self, expr: sympy.Expr, leaves: dict[str, Value], variables: tuple[str, ...]) -> str:
        """Emit the sum of the NaN-guarded terms, times their common factors; return its name."""
        table, parts = self.table(), terms(expr)
        divisors = {divisor(term) for term in parts}
        if self.divides_sums and len(parts) > 1 and divisors != {1} and len(divisors) == 1:
            number = sympy.Integer(divisors.pop())
            total = self.total(tuple(term * number for term in parts), leaves, table, variables)
            return self.emit(self.divided(total, self.number(number)))
        shared, rests = common(parts) if len(parts) > 1 else ((), parts)
        total = self.total(rests, leaves, table, variables)
        if not shared:
            return total
        factor = sympy.Mul(*shared)
        outer = fold(factor, leaves, table)
        low = outer.low() if self.careful and outer.factors and outer.roundings else None
        product = self.product_with_error(outer.name, total, low) if low else f"{outer.name} * {total}"
        # A nan of the sum itself (infinity minus infinity) is preserved.
        whole = factor * sympy.Add(*rests)
        watched = (*variables, *self.undefined(whole, leaves, table), total)
        return self.emit(self.nan_guarded(whole, self.emit(product), watched))

    def undefined(self, term: sympy.Expr, leaves: dict[str, Value], table: dict[str, Any]) -> list[str]:
        """Return the names of what is nan where a term has no value."""
        return [fold(part, leaves, table).name for part in undefined(term)]

    def total(self, parts: tuple[sympy.Expr, ...], leaves: dict[str, Value], table: dict[str, Any],
              variables: tuple[str, ...]) -> str:
        """Emit the sum of terms, each NaN-guarded."""
        total, first = "", None  # the sum so far; the factors of its only term, if it is their plain product
        long = self.long - 1 if self.careful else self.long
        for term in parts:
            self.alone = len(parts) == 1 and _alone(term)
            value = self.term(term, leaves, table)
            part = self.compensated(value, long)
            factors, plain = value.factors, part == value.name
            part = self.emit(self.nan_guarded(term, part, (*variables, *self.undefined(term, leaves, table))))
            if not total:
                total, first = part, factors if plain else None
                continue
            if not plain:
                text = self.joined(total, part, value)
            elif first and not factors:
                text = self.added(part, total, first)
            else:
                text = self.added(total, part, factors)
            total, first = self.emit(text), None
        self.alone = False
        return total


def _alone(term: sympy.Expr) -> bool:
    """Return whether a result is a primitive of an argument without primitives, times at most a small number.

    A subnormal value of it is accurate: nothing amplifies its rounding error.
    """
    factor, call = term.as_coeff_Mul()
    return abs(factor) <= 4 and isinstance(call, sympy.Function) and not call.args[0].has(sympy.Function)


def float32(e: sympy.Expr) -> float:
    """Return the number rounded to float32; infinite on overflow."""
    try:
        return packing.unpack("f", packing.pack("f", float(e)))[0]
    except OverflowError:
        return math.copysign(math.inf, float(e))


def divisor(term: sympy.Expr) -> int:
    """Return the integer that divides a term last; 1 if there is none, or if it is a power of two."""
    factor = sympy.Integer(1) if term.is_number else term.as_coeff_Mul()[0]
    return factor.q if factor.is_Rational and abs(factor.p) == 1 and factor.q & (factor.q - 1) else 1


def rooted(definition: Definition) -> bool:
    """Return whether a formula has a root: its 16-bit results are often ties of the rounding, worth the exact path."""
    assert definition.expr is not None
    return any(not p.exp.is_Integer for p in definition.expr.atoms(sympy.Pow) if p.free_symbols)


def cheap(definition: Definition) -> bool:
    """Return whether a formula has no expensive primitive: if memory bandwidth is the limit, exactness is free."""
    assert definition.expr is not None
    return {call.func for call in definition.expr.atoms(sympy.Function)} <= _CHEAP
