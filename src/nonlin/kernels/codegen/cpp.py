"""Print a definition as C++: its value, and all its derivatives together, over one vector register.

emitter.py turns the formula into statements; this module prints them as C++. The primitives are in cpu/math.h and
cpu/math64.h, the loops over memory in cpu/loops.h. Needs no torch: it also runs when the package is built.
"""

import ast
import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path

import sympy

from nonlin.functions import Definition, domain, expression, ties
from nonlin.functions.primitives import Tanh, exp, sigmoid
from nonlin.kernels.codegen import emitter, ranges
from nonlin.kernels.codegen.emitter import Value, rooted

_ROUNDED = (sympy.Add, sympy.Mul, sympy.Pow)
_CPU = Path(__file__).parents[1] / "cpu"
HEADERS = tuple(_CPU / f"{name}.h" for name in ("simd", "policy", "math", "math64", "loops", "driver"))
"""Headers that a generated file includes, in the order of inclusion."""


class _Cpp(emitter.Emitter):
    """Statements over a number type V and an accuracy policy W."""

    long, fuses, divides_sums = 4, True, True

    def __init__(self, careful: bool) -> None:
        super().__init__(careful)
        self.watched: set[str] = set()

    def statement(self, name: str, text: str, kind: str) -> str:
        return f"const {'Both<V>' if kind == 'pair' else 'V'} {name} = {text};"

    def literal(self, single: float, double: float) -> str:
        return f"number<V>({_literal(single, 'f')}, {_literal(double)})"

    def quotient(self, a: str, b: str) -> str:
        return f"{a} / {b}"

    def divided(self, a: str, b: Value) -> str:
        # A constant's reciprocal saves 16 bits the division.
        if b.number is None:
            return super().divided(a, b)
        return f"divided<W>({a}, {b.name}, {self.number(1 / b.number).name})"

    def share(self, a: Value, number: Value) -> Value:
        return self.mul(a, self.number(1 / number.number)) if a.whole else super().share(a, number)

    def root(self, a: str) -> str:
        return f"nl_sqrt({a})"

    def added(self, a: str, b: str, factors: tuple[Value, Value] | None) -> str:
        return f"added<W, true>({a}, {b}, {factors[0].name}, {factors[1].name})" if factors else \
            super().added(a, b, factors)

    def added_error(self, a: str, b: Value, total: str) -> str | None:
        # The error terms are those of a product and of a sum, so the two are rounded apart.
        self.lines = [line.replace("added<W, true>", "added<W, false>") if line.startswith(f"const V {total} =")
                      else line for line in self.lines]
        return super().added_error(a, b, total)

    def joined(self, total: str, part: str, value: Value) -> str:
        if not value.factors:
            return super().joined(total, part, value)
        first, second = value.factors
        return f"joined<W>({total}, {part}, {value.name}, {value.low()}, {first.name}, {second.name})"

    def chosen(self, name: str, a: Value, b: Value) -> str:
        if a.number is not None or b.number is not None:
            number, other = (a, b) if a.number is not None else (b, a)
            return f"nl_{name}_number({number.name}, {other.name})"
        return f"nl_{name}({a.name}, {b.name})"

    def compensated_sum(self, value: str, low: str) -> str:
        return f"settled<W>({value}, {low})"

    def product_with_error(self, a: str, b: str, low: str) -> str:
        return f"magnified<W>({a}, {b}, {low})"

    def primitive(self, name: str, a: Value, low: str | None) -> str:
        # If W is not exact, the compiler removes the unused error term.
        w = "w"
        if self.alone and name in ("Phi", "phi"):
            w, line = "alone", "Alone<W> alone;"
            self.lines += [line] * (line not in self.lines)
        return f"nl_{name}({w}, {a.name}, {f'low_part<W>({low})' if low else 'None{}'})"

    def sigmoid(self, a: Value, of: Value, low: str | None) -> Value:
        self.watch(a)
        pair = self.emit(self.primitive("sigmoids", of, low), "pair")
        return Value(pair + (".plus" if of is a else ".minus"))

    def watch(self, a: Value) -> None:
        """Have the argument of an exponential watched, once; with its negative, by their magnitude."""
        if a.name in self.watched:
            return
        self.watched.add(a.name)
        whole = a.negated or a
        other = whole.name if a.negated else f"-{a.name}"
        other = self.known.get(other, other)
        if other in self.watched:
            self.lines = [f"w.small_exp_either({whole.name});" if line == f"w.small_exp({other});" else line
                          for line in self.lines]
        else:
            self.lines.append(f"w.small_exp({a.name});")

    def mul(self, a: Value, b: Value) -> Value:
        pair, _, side = a.name.partition(".")
        if side and b.name == f"{pair}.{'minus' if side == 'plus' else 'plus'}":
            return dataclasses.replace(super().mul(a, b), name=f"{pair}.product")
        return super().mul(a, b)

    def nan_guarded(self, term: sympy.Expr, text: str, variables: tuple[str, ...]) -> str:
        return f"mended({text}, whole({', '.join(variables)}))"


def _literal(x: float, suffix: str = "") -> str:
    return f"{x!r}{suffix}" if math.isfinite(x) else f"{'-' if x < 0 else ''}HUGE_VAL"


