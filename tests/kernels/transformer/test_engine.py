"""The native engine against torch in float64: values and gradients, odd shapes, odd strides."""

import pytest
import torch

from nonlin.errors import UserError
from nonlin.functions import get
from nonlin.kernels.transformer import adamw, native
from nonlin.kernels.transformer.engine import engine
from nonlin.kernels.transformer.float32 import NativeEngine
from nonlin.kernels.transformer.torch_engine import TorchEngine

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native engine: {native.unavailable()}")


def _close(got, want, terms):
    """Within the float32 rounding of a sum of ``terms`` products (a random walk; 8 is the safety factor)."""
    scale = want.abs().max().clamp_min(1e-30)
    bound = 8 * 2.0**-24 * max(terms, 1) ** 0.5
    assert float((got.double() - want).abs().max() / scale) < bound


def _both(method, tensors, terms, extra=()):
    """Compare an operation and the gradients by all its tensors with the torch engine in float64."""
    native_in = [x.clone().requires_grad_() for x in tensors]
    exact_in = [x.double().requires_grad_() for x in tensors]
    got = getattr(NativeEngine(), method)(*native_in, *extra)
    want = getattr(TorchEngine(), method)(*exact_in, *[x.double() if x.is_floating_point() else x for x in extra])
    _close(got.detach(), want.detach(), terms)
    torch.manual_seed(9)
    upstream = torch.randn(got.shape)
    got.backward(upstream)
    want.backward(upstream.double())
    for a, b in zip(native_in, exact_in, strict=True):
        _close(a.grad, b.grad, terms * 4)


@pytest.mark.parametrize("rows,d,n", [(1, 1, 1), (5, 3, 7), (96, 128, 344), (250, 300, 33), (768, 17, 16)])
def test_linear(rows, d, n):
    torch.manual_seed(0)
    _both("linear", [torch.randn(2, rows, d), torch.randn(n, d)], max(2 * rows, d, n))


def test_linear_reads_strided_inputs_and_gradients():
    torch.manual_seed(0)
    x, w = torch.randn(40, 24).t().requires_grad_(), torch.randn(8, 40)
    y = NativeEngine().linear(x, w)
    torch.testing.assert_close(y, x @ w.t())
    y.sum().backward()  # the gradient is an expanded scalar
    torch.testing.assert_close(x.grad, w.sum(0).expand(24, 40))


def test_fake_tensors_are_refused_forward_and_backward_and_by_the_optimizer():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, w = torch.randn(40, 24), torch.randn(8, 24).requires_grad_()
    y = NativeEngine().linear(x, w).sum()
    with FakeTensorMode(allow_non_fake_inputs=True):  # the results would have no memory to be written to
        with pytest.raises(UserError, match="fake tensors"):
            NativeEngine().linear(x, w)
        with pytest.raises(UserError, match="fake tensors"):
            NativeEngine().layer(*_layer(), 2, torch.ones(5, 4), torch.zeros(5, 4))
        with pytest.raises(UserError, match="fake tensors"):
            y.backward()
        with pytest.raises(UserError, match="fake tensors"):
            adamw.norm([x])


def _layer():
    """A gelu layer's input, weights, activation and its parameters: dim 8, two heads of width 4, hidden 16."""
    sizes = ((8,), (8, 8), (8, 8), (8, 8), (4,), (4,), (8, 8), (8,), None, (16, 8), (8, 16))
    return torch.randn(1, 5, 8), [size and torch.randn(size) for size in sizes], get("gelu"), []


@pytest.mark.parametrize("d", [3, 7, 32, 128, 131])
def test_rms_norm(d):
    torch.manual_seed(1)
    _both("rms_norm", [torch.randn(3, 11, d), torch.randn(d)], 33 + d)


@pytest.mark.parametrize("B,T,H,K,W", [(2, 64, 4, 4, 32), (1, 1, 2, 1, 2), (3, 37, 4, 2, 10), (1, 130, 6, 2, 16)])
def test_attention(B, T, H, K, W):
    torch.manual_seed(2)
    angles = torch.outer(torch.arange(T).float(), torch.rand(W // 2)).repeat(1, 2)
    tensors = [torch.randn(B, T, H, W), torch.randn(B, T, K, W), torch.randn(B, T, K, W), torch.rand(W), torch.rand(W)]
    _both("attention", tensors, 16 * B * T * W, (angles.cos(), angles.sin()))


@pytest.mark.parametrize("rows,v", [(1, 2), (24, 256), (7, 1001)])
def test_cross_entropy(rows, v):
    torch.manual_seed(3)
    logits, target = 5 * torch.randn(rows, v), torch.randint(0, v, (rows,))
    a, b = logits.clone().requires_grad_(), logits.double().requires_grad_()
    got, want = NativeEngine().cross_entropy(a, target), TorchEngine().cross_entropy(b, target)
    _close(got.detach(), want.detach(), 16)
    (3 * got).backward(), (3 * want).backward()
    _close(a.grad, b.grad, 16)


def test_large_logits_do_not_overflow_and_nan_stays():
    logits = torch.tensor([[1e30, -1e30, 0.0]])
    assert float(NativeEngine().cross_entropy(logits, torch.tensor([0]))) == 0.0
    logits[0, 2] = float("nan")
    assert torch.isnan(NativeEngine().cross_entropy(logits, torch.tensor([0])))


def test_refuses_what_it_cannot_read():
    with pytest.raises(UserError, match="float32 on the CPU"):
        NativeEngine().linear(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2))
    with pytest.raises(UserError, match="target must lie"):
        NativeEngine().cross_entropy(torch.zeros(1, 4), torch.tensor([4]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("place", range(7), ids=["q", "k", "v", "wq", "wk", "cos", "sin"])
@pytest.mark.parametrize("dim", [0, -1])
def test_attention_does_not_read_beyond_a_tensor_that_is_too_small(place, dim, dtype):
    sizes = (2, 6, 4, 8), (2, 6, 2, 8), (2, 6, 2, 8), (8,), (8,), (6, 8), (6, 8)
    tensors = [torch.randn(size) for size in sizes]
    assert engine("native", dtype).attention(*tensors).shape == (2, 6, 32)
    tensors[place] = tensors[place].narrow(dim, 0, tensors[place].shape[dim] // 2)
    with pytest.raises(UserError, match="fit each other"):
        engine("native", dtype).attention(*tensors)


@pytest.mark.parametrize("target", [torch.zeros(9, dtype=torch.long), torch.zeros(2, 4, dtype=torch.int32),
                                    torch.zeros(4, 2, dtype=torch.long)], ids=["more", "int32", "turned"])
def test_cross_entropy_takes_one_target_a_row(target):
    with pytest.raises(UserError, match="int64 \\(2, 4\\)"):
        engine("native").cross_entropy(torch.randn(2, 4, 5), target)
