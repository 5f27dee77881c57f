"""Activations of the catalog with other constants."""

import pickle
import re

import mpmath
import pytest
import torch

import nonlin
from nonlin.errors import UnknownName, UserError, near
from nonlin.functions import define, get, parse_arms, registry
from nonlin.functions.constants import FAMILIES
from nonlin.functions.reference import evaluate
from nonlin.functions.registry import deserialize, serialize


@pytest.mark.parametrize("name", list(FAMILIES))
def test_with_the_catalogs_constants_it_is_the_catalogs(name):
    constants = {key: float(value) for key, value in FAMILIES[name].constants.items()}
    assert nonlin.get(name, **constants) is nonlin.get(name)
    changed = nonlin.get(name, **dict.fromkeys(constants, 2.5))
    assert changed.expr != nonlin.get(name).expr and changed.kind == nonlin.get(name).kind
    assert changed.source == nonlin.get(name).source


def test_a_name_with_constants_is_a_name_everywhere():
    made = nonlin.get("leaky_relu", slope=0.5)
    assert made.name == "leaky_relu(slope=0.5)" and nonlin.get(made.name) is made
    assert deserialize(serialize(made)) is made and pickle.loads(pickle.dumps(made)) is made
    arms = parse_arms("gelu, leaky_relu(slope=0.5), situ_glu(gate_limit=3, up_limit=20), mine=max(x, 0)*2")
    assert [arm.name for arm in arms] == ["gelu", made.name, "situ_glu(gate_limit=3,up_limit=20)", "mine"]
    assert nonlin.get("leaky_relu( slope = 0.50 )") is made
    with pytest.raises(UserError, match="differ"):
        parse_arms("leaky_relu(slope=0.5),leaky_relu(slope=.5)")


def test_a_gated_form_is_found_in_another_process(monkeypatch):
    made = registry.gated_by(nonlin.get("leaky_relu", slope=0.5))
    text = serialize(made)
    monkeypatch.setattr(registry, "_SERIALIZED", {})
    found = deserialize(text)
    assert (found.name, found.kind, found.expr) == (made.name, "gated", made.expr)


def test_kernels_compute_it_and_its_derivative():
    x = torch.linspace(-4, 4, 97, requires_grad=True)
    y = nonlin.functional.activation(nonlin.get("leaky_relu", slope=0.5))(x)
    assert torch.equal(y, nonlin.nn.Activation("leaky_relu(slope=0.5)")(x))
    y.sum().backward()
    assert torch.equal(y, torch.nn.functional.leaky_relu(x, 0.5))
    assert torch.equal(x.grad[:40], torch.full((40,), 0.5)) and torch.equal(x.grad[60:], torch.ones(37))


def test_a_block_with_another_limit_clamps_there():
    gate, up = torch.full((1, 8), 20.0), torch.full((1, 8), -30.0)
    definition = nonlin.get("swiglu_clamped", limit=7)
    with mpmath.workdps(30):
        expected = -7 * 7 / (1 + mpmath.exp(-7))
    assert float(evaluate(definition, 20.0, -30.0)) == pytest.approx(float(expected))
    made = nonlin.nn.Activation(definition)
    assert made(gate, up)[0, 0].item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("m", [1, 2, 3, 4.5])
def test_powlu_is_the_published_power(m):
    """Its formula avoids a large exponent; the paper's is gate^(m / (sqrt(gate) + 1)) sigmoid(gate) up."""
    definition = nonlin.get("powlu", m=m)
    for gate in (1e-12, 0.003, 0.7, 1.0, 2.5, 40.0, 1e9):
        with mpmath.workdps(50):
            power = mpmath.mpf(gate) ** (m / (mpmath.sqrt(gate) + 1))
            expected = power / (1 + mpmath.exp(-mpmath.mpf(gate))) * mpmath.mpf(-1.5)
        assert abs(evaluate(definition, gate, -1.5) / expected - 1) < 1e-16
        made = nonlin.nn.Activation(definition)
        assert made(torch.tensor([gate]), torch.tensor([-1.5])).item() == pytest.approx(float(
            evaluate(definition, float(torch.tensor(gate)), -1.5)), rel=1e-6)
    ends = nonlin.nn.Activation(definition)(torch.tensor([float("inf"), -float("inf")]), torch.tensor([2.0, 2.0]))
    assert ends.tolist() == [2.0, 0.0]


