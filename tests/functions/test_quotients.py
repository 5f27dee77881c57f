"""Quotients of exponentials are read as what does not overflow: the same functions, right to the ends of a dtype."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin import functional
from nonlin.errors import UserError
from nonlin.functions import Definition
from nonlin.functions.grammar import parse, write
from nonlin.functions.quotients import simplified
from nonlin.functions.reference import evaluate
from tests.functions.unread import unread

READ = {
    "exp(x)/(1 + exp(x))": "sigmoid(x)", "x/(1 + exp(-x))": "x*sigmoid(x)", "1/(1 + exp(x))": "sigmoid(-x)",
    "(exp(x) - exp(-x))/(exp(x) + exp(-x))": "tanh(x)", "(exp(2*x) - 1)/(exp(2*x) + 1)": "tanh(x)",
    "(1 - exp(-x))/(1 + exp(-x))": "tanh(x/2)", "expm1(x)/(2 + expm1(x))": "tanh(x/2)",
    "x*tanh(log1p(exp(x)))": "x*tanh(softplus(x))", "exp(x)*exp(-x)*x": "x",
    "exp(2*x)*sigmoid(-x)**2": "sigmoid(x)**2",
    "exp(gate)/(exp(gate) + exp(up))": "sigmoid(gate - up)", "2/(1 + exp(-2*x)) - 1": "2*sigmoid(2*x) - 1",
    "x*exp(x)/(1 + exp(x))**2": "x*sigmoid(x)*sigmoid(-x)", "exp(2*x)/(1 + exp(x))": "exp(x)*sigmoid(x)",
    "(exp(x) - 1)/exp(x)": "-expm1(-x)", "expm1(x)*exp(-x)": "-expm1(-x)", "(x + exp(x))/exp(x)": "x*exp(-x) + 1",
    "(exp(2*x) + 2)**2/exp(4*x)": "(1 + 2*exp(-2*x))**2",
    "2*exp(x) - 2": "2*expm1(x)", "x*(1 - exp(-exp(x)))": "-x*expm1(-exp(x))", "exp(x) - x - 1": "expm1(x) - x",
    "exp(x)/expm1(x)": "-1/expm1(-x)", "(x**2 + exp(x))/(1 + exp(x))": "x**2*sigmoid(-x) + sigmoid(x)"}
FAR = ["sqrt(exp(x))", "sqrt(exp(x))/(1 + sqrt(exp(x)))", "x*exp(x)**1.5*exp(-2*x)",
       "exp(x)/(2 + exp(x))", "(exp(x) + 2)/(exp(x) + 3)", "x*exp(x)*(exp(x) + 2)/(exp(x)*(exp(x) + 2) + 2)",
       "x*((1 + exp(x))**2 - 1)/((1 + exp(x))**2 + 1)", "exp(x)/(1 + exp(x) + exp(2*x))", "exp(x)/(x**2 + exp(x))",
       "exp(-x**2)*exp(x)", "exp(x)/(exp(x) - 1)", "x*exp(x)/(exp(x) + pi)",
       "(1 + exp(x))*exp(-x)", "x*(exp(x) - 1)**2/exp(2*x)", "exp(-x)*(x + exp(x))",
       "(exp(x) - x*exp(-x))/(exp(x) + 2*exp(-x))", "exp(x + 1)/(1 + exp(x))", "x*exp(x - 2)/(3 + exp(x))"]


@pytest.mark.parametrize("text", READ)
def test_a_quotient_is_read_as_a_primitive(text):
    assert parse(text) == parse(READ[text])


@pytest.mark.parametrize("text", [*(t for t in READ if "gate" not in t), *FAR])
def test_values_and_gradients_are_right_to_the_ends(text):
    plain, made = Definition("plain", "pointwise", unread(text)), Definition("far", "pointwise", parse(text))
    points = [s * x for x in (0.5, 3.0, 40.0, 88.0, 200.0, 400.0, 709.0, 720.0, 1100.0) for s in (1, -1)]
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = torch.tensor(points, dtype=dtype, requires_grad=True)
        y = functional.activation(made)(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        most = torch.finfo(dtype).max
        for at, *found in zip(points, y.tolist(), slope.tolist(), strict=True):
            for got, variable in zip(found, (None, "x"), strict=True):
                with mpmath.workdps(60):
                    exact = evaluate(plain, at, variable=variable, digits=2100)
                    if abs(exact) < most:
                        least = close if variable else 2 * (1 + abs(at)) / most  # x divided by what just overflows
                        assert abs(got - exact) <= close * abs(exact) + least, (text, at, got, exact)


ROOTS = {"exp(x)/sqrt(1 + exp(2*x))": 1.0, "sqrt(1 + exp(x))*exp(-x/2)": 1.0, "x*exp(x)/(1 + exp(2*x))**0.5": None,
         "exp(x)**0.3/(1 + exp(x))**0.3": 1.0}


@pytest.mark.parametrize("text", ROOTS)
def test_a_root_of_a_sum_is_divided_by_the_exponential_beside_it(text):
    x = torch.tensor([50.0, 360.0, 400.0, 720.0, 1100.0], dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        got = functional.activation(Definition("root", "pointwise", parse(text)))(x.to(dtype)).double()
        torch.testing.assert_close(got, torch.ones_like(x) if ROOTS[text] else x, rtol=1e-6, atol=0)


EXPS = st.sampled_from(["exp(x)", "exp(-x)", "exp(2*x)", "expm1(x)", "1", "2", "x", "sigmoid(x)", "exp(x/2)",
                        "exp(x*x)"])
SUMS = st.lists(EXPS, min_size=1, max_size=3).map(lambda parts: "(" + " + ".join(parts) + ")")
POWERS = st.tuples(SUMS, st.sampled_from(["", "**2", "**3", "**0.5"])).map("".join)


DIFFERENCES = ["expm1(x)/(2 + exp(x))", "x*expm1(x)/(2 + exp(x))", "expm1(2*x)/expm1(x)", "expm1(x)**2/(1 + exp(2*x))",
               "x/(exp(x) - 1)", "x/(1 - exp(-x))", "(exp(x) - 1)*exp(-x)", "exp(tanh(x)) - 1", "x*(1 - exp(-x**2))",
               "(3 + 2*exp(1.5*x))/expm1(2*x)", "(1 + exp(-x))/(x + expm1(-2*x))"]
WRITTEN = ["(1-exp(-x**2))/(exp(2*x)-exp(-x**2))", "(2-exp(-2*x)-exp(-x))**2/(exp(2*x)+1+exp(1-x))"]


def _held_near_zero(text, powers, within):
    points = [s * 10.0**-k for k in powers for s in (1, -1)]
    made, x = Definition("near", "pointwise", parse(text)), torch.tensor(points, dtype=torch.float64)
    for at, got in zip(points, functional.activation(made)(x).tolist(), strict=True):
        exact = evaluate(Definition("plain", "pointwise", unread(text)), at, digits=60)
        assert abs(got - exact) <= within * abs(exact), (at, got, exact)


@pytest.mark.parametrize("text", DIFFERENCES)
def test_a_difference_keeps_its_digits_near_zero(text):
    _held_near_zero(text, (1, 4, 8), 1e-13)


@pytest.mark.parametrize("text", WRITTEN)
def test_a_difference_is_not_split_where_its_terms_would_cancel(text):
    _held_near_zero(text, (1, 3, 5), 1e-5)  # the differences have so many digits


@pytest.mark.parametrize("text", ["exp(x)*exp(-x)", "exp(x)/(exp(x) + exp(x + 1))", "gate*exp(up)*exp(-up)"])
def test_no_variable_is_lost(text):
    assert parse(text) == unread(text)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(POWERS, min_size=1, max_size=3), st.lists(POWERS, min_size=1, max_size=2))
def test_what_is_read_is_the_same_function(tops, bottoms):
    text = f"x*{'*'.join(tops)}/({'*'.join(bottoms)})"
    try:
        expr = unread(text)
    except UserError:
        return
    read = parse(text)
    assert parse(write(read)) == read and simplified(read) == read
    for at in ("-2.7", "-0.3", "0.4", "1.9"):
        before, after = (evaluate(Definition("any", "pointwise", e), mpmath.mpf(at), digits=60) for e in (expr, read))
        assert (mpmath.isnan(before) and mpmath.isnan(after)) or abs(before - after) <= 1e-40 * (1 + abs(before)), text
