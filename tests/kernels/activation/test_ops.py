"""The registered operations under everything that torch wraps around them."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import nonlin
from nonlin import functional
from nonlin.functions import get, names
from nonlin.functions.definition import Parameter, X, pointwise
from nonlin.functions.registry import deserialize, serialize
from nonlin.kernels.activation import ops
from nonlin.kernels.registration import constant_when_traced
from nonlin.kernels.torch import backend as torch_backend

SOME = ["gelu", "swiglu", "prelu", "xielu", "swiglu_oai"]


def _tensors(name, shape=(4, 6), dtype=torch.float64, grad=True):
    torch.manual_seed(1)
    definition = get(name)
    inputs = [(torch.randn(shape, dtype=dtype) + 0.01).requires_grad_(grad) for _ in definition.variables]
    wide = torch.promote_types(dtype, torch.float32)
    learned = [torch.tensor([q.initial + 0.1], dtype=wide, requires_grad=grad) for q in definition.parameters]
    return definition, inputs, learned


def _want(definition, inputs, learned):
    """Value and gradients by torch's own autograd through the plain formula, in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (*inputs, *learned)]
    out = torch_backend.forward(definition, leaves[:len(inputs)], leaves[len(inputs):])
    return out.detach(), torch.autograd.grad(out.sum(), leaves)


def _agree(name, function, dtype=torch.float32):
    definition, inputs, learned = _tensors(name, dtype=dtype)
    keywords = dict(zip((q.name for q in definition.parameters), learned, strict=True))
    out = function(lambda *args: functional.activation(name)(*args, **keywords))(*inputs)
    grads = torch.autograd.grad(out.sum(), (*inputs, *learned))
    value, want = _want(definition, inputs, learned)
    torch.testing.assert_close(out.double(), value, rtol=3e-6, atol=3e-6)
    for g, w in zip(grads, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(name, dtype):
    definition, inputs, learned = _tensors(name, dtype=dtype)
    tensors, gradient = [*inputs, *learned], torch.randn(4, 6, dtype=dtype)
    opcheck(ops.activation, (serialize(definition), tensors))
    opcheck(ops.activation_backward, (serialize(definition), gradient, tensors))
    opcheck(ops.derivative, (serialize(definition), [1] * len(tensors), tensors))
    if definition.kind == "gated":
        tensors = [inputs[0], *learned]
        for order in ((False, False), (True, True)):
            opcheck(ops.packed, (serialize(definition), tensors, *order))
            opcheck(ops.packed_backward, (serialize(definition), inputs[0][:, :3].detach(), tensors, *order))


@pytest.mark.parametrize("name", SOME)
def test_gradcheck_through_the_dispatcher(name):
    definition, inputs, learned = _tensors(name)

    def call(*tensors):
        return ops.activation(serialize(definition), tensors)

    assert torch.autograd.gradcheck(call, (*inputs, *learned))
    assert torch.autograd.gradgradcheck(call, (*inputs, *learned))


@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("first", ["gate", "up"])
def test_packed_is_the_two_halves(layout, first):
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)

    def call(x):
        return functional.swiglu_packed(x, layout=layout, first=first)

    gate, up = (x[..., ::2], x[..., 1::2]) if layout == "interleaved" else (x[..., :4], x[..., 4:])
    gate, up = (up, gate) if first == "up" else (gate, up)
    torch.testing.assert_close(call(x), torch.nn.functional.silu(gate) * up)
    assert torch.autograd.gradcheck(call, (x,)) and torch.autograd.gradgradcheck(call, (x,))
    wrong = torch.nn.functional.silu(up) * gate
    assert not torch.allclose(call(x), wrong)  # the activation on the wrong half is another function


def test_packed_of_every_gated_activation_in_sixteen_bits():
    for name in (n for n in names() if get(n).kind == "gated"):
        x = torch.randn(7, 130, dtype=torch.bfloat16)
        got = getattr(functional, f"{name}_packed")(x, first="up")
        assert torch.equal(got, functional.activation(name)(x[:, 65:].contiguous(), x[:, :65].contiguous())), name


def test_packed_refuses_what_has_no_halves():
    with pytest.raises(nonlin.UserError, match="even last dimension"):
        functional.swiglu_packed(torch.zeros(2, 3))
    with pytest.raises(nonlin.UserError, match="layout must be one of concatenated, interleaved"):
        functional.swiglu_packed(torch.zeros(2, 4), layout="halves")
    with pytest.raises(nonlin.UserError, match="layout must be one of concatenated, interleaved"):
        functional.swiglu_packed(torch.zeros(2, 4), layout=np.array(["concatenated", "interleaved"]))
    with pytest.raises(AttributeError, match="must be gated"):
        functional.gelu_packed  # noqa: B018


