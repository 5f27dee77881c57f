"""At a tie (max, min, abs, step, sign) the derivative is between the one-sided ones, and torch's where torch has it."""

import mpmath
import numpy as np
import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nonlin import functional
from nonlin.errors import UserError
from nonlin.functions import Definition, get, limits, names
from nonlin.functions.grammar import parse
from nonlin.functions.numeric import numeric
from nonlin.functions.properties import _kinks
from nonlin.functions.reference import evaluate
from nonlin.kernels.torch import backend as torch_backend

TORCH = {"relu": (F.relu, [0.0]), "leaky_relu": (F.leaky_relu, [0.0]), "elu": (F.elu, [0.0]), "selu": (F.selu, [0.0]),
         "relu6": (F.relu6, [0.0, 6.0]), "hardtanh": (F.hardtanh, [-1.0, 1.0]), "softsign": (F.softsign, [0.0]),
         "hardswish": (F.hardswish, [-3.0, 3.0]), "relu_squared": (lambda x: F.relu(x) ** 2, [0.0])}


@pytest.mark.parametrize("name", TORCH)
def test_at_its_ties_it_has_torchs_derivative_in_every_form(name):
    function, points = TORCH[name]
    theirs, ours = (torch.tensor(points, requires_grad=True) for _ in range(2))
    function(theirs).sum().backward()
    functional.activation(name)(ours).sum().backward()
    want, definition = theirs.grad, get(name)
    torch.testing.assert_close(ours.grad, want, rtol=1e-6, atol=0)
    (fallback,), _, _ = torch_backend.backward(definition, torch.ones(len(points)), [torch.tensor(points)], [])
    torch.testing.assert_close(fallback, want, rtol=1e-6, atol=0)
    np.testing.assert_allclose(numeric(definition, 1)(points), want.numpy(), rtol=1e-6)
    exact = [float(evaluate(definition, p, variable="x")) for p in points]
    np.testing.assert_allclose(exact, want.numpy(), rtol=1e-6)


@pytest.mark.parametrize("text", ["max(x, 0) + min(0, exp(x) - 1)", "max(0, x) + 1.5*min(exp(x) - 1, 0)",
                                  "max(x, 0) + min(0, 1 - exp(-x))"])
def test_an_exponential_that_rounds_to_one_makes_no_tie(text):
    for dtype in (torch.float64, torch.float32):
        x = torch.tensor([1e-30, 1e-17, 1e-9], dtype=dtype, requires_grad=True)
        functional.activation(Definition("any", "pointwise", parse(text)))(x).sum().backward()
        assert x.grad.tolist() == [1.0] * 3


@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0, 2.0])
def test_prelu_at_zero_has_its_slope_whatever_that_is(slope):
    x, weight = torch.zeros(3, requires_grad=True), torch.tensor([slope])
    functional.prelu(x, slope=weight).sum().backward()
    assert x.grad.tolist() == [slope] * 3


def _between(definition, point, variable="x", others=()):
    """Check a derivative where the formula is continuous; return whether there was something to check."""
    h = mpmath.mpf(10) ** -25
    with mpmath.workdps(80):
        at = {"x": mpmath.mpf(point), "gate": mpmath.mpf(point), "up": mpmath.mpf(1)} | dict(others)
        inputs = [at[v] for v in definition.variables]
        k = definition.variables.index(variable)

        def value(step):
            moved = [v + step if i == k else v for i, v in enumerate(inputs)]
            return evaluate(definition, *moved, digits=80)

        try:
            low, middle, high = (value(step) for step in (-h, 0, h))
        except (ZeroDivisionError, ValueError, OverflowError, TypeError):
            return False
        if any(isinstance(v, mpmath.mpc) or not mpmath.isfinite(v) for v in (low, middle, high)):
            return False
        if max(abs(low - middle), abs(high - middle)) > mpmath.mpf(10) ** -15:
            return False
        left, right = (middle - low) / h, (high - middle) / h
        got = evaluate(definition, *inputs, variable=variable, digits=80)
        slack = mpmath.mpf(10) ** -9 * (1 + abs(left) + abs(right))
        assert min(left, right) - slack <= got <= max(left, right) + slack, (
            definition.formula, str(definition.derivative(variable)), point, float(left), float(got), float(right))
    return True


