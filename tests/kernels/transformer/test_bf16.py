"""The native engine's bfloat16 operations against float64: values and gradients, odd shapes, every instruction set.

What the C++ reads is bfloat16, so references are computed from rounded inputs. Sums are float32; a result that is
stored as bfloat16 is off by one rounding more, as is whatever is computed from such a result.
"""

import ctypes

import pytest
import torch

from nonlin.errors import UserError
from nonlin.functions import get
from nonlin.kernels.cpu import build
from nonlin.kernels.transformer import native
from nonlin.kernels.transformer.bf16 import Bf16Engine
from nonlin.kernels.transformer.engine import engine
from nonlin.kernels.transformer.torch_engine import TorchEngine
from nonlin.model import ModelConfig
from nonlin.model.language_model import LanguageModel
from nonlin.training.resources import processor

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native engine: {native.unavailable()}")
SHAPES = [(1, 1, 1), (5, 3, 7), (96, 128, 344), (33, 130, 31), (250, 300, 33)]
EXACT, ROUNDED = 2.0**-20, 2.0**-7  # of a float32 sum; of numbers rounded to 8 bits on the way


def _bf16(*shape):
    return torch.randn(*shape).bfloat16()


def _close(got, want, bound):
    scale = want.abs().max().clamp_min(1e-30)
    assert float((got.double() - want).abs().max() / scale) < bound


@pytest.mark.parametrize("rows,d,n", SHAPES)
def test_products_that_read_the_same_rows(rows, d, n):
    torch.manual_seed(0)
    x, weights = _bf16(2, rows, d).requires_grad_(), [torch.randn(size, d).requires_grad_() for size in (n, 2, n + 1)]
    out = Bf16Engine().linears(x, weights)
    wide, wide_weights = x.detach().double(), [w.detach().bfloat16().double() for w in weights]
    upstream = [_bf16(*y.shape) for y in out]
    torch.autograd.backward(out, upstream)
    for y, w, exact, g in zip(out, weights, wide_weights, upstream, strict=True):
        assert y.dtype == torch.bfloat16 and w.grad.dtype == torch.float32
        _close(y.detach(), wide @ exact.t(), ROUNDED)
        _close(w.grad, (g.double().flatten(0, 1).t() @ wide.flatten(0, 1)), EXACT)
    _close(x.grad, sum(g.double() @ w for g, w in zip(upstream, wide_weights, strict=True)), ROUNDED)


@pytest.mark.parametrize("rows,d,n", SHAPES)
def test_a_product_and_the_residual_are_float32(rows, d, n):
    torch.manual_seed(0)
    x, w = _bf16(rows, d).requires_grad_(), torch.randn(n, d).requires_grad_()
    residual = torch.randn(rows, n).requires_grad_()
    wide, exact = x.detach().double(), w.detach().bfloat16().double()
    out = Bf16Engine().linear_add(x, w, residual)
    _close(out.detach(), residual.detach().double() + wide @ exact.t(), EXACT)
    _close(Bf16Engine().linear(x, w).detach(), wide @ exact.t(), EXACT)
    g = torch.randn(rows, n)
    out.backward(g)
    assert torch.equal(residual.grad, g)
    _close(w.grad, g.bfloat16().double().t() @ wide, EXACT)
    _close(x.grad, g.bfloat16().double() @ exact, ROUNDED)


def test_products_read_strided_and_wider_inputs_and_leave_frozen_weights():
    torch.manual_seed(0)
    x, w = torch.randn(40, 24).t().requires_grad_(), torch.randn(8, 40)
    y = Bf16Engine().linear(x, w)
    _close(y.detach(), x.detach().bfloat16().double() @ w.bfloat16().double().t(), EXACT)
    y.sum().backward()  # the gradient is an expanded scalar
    _close(x.grad, w.bfloat16().double().sum(0).expand(24, 40), ROUNDED)
    with torch.no_grad():
        assert torch.equal(Bf16Engine().linear(x, w), y)


@pytest.mark.parametrize("d", [3, 32, 131])
def test_rms_norm(d):
    torch.manual_seed(1)
    x, w = torch.randn(3, 11, d).requires_grad_(), torch.rand(d).requires_grad_()
    x64, w64 = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    got, want = Bf16Engine().rms_norm(x, w, narrow=True), TorchEngine().rms_norm(x64, w64)
    assert got.dtype == torch.bfloat16 and Bf16Engine().rms_norm(x, w).dtype == torch.float32
    _close(got.detach(), want.detach(), ROUNDED)
    g = _bf16(3, 11, d)
    got.backward(g), want.backward(g.double())
    _close(x.grad, x64.grad, EXACT)
    _close(w.grad, w64.grad, EXACT)


