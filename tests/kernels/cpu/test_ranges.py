"""Formulas whose exponentials leave float32 although their result fits: values and derivatives against mpmath."""

import mpmath
import pytest
import torch

from nonlin import functional
from nonlin.functions import Definition, get, names
from nonlin.kernels.codegen import ranges
from nonlin.kernels.torch import backend
from tests.functions.unread import unread

E = mpmath.exp
SIGMOID = lambda x: 1 / (1 + E(-x))  # noqa: E731
PHI, DENSITY = mpmath.ncdf, mpmath.npdf
FORMULAS = {
    "(exp(x)-exp(-x))/(exp(x)+exp(-x))": mpmath.tanh,
    "exp(2*x)*sigmoid(-x)**2": lambda x: E(2 * x) * SIGMOID(-x) ** 2,
    "exp(x)*sigmoid(-x)": lambda x: E(x) * SIGMOID(-x),
    "exp(x)/(1+exp(x))": SIGMOID,
    "log1p(exp(x))": lambda x: mpmath.log1p(E(x)),
    "x/(1+exp(-x))": lambda x: x * SIGMOID(x),
    "x**3/(1+exp(-x))": lambda x: x**3 * SIGMOID(x),
    "x**2*sigmoid(x)**2*exp(-x)": lambda x: x**2 * SIGMOID(x) ** 2 * E(-x),
    "sigmoid(x)/softplus(x)*x": lambda x: SIGMOID(x) / mpmath.log1p(E(x)) * x,
}
QUOTIENTS = {
    "x**3/(1+x**2)": lambda x: x**3 / (1 + x**2),
    "x/(1+x**2)": lambda x: x / (1 + x**2),
    "x**2/(1+abs(x))": lambda x: x**2 / (1 + abs(x)),
    "x/sqrt(1+x**2)": lambda x: x / mpmath.sqrt(1 + x**2),
    "x*(x**2-1)/(x**2+1)": lambda x: x * (x**2 - 1) / (x**2 + 1),
}
SINGLE = ("x**3/(1+exp(-x))", "x**2*sigmoid(x)**2*exp(-x)", "x/(1+exp(-x))")
POINTS = [s * x for x in (0.5, 7.0, 20.0, 37.0, 40.5, 44.0, 50.0, 61.0, 77.0, 86.0) for s in (1, -1)]


def _found(definition, dtype, device):
    """The value, the gradient, the tangent and the second derivative."""
    x = torch.tensor(POINTS, dtype=dtype, device=device, requires_grad=True)
    call = functional.activation(definition)
    y = call(x)
    slope, = torch.autograd.grad(y.sum(), x, create_graph=True)
    curve, = torch.autograd.grad(slope.sum(), x)
    tangent = torch.func.jvp(call, (x.detach(),), (torch.ones_like(x),))[1]
    return x.detach().tolist(), y.tolist(), slope.tolist(), tangent.tolist(), curve.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", FORMULAS)
def test_values_and_derivatives_are_right_where_an_exponential_leaves_float32(text, dtype, device="cpu"):
    definition = Definition("ranged", "pointwise", unread(text), user_defined=True)
    mpmath.mp.dps = 120
    close = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    info = torch.finfo(dtype)
    least = 0 if text in SINGLE else close  # of terms that cancel, rounding of 1 remains
    for x, *found in zip(*_found(definition, dtype, device), strict=True):
        series = mpmath.taylor(FORMULAS[text], mpmath.mpf(x), 2)
        want = [series[0], series[1], series[1], 2 * series[2]]
        for got, exact in zip(found, want, strict=True):
            if abs(exact) < info.max:
                assert got == pytest.approx(float(exact), rel=close, abs=max(least, info.smallest_normal)), (text, x)


@pytest.mark.parametrize("text", FORMULAS)
def test_the_fallback_is_right_there_too(text):
    """It serves where there is no compiler, and powers that no kernel has."""
    definition = Definition("ranged", "pointwise", unread(text))
    x = torch.tensor(POINTS, dtype=torch.float32)
    values, ((slopes,), _, _) = backend.forward(definition, [x], []), backend.backward(definition, x / x, [x], [])
    mpmath.mp.dps = 120
    for at, value, slope in zip(POINTS, values.tolist(), slopes.tolist(), strict=True):
        want = mpmath.taylor(FORMULAS[text], mpmath.mpf(at), 1)
        assert value == pytest.approx(float(want[0]), rel=1e-5, abs=1e-30), (text, at)
        assert slope == pytest.approx(float(want[1]), rel=1e-5, abs=1e-5), (text, at)


def test_the_catalog_is_reached_by_no_exponential_but_a_root_s():
    far = {n: ranges.far(get(n)) for n in names() if get(n).expr is not None}
    assert {n for n, x in far.items() if x < 1e3} == {"sqrtsoftplus"}