@pytest.mark.parametrize("name", [n for n in names() if get(n).expr is not None])
def test_every_activation_of_the_catalog(name):
    definition = get(name)
    kinks = _kinks(definition, np.round(np.arange(-40.0, 40.005, 0.01), 10))
    for point in {*kinks, 0.0, 0.3}:
        for variable in definition.variables:
            assert _between(definition, point, variable) or name in ("fatrelu", "xielu")


NUMBERS = st.sampled_from(["1", "2", "0.5", "3", "-1", "-2"])


def _grow(inner):
    pair = st.tuples(inner, inner)
    return st.one_of(
        st.builds(lambda f, a: f"{f}({a})", st.sampled_from(
            ["relu", "abs", "step", "sign", "nonnegative", "square", "tanh", "expm1", "sigmoid"]), inner),
        st.builds(lambda a, b, op: f"({a} {op} {b})", inner, inner, st.sampled_from(["+", "-", "*"])),
        pair.map(lambda p: f"max({p[0]}, {p[1]})"), pair.map(lambda p: f"min({p[0]}, {p[1]})"),
        inner.map(lambda a: f"clip({a}, -1, 2)"), inner.map(lambda a: f"x*step({a})"),
        inner.map(lambda a: f"x*sign({a})"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.recursive(st.one_of(st.just("x"), st.just("x"), NUMBERS), _grow, max_leaves=6))
def test_formulas_of_users(text):
    try:
        definition = Definition("any", "pointwise", parse(text))
    except UserError:
        assume(False)
    # A point at which the formula jumps, or has no value, has no one-sided derivatives: another formula is drawn.
    assume(sum(_between(definition, point) for point in (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3)) >= 3)


@pytest.mark.parametrize("text", [
    "max(x, 0) + min(x, 0)", "relu(x) - relu(-x)", "x*step(x) + x*step(-x)", "max(x, 0) + 0.01*x*step(-x)",
    "x*sign(x)*sign(x)", "abs(x)*sign(x)", "max(abs(x), 0) - abs(x)", "clip(x, 0, 6) + max(x - 6, 0)",
    "max(max(x, 0), min(x, 0))", "x*sign(x**2)", "x*step(abs(x))", "x*step(clip(x**2, -1, 2))",
    "x*step(clip(x*sign(x), -1, 2))",
    "max(x**3, 0) + min(x**3, 0) + max(-x, x)",
    "max(2*x - 2, 0) + min(1 - x, 0)", "max(tanh(x), 0) + min(expm1(x), 0)", "x*step(-max(x, 0))",
    "max(1 - x, x - 1) + min(x, 1)", "x*nonnegative(x) - x*nonnegative(-x)"])
def test_ties_that_meet_agree(text):
    for point in (-1, 0, 1, 6, 0.3):
        assert _between(Definition("any", "pointwise", parse(text)), point), (text, point)


@pytest.mark.parametrize("text", [
    "max(x*sigmoid(x), tanh(x)) + min(x*sigmoid(x), 0)", "max(gelu(x), x*Phi(2*x)) - abs(gelu(x) - 1)",
    "abs(x**3 - x) + max(x - x**2, 0)*step(x - tanh(x))", "max(exp(x) - softplus(x), silu(x)) + min(silu(x), 1)"])
def test_the_derivative_of_arguments_without_a_direction_ends(text):
    definition = Definition("any", "pointwise", parse(text))
    assert limits.size(definition.derivative()) < 600
    for point in (-1, 0, 1):
        _between(definition, point)


def test_ties_of_two_inputs():
    for text in ("max(gate, up) + min(gate, up)", "max(gate*up, 0) + min(gate, 0)",
                 "clip(gate, -up, up) + max(gate, up)"):
        definition = Definition("any", "gated", parse(text))
        for point in (-1, 0, 1):
            for variable in ("gate", "up"):
                for up in (-1, 0, 1):
                    assert _between(definition, point, variable, {"up": mpmath.mpf(up)}), (text, point, variable)


def test_ties_that_stand_alone_keep_their_plain_derivatives():
    x = sympy.Symbol("x", real=True)
    for text in ("max(x, 0)", "clip(x, -1, 1)", "x*clip(x + 3, 0, 6)/6", "abs(x)", "x/(1 + abs(x))"):
        assert Definition("any", "pointwise", parse(text)).derivative() == sympy.diff(parse(text), x), text
