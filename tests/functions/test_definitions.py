"""Definitions against formulas typed here from their sources, torch in float64, and transformers."""

import math

import mpmath
import pytest
import sympy
import torch
import torch.nn.functional as F

import nonlin
from nonlin import functional
from nonlin.errors import UnknownName, UserError
from nonlin.functions import Definition, describe, get, names, parse_arms
from nonlin.functions.grammar import parse, write
from nonlin.functions.reference import evaluate

X = torch.linspace(-9, 9, 721, dtype=torch.float64)
POSITIVE = lambda g: torch.where(g > 0, g, 1.0)  # noqa: E731 - a negative base has no power, and spoils gradients
TORCH = {
    "identity": lambda x: x, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": F.relu, "leaky_relu": F.leaky_relu,
    "elu": F.elu, "selu": F.selu, "softplus": F.softplus, "relu6": F.relu6, "hardswish": F.hardswish,
    "hardtanh": F.hardtanh, "softsign": F.softsign, "gelu": F.gelu, "silu": F.silu, "mish": F.mish,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu_squared": lambda x: F.relu(x) ** 2,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "prelu": lambda x: F.prelu(x, torch.tensor([0.25]).double()),
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(), "gelu_10": lambda x: F.gelu(x).clamp(-10, 10),
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "swish_beta": F.silu, "fatrelu": lambda x: torch.where(x > 0.01, x, 0.0), "xgelu": F.gelu, "xsilu": F.silu,
    "xatlu": lambda x: x * (torch.atan(x) + math.pi / 2) / math.pi,
    "leaky_relu_squared": lambda x: F.leaky_relu(x, 0.5).square(),
    "xielu": lambda x: torch.where(x > 0, 0.8 * x * x + 0.5 * x,
                                   0.8 * (torch.expm1(torch.clamp(x, max=-1e-6)) - x) + 0.5 * x),
}
GATED = {
    "glu": lambda g, u: torch.sigmoid(g) * u, "bilinear": lambda g, u: g * u, "reglu": lambda g, u: F.relu(g) * u,
    "geglu": lambda g, u: F.gelu(g) * u, "geglu_tanh": lambda g, u: F.gelu(g, approximate="tanh") * u,
    "swiglu": lambda g, u: F.silu(g) * u, "relu_squared_glu": lambda g, u: F.relu(g) ** 2 * u,
    "drelu": lambda g, u: F.relu(g) * F.relu(u),
    "swiglu_oai": lambda g, u: g.clamp(max=7) * torch.sigmoid(1.702 * g.clamp(max=7)) * (u.clamp(-7, 7) + 1),
    "swiglu_clamped": lambda g, u: F.silu(g.clamp(max=10)) * u.clamp(-10, 10),
    "situ_glu": lambda g, u: 4 * torch.tanh(g / 4) * torch.sigmoid(g) * 25 * torch.tanh(u / 25),
    "gtu": lambda g, u: torch.sigmoid(g) * torch.tanh(u),
    "powlu": lambda g, u: u * torch.where(g > 0, POSITIVE(g) ** (3 / (POSITIVE(g).sqrt() + 1)), g) * torch.sigmoid(g),
}


def test_every_definition_has_an_independent_formula_here():
    assert set(TORCH) | set(GATED) == {n for n in names() if get(n).expr is not None and not get(n).user_defined}


