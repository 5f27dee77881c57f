"""From a definition to C++: its value, and all its derivatives together, over one vector register.

The formula is folded with a table whose entries write C++; equal parts are computed once. A value knows what its
rounding lost, and writes that down only for a primitive that would magnify it. The primitives themselves are in
native_math.h and native_math64.h, the loops over memory in native_loops.h. Needs no torch: it also runs when the
package is built.
"""

import functools
import hashlib
import math
import struct as packing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy

from nonlin.functions import Definition
from nonlin.functions.primitives import NAMES, Tanh, absolute, cauchy, maximum, minimum, sigmoid, sign, step
from nonlin.functions.walk import fold, terms

HEADERS = ("native_simd.h", "native_math.h", "native_math64.h", "native_loops.h", "native_driver.h")
_LONG = 3  # roundings after which a term is settled: its lost parts are added
# What rounding took from the arguments of these is put back: their tails decay like exp.
_MAGNIFY = ("sigmoid", "exp", "expm1", "Phi", "phi", "softplus", "tanh")

_CHEAP = {maximum, minimum, absolute, sign, step}


@dataclass(frozen=True)
class _Value:
    """The name of a C++ constant, and how to write what its rounding lost (None: nothing)."""

    name: str
    low: Callable[[], str | None] = lambda: None
    scale: float = 0.0  # its value, where that is a power of two: a product with it loses nothing
    roundings: int = 0  # how many, since the last primitive
    number: sympy.Expr | None = None
    negated: "_Value | None" = None  # what it is the negative of


