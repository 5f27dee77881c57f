"""The measures against independent computations of the same definitions."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import nonlin
from nonlin import functional, metrics
from nonlin.health.attention import AttentionLogits
from nonlin.health.streams import Stream


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 99), max_size=4), seed=st.integers(0, 1000))
def test_stream_is_the_same_in_any_pieces(cuts, seed):
    x = normal(100, 7, seed=seed) * torch.logspace(-3, 3, 7)
    x[3, 2] = 0
    stream = Stream(7, torch.device("cpu"))
    edges = sorted({0, 100, *cuts})
    for a, b in itertools.pairwise(edges):
        stream.add(x[a:b], a)
    wide = x.double().numpy()
    np.testing.assert_allclose(stream.sum2.numpy(), (wide**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(stream.sum4.numpy(), (wide**4).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(stream.largest.numpy(), np.abs(x.numpy()).max(0))
    np.testing.assert_array_equal(stream.positive.numpy(), (x > 0).sum(0).numpy())
    assert stream.zero.sum() == 1 and stream.count.tolist() == [100] * 7
    stream.to_python()
    top = stream.top[0]
    assert abs(float(x[top.token, top.unit])) == pytest.approx(top.value) == pytest.approx(float(x.abs().max()))


def test_stream_of_huge_and_broken_values():
    stream = Stream(2, torch.device("cpu"))
    stream.add(torch.tensor([[1e15, 1.0], [float("inf"), float("nan")]]))
    made = stream.describe()
    assert made["nonfinite"] == 2 and np.isfinite(made["kurtosis"]) and made["largest"] == pytest.approx(1e15)


def test_kurtosis_of_known_distributions():
    x = normal(200_000).double()
    assert float(metrics.kurtosis(x.square().mean(), x.pow(4).mean())) == pytest.approx(3, abs=0.06)
    signs = torch.tensor([1.0, -1.0]).double()
    assert float(metrics.kurtosis(signs.square().mean(), signs.pow(4).mean())) == 1


def test_sparsity_against_every_number_of_units():
    hidden, down = F.silu(normal(6, 40)) * normal(6, 40, seed=1), normal(10, 40, seed=2)
    expected = []
    for h in hidden:
        order = (h.abs() * down.norm(dim=0)).argsort()
        full = down @ h
        fits = [k for k in range(41) if (down[:, order[:k]] @ h[order[:k]]).norm() <= 0.2 * full.norm()]
        expected.append(max(fits) / 40)
    # Bisection takes the error to grow with the number: where it does not, it may stop one short of the largest.
    assert metrics.sparsity(hidden, down, exact=False) == pytest.approx(np.mean(expected), abs=1.5 / 40)
    assert metrics.sparsity(hidden, down) <= np.mean(expected) + 1e-6  # ends where the error is first exceeded


@pytest.mark.parametrize("scale", [1.0, 1e-3, 3e4])
def test_flushed_share_bounds_a_real_conversion(scale):
    x = torch.exp(4 * normal(50_000)) * scale
    largest = float(x.max())
    real = float(((x / largest * 448).to(torch.float8_e4m3fn).float() == 0).float().mean())
    half = float(((x / largest * 448 * 2).to(torch.float8_e4m3fn).float() == 0).float().mean())
    found = metrics.flushed_share(metrics.exponents(x), largest)
    assert half - 1e-3 <= found <= real + 1e-3 and real > 0.01


@pytest.mark.parametrize("name, value", [("float16", torch.float16), ("bfloat16", torch.bfloat16),
                                         ("float8_e5m2", torch.float8_e5m2), ("float8_e4m3", torch.float8_e4m3fn)])
def test_formats_are_torchs(name, value):
    largest, least = metrics.FORMATS[name]
    info = torch.finfo(value)
    assert largest == pytest.approx(info.max, rel=1e-4)
    assert least == pytest.approx(info.smallest_normal * info.eps, rel=1e-2)


def test_exponents_by_numpy():
    x = normal(1000) * torch.logspace(-20, 20, 1000)
    expected = np.bincount(np.clip(np.floor(np.log2(np.abs(x.double().numpy()))) + 40, 0, 79).astype(int), minlength=80)
    np.testing.assert_array_equal(metrics.exponents(x).numpy(), expected)


def test_dead_counts_units_and_not_tokens():
    x = torch.full((50, 4), -3.0)
    x[17, 2] = 0.5  # one token is enough to live
    x[:, 3] = -20
    assert metrics.dead_units(F.relu, (x,)).tolist() == [True, True, False, True]
    assert metrics.dead_units(F.gelu, (x,)).tolist() == [False, False, False, True]


def test_the_gates_derivative_at_a_clamp():
    derivatives = metrics.gate_derivatives(nonlin.get("swiglu_oai"), torch.tensor([6.9, 7.1]), {})
    assert derivatives[0] > 1 and derivatives[1] == 0


@pytest.mark.parametrize("causal, heads", [(True, 4), (False, 4), (True, 2)])
def test_attention_logits(causal, heads):
    q, k, v = normal(2, 4, 30, 8), normal(2, heads, 30, 8, seed=1), normal(2, heads, 30, 8, seed=2)
    logits = (q @ k.repeat_interleave(4 // heads, 1).transpose(-1, -2)).abs() / 8**0.5
    if causal:
        logits = logits * torch.ones(30, 30).tril()
    with AttentionLogits() as seen:
        F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != 4)
        seen.restart()
        F.scaled_dot_product_attention(0 * q, k, v, is_causal=causal, enable_gqa=heads != 4)
    assert seen.largest == pytest.approx([float(logits.max())], rel=1e-5)


def test_attention_logits_leave_out_what_is_masked():
    q, k = torch.ones(1, 1, 2, 4), torch.tensor([[[[1.0] * 4, [100.0] * 4]]])
    mask = torch.tensor([[[[0.0, float("-inf")]] * 2]])
    with AttentionLogits() as seen:
        F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
    assert seen.largest == pytest.approx([2.0])


def test_response_is_the_largest_of_output_and_slopes():
    gate, up = normal(9, 3), normal(9, 3, seed=1)
    seen = metrics.response(functional.activation("bilinear"), (gate, up))
    expected = torch.stack([(gate * up).abs(), gate.abs(), up.abs()]).amax((0, 1))
    torch.testing.assert_close(seen, expected)
