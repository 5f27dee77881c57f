"""Derivatives of any order and in either mode, one by one and in batches: against numbers, torch, and each other."""

import pytest
import torch
from torch.autograd import forward_ad, functional, gradcheck, gradgradcheck

import nonlin
from nonlin import functional as F
from nonlin.functions import get, names
from nonlin.kernels import feed_forward
from nonlin.kernels.activation import ops
from nonlin.nn import FeedForward
from tests.kernels.ffn.blocks import case

CATALOG = [n for n in names() if get(n).expr is not None and not get(n).user_defined]
SMOOTH_ENOUGH = [n for n in CATALOG if n != "fatrelu"]  # it jumps: a difference quotient does not exist
GATED = [n for n in CATALOG if get(n).gated]
BLOCKS = ["swiglu", "gelu", "leaky_relu", "xielu"]
FIRST = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
SECOND = {"check_fwd_over_rev": True, "check_batched_grad": True}


def _draw(name, shape=(2, 3)):
    torch.manual_seed(0)
    definition = get(name)
    inputs = [torch.randn(shape, dtype=torch.float64) * 2 + 0.0123 for _ in definition.variables]
    learned = [torch.tensor([q.initial + 0.1], dtype=torch.float64) for q in definition.parameters]

    def call(*tensors):
        keywords = dict(zip((q.name for q in definition.parameters), tensors[len(inputs):], strict=True))
        return F.activation(name)(*tensors[:len(inputs)], **keywords)

    return call, [x.requires_grad_() for x in (*inputs, *learned)]


@pytest.mark.parametrize("name", SMOOTH_ENOUGH)
def test_the_catalog_by_difference_quotients_in_both_modes_and_in_batches(name):
    call, tensors = _draw(name)
    assert gradcheck(call, tensors, **FIRST)
    assert gradgradcheck(call, tensors, **SECOND)
    assert gradcheck(lambda *t: ops.activation(name, t), tensors, **FIRST)


@pytest.mark.parametrize("name", GATED)
def test_packed_by_difference_quotients_in_both_modes_and_in_batches(name):
    torch.manual_seed(0)
    x = (torch.randn(2, 6, dtype=torch.float64) * 2 + 0.0123).requires_grad_()
    for layout, first in (("concatenated", "gate"), ("interleaved", "up")):
        def call(x, layout=layout, first=first):
            return F.packed(name)(x, layout=layout, first=first)

        assert gradcheck(call, (x,), **FIRST) and gradgradcheck(call, (x,), **SECOND)


def _block(name, memory="lean", bias=True):
    one = case(name, (2,), 3, 4, 2, bias=bias)
    leaves = one.leaves()

    def call(*values):
        given = dict(zip(leaves, values, strict=True))
        return feed_forward(**{k: given.get(k) for k in one.tensors}, activation=name, memory=memory,
                            parameters={k: given[k] for k in one.parameters})

    return call, tuple(leaves.values()), one


@pytest.mark.parametrize("memory", ["fast", "lean", "minimal"])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_block_by_difference_quotients_in_both_modes_and_in_batches(name, memory):
    call, tensors, _ = _block(name, memory)
    assert gradcheck(call, tensors, **FIRST)
    assert gradgradcheck(call, tensors, **SECOND)


@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_packed_block_in_both_modes_and_in_batches(layout, transposed):
    torch.manual_seed(1)
    x, up, down, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True)
                         for s in ((2, 3), (3, 8) if transposed else (8, 3), (2, 4), (8,)))

    def call(x, up, down, bias):
        return feed_forward(x, None, up.t() if transposed else up, down, up_bias=bias, activation="swiglu",
                            layout=layout, first="up")

    assert gradcheck(call, (x, up, down, bias), **FIRST) and gradgradcheck(call, (x, up, down, bias), **SECOND)


def _hessians(loss, tensors):
    """Yield what every composition of the modes gives, the first by torch's loops."""
    places, tensors = tuple(range(len(tensors))), tuple(x.detach() for x in tensors)
    yield functional.hessian(loss, tensors)
    yield functional.hessian(loss, tensors, vectorize=True)
    yield functional.hessian(loss, tensors, vectorize=True, outer_jacobian_strategy="forward-mode")
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        for inner in (torch.func.jacfwd, torch.func.jacrev):
            yield outer(inner(loss, places), places)(*tensors)


