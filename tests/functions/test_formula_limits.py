"""A formula's cost is bounded where it is read: hostile ones end with one error, accepted ones have everything."""

import contextlib
import math
import re

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.errors import UserError
from nonlin.functions import Definition, describe, get, limits, names
from nonlin.functions.grammar import parse, write
from nonlin.functions.reference import evaluate
from nonlin.functions.registry import gated_by, serialize
from nonlin.kernels.codegen import cpp, triton
from nonlin.kernels.torch import backend


def nested(call, times, inner="x"):
    return f"{call}(" * times + inner + ")" * times


HOSTILE = [
    "x*0e999999999", "x*1e-999999999", "x*1e999999999", "x*0.0e-99999999999999999", "x*1e61", "x*" + "9" * 200,
    "(((9**64)**64)**64)**64*x", "((((x**64)**64)**64)**64)", nested("square", 40, "3") + "*x", nested("square", 40),
    nested("sqrt", 40, "3") + "*x", "x*2**(1/3)**64**64", "x*(3/7)**64*(5/11)**64*(13/17)**64*(3/7)**64*(5/11)**64",
    "x*(pi**64)**64", "x*(1+pi)**64**64", nested("gelu", 20), nested("silu", 20), nested("exp", 30), nested("tanh", 55),
    nested("sigmoid", 40), nested("softplus", 30), "+".join(f"sigmoid({k}*x)" for k in range(60)),
    "*".join(f"tanh(x/{k})" for k in range(1, 60)), "+".join(f"max(x, {k})" for k in range(60)),
    nested("relu", 55), "x*log1p(-2)", "x*log1p(-1)", "exp(exp(exp(exp(10))))*x", "x*sqrt(-1)", "x*(-8)**(1/3)",
    "x*(0-1)**0.5",
    "x + log1p(-3)**2", "x/sign(0)", "x/(max(1, 2) - 2)", "x/0", "0**(-1)*x", "x**(1/1234567)",
    "x**64*x", "(x+1)**64*x", "x**1000", "sqrt(-x**2)", "x*tanh(1e60)**(-64)*exp(800)", "٣*x", "x*１", "x²",
    "x\u2003+ 1", "max(x, " * 13 + "1" + ")" * 13, "min(x*x, max(x, " * 6 + "1" + "))" * 6,
    "x/(sqrt(2)+sqrt(3)-sqrt(5+2*sqrt(6)))", "x*1" + "0" * 60 + "*1" + "0" * 61, "x" + "*2" * 400, "x" + "/3" * 300,
    "𝐱", "x*" * 900 + "x", "-" * 500 + "x", "(" * 500 + "x" + ")" * 500, "x\0", "x\ud800"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_formulas_are_refused_with_a_position(text):
    with pytest.raises(UserError, match=r"at position \d+ of") as found:
        parse(text)
    assert str(found.value).isprintable()


@pytest.mark.parametrize("text", [None, 3, ["x"], {"x": 1}, b"x"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(UserError, match="be a text"):
        parse(text)


@pytest.mark.parametrize("text", ["x\x1b[2J", "x\u202e+1", "\x07(x)", "x\x9b31m", "a\r\n: x", "q" * 1500])
def test_an_error_shows_no_character_that_a_terminal_obeys(text):
    with pytest.raises(UserError) as found:
        parse(text)
    assert str(found.value).isprintable() and len(str(found.value)) < 600


def _parts(definition):
    """Build everything that follows from a formula, and return how much it is."""
    assert parse(write(definition.expr)) == definition.expr
    assert parse(definition.formula) == definition.expr
    facts = describe(definition)
    assert facts["latex"] and facts["properties"]["smoothness"]
    with contextlib.suppress(NotImplementedError):
        assert len(cpp.struct(definition)) < 40_000 and len(triton.module(definition)) < 40_000
    return facts


@pytest.mark.parametrize("text", [
    "(x**2)**0.5", "sqrt(x**2)", "(x**2)**1.5", "x*(x**4)**0.25", "sqrt(x)", "log1p(x)", "x**0.3", "0*x + x",
    nested("gelu", 4), nested("exp", 8), nested("tanh", 8), "+".join(f"sigmoid({k}*x)" for k in range(1, 9)),
    "x*exp(x*x*100)", "log1p(-1 - x**2)", "log1p(-2 - x**2)", "x**64", "1/x**64", "x*1e-60", "gate**0.5*up",
    "max(x, 0)**1.5", "x*1e60", "x*1e-60", "x*1." + "0" * 50 + "1", "x*3**64", "(0.044715*x)**20", "x*phi(1e60)",
    "x*tanh(1e60)", nested("exp", 12), nested("expm1", 10), "x" + "/3" * 200, "-(x + 1)*(x - 1)", "x/-2/-3",
    "-(gate + 1)*up"])
def test_what_is_accepted_has_everything(text):
    expr = parse(text)
    kind = "pointwise" if "x" in {s.name for s in expr.free_symbols} else "gated"
    _parts(Definition("any", kind, expr))


@pytest.mark.parametrize("text", [
    "x*sqrt(max(1, 2))", "x*max(2, 3)**1.5", "x + min(4, 2)**(-0.5)", "x*sqrt(clip(3, 1, 2))"])
def test_a_root_of_a_comparison_of_numbers_is_a_number(text):
    made = Definition("any", "pointwise", parse(text))
    at = torch.tensor([1.0], dtype=torch.float64)
    assert float(backend.forward(made, [at], [])) == pytest.approx(float(evaluate(made, 1.0)), rel=1e-14)


@pytest.mark.parametrize("text", ["step(log1p(x))", "nonnegative(sqrt(x))", "sign(log1p(x))", "max(step(sqrt(x)), 0)"])
def test_a_comparison_of_what_has_no_value_has_none(text):
    made = Definition("any", "pointwise", parse(text))
    assert math.isnan(evaluate(made, -2.0))
    assert backend.forward(made, [torch.tensor([-2.0])], []).isnan()


def test_a_root_of_a_square_is_abs():
    assert parse("(x**2)**0.5") == parse("abs(x)")
    assert evaluate(Definition("any", "pointwise", parse("(x**2)**1.5")), -2, variable="x") == -12


@pytest.mark.parametrize("name", [n for n in names() if get(n).expr is not None])
def test_the_catalog_lies_well_inside_the_limits(name):
    definition = get(name)
    for d in (definition, gated_by(definition)) if definition.kind == "pointwise" else (definition,):
        variables = (*d.variables, *(q.name for q in d.parameters))
        assert limits.problem(d.expr) is None and limits.whole_problem(d.expr, variables) is None
        spare = 1.15 if name == "powlu" else 2.0
        assert spare * limits.size(d.expr) <= limits.SIZE and spare * limits.depth(d.expr) <= limits.DEPTH


def test_a_primitive_of_a_number_is_no_constant_of_mpmaths():
    made = Definition("any", "pointwise", parse("x*sqrt((phi(2) - 1)**2)"))  # mpmath's phi is the golden ratio
    assert evaluate(made, 1) == pytest.approx(1 - math.exp(-2) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize("text, at, want", [
    (nested("exp", 9), 0, math.inf), (nested("exp", 7) + "*0 - " + nested("exp", 8), 0, -math.inf),
    ("sqrt(x)", -1, math.nan), ("log1p(x)", -2, math.nan), ("log1p(x)", -1, -math.inf),
    ("max(sqrt(x), 0)", -1, math.nan), ("min(0, x**(1/3))", -8, math.nan), ("Phi(x)", -1e300, 0),
    ("Phi(x*1e60)", -1e300, 0), ("tanh(sqrt(x))", -1, math.nan)])
def test_the_reference_has_a_real_value_or_says_nan(text, at, want):
    got = float(evaluate(Definition("any", "pointwise", parse(text)), at))
    assert got == want or (math.isnan(got) and math.isnan(want))


NUMBERS = st.one_of(st.sampled_from(["0", "1", "2", "0.5", "64", "1e60", "1e-60", "9" * 60, "pi", "1.702"]),
                    st.integers(-99, 99).map(str))


def _grow(inner):
    pair = st.tuples(inner, inner)
    calls = ["sigmoid", "tanh", "Phi", "phi", "erf", "exp", "expm1", "log1p", "softplus", "abs", "sign", "step",
             "nonnegative", "atan", "cauchy", "relu", "silu", "gelu", "square", "sqrt"]
    return st.one_of(
        st.builds(lambda f, a, n: nested(f, n, a), st.sampled_from(calls), inner, st.integers(1, 5)),
        st.builds(lambda a, op, b: f"({a}){op}({b})", inner, st.sampled_from(["+", "-", "*", "/"]), inner),
        st.builds(lambda a, n: f"({a})**({n})", inner, st.one_of(NUMBERS, st.sampled_from(["1/2", "-3/2", "x"]))),
        pair.map(lambda p: f"max({p[0]}, {p[1]})"), pair.map(lambda p: f"min({p[0]}, {p[1]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"clip({', '.join(t)})"))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.recursive(st.one_of(st.just("x"), st.just("x"), NUMBERS), _grow, max_leaves=8))
def test_formulas_of_the_grammar_are_refused_or_have_everything(text):
    try:
        expr = parse(text)
    except UserError as error:
        assert re.search(r"at position \d+ of|at most \d+ characters", str(error)), error
        return
    definition = Definition("any", "pointwise", expr)
    assert limits.size(expr) <= limits.SIZE and limits.size(definition.derivative()) <= limits.DERIVATIVE_SIZE
    _parts(definition)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=60), st.text(alphabet="x0123456789.+-*/()^, eEgatupsqrtanhlog_\n\t٣²", max_size=60)))
def test_raw_text_is_read_or_refused(text):
    with contextlib.suppress(UserError):
        assert isinstance(parse(text), sympy.Expr)


def test_a_text_of_a_definition_reads_back_in_another_process():
    from nonlin.functions.registry import deserialize

    for name in ("mish", "xielu"):
        made = gated_by(get(name))
        head, _, formula = serialize(made).partition("=")
        assert deserialize(f"again{head[head.index('['):] if '[' in head else ''}={formula}").formula == made.formula