@pytest.mark.parametrize("B,T,H,K,W", [(2, 64, 4, 4, 32), (1, 1, 2, 1, 2), (3, 37, 4, 2, 10), (1, 130, 6, 2, 16)])
def test_attention(B, T, H, K, W):
    torch.manual_seed(2)
    angles = torch.outer(torch.arange(T).float(), torch.rand(W // 2)).repeat(1, 2)
    tensors = [_bf16(B, T, H, W), _bf16(B, T, K, W), _bf16(B, T, K, W), torch.rand(W), torch.rand(W)]
    ours, exact = ([x.clone().to(dtype or x.dtype).requires_grad_() for x in tensors]
                   for dtype in (None, torch.float64))
    got = Bf16Engine().attention(*ours, angles.cos(), angles.sin())
    want = TorchEngine().attention(*exact, angles.cos().double(), angles.sin().double())
    _close(got.detach(), want.detach(), ROUNDED)
    g = _bf16(*got.shape)
    got.backward(g.clone()), want.backward(g.double())
    for a, b in zip(ours, exact, strict=True):
        if float(b.grad.abs().max()) > 1e-9:  # of one key alone, queries and keys have no gradient
            _close(a.grad, b.grad, 2 * ROUNDED)
        else:
            assert float(a.grad.abs().max()) < 2 * ROUNDED


def test_later_tokens_do_not_reach_earlier_ones():
    torch.manual_seed(3)
    q, k, v = (_bf16(1, 37, 2, 8) for _ in range(3))
    ones = torch.ones(8), torch.ones(8), torch.ones(37, 8), torch.zeros(37, 8)
    before = Bf16Engine().attention(q, k, v, *ones)
    k[:, 20:], v[:, 20:] = float("inf"), 5
    after = Bf16Engine().attention(q, k, v, *ones)
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.equal(before[:, 20:], after[:, 20:])


def _flags():
    here = set(processor()["instructions"])
    asks = {"portable": set(), "avx2": {"avx2"}, "avx512": {"avx512f"}, "avx512bf16": {"avx512_bf16"}}
    return [pytest.param(build.ISAS[name], marks=pytest.mark.skipif(not needs <= here, reason=f"no {name} here"),
                         id=name) for name, needs in asks.items()]


@pytest.mark.parametrize("flags", _flags())
def test_every_instruction_set_sums_in_float32(flags):
    source = native.SOURCES[-1].read_text()
    made = ctypes.CDLL(str(build.compile_shared(source, "transformer", (*build.KERNEL_FLAGS, "-shared", *flags),
                                                native.SOURCES)))
    i, p = ctypes.c_int64, ctypes.c_void_p
    made.nl_bf16_linear_add.argtypes = [i, i, p, i, p, p, p]
    torch.manual_seed(4)
    for rows, d, n in SHAPES:
        x, w, residual, out = _bf16(rows, d), torch.randn(n, d), torch.randn(rows, n), torch.empty(rows, n)
        made.nl_bf16_linear_add(rows, d, x.data_ptr(), n, w.data_ptr(), residual.data_ptr(), out.data_ptr())
        _close(out, residual.double() + x.double() @ w.bfloat16().double().t(), EXACT)


@pytest.mark.parametrize("change", [
    {}, {"norm_place": "after"}, {"norm": "layer"}, {"norm": "none"}, {"attention": False}, {"tied": True}], ids=str)
@pytest.mark.parametrize("name", ["swiglu", "relu", "prelu"])
def test_gradients_of_a_model_are_as_near_as_with_torchs_products(change, name):
    config = ModelConfig(**{"layers": 2, "dim": 32, "heads": 2, "kv_heads": 1, "hidden": 47, "context": 16} | change)
    tokens = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(0))
    found = {}
    for kind in ("native", "mixed", "torch"):
        model = LanguageModel(config, get(name), engine(kind, "bfloat16" if kind != "torch" else "float32"), seed=1)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        found[kind] = loss.item(), {n: p.grad for n, p in model.named_parameters()}
    loss, exact = found["torch"]
    assert found["native"][0] == pytest.approx(loss, rel=3e-3)
    for parameter, want in exact.items():
        ours, mixed = (found[kind][1][parameter] for kind in ("native", "mixed"))
        assert ours.dtype == torch.float32
        # Units near a kink fall on either side of it, in both; ours rounds attention's probabilities too.
        assert (ours - want).norm() <= 1.5 * (mixed - want).norm() + 0.05 * want.norm() + 1e-9, parameter


def test_what_a_probe_sees_changes_no_step():
    config = ModelConfig(layers=1, dim=16, heads=2, kv_heads=1, hidden=24, context=8)
    tokens = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    grads = []
    for watch in (None, []):
        model = LanguageModel(config, get("geglu"), engine("native", "bfloat16"), seed=1)
        model.loss(tokens[:, :-1], tokens[:, 1:], watch).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert {x.dtype for inputs, hidden, out in watch for x in (*inputs, hidden, out)} == {torch.float32}


def test_refuses_what_it_cannot_read():
    with pytest.raises(UserError, match="float32 on the CPU"):
        Bf16Engine().linear(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2))
    with pytest.raises(UserError, match="float32 on the CPU"):
        Bf16Engine().linears(torch.zeros(2, 2).bfloat16(), [torch.zeros(2, 2).bfloat16()])
    with pytest.raises(UserError, match="must be even"):
        Bf16Engine().attention(*(torch.zeros(1, 2, 1, 3) for _ in range(3)), *(torch.zeros(3) for _ in range(4)))
    with pytest.raises(UserError, match="'torch', 'native' or 'mixed'"):
        engine("fused")