@pytest.mark.parametrize("name", ["gelu", "swiglu", "xielu", "softplus", "swiglu_packed",
                                  *(f"{n} block" for n in BLOCKS)])
def test_every_composition_of_the_modes_gives_one_hessian(name):
    if name.endswith("block"):
        call, tensors, _ = _block(name.split()[0])
    elif name.endswith("packed"):
        call, tensors = F.swiglu_packed, [torch.randn(2, 4, dtype=torch.float64)]
    else:
        call, tensors = _draw(name)
    want, *others = _hessians(lambda *t: call(*t).sin().sum(), tensors)
    assert max(float(part.abs().max()) for row in want for part in row) > 1e-3
    for other in others:
        for a, b in zip(want, other, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["gelu", "swiglu", "xielu"])
def test_third_derivatives_are_those_of_the_formula(name):
    definition = get(name)
    call, tensors = _draw(name)
    if not definition.gated:
        point = torch.linspace(-3, 3, 12, dtype=torch.float64)  # not at 0, where xielu has none
        third = torch.func.vmap(torch.func.grad(torch.func.grad(torch.func.grad(lambda x: call(x, *tensors[1:])))))
        h, second = 1e-4, torch.func.vmap(torch.func.grad(torch.func.grad(lambda x: call(x, *tensors[1:]))))
        want = (second(point + h) - second(point - h)) / (2 * h)
        torch.testing.assert_close(third(point).detach(), want.detach(), rtol=1e-4, atol=1e-5)

    def first(*values):
        return torch.autograd.grad(call(*values).sum(), values, create_graph=True)

    assert gradgradcheck(first, tensors)


def test_third_derivatives_of_the_block():
    call, tensors, _ = _block("swiglu", bias=False)

    def first(*values):
        return torch.autograd.grad(call(*values).sin().sum(), values, create_graph=True)

    assert gradgradcheck(first, tensors)


@pytest.mark.parametrize("trained", [("gate_bias", "up_bias"), ("down",), ("x",), ("down_bias",)])
@pytest.mark.parametrize("memory", ["fast", "lean", "minimal"])
def test_higher_derivatives_where_little_is_trained(trained, memory):
    """Where neither the input nor a first weight is, the input is not saved: biases move what was."""
    _, _, one = _block("swiglu", memory)
    some = [one.tensors[k] for k in trained]
    for k, t in one.tensors.items():
        t.requires_grad_(k in trained)

    def call(*values):
        return feed_forward(**one.tensors | dict(zip(trained, values, strict=True)), activation="swiglu",
                            memory=memory).sin()

    assert gradcheck(call, some, **FIRST) and gradgradcheck(call, some, **SECOND)
    assert gradgradcheck(lambda *v: torch.autograd.grad(call(*v).sum(), v, create_graph=True), some)


