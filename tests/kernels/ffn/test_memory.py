"""What is kept for backward in each mode, and what backward computes: counted, not believed."""

import functools
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nonlin.functions import get
from nonlin.functions.properties import derivative_from_output
from nonlin.kernels import feed_forward
from nonlin.kernels.ffn.fast_path import FEW
from nonlin.nn import FeedForward
from tests.kernels.ffn.blocks import case, gradients

N, D, H, O = FEW + 3, 7, 64, 3


def _kept(call, known):
    """Return the sizes of the distinct tensors kept for backward whose storage is none of ``known``'s."""
    seen, weights = {}, {t.untyped_storage().data_ptr() for t in known}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = call()
    return sorted(seen.values()), out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("memory,name,hidden", [
    ("minimal", "swiglu", 0), ("lean", "swiglu", 2), ("fast", "swiglu", 3),
    ("minimal", "gelu", 0), ("lean", "gelu", 1), ("fast", "gelu", 2), ("lean", "xielu", 1),
    ("minimal", "relu", 0), ("lean", "relu", 1), ("fast", "relu", 1), ("lean", "leaky_relu", 1),
    ("fast", "leaky_relu", 1)])
def test_what_is_kept(memory, name, hidden, bias):
    one = case(name, (N,), D, H, O, bias=bias)
    sizes, _ = _kept(lambda: one.ours(memory=memory), [t for k, t in one.leaves().items() if k != "x"])
    sizes = [n for n in sizes if n > 2]  # xielu's two numbers aside
    assert sizes[0] == N * D  # the input
    assert sum(sizes[1:]) == hidden * N * H, sizes
    eager, _ = _kept(one.torchs, [t for k, t in one.leaves().items() if k != "x"])
    if name == "swiglu" and memory == "lean":
        assert sum(eager[1:]) == 4 * N * H  # gate, its activation, up and their product


def test_the_modes_of_the_module_keep_the_same():
    for memory, hidden in (("minimal", 0), ("lean", 2), ("fast", 3)):
        block = FeedForward(D, H, "swiglu", memory=memory)
        x = torch.randn(N, D)
        sizes, _ = _kept(lambda block=block, x=x: block(x), list(block.parameters()))
        assert sizes[0] == N * D and sum(sizes[1:]) == hidden * N * H, (memory, sizes)


@pytest.mark.parametrize("memory,plain,gated", [("minimal", 0, 0), ("lean", 2, 3), ("fast", 2, 3)])
def test_of_few_tokens_as_much_as_by_fast_is_kept(memory, plain, gated):
    """Torch's layers record by themselves then; "minimal" is what it says at any number."""
    for count in (1, FEW):
        for name, hidden in (("gelu", plain), ("relu", plain), ("swiglu", gated)):
            block, x = FeedForward(D, H, name, memory=memory), torch.randn(1, count, D)
            least = (memory != "minimal" or name == "relu") and hidden
            tensors = [block.gate and block.gate.weight, block.up.weight, block.down.weight]
            for call in (block, functools.partial(feed_forward, gate=tensors[0], up=tensors[1], down=tensors[2],
                                                  activation=name, memory=memory)):
                sizes, _ = _kept(functools.partial(call, x), list(block.parameters()))
                assert sum(sizes) == count * (D + least * H), (name, count, sizes)


@pytest.mark.parametrize("memory,hidden", [("minimal", 0), ("lean", 2)])
def test_compiled_code_keeps_the_same(memory, hidden):
    block = FeedForward(D, H, "swiglu", memory=memory)
    compiled, x = torch.compile(block, fullgraph=True, backend="aot_eager"), torch.randn(N, D)
    compiled(x).sum().backward()
    sizes, _ = _kept(lambda: compiled(x), list(block.parameters()))
    assert sum(sizes) == N * D + hidden * N * H, sizes


def test_under_autocast_what_is_kept_has_sixteen_bits_and_each_weight_is_converted_once():
    block, x = FeedForward(D, H, "swiglu"), torch.randn(N, D)
    kept = []
    with torch.autocast("cpu", torch.bfloat16), \
            torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = block(x)
    assert all(t.dtype == torch.bfloat16 for t in kept)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as made:
        out.sum().backward()
    # Backward converts gradients to the weights' own dtype, three of them, and no weight again.
    shapes = Counter(str(e.input_shapes[0]) for e in made.events() if e.name == "aten::_to_copy")
    assert (shapes[f"[{H}, {D}]"], shapes[f"[{D}, {H}]"]) == (2, 1)


def test_nothing_is_kept_where_nothing_learns():
    one = case("swiglu", (N,), D, H, O, requires_grad=False)
    assert _kept(one.ours, [])[0] == []
    one = case("swiglu", (N,), D, H, O)
    with torch.no_grad():
        assert _kept(one.ours, [])[0] == []
    with torch.inference_mode():
        out = one.ours()
    assert out.is_inference()


def _products(call):
    """Return how many matrix products ``call`` makes."""
    with profile(activities=[ProfilerActivity.CPU]) as made:
        call()
    # addmm with out= or in place and mm are the leaves; linear and matmul call them.
    return sum(e.name in ("aten::mm", "aten::addmm", "aten::addmm_") for e in made.events())


