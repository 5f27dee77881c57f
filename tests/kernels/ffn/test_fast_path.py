"""The block's short way and its registered operation give the same; what watches or traces gets the operation."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nonlin import functional
from nonlin.errors import UserError
from nonlin.kernels import feed_forward
from nonlin.kernels.activation.fast_path import _catalog
from nonlin.kernels.ffn import api
from nonlin.kernels.ffn import fast_path as ffn_fast_path
from nonlin.nn import FeedForward
from tests.kernels.ffn.blocks import assert_close, case, gradients

NAMES = ["swiglu", "relu", "geglu_tanh", "xielu", "swiglu_oai", "gelu"]


@pytest.fixture
def ways(monkeypatch):
    """Count which way a call takes; ``ways.operation()`` forces the registered operation."""

    class Ways:
        short = 0

        def operation(self):
            monkeypatch.setattr(ffn_fast_path, "serves", lambda tensors: False)

        def back(self):
            monkeypatch.setattr(ffn_fast_path, "serves", serves)

    serves, made = ffn_fast_path.serves, Ways()
    for name in ("value", "recorded", "layers"):
        original = getattr(ffn_fast_path, name)

        def counted(*args, original=original):
            made.short += 1
            return original(*args)

        monkeypatch.setattr(ffn_fast_path, name, counted)
    return made


def _packed(made, layout):
    gate, up = made.tensors["gate"], made.tensors["up"]
    biases = made.tensors["gate_bias"], made.tensors["up_bias"]

    def join(a, b):
        return (torch.cat((a, b)) if layout == "concatenated" else torch.stack((a, b), 1).flatten(0, 1)).detach()

    tensors = made.tensors | {"gate": None, "gate_bias": None, "up": join(gate, up), "up_bias": join(*biases)}
    for t in tensors.values():
        if t is not None:
            t.requires_grad_()
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("memory", ["lean", "fast", "minimal"])
@pytest.mark.parametrize("name", NAMES)
def test_both_ways_give_the_same_bits_with_gradients(name, memory, dtype, ways):
    made = case(name, dim=16, hidden=24).copy(dtype)
    out = made.ours(memory=memory)
    assert ways.short == 1
    got = gradients(out, made.leaves())
    ways.operation()
    other = made.ours(memory=memory)
    want = gradients(other, made.leaves())
    assert ways.short == 1 and torch.equal(out, other)
    assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("rows", [(1, 1), (3, 5), (0, 4), (40, 50)])
@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_the_value_is_the_blocks(name, rows, ways):
    made = case(name, shape=rows, dim=16, hidden=24)
    truth = made.torchs().detach()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        plain = made.copy(dtype, requires_grad=False)
        kept = {k: t.clone() for k, t in plain.leaves().items()}
        before = ways.short
        out = plain.ours()
        assert ways.short == before + 1 and out.shape == truth.shape and out.dtype == dtype
        rounded = plain.copy(torch.float64, requires_grad=False).torchs()
        assert_close(out, rounded, terms=64, what=f"{name} {dtype}")
        assert all(torch.equal(kept[k], t) for k, t in plain.leaves().items()), "an input was written over"


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["concatenated", "interleaved"])
@pytest.mark.parametrize("first", ["gate", "up"])
def test_packed_without_gradients(layout, first, transposed, ways):
    made = case("swiglu_oai", shape=(2, 3), dim=16, hidden=24)
    gate_up = made.tensors if first == "gate" else made.tensors | {
        "gate": made.tensors["up"], "up": made.tensors["gate"], "gate_bias": made.tensors["up_bias"],
        "up_bias": made.tensors["gate_bias"]}
    tensors = _packed(type(made)(made.name, gate_up), layout)
    if transposed:
        tensors["up"] = tensors["up"].detach().t().contiguous().t()
    with torch.no_grad():
        out = feed_forward(**tensors, activation=made.name, layout=layout, first=first)
        assert ways.short == 1
        assert_close(out, made.torchs(), what=layout)


def test_a_second_derivative_passes_through():
    made = case("swiglu", dim=5, hidden=4)
    leaves = list(made.leaves().values())

    def run(*values):
        return feed_forward(**dict(zip(made.leaves(), values, strict=True)), activation="swiglu")

    assert torch.autograd.gradcheck(run, leaves) and torch.autograd.gradgradcheck(run, leaves)


class _Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [_Seen, _Called])
def test_a_mode_sees_the_operation(mode, ways):
    made = case("swiglu", requires_grad=False)
    watching = mode()
    watching.names = []
    with watching:
        made.ours()
    assert ways.short == 0 and any("nonlin" in name and "feed_forward" in name for name in watching.names)


def test_a_gradient_of_another_kind_takes_the_operation(ways):
    """What comes back may be watched though what went in was not."""
    made, calls = case("swiglu"), []
    out = made.ours()
    assert ways.short == 1
    watching = _Seen()
    watching.names = calls
    with watching:
        gradients(out, made.leaves())
    assert any("feed_forward_backward" in name for name in calls)


@pytest.mark.parametrize("run", [lambda x: functional.silu(x), lambda x: functional.swiglu(x, x),
                                 lambda x: functional.swiglu_packed(x),
                                 lambda x: feed_forward(x, None, torch.ones(3, 4), torch.ones(2, 3),
                                                        activation="gelu")])
def test_a_traced_module_computes_on_what_it_is_given(run):
    with torch.no_grad():
        traced = torch.jit.trace(run, torch.zeros(5, 4), check_trace=False)
        x = torch.linspace(-2, 2, 20).view(5, 4)
        assert torch.equal(traced(x), run(x)) and float(run(x).abs().max()) > 0.1


def test_autocast_on_the_short_way(ways):
    made = case("geglu", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = made.ours()
        got = gradients(out, made.leaves())
        ways.operation()
        other = made.ours()
        want = gradients(other, made.leaves())
    assert out.dtype == torch.bfloat16 and torch.equal(out, other)
    assert all(torch.equal(got[k], want[k]) and got[k].dtype == torch.float32 for k in want)


def test_checkpointing_recomputes_by_the_short_way(ways):
    made = case("swiglu", dtype=torch.float64)
    out = torch.utils.checkpoint.checkpoint(lambda: made.ours(), use_reentrant=False)
    got = gradients(out, made.leaves())
    want = gradients(made.torchs(), made.leaves())
    assert ways.short == 2
    for key, grad in want.items():
        assert_close(got[key], grad, what=key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 4), (0, 3), ()])
@pytest.mark.parametrize("name", NAMES)
def test_few_tokens_are_recorded_by_layers(name, shape, dtype, ways):
    made = case(name, shape=shape, dim=16, hidden=24).copy(dtype)
    exact = made.copy(torch.float64)
    out, wanted = made.ours(), exact.torchs()
    assert ways.short == 1
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    got, want = gradients(out, made.leaves(), upstream.to(dtype)), gradients(wanted, exact.leaves(), upstream)
    assert_close(out, wanted, what=name)
    for key, grad in want.items():
        assert got[key].dtype == dtype
        assert_close(got[key], grad, what=f"{name} {key}", least=1e-3)
    ways.operation()
    again = gradients(made.ours(), made.leaves(), upstream.to(dtype))
    for key, grad in again.items():
        assert_close(got[key], grad, what=f"{name} {key}", least=1e-3)


def test_the_output_of_few_tokens_may_be_changed_in_place():
    """Models add to it so."""
    made = case("swiglu", shape=(2, 3))
    out = made.ours()
    out += 1
    want = gradients(made.torchs(), made.leaves())
    for key, grad in gradients(out, made.leaves()).items():
        assert_close(grad, want[key], what=key)


def test_few_tokens_are_differentiated_twice_and_in_batches():
    made = case("swiglu", shape=(2,), dim=3, hidden=4, out=2)
    leaves = list(made.leaves().values())

    def run(*values):
        return feed_forward(**dict(zip(made.leaves(), values, strict=True)), activation="swiglu")

    assert torch.autograd.gradcheck(run, leaves, check_batched_grad=True) and torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.skipif(_catalog() is None, reason="the compiled module has no calls for this torch")
def test_the_block_without_a_gradient_asks_once(monkeypatch):
    taken = []
    short = api.short
    monkeypatch.setattr(api, "short", lambda *args: taken.append(short(*args)) or taken[-1])
    for activation, bias in (("swiglu", False), ("gelu", True), ("swiglu_oai", True)):
        block = FeedForward(6, 10, activation, bias=bias)
        x = torch.randn(2, 5, 6)
        wanted = block(x)
        assert taken.pop() is None  # many tokens with a gradient
        with torch.no_grad():
            torch.testing.assert_close(block(x), wanted)
            assert taken.pop() is not None
            with torch.autocast("cpu", torch.bfloat16):
                assert block(x).dtype == torch.bfloat16
            with pytest.raises(UserError, match="shape"):
                block(torch.randn(2, 5))
            with pytest.raises(UserError, match="dtype"):
                block(x.double())
            assert taken == [None] * len(taken)
            taken.clear()


def _replaced(block):
    block.activation = nn.GELU()


def _buffers(block):
    for layer in (block.up, block.down):
        for name, value in list(layer._parameters.items()):
            delattr(layer, name)
            layer.register_buffer(name, value.detach())


def _attributes(block):
    for name in ("weight", "bias"):
        value = getattr(block.up, name).detach()
        delattr(block.up, name)
        setattr(block.up, name, value)


def _bias_alone(block):
    value = block.down.bias.detach()
    del block.down.bias
    block.down.bias = value


@pytest.mark.parametrize("change", [_replaced, _buffers, _attributes, _bias_alone])
def test_a_changed_block_without_a_gradient_is_computed_as_it_is(change):
    block, x = FeedForward(6, 10, "gelu", bias=True), torch.randn(3, 6)
    with torch.no_grad():
        block.up.bias.normal_(), block.down.bias.normal_()
        wanted = block(x)
        change(block)
        torch.testing.assert_close(block(x), wanted)


def test_a_block_with_wrong_weights_is_refused_without_a_gradient_too():
    x = torch.randn(3, 6)
    with torch.no_grad():
        for activation, gate in (("swiglu", None), ("gelu", nn.Linear(6, 10, bias=False))):
            block = FeedForward(6, 10, activation)
            block.gate = gate
            with pytest.raises(UserError, match="gate must be"):
                block(x)
        block = FeedForward(6, 10, "gelu")
        block.up.weight = nn.Parameter(torch.randn(10))
        with pytest.raises(UserError, match="up must have shape"):
            block(x)