def test_a_frozen_block_keeps_its_tangents():
    block = FeedForward(4, 6).double().requires_grad_(False)
    x = torch.randn(4, dtype=torch.float64)
    forward = functional.jacobian(block, x, strategy="forward-mode", vectorize=True)
    torch.testing.assert_close(forward, functional.jacobian(block, x))
    assert float(forward.abs().max()) > 0.01
    with forward_ad.dual_level():
        weight = torch.randn_like(block.up.weight)
        dual = torch.func.functional_call(block, {"up.weight": forward_ad.make_dual(block.up.weight, weight)}, (x,))
        tangent = forward_ad.unpack_dual(dual).tangent
    _, want = torch.func.jvp(lambda w: torch.func.functional_call(block, {"up.weight": w}, (x,)),
                             (block.up.weight,), (weight,))
    h = 1e-6
    shifted = [torch.func.functional_call(block, {"up.weight": block.up.weight + s * h * weight}, (x,))
               for s in (1, -1)]
    torch.testing.assert_close(tangent, (shifted[0] - shifted[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(tangent, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gelu", "swiglu", "xielu", "prelu"])
def test_the_value_beside_a_tangent_is_the_value_and_the_tangent_is_rounded_once(name, dtype):
    call, tensors = _draw(name, (4, 5))
    tensors = [x.detach().to(dtype if k < len(get(name).variables) else torch.float32)
               for k, x in enumerate(tensors)]
    tangents = [torch.ones_like(x) for x in tensors]
    value, tangent = torch.func.jvp(call, tuple(tensors), tuple(tangents))
    assert torch.equal(value, call(*tensors)) and tangent.dtype == dtype
    _, want = torch.func.jvp(call, tuple(x.double() for x in tensors), tuple(t.double() for t in tangents))
    torch.testing.assert_close(tangent.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_a_reverse_pass_through_a_tangent():
    x, v = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(F.gelu(forward_ad.make_dual(x, v))).tangent
        (got,) = torch.autograd.grad(tangent.sum(), x)
    with forward_ad.dual_level():
        theirs = forward_ad.unpack_dual(torch.nn.functional.gelu(forward_ad.make_dual(x, v))).tangent
        (want,) = torch.autograd.grad(theirs.sum(), x)
    torch.testing.assert_close(got, want)


def test_tangents_that_come_only_with_backward():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    block = FeedForward(5, 6).double()
    for call in (F.gelu, block):
        out = call(x)
        upstream, tangent = torch.randn_like(out), torch.randn_like(out)
        with forward_ad.dual_level():
            (got,) = torch.autograd.grad(out, x, forward_ad.make_dual(upstream, tangent), retain_graph=True)
            got = forward_ad.unpack_dual(got).tangent
        (want,) = torch.autograd.grad(out, x, tangent)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("call", [F.gelu, lambda x: F.swiglu(x, x), F.swiglu_packed, FeedForward(4, 6).double()])
def test_a_batch_of_gradients_is_each_of_them(call):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    out = call(x)
    upstream = torch.randn(7, *out.shape, dtype=torch.float64)
    (batch,) = torch.autograd.grad(out, x, upstream, is_grads_batched=True, retain_graph=True)
    each = torch.stack([torch.autograd.grad(out, x, g, retain_graph=True)[0] for g in upstream])
    torch.testing.assert_close(batch, each)
    torch.testing.assert_close(functional.jacobian(call, x, vectorize=True), functional.jacobian(call, x))


THEIRS = {
    "relu": "relu", "relu6": "relu6", "elu": "elu", "selu": "selu", "leaky_relu": "leaky_relu", "gelu": "gelu",
    "silu": "silu", "mish": "mish", "hardtanh": "hardtanh", "hardswish": "hardswish", "softplus": "softplus",
    "softsign": "softsign", "prelu": "prelu"}


@pytest.mark.parametrize("name", THEIRS)
def test_torchs_own_samples_in_both_modes(name):
    """The operator database's inputs (shapes, strides, no dimension): value, gradient, tangent, batch as torch's."""
    from torch.testing._internal.common_methods_invocations import op_db  # some seconds to load

    found = next(op for op in op_db if op.name in (f"nn.functional.{THEIRS[name]}", THEIRS[name]))
    theirs = getattr(torch.nn.functional, THEIRS[name])
    tried = 0
    for sample in found.sample_inputs("cpu", torch.float64, requires_grad=True):
        x = sample.input.detach() + 0.0123  # at 0 a one-sided derivative is as good as another
        if name == "prelu":
            weight = torch.tensor([0.2], dtype=torch.float64)
            ours, torchs = lambda x: F.prelu(x, slope=weight), lambda x: theirs(x, weight)  # noqa: B023
        else:
            ours, torchs = F.activation(name), theirs
        tried += 1
        upstream = torch.randn(3, *x.shape, dtype=torch.float64)
        results = []
        for call in (ours, torchs):
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            out = call(leaf)
            (batch,) = torch.autograd.grad(out, leaf, upstream, is_grads_batched=True)
            _, tangent = torch.func.jvp(call, (x,), (upstream[0],))
            results.append((out.detach(), batch, tangent))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert results[0][0].stride() == results[1][0].stride() or not x.is_contiguous()
    assert tried


def test_a_users_formula_has_all_of_it():
    nonlin.define("wavy", "x*sigmoid(3*x) + 0.1*tanh(x)**2")
    call, tensors = _draw("wavy")
    assert gradcheck(call, tensors, **FIRST) and gradgradcheck(call, tensors, **SECOND)


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "hardtanh"])
def test_a_second_derivative_that_is_zero_everywhere_is_given_as_torch_gives_it(name):
    """A penalty on gradients asks for it; torch would say that the input was not used."""
    found = []
    for act in (F.activation(name), getattr(torch.nn.functional, name)):
        x = torch.tensor([-4.0, -1.0, 0.0, 0.5, 3.0, 7.0], dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(act(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), x)[0])
    assert torch.equal(*found) and not found[0].any()
