"""Print a definition as a Python module of Triton kernels: value, all derivatives together, and two loops.

emitter.py turns the formula into statements; this module prints them for Triton. Written by hand, once, are the
primitives (triton/math.py), their arithmetic (triton/arithmetic.py) and the loops (triton/tiles.py). The text comes
from the symbolic tree alone: of a user's formula only its numbers reach it, printed from their values. Needs neither
torch nor Triton.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable

import sympy

from nonlin.functions import Definition
from nonlin.functions.primitives import NAMES
from nonlin.kernels.codegen import emitter, ranges
from nonlin.kernels.codegen.emitter import Value

_SUMMABLE = ("sigmoid", "tanh", "Phi", "phi", "erf", "exp", "expm1", "softplus", "atan", "cauchy", "step",
             "nonnegative", "sign", "max", "min", "abs")


class _Triton(emitter.Emitter):
    """Statements over tiles; ``x0``, the first input, gives constants their shape."""

    def statement(self, name: str, text: str, kind: str) -> str:
        return f"{name} = {text}"

    def literal(self, single: float, double: float) -> str:
        return _number(single) if single == double or single != single else \
            f"({_number(single)} if KIND != 2 else {_number(double)})"

    def constant(self, literal: str) -> str:
        return literal  # named, it would become a float32

    def quotient(self, a: str, b: str) -> str:
        return f"a.divide({a}, {b}, KIND)"

    def root(self, a: str) -> str:
        return f"a.root({a}, KIND)"

    def tile(self, a: Value) -> str:
        """Return a name of the value as a tile: a function of a plain number may round it to float32."""
        return a.name if a.number is None else self.emit(f"tl.full(x0.shape, {a.name}, x0.dtype)")

    def chosen(self, name: str, a: Value, b: Value) -> str:
        return f"a.{'larger' if name == 'max' else 'smaller'}({self.tile(a)}, {self.tile(b)})"

    def helper(self, name: str, *arguments: str) -> str:
        return f"a.{super().helper(name, *arguments)}"

    def compensated_sum(self, value: str, low: str) -> str:
        return f"a.settled({value}, {low}, KIND)"

    def primitive(self, name: str, a: Value, low: str | None) -> str:
        return f"m.{'absolute' if name == 'abs' else name}({self.tile(a)}, {low}, KIND)"

    def sigmoid(self, a: Value, of: Value, low: str | None) -> Value:
        pair = self.emit(self.primitive("sigmoids", of, low), "pair")
        return Value(f"{pair}[{0 if of is a else 1}]")

    def within_range(self, value: Value, other: Callable[[], Value]) -> Value:
        # C++ recomputes such lanes in double. Here formulas without quotients are spared that.
        return dataclasses.replace(value, name=self.emit(f"a.within_range({value.name}, {other().name})"))

    def nan_guarded(self, term: sympy.Expr, text: str, variables: tuple[str, ...]) -> str:
        if term.is_number and not term.has(sympy.Function):
            return self.emit(f"tl.full(x0.shape, {text}, x0.dtype)")
        if _never_new_nan(term):
            return text
        whole = self.emit(" & ".join(f"({name} == {name})" for name in variables))
        return f"a.mended({text}, {whole})"


def _number(x: float) -> str:
    return repr(x) if math.isfinite(x) else f'float("{x!r}")'


def _never_new_nan(term: sympy.Expr) -> bool:
    """Return whether a term is nan only for a nan input: it multiplies no two parts, of which one could be 0."""
    if term.is_Symbol or term.is_number:
        return True
    if term.is_Mul:
        rest = [a for a in term.args if not a.is_number]
        return len(rest) == 1 and _never_new_nan(rest[0])
    name = NAMES.get(term.func)
    return name in _SUMMABLE and all(_never_new_nan(a) for a in term.args)


_MODULE = '''# Triton kernels, made by nonlin.kernels.codegen.triton.
import triton
import triton.language as tl

from nonlin.kernels.triton import arithmetic as a
from nonlin.kernels.triton import math as m
from nonlin.kernels.triton import tiles as loops


@triton.jit
def value({numbers}, KIND: tl.constexpr):
    {value_body}
    return {value}


@triton.jit
def slopes({numbers}, KIND: tl.constexpr):
    {derivative_body}
    return {results_of}, {again}

{everywhere}
@triton.jit
def forward({inputs}, {learned}y, rows, columns, {input_steps}, KIND: tl.constexpr, WIDE: tl.constexpr,
            PAIRS_IN: tl.constexpr, ROW_AXIS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = loops.tile_rows(WIDE, ROW_AXIS, ROWS), loops.tile_columns(WIDE, ROW_AXIS, COLUMNS)
    inside = (row < rows) & (column < columns)
    {load}
    loops.store(y, row, column, columns, 1, inside, {value_call}({numbers}, KIND), KIND)


@triton.jit
def backward({inputs}, {learned}g, {gradients}, y, sums, rows, columns, {input_steps}, g_row, g_column,
             {gradient_steps}, KIND: tl.constexpr, WIDE: tl.constexpr, PAIRS_IN: tl.constexpr,
             PAIRS_OUT: tl.constexpr, ROW_AXIS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
             VALUE: tl.constexpr):
    row, column = loops.tile_rows(WIDE, ROW_AXIS, ROWS), loops.tile_columns(WIDE, ROW_AXIS, COLUMNS)
    inside = (row < rows) & (column < columns)
    {load}
    upstream = loops.load(g, row, column, g_row, g_column, inside, KIND)
    {results}, again = {slopes_call}({numbers}, KIND)
    {store}
    if VALUE:
        loops.store(y, row, column, columns, 1, inside, again, KIND)
'''
# Lanes whose steps may leave float32 are computed in double precision, where a tile has any.
_EVERYWHERE = '''
@triton.jit
def value_everywhere({numbers}, KIND: tl.constexpr):
    out = value({numbers}, KIND)
    if KIND != 2:
        beyond = {beyond}
        if loops.any_of(beyond):
            out = tl.where(beyond, loops.wide(value({doubles}, 2), KIND), out)
    return out


@triton.jit
def slopes_everywhere({numbers}, KIND: tl.constexpr):
    {results}, again = slopes({numbers}, KIND)
    if KIND != 2:
        beyond = {beyond}
        if loops.any_of(beyond):
            {wide_results}, wide_again = slopes({doubles}, 2)
            {chosen}
            again = tl.where(beyond, loops.wide(wide_again, KIND), again)
    return {results}, again

'''
_SMALL_REACH = 1000.0  # where an exponential leaves float32
_TILE = "WIDE, {pairs}, ROW_AXIS, ROWS, COLUMNS)"


@functools.cache
def module(definition: Definition) -> str:
    """Return the text of the module of a pointwise or gated definition: functions ``forward`` and ``backward``.

    Raises NotImplementedError for a power that is not a multiple of one half.
    """
    assert definition.expr is not None
    learned, count = [q.name for q in definition.parameters], len(definition.variables)
    names = (*definition.variables, *learned)
    numbers = [*(f"x{k}" for k in range(count)), *(f"q{k}" for k in range(len(learned)))]
    leaves = {name: Value(number) for name, number in zip(names, numbers, strict=True)}
    value, derivatives = _Triton(), _Triton()
    out = value.sum(definition.expr, leaves, tuple(numbers[:count]))
    results = [derivatives.sum(definition.derivative(name), leaves, tuple(numbers[:count])) for name in names]
    again = derivatives.sum(definition.expr, leaves, tuple(numbers[:count]))
    everywhere = _everywhere(definition, numbers)
    return _MODULE.format(
        everywhere=everywhere, value_call="value_everywhere" if everywhere else "value",
        slopes_call="slopes_everywhere" if everywhere else "slopes",
        numbers=", ".join(numbers), value_body=_body(value), value=out, derivative_body=_body(derivatives),
        results_of=", ".join(results), again=again,
        inputs=_each("in{k}", count), learned="".join(f"p{k}, " for k in range(len(learned))),
        gradients=_each("d{k}", count), input_steps=_each("in{k}_row, in{k}_column", count),
        gradient_steps=_each("d{k}_row, d{k}_column", count), results=_each("r{k}", len(names)),
        load="\n    ".join([
            _paired("PAIRS_IN", f"x0, x1 = loops.load_pair(in0, row, rows, columns, in0_row, KIND, {_TILE}",
                    [f"x{k} = loops.load(in{k}, row, column, in{k}_row, in{k}_column, inside, KIND)"
                     for k in range(count)]),
            *(f"q{k} = loops.wide(tl.load(p{k}), KIND)" for k in range(len(learned)))]),
        store="\n    ".join([
            _paired("PAIRS_OUT", "loops.store_pair(d0, row, rows, columns, d0_row, upstream * r0, upstream * r1,"
                    f"\n                         KIND, {_TILE}",
                    [f"loops.store(d{k}, row, column, d{k}_row, d{k}_column, inside, upstream * r{k}, KIND)"
                     for k in range(count)]),
            *(f"loops.add_up(sums, {k}, upstream * r{count + k}, inside, ROW_AXIS)" for k in range(len(learned)))]))


def leaves_by_quotients(definition: Definition) -> bool:
    """Return whether huge inputs may exceed float32 in a step, and a quotient or a decay makes the result fit.

    Products that exceed it alone are guarded apart (within_range).
    """
    divides = any(p.exp < 0 for p in ranges.whole(definition).atoms(sympy.Pow) if p.free_symbols)
    return ranges.leaves(definition)[0] and (divides or ranges.far(definition) < _SMALL_REACH)


def _everywhere(definition: Definition, numbers: list[str]) -> str:
    """Return the functions that serve numbers of any size, where a step of the formula may leave float32; else "".

    None for the catalog: each was found right without it (tests), and double precision takes its kernels' registers.
    """
    if not definition.user_defined or not leaves_by_quotients(definition):
        return ""
    results = [f"r{k}" for k in range(len(numbers))]
    return _EVERYWHERE.format(
        numbers=", ".join(numbers), doubles=", ".join(f"loops.wide({number}, 2)" for number in numbers),
        beyond=" | ".join(f"(tl.abs(x{k}) > {_number(float(ranges.far(definition)))})" for k in range(
            len(definition.variables))),
        results=", ".join(results), wide_results=", ".join(f"wide_{r}" for r in results),
        chosen="\n            ".join(f"{r} = tl.where(beyond, loops.wide(wide_{r}, KIND), {r})" for r in results))


def _body(made: emitter.Emitter) -> str:
    return "\n    ".join(made.lines) or "pass"


def _each(form: str, count: int) -> str:
    return ", ".join(form.format(k=k) for k in range(count))


def _paired(flag: str, together: str, apart: list[str]) -> str:
    """Return the statements for each input, and for two inputs also the one for an interleaved pair."""
    if len(apart) == 1:
        return apart[0]
    together = together.format(pairs=flag)
    return f"if {flag}:\n        {together}\n    else:\n        " + "\n        ".join(apart)


@functools.cache
def identity(definition: Definition) -> str:
    """Return a hash of the module's text."""
    return hashlib.sha256(module(definition).encode()).hexdigest()[:20]