@pytest.mark.parametrize("name", ["gelu", "xielu", "swiglu"])
def test_compile_without_a_graph_break(name):
    _agree(name, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))


def test_inductor_keeps_the_kernel_and_packs():
    x = torch.randn(4, 6, requires_grad=True)

    def f(x):
        return functional.swiglu_packed(x * 2).sum()

    torch.compile(f, fullgraph=True)(x).backward()
    twin = x.detach().clone().requires_grad_()
    f(twin).backward()
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("name", ["gelu", "xielu", "swiglu"])
def test_activation_checkpointing(name):
    _agree(name, lambda f: lambda *args: checkpoint(f, *args, use_reentrant=False))


@pytest.mark.parametrize("name", ["gelu", "xielu", "swiglu"])
def test_a_dispatch_mode_sees_the_operation(name):
    seen = []

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def wrapped(f):
        def call(*args):
            with Listen():
                return f(*args)
        return call

    _agree(name, wrapped)
    assert any("nonlin.activation" in s for s in seen)


@pytest.mark.parametrize("name", ["gelu", "swiglu", "xielu"])
def test_func_grad_and_vmap(name):
    definition, inputs, learned = _tensors(name, (5, 3), grad=False)

    def loss(*tensors):
        out = functional.activation(name)(*tensors[:len(inputs)], **dict(zip(
            (q.name for q in definition.parameters), tensors[len(inputs):], strict=True)))
        return (out * out).sum()

    grads = torch.func.grad(loss, argnums=tuple(range(len(inputs) + len(learned))))
    tensors = (*inputs, *learned)
    leaves = [x.clone().requires_grad_() for x in tensors]
    for got, want in zip(grads(*tensors), torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(got, want)
    dims = (*(0 for _ in inputs), *(None for _ in learned))
    each = torch.func.vmap(grads, in_dims=dims)(*tensors)
    for i in range(5):
        alone = grads(*(x[i] for x in inputs), *learned)
        for got, want in zip(each, alone, strict=True):
            torch.testing.assert_close(got[i], want)


def test_vmap_over_one_input_and_over_a_parameter():
    gate, up = torch.randn(4, 3), torch.randn(3)
    got = torch.vmap(functional.swiglu, in_dims=(0, None))(gate, up)
    torch.testing.assert_close(got, torch.nn.functional.silu(gate) * up)
    slopes, x = torch.tensor([[0.1], [0.5]]), torch.randn(6)
    got = torch.vmap(lambda s: functional.prelu(x, slope=s))(slopes)
    torch.testing.assert_close(got, torch.stack([torch.nn.functional.prelu(x, s) for s in slopes]))
    packed = torch.randn(4, 5, 6)
    got = torch.vmap(functional.swiglu_packed, in_dims=1)(packed)
    torch.testing.assert_close(got, functional.swiglu_packed(packed).movedim(1, 0))
    sums = torch.vmap(torch.func.grad(lambda x: functional.swiglu_packed(x).sum()))(packed)
    whole = torch.func.grad(lambda x: functional.swiglu_packed(x).sum())(packed)
    torch.testing.assert_close(sums, whole)


def test_hessian():
    x = torch.randn(4, dtype=torch.float64)
    got = torch.func.hessian(lambda x: functional.gelu(x).sum())(x)
    want = torch.func.hessian(lambda x: torch.nn.functional.gelu(x).sum())(x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["gelu", "silu", "softplus", "mish"])
def test_forward_mode(name):
    x = torch.tensor([-2.0, -0.3, 0.0, 1.5], dtype=torch.float64)
    (want,) = torch.autograd.grad(functional.activation(name)(y := x.clone().requires_grad_()).sum(), y)
    _, got = torch.func.jvp(functional.activation(name), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(got, want)
    with torch.autograd.forward_ad.dual_level():
        dual = functional.activation(name)(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, want)


def test_a_tensor_that_is_negated_when_read():
    z = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64).conj()
    assert z.imag.is_neg()
    torch.testing.assert_close(functional.relu(z.imag), torch.tensor([0.0, 1.0]))


def test_inference_mode_and_no_grad():
    x = torch.randn(700, requires_grad=True)
    with torch.inference_mode():
        assert functional.gelu(x).is_inference()
    with torch.no_grad():
        assert not functional.gelu(x).requires_grad
    assert functional.gelu(x).requires_grad


def test_autocast_brings_inputs_to_one_dtype():
    weight, x = torch.randn(6, 6), torch.randn(4, 6)
    with pytest.raises(nonlin.UserError, match="share one float dtype"):
        functional.swiglu(x.bfloat16(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gate = torch.nn.functional.linear(x, weight)
        assert gate.dtype == torch.bfloat16
        out = functional.swiglu(gate, x)
        assert functional.gelu(gate).dtype == torch.bfloat16
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, functional.swiglu(gate.float(), x))


@pytest.mark.parametrize("name", SOME)
def test_saved_for_backward_are_the_inputs_alone(name):
    definition, inputs, learned = _tensors(name, (30, 30), torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        functional.activation(name)(*inputs, **dict(zip((q.name for q in definition.parameters), learned,
                                                        strict=True)))
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in (*inputs, *learned)}


def test_backward_does_not_overwrite_what_it_reads():
    gate, up = (torch.randn(50, 40, requires_grad=True) for _ in range(2))
    before = gate.detach().clone(), up.detach().clone()
    out = functional.swiglu(gate, up)
    upstream = torch.randn(50, 40)
    kept = upstream.clone()
    first = torch.autograd.grad(out, (gate, up), upstream, retain_graph=True)
    second = torch.autograd.grad(out, (gate, up), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(gate, before[0]) and torch.equal(up, before[1]) and torch.equal(upstream, kept)


@pytest.mark.parametrize("frozen", ["gate", "up", "parameter"])
def test_frozen_inputs_get_no_gradient(frozen):
    definition, inputs, learned = _tensors("xielu" if frozen == "parameter" else "swiglu")
    still = learned[0] if frozen == "parameter" else inputs[frozen == "up"]
    still.requires_grad_(False)
    functional.activation(definition)(*inputs, **dict(zip((q.name for q in definition.parameters), learned,
                                                          strict=True))).sum().backward()
    _, want = _want(definition, inputs, learned)
    for leaf, exact in zip((*inputs, *learned), want, strict=True):
        if leaf is still:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, exact)


def test_a_text_names_an_activation_in_another_process():
    mine = nonlin.define("mine", "x*sigmoid(3*x)")
    own = pointwise("own", X * get("prelu").derivative("slope").func(X, 1), parameters=(Parameter("slope", 0.5),))
    assert serialize(get("swish")) == "silu" and deserialize(serialize(mine)) is mine
    script = ("import sys, torch; from nonlin.functions.registry import deserialize;"
              "print(deserialize(sys.argv[1]).formula, [q.initial for q in deserialize(sys.argv[1]).parameters])")
    for definition in (mine, own, get("swiglu_oai")):
        done = subprocess.run([sys.executable, "-c", script, serialize(definition)], capture_output=True, text=True)
        assert done.stdout.strip() == f"{definition.formula} {[q.initial for q in definition.parameters]}", done.stderr


def test_an_exported_program_runs_in_another_process(tmp_path):
    class Block(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return functional.activation("exported")(functional.swiglu_packed(x))

    nonlin.define("exported", "x*sigmoid(5*x)")
    x = torch.linspace(-3, 3, 20).reshape(2, 10)
    program = torch.export.export(Block(), (x,))
    torch.export.save(program, tmp_path / "block.pt2")
    torch.save(Block()(x), tmp_path / "want.pt")
    script = ("import sys, torch, nonlin.kernels.activation.ops\n"
              "block = torch.export.load(sys.argv[1]).module()\n"
              "x = torch.linspace(-3, 3, 20).reshape(2, 10)\n"
              "assert torch.equal(block(x), torch.load(sys.argv[2]))")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "block.pt2"), str(tmp_path / "want.pt")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_compiles_nothing_loads_no_compiler():
    script = ("import sys, torch; from nonlin import functional; from nonlin.nn import FeedForward\n"
              "(FeedForward(8, 16)(torch.randn(3, 8)).sum() + functional.gelu(torch.randn(3))).sum().backward()\n"
              "print('torch._dynamo' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr[-2000:]


def test_a_constant_of_a_trace_is_marked_as_torch_marks_one():
    def ours():
        return 1

    def theirs():
        return 1

    assert vars(constant_when_traced(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}
