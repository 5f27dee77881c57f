"""Properties of formulas with poles, infinite derivatives, or no value at some x: what is true, or nothing."""

import math

import mpmath
import pytest

from nonlin.functions import Definition, describe
from nonlin.functions.grammar import parse
from nonlin.functions.properties import first_undefined

NORMAL = mpmath.npdf


def _properties(text):
    return Definition("any", "pointwise", parse(text)).properties


SMOOTHNESS = {
    "undefined": ["1/x", "1/(x - 1)", "1/x**2", "1/abs(x)", "sqrt(x)", "log1p(x)", "log1p(abs(x) - 1)", "tanh(x)/x",
                  "x/(x - 0.003)", "max(x, 1)/x", "x**(1/3)", "sqrt(1 - x*x)", "1/(x**2 - 1)"],
    "C0": ["sign(x)*sqrt(abs(x))", "sqrt(abs(x))", "abs(x)**0.3", "max(x, 0)**0.5", "sqrt(abs(x - 1))", "x*sign(x)",
           "max(sqrt(abs(x)), 1)"],
    "C1": ["abs(x)**1.5", "x*abs(x)", "x**2*sign(x)", "max(x, 0)**1.5"],
    "smooth": ["x**2", "phi(x)/Phi(x)", "1/(1 + x**2)", "sqrt(1 + x**2)", "x/(1 + exp(-x))"],
    "discontinuous": ["step(x)", "x*step(x - 2)"]}


@pytest.mark.parametrize("said, text", [(said, text) for said, texts in SMOOTHNESS.items() for text in texts])
def test_smoothness(said, text):
    assert _properties(text).smoothness == said


@pytest.mark.parametrize("text, low, high", [
    ("1/x", -math.inf, math.inf), ("1/x**2", 0, math.inf), ("1/(x - 0.004)", -math.inf, math.inf),
    ("x/(x - 0.003)", -math.inf, math.inf), ("log1p(abs(x) - 1)", -math.inf, math.inf), ("phi(x)/Phi(x)", 0, math.inf),
    ("sqrt(1 - x*x)", 0, 1), ("-1/abs(x)", -math.inf, 0), ("sigmoid(x)/softplus(x)", 0, 1)])
def test_range_and_minimum(text, low, high):
    found = _properties(text)
    assert found.range == (low, pytest.approx(high, rel=1e-6))
    assert found.minimum is None or found.minimum[1] == found.range[0]
    if math.isinf(low) or text == "phi(x)/Phi(x)":
        assert found.minimum is None


@pytest.mark.parametrize("text, function, powers", [
    ("sign(x)*sqrt(abs(x))", None, None), ("sqrt(abs(x))", lambda x: mpmath.sqrt(abs(x)), (0.5, 1)),
    ("abs(x)**(-0.25)", lambda x: abs(x) ** -0.25, (-0.25, -0.5)),
    ("log1p(abs(x) - 1)", lambda x: mpmath.log(abs(x)), None),
    ("phi(x)/Phi(x)", lambda x: mpmath.npdf(x) / mpmath.ncdf(x), None)])
def test_moments_against_mpmath(text, function, powers):
    found = _properties(text)
    if function is None:  # its derivative is half of |x|**-0.5
        wanted = mpmath.mpf(2) ** -0.25 * mpmath.gamma(0.25) / mpmath.sqrt(mpmath.pi) / 2
        assert found.derivative_mean == pytest.approx(float(wanted), rel=1e-6)
        assert math.isinf(found.derivative_second_moment)
        return
    if powers is None:
        wanted = [mpmath.quad(lambda x, n=n: function(x) ** n * NORMAL(x), [-30, -3, -1, 0, 1, 3, 30]) for n in (1, 2)]
    else:  # E|z|**p in closed form
        wanted = [2 ** mpmath.mpf(p / 2) * mpmath.gamma((p + 1) / 2) / mpmath.sqrt(mpmath.pi) for p in powers]
    assert (found.mean, found.second_moment) == pytest.approx([float(w) for w in wanted], rel=1e-5)


def test_moments_that_do_not_exist_are_not_told():
    for text in ("1/x", "1/(x - 1)", "1/(x**2 - 4)"):
        found = describe(Definition("any", "pointwise", parse(text)))["properties"]
        assert found["mean"] is None and found["second_moment"] is None, text
    assert math.isinf(_properties("1/sqrt(abs(x))").second_moment)
    assert _properties("1/sqrt(abs(x))").mean == pytest.approx(1.72008, rel=1e-5)


@pytest.mark.parametrize("text, at", [
    ("x/(x - 0.003)", 0.003), ("1/(x*x - 2)", -2**0.5), ("log1p(x + 1.3333)", -8.0), ("sqrt(abs(x - 0.01))", 0.01),
    ("1/(exp(x) - 3)", math.log(3)), ("x*sigmoid(x)", None), ("sqrt(1 + x**2)", None), ("abs(x - 0.01)**1.5", None),
    ("1/(x - 100)", None), ("log1p(abs(x + 0.52) - 1)", -0.52)])
def test_a_pole_between_the_points_of_the_grid_is_found(text, at):
    found = first_undefined(Definition("any", "pointwise", parse(text)))
    assert found == (None if at is None else pytest.approx(at, abs=1e-9))
