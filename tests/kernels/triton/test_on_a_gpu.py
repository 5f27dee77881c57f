"""Runs the files ``device_*.py`` on this machine's GPU, and what a GPU alone has: graphs, streams, huge tensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nonlin
from nonlin import functional, kernels
from nonlin.functions import get
from nonlin.kernels import dispatch
from tests.kernels.cpu import test_ranges
from tests.kernels.ffn import blocks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
FILES = sorted(Path(__file__).parent.glob("device_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_device_files(path, tmp_path):
    options = ["-o", "addopts=--import-mode=importlib", "-o", f"python_files={path.name}", "-p", "no:cacheprovider"]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"NONLIN_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *options, str(path)], capture_output=True, text=True,
                          cwd=Path(__file__).parents[3], env=env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-1000:]


def _gate_and_up(dtype=torch.bfloat16, rows=64, hidden=256):
    torch.manual_seed(0)
    return [torch.randn(rows, hidden, device="cuda", dtype=dtype).requires_grad_() for _ in range(2)]


def _gradients(call, tensors):
    out = call(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, torch.ones_like(out))]


def test_torch_compile_has_the_same_bits():
    tensors = _gate_and_up()
    compiled = torch.compile(lambda gate, up: functional.swiglu(gate, up) + 1, fullgraph=True)
    want = _gradients(lambda gate, up: functional.swiglu(gate, up) + 1, tensors)
    assert all(torch.equal(a, b) for a, b in zip(_gradients(compiled, tensors), want, strict=True))


def test_a_captured_graph_replays_on_new_numbers():
    block = nonlin.nn.FeedForward(64, 128).cuda()
    place, new = (torch.randn(32, 64, device="cuda") for _ in range(2))
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), torch.no_grad():
        for _ in range(3):
            block(place)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = block(place)
    place.copy_(new)
    graph.replay()
    torch.testing.assert_close(out, block(new).detach())


def test_another_stream_is_waited_for_by_torchs_own_rules():
    gate, up = (t.detach() for t in _gate_and_up(rows=4096, hidden=4096))
    want, aside = functional.swiglu(gate, up), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        got = functional.swiglu(gate * 1, up * 1)
    torch.cuda.current_stream().wait_stream(aside)
    assert torch.equal(got, want)


def test_autocast_takes_the_products_dtype():
    block, plain = nonlin.nn.FeedForward(64, 128).cuda(), torch.randn(8, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        out = block(plain)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), block(plain), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", ["lean", "minimal"])
@pytest.mark.parametrize("name", ["swiglu", "geglu_tanh", "gelu", "relu_squared"])
def test_the_block_against_float64(name, memory, dtype):
    wide = blocks.case(name, shape=(64,), dim=48, hidden=96, out=40, device="cuda")
    one = wide.copy(dtype)
    wide = one.copy(torch.float64)
    got, want = one.ours(memory=memory), wide.torchs()
    blocks.assert_close(got.detach().double().to(dtype), want.detach(), terms=96 if dtype == torch.float32 else 4)
    mine, theirs = blocks.gradients(got, one.leaves()), blocks.gradients(want, wide.leaves())
    for key, gradient in theirs.items():
        assert mine[key].dtype == dtype
        blocks.assert_close(mine[key], gradient, terms=256, what=key)


def test_less_memory_is_saved_than_by_torchs_own_layers():
    rows, dim, hidden = 4096, 256, 4096
    weights = {k: torch.randn(s, device="cuda", dtype=torch.bfloat16).mul_(0.05).requires_grad_()
               for k, s in {"gate": (hidden, dim), "up": (hidden, dim), "down": (dim, hidden)}.items()}
    held = {}
    for arm in ("torch", "lean", "minimal"):
        x = torch.randn(rows, dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        out = blocks.reference("swiglu", x, **weights) if arm == "torch" else \
            kernels.feed_forward(x, **weights, activation="swiglu", memory=arm)
        held[arm] = (torch.cuda.memory_allocated() - before - out.nbytes) / (rows * hidden * 2)
        del out
    assert held["torch"] > 3.9 and held["lean"] < 2.1 and held["minimal"] < 0.1, held


def test_forward_mode_and_batched_gradients():
    gate, up = (t.detach() for t in _gate_and_up(torch.float64, 3, 5))
    _, tangent = torch.func.jvp(functional.swiglu, (gate, up), (torch.ones_like(gate), torch.zeros_like(up)))
    s = torch.sigmoid(gate)
    torch.testing.assert_close(tangent, up * s * (1 + gate * (1 - s)))
    jacobian = torch.func.jacrev(functional.silu)(gate[0])
    torch.testing.assert_close(jacobian.diagonal(), (s * (1 + gate * (1 - s)))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", test_ranges.FORMULAS)
def test_derivatives_of_any_order_are_right_where_an_exponential_leaves_float32(text, dtype):
    test_ranges.test_values_and_derivatives_are_right_where_an_exponential_leaves_float32(text, dtype, "cuda")


def test_more_than_two_to_the_31_numbers():
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of a GPU")
    count = 2**31 + 4096 + 8
    x = torch.empty(count, device="cuda", dtype=torch.bfloat16).uniform_(-4, 4)
    got = functional.silu(x)
    for begin in (0, 2**30, 2**31 - 64, count - 1000):
        part = x[begin:begin + 1000]
        assert torch.equal(got[begin:begin + 1000], functional.silu(part.clone()))
    (gradient,), _, _ = dispatch.backward(get("silu"), torch.ones_like(x), (x,), [])
    assert torch.equal(gradient[-1000:], dispatch.backward(
        get("silu"), torch.ones(1000, device="cuda", dtype=torch.bfloat16), (x[-1000:].clone(),), [])[0][0])


def test_an_accelerated_model_computes_the_same():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).cuda()
    tokens = torch.randint(100, (2, 12), device="cuda")
    want = model(tokens, labels=tokens)
    want.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    report = nonlin.accelerate(model)
    assert len(report.changed) == 2, report
    got = model(tokens, labels=tokens)
    got.loss.backward()
    torch.testing.assert_close(got.logits, want.logits)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-5)


def test_a_parameter_is_trained():
    module, x = nonlin.nn.Activation("prelu").cuda(), torch.randn(1000, device="cuda")
    module(x).sum().backward()
    (slope,) = module.parameters()
    assert float(slope.grad) == pytest.approx(float(x.double().clamp(max=0).sum()), rel=1e-5)