EVERYTHING = ("x", "gate", "up", "down")


@pytest.mark.parametrize("memory,extra", [("lean", 0), ("minimal", 2), ("fast", 0)])
@pytest.mark.parametrize("learning,count", [
    (EVERYTHING, 6),                  # the hidden gradient, down's, gate's, up's, and the input's two
    (("x",), 3), (("gate",), 2), (("gate", "up"), 3), (("x", "up"), 4), (("up_bias",), 1)])
def test_frozen_tensors_cost_nothing(learning, count, memory, extra):
    one = case("swiglu", (N,), D, H, O, requires_grad=False)
    for key in learning:
        one.tensors[key].requires_grad_()
    out = one.ours(memory=memory)
    assert _products(lambda: gradients(out, one.leaves())) == count + extra


@pytest.mark.parametrize("memory,count", [("lean", 1), ("minimal", 3), ("fast", 1)])
def test_when_down_alone_learns_no_gradient_is_sent_below_it(memory, count):
    one = case("swiglu", (N,), D, H, O, requires_grad=False)
    one.tensors["down"].requires_grad_()
    out = one.ours(memory=memory)
    assert _products(lambda: gradients(out, one.leaves())) == count
    one.tensors["down"].requires_grad_(False)
    one.tensors["down_bias"].requires_grad_()
    out = one.ours(memory="lean")
    assert _products(lambda: gradients(out, one.leaves())) == 0


@pytest.mark.parametrize("layout,transposed", [
    ("concatenated", False), ("concatenated", True), ("interleaved", False), ("interleaved", True)])
def test_no_weight_is_copied(layout, transposed):
    count, width, hidden = 3, 32, 48
    x = torch.randn(count, width, requires_grad=True)
    up, down = torch.randn(2 * hidden, width), torch.randn(width, hidden)
    if transposed:
        up, down = up.t().contiguous().t(), down.t().contiguous().t()
    up.requires_grad_(), down.requires_grad_()

    def step():
        out = feed_forward(x, None, up, down, activation="swiglu", layout=layout)
        torch.autograd.grad(out, (x, up, down), torch.ones_like(out))

    step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as made:
        step()
    sizes = [torch.Size(s).numel() for e in made.events() if e.name in ("aten::copy_", "aten::clone", "aten::cat")
             for s in e.input_shapes if s]
    assert max(sizes, default=0) <= 2 * count * hidden  # a row's width at most; half a weight has hidden x width


def test_only_lossless_functions_are_told_from_their_output():
    import nonlin

    told = {n: derivative_from_output(get(n)) for n in nonlin.names() if derivative_from_output(get(n))}
    assert told == {"identity": "exact", "relu": "exact", "leaky_relu": "scaled", "relu6": "exact",
                    "hardtanh": "exact", "fatrelu": "exact"}
    for formula, want in (("max(x, -x/10)", None), ("max(x,0)+1", None), ("2*max(x,0)", "scaled"),
                          ("max(x,0)/1000000", None), ("min(x,0)", "exact"), ("clip(x/2,-1,1)", None),
                          ("max(x,0)*max(x,0)", None)):
        name = f"told_{abs(hash(formula))}"
        assert derivative_from_output(nonlin.define(name, formula)) == want, formula


@pytest.mark.parametrize("dtype,kept", [
    (torch.float32, "output"), (torch.bfloat16, "output"), (torch.float16, "input")])
def test_leaky_relu_keeps_its_input_in_float16(dtype, kept):
    one = case("leaky_relu", (64,), D, H, O, dtype=dtype, bias=False)
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
        one.ours()
    pre = one.tensors["x"].detach() @ one.tensors["up"].detach().t()
    hidden = next(t for t in tensors if t.numel() == 64 * H).view(64, H)
    want = pre if kept == "input" else torch.nn.functional.leaky_relu(pre)
    torch.testing.assert_close(hidden, want)


def test_the_page_states_what_is_kept():
    """docs/feed-forward.md's table, row by row, against the operation on a model's own sizes."""
    page = (Path(__file__).parents[3] / "docs" / "feed-forward.md").read_text()
    rows = [[cell.strip(' `"') for cell in line.split("|")[1:-1]] for line in page.splitlines() if " D" in line]
    stated = {row[0].split('"')[0]: (int(row[2].replace(",", "")), int(row[4].replace(",", ""))) for row in rows
              if len(row) == 6}
    assert sorted(stated) == ["fast", "lean", "minimal", "torch, layer by layer"]
    for name, (gated, plain) in stated.items():
        for want, activation, hidden in ((gated, "swiglu", 2048), (plain, "gelu", 3072)):
            one = case(activation, (2 * FEW,), 768, hidden, 768, bias=False, dtype=torch.bfloat16)
            call = one.torchs if name.startswith("torch") else lambda one=one, name=name: one.ours(memory=name)
            sizes, _ = _kept(call, [t for k, t in one.leaves().items() if k != "x"])
            assert sum(sizes) == FEW * want, (name, activation)  # two bytes a number
