"""Activations of tensors: what calls may look like, gradients of every order, modules and widths."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nonlin
from nonlin import functional
from nonlin.errors import UserError
from nonlin.functions import get, names
from nonlin.kernels import dispatch
from nonlin.nn import Activation, FeedForward, matched_hidden

POINTWISE = [n for n in names() if get(n).kind == "pointwise" and not get(n).user_defined]
GATED = [n for n in names() if get(n).kind == "gated" and not get(n).user_defined]
DIFFERENTIABLE = [n for n in POINTWISE + GATED if n != "fatrelu"]  # it jumps: a difference quotient does not exist


def _inputs(name, seed=0):
    torch.manual_seed(seed)
    count = len(get(name).variables)
    # Away from kinks, where difference quotients mean nothing.
    return [(torch.randn(3, 5, dtype=torch.float64) * 2 + 0.0123).requires_grad_() for _ in range(count)]


def _parameters(name):
    return {q.name: torch.tensor([q.initial + 0.1], dtype=torch.float64, requires_grad=True)
            for q in get(name).parameters}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck_first_and_second(name):
    parameters = _parameters(name)
    keys = list(parameters)

    def call(*values):
        count = len(get(name).variables)
        return functional.activation(name)(*values[:count], **dict(zip(keys, values[count:], strict=True)))

    values = (*_inputs(name), *parameters.values())
    assert torch.autograd.gradcheck(call, values)
    assert torch.autograd.gradgradcheck(call, values)


@pytest.mark.parametrize("name", ["gelu", "swiglu", "xielu"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_strides(name, data):
    rows, columns = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    change = data.draw(st.sampled_from([
        lambda x: x.t().contiguous().t(), lambda x: x[::2], lambda x: x[:, ::3], lambda x: x[:1].expand(4, -1),
        lambda x: x.flip(0)]))
    base = [torch.randn(rows + 1, columns + 1) for _ in get(name).variables]
    strided = [change(x) for x in base]
    got = functional.activation(name)(*strided)
    want = functional.activation(name)(*(x.contiguous() for x in strided))
    assert got.shape == strided[0].shape and torch.equal(got, want)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), ()])
def test_empty_and_single(shape):
    x = torch.zeros(shape, requires_grad=True)
    functional.gelu(x).sum().backward()
    assert x.grad.shape == shape


def test_broadcast_inputs_get_gradients_of_their_own_shape():
    gate, up = torch.randn(4, 1, requires_grad=True), torch.randn(3, requires_grad=True)
    functional.swiglu(gate, up).sum().backward()
    whole_g, whole_u = (t.detach().expand(4, 3).clone().requires_grad_() for t in (gate, up))
    (torch.nn.functional.silu(whole_g) * whole_u).sum().backward()
    torch.testing.assert_close(gate.grad, whole_g.grad.sum(1, keepdim=True))
    torch.testing.assert_close(up.grad, whole_u.grad.sum(0))


def test_inputs_used_twice_and_two_backwards():
    x = torch.randn(6, requires_grad=True)
    y = functional.swiglu(x, x)
    y.sum().backward(retain_graph=True)
    first = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * first)
    twin = x.detach().clone().requires_grad_()
    (torch.nn.functional.silu(twin) * twin).sum().backward()
    torch.testing.assert_close(first, twin.grad)


def test_wrong_calls_are_explained():
    x = torch.randn(3)
    with pytest.raises(UserError, match="inputs must be gate, up; got 1"):
        functional.swiglu(x)
    with pytest.raises(UserError, match="share one float dtype"):
        functional.swiglu(x, x.double())
    with pytest.raises(UserError, match="float dtype"):
        functional.gelu(torch.arange(3))
    with pytest.raises(UserError, match="parameters must be among: beta"):
        functional.swish_beta(x, slope=x)
    with pytest.raises(AttributeError, match="Did you mean"):
        functional.gellu  # noqa: B018


@pytest.mark.parametrize("name", ["gelu", "prelu", "swiglu", "solu"])
def test_inputs_may_be_given_by_their_names(name):
    torch._dynamo.reset()
    given = functional.activation(name)
    for shape in ((5,), (64, 300)):
        inputs = {v: torch.randn(shape) for v in get(name).variables}
        want = given(*inputs.values())
        calls = [given, torch.compile(given, fullgraph=True, backend="eager")]
        if get(name).expr is not None:
            calls.append(functional._general(get(name)))  # as where nothing is compiled
        assert all(torch.equal(call(**inputs), want) for call in calls)
    first, *rest = inputs.items()
    assert torch.equal(given(first[1], **dict(rest)), want)
    with pytest.raises(UserError, match=r"slope|inputs must be gate, up; got 1"):
        functional.prelu(first[1], x=first[1]) if name != "swiglu" else functional.swiglu(up=first[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_stays_and_parameters_learn(dtype):
    x = torch.randn(7, dtype=dtype, requires_grad=True)
    module = Activation("xielu", dtype=dtype)
    out = module(x)
    assert out.dtype == dtype
    out.sum().backward()
    assert x.grad.dtype == dtype and all(p.grad is not None and p.shape == (1,) for p in module.parameters())
    assert all(p._no_weight_decay for p in module.parameters())


@pytest.mark.parametrize("name", ["prelu", "xielu"])
def test_parameters_stay_without_weight_decay(name):
    block = FeedForward(4, 8, name)
    empty = FeedForward(4, 8, name, device="meta").to_empty(device="cpu")
    assigned = FeedForward(4, 8, name, device="meta")
    assigned.load_state_dict(block.state_dict(), assign=True)
    copies = nn.TransformerEncoder(nn.Sequential(block), 2, enable_nested_tensor=False).layers
    for made in (copy.deepcopy(block), *copies, empty, assigned, pickle.loads(pickle.dumps(block)), block.to("meta")):
        for path, parameter in made.named_parameters():
            assert getattr(parameter, "_no_weight_decay", False) == ("activation" in path), path


@pytest.mark.parametrize("name", ["polynorm", "solu"])
def test_not_pointwise(name):
    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(functional.activation(name), (x,))
    if name == "solu":
        want = torch.nn.functional.layer_norm(x * x.softmax(-1), (8,))
    else:
        want = sum(x**k / ((x**k).square().mean(-1, keepdim=True) + 1e-6).sqrt() for k in (1, 2, 3)) / 3
    torch.testing.assert_close(functional.activation(name)(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["swiglu", "gelu", "relu_squared", "xielu"])
@pytest.mark.parametrize("bias", [False, True])
def test_feed_forward_is_the_textbook_block(name, bias):
    torch.manual_seed(0)
    block = FeedForward(16, 24, name, bias=bias).double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    up = x @ block.up.weight.T + (block.up.bias if bias else 0)
    start = {"relu_squared": lambda v: v.relu() ** 2, "gelu": torch.nn.functional.gelu,
             "xielu": lambda v: torch.where(v > 0, 0.8 * v**2 + v / 2, 0.8 * (torch.expm1(v) - v) + v / 2)}
    if name == "swiglu":
        gate = x @ block.gate.weight.T + (block.gate.bias if bias else 0)
        hidden = gate * torch.sigmoid(gate) * up
    else:
        hidden = start[name](up)
    want = hidden @ block.down.weight.T + (block.down.bias if bias else 0)
    torch.testing.assert_close(block(x), want, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(dim=st.integers(8, 4096), multiple=st.sampled_from([1, 8, 64]))
def test_matched_widths_have_equal_parameters_but_for_rounding(dim, multiple):
    plain, gated = matched_hidden(dim, "pointwise", multiple=multiple), matched_hidden(dim, "gated", multiple=multiple)
    assert plain % multiple == gated % multiple == 0
    if plain > multiple and gated > multiple:
        assert abs(2 * plain - 8 * dim) <= multiple and abs(3 * gated - 8 * dim) <= 1.5 * multiple
    for kind, factor in (("pointwise", 2), ("gated", 3)):
        block = FeedForward(dim, activation="gelu" if kind == "pointwise" else "swiglu", device="meta")
        assert sum(p.numel() for p in block.parameters()) == factor * dim * matched_hidden(dim, kind)


def test_resetting_with_a_generator_is_reproducible_and_scaled():
    block = FeedForward(256, 512, "swiglu")
    block.reset_parameters(torch.Generator().manual_seed(3))
    first = block.down.weight.clone()
    block.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(first, block.down.weight)
    assert float(block.up.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.02)


def test_bad_widths_are_refused():
    for bad in ({"dim": 0}, {"dim": 8, "hidden": 0}):
        with pytest.raises(UserError, match="be a positive"):
            FeedForward(**bad)


def test_a_users_own_activation_works_everywhere():
    nonlin.define("cubic_gate", "gate*sigmoid(gate)*up**3")
    block = FeedForward(8, 16, "cubic_gate")
    assert block.gate is not None and block(torch.randn(2, 8)).shape == (2, 8)


LEARNED = [n for n in POINTWISE if get(n).parameters]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LEARNED)
def test_given_parameters_by_the_short_way_and_by_the_operation(name, dtype):
    definition = nonlin.get(name)
    x = torch.linspace(-4, 4, 65, dtype=dtype).reshape(5, 13)
    learned = {q.name: torch.tensor([q.initial + 0.3]) for q in definition.parameters}
    wanted = dispatch.forward(definition, [x], list(learned.values()))
    call = getattr(functional, name)
    assert torch.equal(call(x, **learned), wanted)
    assert torch.equal(call(x, **{k: nn.Parameter(q, requires_grad=False) for k, q in learned.items()}), wanted)
    with torch.no_grad():
        assert torch.equal(call(x, **{k: nn.Parameter(q) for k, q in learned.items()}), wanted)
    # What learns is recorded, what is left out takes its initial value, what is no parameter is refused.
    kept = {k: nn.Parameter(q) for k, q in learned.items()}
    value = call(x, **kept)
    value.float().sum().backward()
    assert torch.equal(value, wanted) and all(q.grad is not None and q.grad.abs() > 0 for q in kept.values())
    assert call(x.clone().requires_grad_(), **learned).requires_grad
    wide = torch.promote_types(dtype, torch.float32)
    initial = [torch.tensor([q.initial], dtype=wide) for q in definition.parameters]
    assert torch.equal(call(x), dispatch.forward(definition, [x], initial))
    with pytest.raises(UserError, match="be among"):
        call(x, **dict.fromkeys(("one", "two")[:len(learned)], torch.ones(1)))


WITH_PARAMETERS = [(name, q.name) for name in names() for q in get(name).parameters]


@pytest.mark.parametrize(("name", "parameter"), WITH_PARAMETERS)
def test_a_parameter_on_another_device_is_an_error_whatever_the_activation(name, parameter):
    """A kernel would read memory there that nobody wrote."""
    definition = get(name)
    foreign = {parameter: torch.ones(1, device="meta")}
    for x, q in ((torch.randn(2, 4), foreign), (torch.randn(2, 4).to("meta"), {parameter: torch.ones(1)})):
        weight = torch.ones(4, 4, device=x.device)
        calls = [lambda x=x, q=q: functional.activation(name)(*[x] * len(definition.variables), **q),
                 lambda x=x, q=q, w=weight: nonlin.kernels.feed_forward(
                     x, w if definition.gated else None, w, w, activation=name, parameters=q)]
        if definition.gated:
            calls.append(lambda x=x, q=q: functional.packed(name)(x, **q))
        for call in calls:
            with pytest.raises(UserError, match=f"{parameter} must be on the device of the first input"):
                call()
    on_meta = functional.activation(name)(*[torch.randn(2, 4, device="meta")] * len(definition.variables), **foreign)
    assert on_meta.is_meta and on_meta.shape == (2, 4)


@pytest.mark.parametrize("slope", [1e300, -1e39, 3.5e38])
def test_a_number_beyond_32_bits_is_infinite_with_a_gradient_too(slope):
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with torch.no_grad():
        wanted = functional.prelu(x, slope=slope)
    assert wanted[0].isinf() and torch.equal(functional.prelu(x, slope=slope), wanted)
    assert functional.prelu(x.double(), slope=slope)[0] == -slope


@pytest.mark.parametrize(("slope", "must"), [
    (torch.ones(3), "have one element, or a shape that broadcasts"), (torch.ones(0), "have one element"),
    (torch.ones(3, 2, 4), "have one element"), (torch.tensor(1j), "have a float dtype"),
    (torch.tensor([1]), "have a float dtype"), (torch.tensor(True), "have a float dtype"),
    (torch.ones(1).to(torch.float8_e5m2), "have a float dtype"), (torch.ones(1).to_sparse(), "be dense"),
    (1j, "be a number or a tensor"), (10**400, "be a number that 64 bits hold"), ([0.1], "be a number or a tensor"),
    ("0.1", "be a number or a tensor"), (None, "be a number or a tensor"), (True, "be a number or a tensor")])
def test_what_is_no_parameter_is_one_error(slope, must):
    weight = torch.ones(4, 4)
    for call in (lambda: functional.prelu(torch.randn(2, 4), slope=slope),
                 lambda: nonlin.kernels.feed_forward(torch.randn(2, 4), None, weight, weight, activation="prelu",
                                                     parameters={"slope": slope})):
        with pytest.raises(UserError, match=f"slope must {must.split(',')[0]}"):
            call()


def test_numbers_and_tensors_of_one_number_are_parameters():
    x = torch.randn(2, 4)
    wanted = torch.where(x > 0, x, x * 0.5)
    for slope in (0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.full((1, 1, 1), 0.5),
                  torch.full((4,), 0.5), torch.full((2, 1), 0.5), torch.tensor([0.5], dtype=torch.float64)):
        assert torch.equal(functional.prelu(x, slope=slope), wanted)
    assert functional.prelu(torch.tensor(-2.0), slope=torch.full((1, 1), 0.5)) == -1


def test_inputs_on_two_devices_or_of_shapes_that_do_not_fit_are_one_error():
    x = torch.randn(2, 4)
    for call, must in ((lambda: functional.swiglu(x, x.to("meta")), "up must be on the device"),
                       (lambda: functional.swiglu(x.to("meta"), x), "up must be on the device"),
                       (lambda: functional.swiglu(x, torch.ones(3)), "inputs must have shapes that broadcast"),
                       (lambda: functional.solu(torch.tensor(1.0)), "x must have a last dimension"),
                       (lambda: functional.solu(x, x), "inputs must be x; got 2"),
                       (lambda: functional.solu(x, slope=1), "parameters must be among: none"),
                       (lambda: functional.solu(), "x must be a tensor; got None"),
                       (lambda: functional.gelu(1.5), "x must be a tensor; got 1.5"),
                       (lambda: functional.swiglu_packed(), "x must be a tensor; got None")):
        with pytest.raises(UserError, match=must):
            call()
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(UserError, match="x must have a last dimension"):
        functional.solu(ragged)