class _Writer:
    """Collects statements; every distinct expression becomes one constant."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.known: dict[str, str] = {}
        self.watched: set[str] = set()

    def emit(self, text: str, kind: str = "V") -> str:
        if text not in self.known:
            self.known[text] = f"t{len(self.known)}"
            self.lines.append(f"const {kind} {self.known[text]} = {text};")
        return self.known[text]

    def table(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            name: functools.partial(self.call, name) for name in NAMES.values() if name not in ("max", "min")}
        return made | {"max": functools.partial(self.choose, "max"), "min": functools.partial(self.choose, "min"),
                       "number": self.number, "add": self.add, "mul": self.mul, "pow": self.power}

    def number(self, e: sympy.Expr) -> _Value:
        def two_parts(of: sympy.Expr) -> str:
            return f"number<V>({_literal(_float32(of), 'f')}, {_literal(float(of))})"

        exact = sympy.N(e, 60)
        single, double = exact - sympy.Float(_float32(e), 60), exact - sympy.Float(float(e), 60)

        def low() -> str | None:
            if abs(single) < 1e-45 or not single.is_finite:
                return None
            return self.emit(f"number<V>({float(single)!r}f, {float(double)!r})")

        power = math.frexp(float(e))[0] in (0.5, -0.5) and single == double == 0
        return _Value(self.emit(two_parts(e)), low, float(e) if power else 0.0, int(bool(single)), e)

    def both(self, first: str | None, second: str | None) -> str | None:
        return self.emit(f"{first} + {second}") if first and second else first or second

    def add(self, a: _Value, b: _Value) -> _Value:
        out = self.emit(f"{a.name} + {b.name}")
        return _Value(out, lambda: self.both(self.emit(f"sum_error({a.name}, {b.name}, {out})"),
                                             self.both(a.low(), b.low())), roundings=max(a.roundings, b.roundings) + 1)

    def mul(self, a: _Value, b: _Value) -> _Value:
        for one, other in ((a, b), (b, a)):
            # -2x as the negative of 2x, which another part may need.
            if one.number is not None and one.number < 0:
                return self.negative(other if one.number == -1 else self.mul(self.number(-one.number), other))
        out = self.emit(f"{a.name} * {b.name}")

        def low() -> str | None:
            exact = a.scale or b.scale
            total = None if exact else self.emit(f"product_error({a.name}, {b.name}, {out})")
            for one, other in ((a, b), (b, a)):
                part = other.low()
                if part:
                    total = self.both(total, self.emit(f"{one.name} * {part}"))
            return total

        return _Value(out, low, roundings=a.roundings + b.roundings + (not (a.scale or b.scale)))

    def negative(self, a: _Value) -> _Value:
        if a.negated is not None:
            return a.negated

        def low() -> str | None:
            part = a.low()
            return self.emit(f"-{part}") if part else None

        return _Value(self.emit(f"-{a.name}"), low, roundings=a.roundings, negated=a)

    def divide(self, b: _Value) -> _Value:
        one = self.number(sympy.Integer(1))
        out = self.emit(f"{one.name} / {b.name}")

        def low() -> str | None:
            part = b.low()
            rest = self.emit(f"-({out} * {part}) / {b.name}") if part else None
            return self.both(self.emit(f"quotient_error({one.name}, {b.name}, {out})"), rest)

        return _Value(out, low, roundings=b.roundings + 1)

    def power(self, base: _Value, exponent: sympy.Expr) -> _Value:
        if not (2 * exponent).is_Integer:
            raise NotImplementedError(f"a power of {exponent}")
        if not exponent.is_Integer:
            base, exponent = _Value(self.emit(f"nl_sqrt({base.name})")), 2 * exponent
        result, left = None, abs(int(exponent))
        while left:
            if left & 1:
                result = base if result is None else self.mul(result, base)
            left >>= 1
            base = self.mul(base, base) if left else base
        assert result is not None
        return self.divide(result) if exponent < 0 else result

    def choose(self, name: str, a: _Value, b: _Value) -> _Value:
        if a.number is not None or b.number is not None:
            number, other = (a, b) if a.number is not None else (b, a)
            out = self.emit(f"nl_{name}_number({number.name}, {other.name})")
        else:
            out = self.emit(f"nl_{name}({a.name}, {b.name})")

        def low() -> str | None:
            first, second = a.low(), b.low()
            if not (first or second):
                return None
            zero = self.number(sympy.Integer(0)).name
            return self.emit(f"low_of({out}, {a.name}, {first or zero}, {second or zero})")

        return _Value(out, low)

    def settled(self, a: _Value) -> str:
        low = a.low() if a.roundings >= _LONG else None
        return self.emit(f"settled<W>({a.name}, {low})") if low else a.name

    def call(self, name: str, a: _Value) -> _Value:
        # sigmoid(x) and sigmoid(-x), which its derivative is made of, share all their work.
        of = a.negated if name == "sigmoid" and a.negated is not None else a
        low = of.low() if name in _MAGNIFY else None
        # Where W is not exact, the low part is not used, and the compiler leaves it out.
        text = f"(w, {of.name}, {f'low_part<W>({low})' if low else 'None{}'})"
        if name == "sigmoid":
            if a.name not in self.watched:
                self.watched.add(a.name)
                self.lines.append(f"w.small_exp({a.name});")
            return _Value(self.emit(f"nl_sigmoids{text}", "Both<V>") + (".plus" if of is a else ".minus"))
        return _Value(self.emit(f"nl_{name}{text}"))


def _float32(e: sympy.Expr) -> float:
    try:
        return packing.unpack("f", packing.pack("f", float(e)))[0]
    except OverflowError:
        return math.copysign(math.inf, float(e))


def _literal(x: float, suffix: str = "") -> str:
    return f"{x!r}{suffix}" if math.isfinite(x) else f"{'-' if x < 0 else ''}HUGE_VAL"


_STRUCT = """struct {struct} {{
  static constexpr int inputs = {inputs}, parameters = {parameters};
  static constexpr bool exact = {exact}, careful = {careful}, powers = {powers}, scaled = {scaled};
  template <class V, class W>
  static NL_INLINE V value(W& w, const V* in, const V* par) {{
    {value_body}
    return {value};
  }}
  template <class V, class W>
  static NL_INLINE V slopes(W& w, const V* in, const V* par, V* d) {{
    {slope_body}
    return {slope_value};
  }}
}};
"""


def struct(definition: Definition) -> str:
    """Return the C++ struct of a pointwise or gated definition.

    Raises NotImplementedError for a power that is no multiple of one half.
    """
    assert definition.expr is not None
    learned = [q.name for q in definition.parameters]
    names = (*definition.variables, *learned)
    leaves = {v: _Value(f"in[{k}]") for k, v in enumerate(definition.variables)}
    leaves |= {q: _Value(f"par[{k}]") for k, q in enumerate(learned)}
    value, slope = _Writer(), _Writer()
    out = _mended(definition.expr, leaves, value, definition)
    slopes = [_mended(definition.derivative(name), leaves, slope, definition) for name in names]
    again = _mended(definition.expr, leaves, slope, definition)
    slope.lines += [f"d[{k}] = {name};" for k, name in enumerate(slopes)]
    # Without a primitive that costs anything, sixteen-bit results are exact too: theirs are often ties to round.
    cheap = {call.func for call in definition.expr.atoms(sympy.Function)} <= _CHEAP
    exact = cheap or any(not p.exp.is_Integer for p in definition.expr.atoms(sympy.Pow) if p.free_symbols)
    far = any(p.exp < 0 or p.exp > 1 for p in _whole(definition).atoms(sympy.Pow) if p.free_symbols)
    far = far or _whole(definition).has(cauchy)
    arguments = [part for call in definition.expr.atoms(sympy.Function) for part in call.args]
    scaled = any(abs(part.as_coeff_Mul()[0]) < 1 for part in arguments) or (far and definition.gated)
    return _STRUCT.format(
        struct=f"nl_{identity(definition)}", inputs=len(definition.variables), parameters=len(learned),
        exact=str(exact).lower(), careful=str(_sigmoids(definition) > 2).lower(),
        powers=str(far).lower(), scaled=str(scaled).lower(),
        value_body="\n    ".join(value.lines), value=out, slope_body="\n    ".join(slope.lines), slope_value=again)


def _whole(definition: Definition) -> sympy.Expr:
    """Return an expression that has every part of the value and of the derivatives in it."""
    names = (*definition.variables, *(q.name for q in definition.parameters))
    return sympy.Tuple(definition.expr, *(definition.derivative(name) for name in names))


def _sigmoids(definition: Definition) -> int:
    """Return how many sigmoids (a tanh counts) the longest product multiplies, in the value or a derivative."""
    def count(e: sympy.Expr) -> int:
        if isinstance(e, sympy.Mul):
            return sum(map(count, e.args))
        if isinstance(e, sympy.Pow):
            return count(e.base) * abs(int(e.exp)) if e.exp.is_Integer else count(e.base)
        return max([0, *map(count, e.args)]) if isinstance(e, (sympy.Add, sympy.Tuple)) else int(
            isinstance(e, (sigmoid, Tanh)))

    return count(_whole(definition))


def _mended(expr: sympy.Expr, leaves: dict[str, _Value], writer: _Writer, definition: Definition) -> str:
    """Write the sum of the expression's terms, each with its 0 x infinity mended."""
    whole = "whole(" + ", ".join(leaves[v].name for v in definition.variables) + ")"
    parts = [writer.emit(f"mended({writer.settled(fold(term, leaves, writer.table()))}, {whole})")
             for term in terms(expr)]
    return functools.reduce(lambda a, b: writer.emit(f"{a} + {b}"), parts)