def test_a_power_that_kernels_lack_is_computed_by_torch():
    definition = nonlin.get("powlu", m=2.3)
    assert "23/10" in str(nonlin.kernels.explain(definition))
    assert nonlin.nn.Activation(definition)(torch.tensor([2.0]), torch.ones(1)).item() == pytest.approx(float(
        evaluate(definition, 2.0, 1.0)), rel=1e-6)


def test_two_functions_of_one_name_are_two():
    """σ(g)·tanh(u) has been called SiTU, as a soft-capped SwiGLU has."""
    gate, up = torch.tensor([1.5]), torch.tensor([0.4])
    assert nonlin.nn.Activation("gtu")(gate, up).item() == pytest.approx(float(gate.sigmoid() * up.tanh()), rel=1e-6)
    assert all("SiTU" in nonlin.get(name).note for name in ("gtu", "situ_glu"))


@pytest.mark.parametrize("text, words", [
    ("gelu(slope=1)", "gelu takes no constants"), ("leaky_relu(slop=1)", "slope"),
    ("leaky_relu(0.5)", "with their names"), ("swiglu_clamped(limit=-3)", "positive"),
    ("swiglu_clamped(limit=nan)", "positive"), ("leaky_relu(slope=1e99)", "ordinary size"),
    ("nothing(a=1)", "nothing"), ("leaky_relu(slope=\u0663)", "ordinary size"),
    ("leaky_relu(slope=1_0)", "ordinary size"),
    ("leaky_relu(slope=1,slope=2)", "given once"), ("gelu()", "takes no constants"), ("leaky_relu(=1)", "constant"),
    ("leaky_relu(slope=x)", "ordinary size"), ("leaky_relu(slope=0.5", "unknown")])
def test_mistakes_are_explained(text, words):
    with pytest.raises(UserError, match=words):
        nonlin.get(text)


@pytest.mark.parametrize("value", [10**400, 1j, [1], {}, None, True, "", "0x10", "nan", torch.ones(2), float("inf")])
def test_what_is_no_number_is_no_constant(value):
    with pytest.raises(UserError, match="slope must be a number"):
        nonlin.get("leaky_relu", slope=value)


@pytest.mark.parametrize("name", [None, 5, b"gelu", ["gelu"], {"name": "gelu"}])
def test_what_is_no_name_is_refused(name):
    for call in (lambda: nonlin.get(name), lambda: nonlin.get(name, slope=1), lambda: nonlin.define(name, "2*x")):
        with pytest.raises(UserError, match="name must be"):
            call()


@pytest.mark.parametrize(("name", "must"), [
    ("mine_of_no_constants", "mine_of_no_constants takes no constants; got slope"), ("gelu", "gelu takes no constants"),
    ("leaky_relu(slope=0.5)", "has its constants already"), ("elu(alpha=2)", "has its constants already")])
def test_what_takes_no_constants_is_not_called_unknown(name, must):
    define("mine_of_no_constants", "2*x")
    with pytest.raises(UserError, match=re.escape(must)):
        get(name, slope=1)


def test_a_name_of_a_million_letters_is_unknown_at_once():
    """Comparing it with each name letter by letter takes minutes."""
    long = "x" * 10**6
    for call in (lambda: get(long), lambda: get(long, slope=1), lambda: get("leaky_relu", **{long: 1})):
        with pytest.raises(UnknownName) as caught:
            call()
        assert len(str(caught.value)) < 2000
    assert near("s" * 101, ["s" * 100]) == [] and near("swigul", ["swiglu"]) == ["swiglu"]
