"""The grammar under random formulas: what it writes it reads, and what it reads computes the same everywhere."""

import contextlib

import mpmath
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.errors import UserError
from nonlin.functions.definition import Definition
from nonlin.functions.grammar import parse, write
from nonlin.functions.reference import evaluate
from nonlin.kernels.torch import backend as torch_backend

numbers = st.sampled_from(["1", "2", "0.5", "1.702", "3", "0.044715", "7"])
leaves = st.one_of(st.just("x"), numbers)


def _grow(inner):
    pair = st.tuples(inner, inner)
    return st.one_of(
        st.builds(lambda f, a: f"{f}({a})", st.sampled_from(
            ["sigmoid", "tanh", "Phi", "erf", "softplus", "relu", "abs", "atan", "exp", "expm1"]), inner),
        pair.map(lambda p: f"({p[0]} + {p[1]})"), pair.map(lambda p: f"({p[0]} - {p[1]})"),
        pair.map(lambda p: f"({p[0]} * {p[1]})"), pair.map(lambda p: f"max({p[0]}, {p[1]})"),
        pair.map(lambda p: f"min({p[0]}, {p[1]})"), inner.map(lambda a: f"-({a})"), inner.map(lambda a: f"({a})**2"),
        inner.map(lambda a: f"({a})/(1 + abs({a}))"))


formulas = st.recursive(leaves, _grow, max_leaves=6)


def _read(text):
    try:
        return parse(text)
    except UserError as error:
        assert any(part in str(error) for part in ("no variable", "division by zero", "more than", "constant"))
        return None


@settings(max_examples=150, deadline=None)
@given(formulas)
def test_reading_back(text):
    expr = _read(text)
    if expr is not None:
        # SymPy writes -(x + 1) y as one of two equal trees, by how it came to be
        rest = sympy.expand(parse(write(expr)) - expr)
        assert rest == 0 or sympy.simplify(rest) == 0


@settings(max_examples=80, deadline=None)
@given(formulas, st.floats(-3, 3, width=32))
def test_torch_agrees_with_mpmath(text, x):
    expr = _read(text)
    if expr is None:
        return
    definition = Definition("any", "pointwise", expr)
    want = evaluate(definition, x, digits=40)
    if not mpmath.isfinite(want) or abs(want) > 1e100:
        return
    got = float(torch_backend.forward(definition, [torch.tensor([x], dtype=torch.float64)], []))
    # Cancellation inside is the formula's own; 1e-9 of the largest thing such short formulas can meet.
    magnitude = max([abs(float(want)), 1.0, *(abs(_size(part, x)) for part in sympy.preorder_traversal(expr))])
    assert abs(got - float(want)) <= 1e-9 * magnitude


def _size(part, x):
    if part.is_number and not part.has(sympy.Function):
        return float(part)
    value = evaluate(Definition("part", "pointwise", part), x, digits=30)
    return float(value) if mpmath.isfinite(value) and abs(value) < 1e300 else 1e300


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="x0123456789.+-*/()^, eEsigmodtanh_'\"[]{}\\\n", max_size=40))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(UserError):
        assert isinstance(parse(text), sympy.Expr)
