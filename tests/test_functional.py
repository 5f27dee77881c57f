"""Activations of tensors: what calls may look like, gradients of every order, modules and widths."""

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_stays_and_parameters_learn(dtype):
    x = torch.randn(7, dtype=dtype, requires_grad=True)
    module = Activation("xielu", dtype=dtype)
    out = module(x)
    assert out.dtype == dtype
    out.sum().backward()
    assert x.grad.dtype == dtype and all(p.grad is not None and p.shape == (1,) for p in module.parameters())
    assert all(p._no_weight_decay for p in module.parameters())


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
        with pytest.raises(UserError, match="be positive"):
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