_STRUCT = """struct {struct} {{
  static constexpr int inputs = {inputs}, parameters = {parameters};
  static constexpr bool exact = {exact}, careful = {careful}, careful_value = {careful_value};
  static constexpr bool powers = {powers}, scaled = {scaled}, linear = {linear}, light = {light};
  static constexpr float far = {far}, near = {near};
  template <class V, class W>
  static NL_INLINE V value(W& w, const V* in, const V* par) {{
    {value_body}
    return {value};
  }}
  template <class V, class W>
  static NL_INLINE V slopes(W& w, const V* in, const V* par, V* d) {{
    {derivative_body}
    return {again};
  }}
}};
"""


def struct(definition: Definition) -> str:
    """Return the C++ struct of a pointwise or gated definition.

    Raises NotImplementedError for a power that is not a multiple of one half.
    """
    assert definition.expr is not None
    learned = [q.name for q in definition.parameters]
    names = (*definition.variables, *learned)
    leaves = {v: Value(f"in[{k}]") for k, v in enumerate(definition.variables)}
    leaves |= {q: Value(f"par[{k}]") for k, q in enumerate(learned)}
    careful, careful_value = _careful(definition, ranges.whole(definition)), _careful(definition, definition.expr)
    value, derivatives = _Cpp(careful_value), _Cpp(careful)
    variables = tuple(leaves[v].name for v in definition.variables)
    out = value.sum(definition.expr, leaves, variables)
    results = [derivatives.sum(definition.derivative(name), leaves, variables) for name in names]
    again = derivatives.sum(definition.expr, leaves, variables)
    derivatives.lines += [f"d[{k}] = {name};" for k, name in enumerate(results)]
    exact = rooted(definition)
    powers, scaled = ranges.leaves(definition)
    return _STRUCT.format(
        struct=f"nl_{identity(definition)}", inputs=len(definition.variables), parameters=len(learned),
        exact=str(exact).lower(), careful=str(careful).lower(),
        careful_value=str(careful_value).lower(), linear=str(not any(
            definition.derivative(name).free_symbols for name in names)).lower(),
        far=_literal(ranges.far(definition), "f"), near=_literal(ranges.near(definition), "f"),
        powers=str(powers).lower(), scaled=str(scaled).lower(),
        light=str(ranges.light(definition) and not (powers or scaled)).lower(),
        value_body="\n    ".join(_one_sided(value.lines)), value=out,
        derivative_body="\n    ".join(_one_sided(derivatives.lines)), again=again)


def _one_sided(lines: list[str]) -> list[str]:
    """Return the statements; a pair of sigmoids with one unused side is marked."""
    text = "\n".join(lines)

    def marked(line: str) -> str:
        pair = re.match(r"const Both<V> (t\d+) = nl_sigmoids\(w, ([^,]+), ", line)
        if not pair or f"nl_softplus(w, {pair[2]}, " in text:  # it shares softplus's exponential
            return line
        plus, minus, product = (re.search(rf"\b{pair[1]}\.{side}\b", text) for side in ("plus", "minus", "product"))
        return line if product or (plus and minus) else line.replace("nl_sigmoids", f"nl_sigmoids<{1 if plus else -1}>")

    return [marked(line) for line in lines]


def _careful(definition: Definition, everything: sympy.Expr) -> bool:
    """Return whether the errors of sigmoids (tanh and exp count) would add up to more than 4 ulp.

    They do if an expression multiplies three of them, or, in a gated formula, two of a rounded argument.
    """
    def count(e: sympy.Expr) -> int:
        if isinstance(e, sympy.Mul):
            return sum(map(count, e.args))
        if isinstance(e, sympy.Pow):
            return count(e.base) * abs(int(e.exp)) if e.exp.is_Integer else count(e.base)
        return max([0, *map(count, e.args)]) if isinstance(e, (sympy.Add, sympy.Tuple)) else int(
            isinstance(e, (sigmoid, Tanh, exp)))

    arguments = [call.args[0] for call in everything.atoms(sigmoid, Tanh, exp)]
    rounded = any(part.has(*_ROUNDED) and (-part).has(*_ROUNDED) for part in arguments)
    return count(everything) > (1 if rounded and definition.gated else 2)


@functools.cache
def _sources() -> str:
    """Return our C++ and its generator without comments and docstrings: editing those recompiles nothing."""
    headers = [re.sub(r"//[^\n]*", "", header.read_text()) for header in HEADERS]
    modules = (domain, emitter, expression, ranges, ties)
    trees = [ast.parse(Path(path).read_text()) for path in (__file__, *(m.__file__ for m in modules))]
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
    return "\0".join([*headers, *map(ast.dump, trees)])


@functools.cache
def identity(definition: Definition) -> str:
    """Return a hash of everything that the compiled code depends on: formula, parameters, our C++ and its generator."""
    derivatives = [str(definition.derivative(v)) for v in (*definition.variables, *(
        q.name for q in definition.parameters))]
    text = "\0".join((definition.kind, definition.formula, str([q.name for q in definition.parameters]),
                      *derivatives, _sources()))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


_UNIT = """// Made by nonlin.kernels.codegen.cpp from the definitions.
#include "loops.h"
namespace {{
{structs}}}
NL_TABLE({entries})
"""


def unit(definitions: Iterable[Definition]) -> str:
    """Return one source file with the kernels of these definitions, to be compiled once per instruction set."""
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
    """Return the source of a library with one activation, for one instruction set."""
    return (unit([definition]) + '#include "driver.h"\nstatic bool always() { return true; }\n'
            'NL_DRIVER({"own", nl_entries_own, always})\n')
