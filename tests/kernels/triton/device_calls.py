"""The Triton kernels on tensors of any shape, strides and layout, by every way to call them.

On a GPU, or in Triton's interpreter.
"""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import nonlin
from nonlin import functional, kernels
from nonlin.functions import get
from nonlin.functions.definition import pointwise
from nonlin.functions.registry import serialize
from nonlin.kernels import dispatch
from nonlin.kernels.activation import ops
from nonlin.kernels.codegen import triton as triton_source
from nonlin.kernels.torch import backend as torch_backend
from nonlin.kernels.triton import backend as triton_backend
from nonlin.kernels.triton import ready
from tests.kernels.ffn import blocks
from tests.kernels.triton.device import DEVICE, INTERPRETED

pytestmark = pytest.mark.usefixtures("served")
EPS = {torch.float64: 2e-14, torch.float32: 4e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def _learned(definition):
    return [torch.tensor([q.initial + 0.1], device=DEVICE) for q in definition.parameters]


def _check(definition, gradient, inputs, learned):
    """Compare value, again, and all gradients with float64."""
    dtype, count = inputs[0].dtype, len(inputs)
    wide = [x.double() for x in (*inputs, *learned)]
    value = dispatch.forward(definition, inputs, learned)
    outs, sums, again = dispatch.backward(definition, gradient, inputs, learned, want_value=True)
    assert torch.equal(dispatch.forward(definition, inputs, learned), value)  # by a launch that is ready
    new, new_sums, value_again = dispatch.backward(definition, gradient, inputs, learned, want_value=True)
    pairs = zip((*new, *new_sums, value_again), (*outs, *sums, again), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    want = torch_backend.forward(definition, wide[:count], wide[count:]).reshape(gradient.shape)
    want_in, want_learned, _ = torch_backend.backward(definition, gradient.double(), wide[:count], wide[count:])
    assert value.dtype == dtype and value.shape == gradient.shape
    assert torch.empty_like(value).stride() == value.stride()  # dense, in the order of the inputs
    assert torch.equal(value, again)
    scale = EPS[dtype]
    torch.testing.assert_close(value.double(), want, rtol=scale, atol=scale)
    for got, exact, leaf in zip((*outs, *sums), (*want_in, *want_learned), (*inputs, *learned), strict=True):
        summed = max(1, value.numel()) / max(1, leaf.numel())  # a sum's error grows with its terms
        eps = max(EPS[torch.float32] if leaf.dtype == torch.float32 else 0, scale if leaf.dtype == dtype else 0)
        assert got.shape == leaf.shape and got.dtype == leaf.dtype
        torch.testing.assert_close(got.double(), exact, rtol=4 * eps, atol=4 * eps * max(1.0, summed**0.5))


STRIDES = {
    "contiguous": lambda x: x, "transposed": lambda x: x.t().contiguous().t(), "rows skipped": lambda x: x[::2],
    "columns skipped": lambda x: x[:, ::3], "a slice of columns": lambda x: x[:, 1:], "one row": lambda x: x[:1],
    "one column": lambda x: x[:, :1], "flipped": lambda x: x.flip(0), "three dimensions": lambda x: torch.stack(
        (x, x + 1)).transpose(0, 2), "four, mixed": lambda x: torch.stack((x, x - 1))[None].permute(3, 0, 1, 2)[::2],
    "a number": lambda x: x.sum(), "one dimension": lambda x: x.flatten(),
}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_strides_dtype_and_broadcast_against_float64(data):
    name = data.draw(st.sampled_from(["gelu", "swiglu", "prelu", "swiglu_oai", "softplus", "xielu"]))
    dtype = data.draw(st.sampled_from(list(EPS)))
    definition = get(name)
    rows, columns = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 50))
    generator = torch.Generator(DEVICE).manual_seed(data.draw(st.integers(0, 99)))
    change = STRIDES[data.draw(st.sampled_from(list(STRIDES)))]
    inputs = [change((2 * torch.randn(rows, columns + 1, generator=generator, device=DEVICE)).to(dtype))
              for _ in definition.variables]
    if len(inputs) == 2 and inputs[0].ndim > 1 and data.draw(st.booleans()):
        inputs[1] = inputs[1][:1] if data.draw(st.booleans()) else inputs[1][..., :1]
    shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    spread = data.draw(st.sampled_from(["dense", "expanded", "transposed"])) if shape else "dense"
    gradient = torch.randn(shape, generator=generator, device=DEVICE).to(dtype) if spread == "dense" else \
        torch.full((1,) * len(shape), 0.7, dtype=dtype, device=DEVICE).expand(shape) if spread == "expanded" else \
        torch.randn(shape[::-1], generator=generator, device=DEVICE).to(dtype).permute(*range(len(shape) - 1, -1, -1))
    _check(definition, gradient, inputs, _learned(definition))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_packed_is_its_two_halves(data):
    interleaved, up_first = data.draw(st.booleans()), data.draw(st.booleans())
    rows, hidden = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 80))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator(DEVICE).manual_seed(hidden)
    packed = torch.randn(rows, 2 * hidden + 2, generator=generator, device=DEVICE).to(dtype)
    packed = packed[:, 2:] if data.draw(st.booleans()) else packed[:, 2:].contiguous()
    gate, up = (x.contiguous() for x in ops.halves(packed, interleaved, up_first))
    gradient = torch.randn(rows, hidden, device=DEVICE).to(dtype)
    value = ops.packed("swiglu", [packed], interleaved, up_first)
    assert torch.equal(value, dispatch.forward(get("swiglu"), (gate, up)))
    (whole,) = ops.packed_backward("swiglu", gradient, [packed], interleaved, up_first)
    assert whole.is_contiguous() and whole.shape == packed.shape
    outs, _, _ = dispatch.backward(get("swiglu"), gradient, (gate, up))
    assert all(torch.equal(a, b) for a, b in zip(ops.halves(whole, interleaved, up_first), outs, strict=True))