@pytest.mark.parametrize("name", TORCH)
def test_pointwise_value_and_gradient(name):
    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    got, want = functional.activation(name)(ours), TORCH[name](theirs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    got.sum().backward()
    want.sum().backward()
    smooth = X.abs() > 1e-5  # xielu's clamp at -1e-6 and kinks at 0, where conventions differ
    for kink in (0.01, 1.0, 3.0, 6.0):
        smooth &= (X.abs() - kink).abs() > 1e-9
    torch.testing.assert_close(ours.grad[smooth], theirs.grad[smooth], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", GATED)
def test_gated_value_and_gradients(name):
    torch.manual_seed(0)
    g, u = (torch.randn(2000, dtype=torch.float64) * 6 for _ in range(2))
    ours, theirs = [x.clone().requires_grad_() for x in (g, u)], [x.clone().requires_grad_() for x in (g, u)]
    got, want = functional.activation(name)(*ours), GATED[name](*theirs)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
    got.sum().backward()
    want.sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-11)


def test_all_of_transformers_activations_resolve_and_agree():
    from transformers.activations import ACT2FN

    x = torch.linspace(-5, 5, 101)
    for key in ACT2FN:
        definition = get(key)
        module = ACT2FN[key].float()  # xielu's parameters start in bfloat16
        want = module(x)
        start = {n: getattr(module, n).detach() for n in ("alpha_p", "alpha_n") if hasattr(module, n)}
        got = functional.activation(definition)(x, **start)
        torch.testing.assert_close(got, want.float().detach(), rtol=2e-5, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", [n for n in names() if get(n).expr is not None])
def test_derivatives_are_mpmath_differences(name):
    definition = get(name)
    point = (0.731, -1.13) if definition.kind == "gated" else (0.731,)
    with mpmath.workdps(40):
        for i, variable in enumerate(definition.variables):
            def along(t, i=i):
                # mpmath.diff works at a precision of its own, higher than the one it was called at
                return evaluate(definition, *(t if k == i else p for k, p in enumerate(point)), digits=mpmath.mp.dps)

            want = mpmath.diff(along, point[i])
            assert abs(evaluate(definition, *point, variable=variable, digits=40) - want) < 1e-12


def test_names_and_aliases():
    assert nonlin.get("swish").name == "silu" and nonlin.get("gelu_new").name == "gelu_tanh"
    assert "swish" not in nonlin.names() and "silu" in nonlin.names()
    with pytest.raises(UnknownName, match=r"Did you mean .*swiglu"):
        nonlin.get("swigul")


@pytest.mark.parametrize("name", [n for n in names() if get(n).expr is not None])
def test_the_formula_reads_back(name):
    definition = get(name)
    if not definition.parameters:
        assert sympy.simplify(parse(definition.formula) - definition.expr) == 0
    facts = describe(definition)
    assert facts["latex"] and facts["source"] is not None
    assert set(facts["derivatives"]) == {*definition.variables, *(q.name for q in definition.parameters)}


def test_latex_of_known_ones():
    assert get("gelu").latex == r"x \, \Phi{\left(x \right)}"
    assert get("swiglu").latex == r"gate \, up \, \sigma{\left(gate \right)}"


def test_properties_are_computed_right():
    silu, gelu, relu = (get(n).properties for n in ("silu", "gelu", "relu"))
    assert silu.minimum == pytest.approx((-1.27846454, -0.27846454), abs=1e-6)
    assert not silu.monotonic and silu.smoothness == "smooth" and relu.smoothness == "C0"
    assert get("relu_squared").properties.smoothness == "C1" and get("elu").properties.smoothness == "C1"
    assert relu.zero_gradient == ((-math.inf, 0.0),) and silu.zero_gradient == ()
    # E relu = 1/sqrt(2 pi), E relu^2 = 1/2, E relu' = 1/2; E gelu = 1/(2 sqrt(pi)).
    assert (relu.mean, relu.second_moment, relu.derivative_mean) == pytest.approx(
        (1 / math.sqrt(2 * math.pi), 0.5, 0.5), abs=1e-6)
    assert gelu.mean == pytest.approx(1 / (2 * math.sqrt(math.pi)), abs=1e-6)
    assert get("sigmoid").properties.range == pytest.approx((0.0, 1.0), abs=1e-9)
    assert get("fatrelu").properties.smoothness == "discontinuous"
    for text, smoothness in (("max(x, 0)**1.5", "C1"), ("max(x, 0)**2.5", "C2"), ("sqrt(abs(x))", "C0"),
                             ("abs(x) + x**3", "C0"), ("x*step(x - 2)", "discontinuous")):
        assert Definition("any", "pointwise", parse(text)).properties.smoothness == smoothness, text


@pytest.mark.parametrize(("text", "low", "high"), [
    ("max(x,0) + 0.01*min(x,0)", -math.inf, math.inf), ("0.05*x", -math.inf, math.inf), ("x/(1+abs(x))", -1, 1),
    ("sqrt(softplus(x))", 0, math.inf), ("sign(x)*sqrt(abs(x))", -math.inf, math.inf), ("cauchy(x)", 0, 1),
    ("sign(x)*log1p(abs(x))", -math.inf, math.inf), ("exp(x)/(1+exp(x))", 0, 1), ("clip(x,-2,5)", -2, 5),
    ("sqrt(x)", 0, math.inf), ("x*step(x-0.01)", 0, math.inf)])
def test_a_range_ends_where_the_values_go(text, low, high):
    found = Definition("any", "pointwise", parse(text)).properties.range
    assert found == pytest.approx((low, high), abs=1e-9) and math.copysign(1, found[0]) == (1 if low >= 0 else -1)


@pytest.mark.parametrize("name", [n for n in names() if get(n).expr is not None])
def test_moments_against_a_large_sample(name):
    definition, p = get(name), get(name).properties
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    inputs = (x,) if definition.kind != "gated" else (x, torch.ones_like(x))
    y = functional.activation(name)(*inputs)
    (slope,) = torch.autograd.grad(y.sum(), x)
    for values, mean, second in ((y.detach(), p.mean, p.second_moment),
                                 (slope, p.derivative_mean, p.derivative_second_moment)):
        for got, want in ((values, mean), (values**2, second)):
            assert abs(float(got.mean()) - want) < 5 * float(got.std()) / len(x) ** 0.5 + 1e-9


def test_define():
    mine = nonlin.define("half_silu", "x*sigmoid(2*x)/2")
    assert nonlin.get("half_silu") is mine and "half_silu" in nonlin.names()
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(functional.activation("half_silu")(x), x * torch.sigmoid(2 * x) / 2)
    assert nonlin.define("half_silu", "x*sigmoid(2*x)/2") is mine
    with pytest.raises(UserError, match="must keep its formula"):
        nonlin.define("half_silu", "x")
    with pytest.raises(UserError, match="not be a built-in"):
        nonlin.define("gelu", "x")
    assert nonlin.define("half_glu", "gate*up/2").kind == "gated"


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "x.__class__", "lambda: x", "x; x", "exec(x)", "[x]", "x if x else x", "1",
    "x +", "(x", "x y", "x*gate", "sigmod(x)", "clip(x)", "x**y", "x**1000", "1/0*x", "sqrt(-1)*x", "x" * 3000,
    "(" * 200 + "x" + ")" * 200, "1e400*x", "", "x**x", "'x'", "max(x, 0, 1)", "-" * 500 + "x"])
def test_bad_formulas_are_refused(text):
    with pytest.raises(UserError):
        parse(text)


def test_arms():
    assert [a.name for a in parse_arms("gelu, b=clip(x, 0, 6), swish")] == ["gelu", "b", "silu"]
    with pytest.raises(UserError, match="once"):
        parse_arms("silu,swish")
    with pytest.raises(UserError):
        parse_arms(" , ")


def test_written_numbers_stay_exact():
    assert write(parse("x*1.702")) == "1.702*x"
    assert parse("0.1*x + 0.2*x") == parse("0.3*x")