@functools.cache
def identity(definition: Definition) -> str:
    """Return a name that changes whenever the compiled code would: of formula, parameters and our C++."""
    headers = "".join((Path(__file__).parent / header).read_text() for header in HEADERS)
    derivatives = [str(definition.derivative(v)) for v in (*definition.variables, *(
        q.name for q in definition.parameters))]
    text = "\0".join((definition.kind, definition.formula, str([q.name for q in definition.parameters]),
                      *derivatives, headers, Path(__file__).read_text()))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


_UNIT = """// Made by nonlin.kernels.generate from the definitions.
#include "native_loops.h"
namespace {{
{structs}}}
NL_TABLE({entries})
"""


def unit(definitions: Iterable[Definition]) -> str:
    """Return one source file with the kernels of these definitions, to be compiled once an instruction set."""
    structs, entries, seen = [], [], set()
    for definition in definitions:
        if identity(definition) in seen:
            continue
        try:
            structs.append(struct(definition))
        except NotImplementedError:
            continue
        seen.add(identity(definition))
        entries.append(f'NL_ENTRY("{identity(definition)}", nl_{identity(definition)})')
    return _UNIT.format(structs="".join(structs), entries=", ".join(entries))


def own_library(definition: Definition) -> str:
    """Return the source of a library that holds one activation, for the instruction set it is compiled for."""
    return (unit([definition]) + '#include "native_driver.h"\nstatic bool always() { return true; }\n'
            'NL_DRIVER({"own", nl_entries_own, always})\n')