def test_interleaved_halves_are_read_and_written_together(monkeypatch):
    seen, packed = [], torch.randn(6, 64, dtype=torch.bfloat16, device=DEVICE)
    real = triton_backend._pairs
    monkeypatch.setattr(triton_backend, "_pairs", lambda *a: seen.append(real(*a)) or seen[-1])
    for up_first in (False, True):
        ops.packed_backward("swiglu", torch.ones(6, 32, dtype=torch.bfloat16, device=DEVICE), [packed], True, up_first)
    ops.packed_backward("swiglu", torch.ones(6, 32, dtype=torch.bfloat16, device=DEVICE), [packed], False, False)
    assert seen == [1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize("force", ["64-bit offsets", "rows along the first axis"])
def test_every_launch_computes_the_same(force, monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(40, 90, device=DEVICE)[:, 5:] for _ in range(3)]
    packed = torch.randn(7, 60, device=DEVICE)
    expected = dispatch.backward(get("swiglu"), tensors[2], tensors[:2], want_value=True), \
        ops.packed("swiglu", [packed], True, True), dispatch.backward(get("prelu"), tensors[2], tensors[:1], [
            torch.tensor([0.3], device=DEVICE)])
    ready._READY.clear()  # they would be made again, as they were
    if force == "64-bit offsets":
        real = triton_backend.launch
        monkeypatch.setattr(triton_backend, "launch", lambda *a: real(*a).__class__(
            **{**real(*a).__dict__, "wide": True}))
    else:
        monkeypatch.setattr(triton_backend, "_SECOND_AXIS", 3)
        assert triton_backend.launch(40, 85, [(90, 1)]).row_axis == 0
    got = dispatch.backward(get("swiglu"), tensors[2], tensors[:2], want_value=True), \
        ops.packed("swiglu", [packed], True, True), dispatch.backward(get("prelu"), tensors[2], tensors[:1], [
            torch.tensor([0.3], device=DEVICE)])
    assert all(torch.equal(a, b) for a, b in zip(expected[0][0], got[0][0], strict=True))
    assert torch.equal(expected[0][2], got[0][2]) and torch.equal(expected[1], got[1])
    torch.testing.assert_close(expected[2][1][0], got[2][1][0])


def _columns(dtype=torch.float32):
    """Return four tensors (5, 1) in two, gate and up of each beside one another."""
    first, second = (torch.randn(5, 2, device=DEVICE).to(dtype) for _ in range(2))
    return first[:, :1], first[:, 1:], second[:, :1], second[:, 1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("before, now", [((0, 1), (0, 3)), ((1, 0), (1, 2)), ((0, 3), (0, 1)), ((0, 1), (1, 0))])
def test_a_launch_is_ready_for_tensors_that_lie_alike_beside_one_another(before, now, dtype):
    """A pair in one tensor is read at once; two tensors of the same strides and alignment are not."""
    tensors, definition = _columns(dtype), get("swiglu")
    for place in (before, now):
        gate, up = (tensors[k] for k in place)
        gradient, whole = torch.ones(5, 1, device=DEVICE, dtype=dtype), _columns(dtype)
        into = [whole[k] for k in place]
        dispatch.backward(definition, gradient, (gate, up), into=into)
        value = dispatch.forward(definition, (gate, up))
        outs, _, _ = dispatch.backward(definition, gradient, (gate.clone(), up.clone()))
        assert torch.equal(value, dispatch.forward(definition, (gate.clone(), up.clone())))
        assert all(torch.equal(a, b) for a, b in zip(into, outs, strict=True))


def test_learned_gradients_are_the_same_bits_every_time():
    x, g = torch.randn(300, 7, device=DEVICE), torch.randn(300, 7, device=DEVICE)
    definition = get("xielu")
    learned = [torch.tensor([0.3], device=DEVICE), torch.tensor([-0.2], dtype=torch.float64, device=DEVICE)]
    first, second = (dispatch.backward(definition, g, (x,), learned)[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [s.dtype for s in first] == [torch.float32, torch.float64]


def test_a_slope_that_is_infinite_past_the_end_spoils_no_sum():
    # Places past the end are read as 0, where this one's derivative by the parameter is infinite.
    beta = nonlin.functions.definition.Parameter("beta", 2.0)
    own = pointwise("rooted", nonlin.functions.grammar.parse("beta*(x**0.5) + beta*x**(-0.5)", ("beta",)),
                    parameters=(beta,))
    x = torch.rand(70, dtype=torch.float64, device=DEVICE) + 0.5
    two = torch.tensor([2.0], dtype=torch.float64, device=DEVICE)
    _, (got,), _ = dispatch.backward(own, torch.ones_like(x), (x,), [two])
    torch.testing.assert_close(got, (x.sqrt() + 1 / x.sqrt()).sum()[None])


def test_explain_says_triton():
    told = kernels.explain("gelu", torch.zeros(3, device=DEVICE))
    assert told.backend == "triton" and ("interpreter" if INTERPRETED else "compiled by Triton") in told.reason
    x, slopes = torch.zeros(3, 4, device=DEVICE), torch.zeros(4, device=DEVICE)
    assert "single number" in kernels.explain("prelu", x, slopes).reason
    odd = nonlin.define("odd_root", "max(x, 0.1)**0.3")
    told = kernels.explain(odd, torch.zeros(3, device=DEVICE))
    assert told.backend == "torch" and "power of 3/10" in told.reason
    (got,) = dispatch.forward(odd, [torch.tensor([2.0], device=DEVICE)]).tolist()
    assert got == pytest.approx(2.0**0.3)


def test_a_users_own_formula_has_a_kernel():
    mine = nonlin.define("mine", "x*sigmoid(3*x) + 2*tanh(1) - max(x, 0.1)**0.5 + erf(x)/7 + exp(-abs(x)) + sigmoid(2)")
    x = torch.linspace(-6, 6, 200, device=DEVICE)
    assert kernels.explain(mine, x).backend == "triton"
    _check(mine, torch.ones_like(x), [x + 0.013], [])
    _check(mine, torch.ones_like(x).double(), [x.double() + 0.013], [])
    flat = nonlin.define("flat", "x/3 + 0.1")  # the derivative is a number, which float32 does not hold
    ones = torch.ones(5, dtype=torch.float64, device=DEVICE)
    (slope,), _, _ = dispatch.backward(flat, ones, [ones])
    assert torch.equal(slope, ones / 3)


def test_the_written_module_is_found_again_and_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("NONLIN_CACHE", str(tmp_path))
    text, identity = triton_source.module(get("relu")), triton_source.identity(get("relu"))
    path = triton_backend._written(text, identity)
    stamp = path.stat().st_mtime_ns
    assert triton_backend._written(text, identity) == path and path.stat().st_mtime_ns == stamp
    path.write_text("raise SystemExit")
    assert triton_backend._written(text, identity).read_text() == text
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_to_is_said(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    script = ("import torch\nfrom nonlin.kernels import explain\nfrom nonlin.kernels.triton import backend\n"
              "backend.DEVICES = ('" + DEVICE + "',)\nprint(explain('gelu', torch.zeros(2, device='" + DEVICE + "')))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ | {"NONLIN_CACHE": str(tmp_path / "cache")})
    assert "gelu: torch, because its kernel cannot be written to" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["gelu", "swiglu", "xielu"])
def test_the_operations_are_sound(name):
    definition = get(name)
    inputs = [torch.randn(4, 6, requires_grad=True, device=DEVICE) for _ in definition.variables]
    learned = [q.requires_grad_() for q in _learned(definition)]
    opcheck(ops.activation, (serialize(definition), [*inputs, *learned]))
    opcheck(ops.activation_backward, (serialize(definition), torch.randn(4, 6, device=DEVICE), [*inputs, *learned]))
    if definition.gated:
        opcheck(ops.packed, (serialize(definition), [inputs[0], *learned], True, True))


@pytest.mark.parametrize("name", ["gelu", "swiglu", "xielu"])
def test_gradcheck_of_first_and_second_order(name):
    definition = get(name)
    inputs = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True, device=DEVICE) for _ in definition.variables]
    learned = [q.double().requires_grad_() for q in _learned(definition)]

    def call(*tensors):
        return ops.activation(serialize(definition), tensors)

    assert torch.autograd.gradcheck(call, (*inputs, *learned))
    assert torch.autograd.gradgradcheck(call, (*inputs, *learned))


def test_modules_checkpointing_and_a_second_backward():
    torch.manual_seed(0)
    gate, up = (torch.randn(30, 40, requires_grad=True, device=DEVICE) for _ in range(2))
    kept = gate.detach().clone(), up.detach().clone()
    out = functional.swiglu(gate, up)
    upstream = torch.randn(30, 40, device=DEVICE)
    first = torch.autograd.grad(out, (gate, up), upstream, retain_graph=True)
    second = torch.autograd.grad(out, (gate, up), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(gate, kept[0]) and torch.equal(up, kept[1])
    again = torch.autograd.grad(checkpoint(functional.swiglu, gate, up, use_reentrant=False), (gate, up), upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("memory", ["lean", "minimal"])
@pytest.mark.parametrize("name", ["swiglu", "swiglu_oai", "gelu", "xielu", "relu"])
def test_the_feed_forward_block(name, memory, monkeypatch):
    """Products by torch, the activation and its gradients between them by the Triton kernel."""
    served = []
    monkeypatch.setattr(ready, "_READY", {})
    for each in ("forward", "backward"):
        real = getattr(triton_backend, each)
        monkeypatch.setattr(triton_backend, each, lambda *a, real=real, each=each, **k: served.append(each) or
                            real(*a, **k))
    one = blocks.case(name, device=DEVICE)
    got, want = one.ours(memory=memory), one.torchs()
    blocks.assert_close(got.detach(), want.detach())
    mine, theirs = blocks.gradients(got, one.leaves()), blocks.gradients(want, one.leaves())
    for key, gradient in theirs.items():
        blocks.assert_close(mine[key], gradient, what=key, least=1.0 if key in one.parameters else 1e-30)
    assert served == ["forward", "backward"]


@pytest.mark.parametrize("layout", ["separate", "interleaved", "transposed"])
@pytest.mark.parametrize("memory", ["lean", "minimal"])
def test_the_block_is_differentiated_again_where_its_graph_is_retained(memory, layout):
    """Only where it is not are gradients written over what was saved."""
    one = blocks.case("swiglu", device=DEVICE)
    t, options = one.tensors, {"activation": "swiglu", "memory": memory}
    if layout == "separate":
        leaves = one.leaves()
        out = one.ours(memory=memory)
    else:
        packed = torch.stack((t["gate"], t["up"]), 1).flatten(0, 1).detach()
        packed = (packed.t().contiguous().t() if layout == "transposed" else packed).requires_grad_()
        leaves = {"x": t["x"], "packed": packed, "down": t["down"]}
        out = kernels.feed_forward(t["x"], None, packed, t["down"], layout="interleaved", **options)
    kept = [blocks.gradients(out, leaves) for _ in range(2)]
    last = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
    for key, gradient in zip(leaves, last, strict=True):
        assert torch.equal(kept[0][key], kept[1][key]) and torch.equal(kept[0][key], gradient), key


@pytest.mark.parametrize("way", ["reentrant checkpoint", "checkpoint", "hooks", "create_graph", "tied", "in parts"])
@pytest.mark.parametrize("name", ["swiglu", "xielu"])
def test_gradients_over_what_was_saved_are_the_gradients(name, way):
    """However torch keeps what is saved: nothing that is written over is read again."""
    one = blocks.case(name, device=DEVICE)
    if way == "tied" and one.tensors["gate"] is not None:
        one.tensors["gate"] = one.tensors["up"]
    leaves = {key: leaf for key, leaf in one.leaves().items() if (key, way) != ("gate", "tied")}
    want = blocks.gradients(one.torchs(), leaves)

    def call(x):
        return kernels.feed_forward(**one.tensors | {"x": x}, activation=name, parameters=one.parameters)

    x = one.tensors["x"]
    if "checkpoint" in way:
        out = checkpoint(call, x, use_reentrant="reentrant" in way)
    else:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t) if way == "hooks" else nullcontext():
            out = call(x)
    if way == "in parts":
        for key in ("x", "down"):
            (part,) = torch.autograd.grad(out, leaves[key], torch.ones_like(out), retain_graph=True)
            torch.testing.assert_close(part, want[key])
    if way == "create_graph":
        got = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out), create_graph=True)
        torch.autograd.grad(sum(d.sum() for d in got), x, retain_graph=True)
    out.backward(torch.ones_like(out))
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, want[key])
    with pytest.raises(RuntimeError, match=r"second time|already"):
        out.backward(torch.ones_like(out))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
def test_the_block_with_packed_weights(layout, transposed):
    one = blocks.case("swiglu", dim=8, hidden=40, device=DEVICE)
    t = one.tensors
    parts = (t["up"], t["gate"]), (t["up_bias"], t["gate_bias"])
    up, bias = (torch.cat(p) if layout == "concatenated" else torch.stack(p, 1).flatten(0, 1) for p in parts)
    up = (up.t().contiguous().t() if transposed else up).detach().requires_grad_()
    out = kernels.feed_forward(t["x"], None, up, t["down"], None, bias.detach(), t["down_bias"], activation="swiglu",
                               layout=layout, first="up")
    want = one.torchs()
    blocks.assert_close(out.detach(), want.detach())
    (mine,) = torch.autograd.grad(out.sum(), up)
    by_up, by_gate = torch.autograd.grad(want.sum(), (t["up"], t["gate"]))
    joined = torch.cat((by_up, by_gate)) if layout == "concatenated" else torch.stack((by_up, by_gate), 1).flatten(0, 1)
    blocks.assert_close(mine, joined)


def test_the_module_says_which_kernel_it_has():
    assert "the activation by triton" in str(nonlin.nn.FeedForward(8, 16).to(DEVICE).explain())
