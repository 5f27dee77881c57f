"""Blocks of one or two tokens by our own products, against float64; what they leave to torch."""

import copy

import pytest
import torch
from torch import nn

import nonlin
from nonlin.functions import get
from nonlin.kernels.ffn import few, sparse

pytestmark = pytest.mark.skipif(sparse.library()[0] is None, reason=f"no sparse products: {sparse.library()[1]}")
BOUNDS = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@pytest.fixture(autouse=True)
def _prepared():
    assert few.prepare()


def _tensors(name, dtype, inputs, hidden, outputs, bias):
    torch.manual_seed(0)
    gated = get(name).gated
    sizes = ((hidden, inputs) if gated else None, (hidden, inputs), (outputs, hidden), *[
        (n,) if bias and n else None for n in (hidden if gated else 0, hidden, outputs)])
    return [None if s is None else (torch.randn(s) * s[-1]**-0.5).to(dtype) for s in sizes]


def _exact(name, x, gate, up, down, *biases):
    def product(x, w, b):
        return x @ w.double().t() + (0 if b is None else b.double())

    parts = [product(x.double(), w, b) for w, b in ((gate, biases[0]), (up, biases[1])) if w is not None]
    return product(nonlin.functional.activation(name)(*parts), down, biases[2])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(64, 96, 64), (33, 7, 5), (1, 1, 1), (200, 130, 77)], ids=str)
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("name,bias", [("swiglu", False), ("gelu", True), ("geglu", True)])
def test_values(name, bias, dtype, sizes, threads):
    tensors, before = _tensors(name, dtype, *sizes, bias), torch.get_num_threads()
    for tokens in range(1, few.MOST[dtype] + 1):
        x = torch.randn(tokens, sizes[0]).to(dtype)
        try:
            torch.set_num_threads(threads)
            got = few.value(get(name), x, *tensors)
        finally:
            torch.set_num_threads(before)
        want = _exact(name, x, *tensors)
        assert got.shape == want.shape and got.dtype == dtype
        assert float((got.double() - want).abs().max()) <= BOUNDS[dtype] * float(want.abs().max().clamp_min(1e-3)) * 2


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_left_to_torch(value):
    x, tensors = torch.randn(1, 8), _tensors("swiglu", torch.float32, 8, 16, 8, False)
    x[0, 3] = value
    assert few.value(get("swiglu"), x, *tensors) is None


@pytest.mark.parametrize("change", [
    lambda x, t: (x.expand(3, -1).contiguous(), t), lambda x, t: (x[:0], t),
    lambda x, t: (x.double(), [None if w is None else w.double() for w in t])])
def test_more_tokens_none_and_double_precision_are_left_to_torch(change):
    x, tensors = change(torch.randn(1, 8), _tensors("swiglu", torch.float32, 8, 16, 8, False))
    assert few.value(get("swiglu"), x, *tensors) is None


def test_learned_parameters_are_left_to_torch():
    assert few.value(get("prelu"), torch.randn(1, 8), *_tensors("prelu", torch.float32, 8, 16, 8, False)) is None


def _model():
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                  num_attention_heads=2)).eval()


def test_an_accelerated_model_decodes_by_them_and_a_gradient_does_not(monkeypatch):
    model, calls, plain = _model(), [], few.value

    def counted(*args):
        calls.append(out := plain(*args))
        return out

    monkeypatch.setattr(few, "value", counted)
    before = copy.deepcopy(model)
    nonlin.accelerate(model)
    one = torch.tensor([[3]])
    with torch.no_grad():
        del calls[:]  # the proof of each block
        got = model(one).last_hidden_state
        assert len(calls) == 2 and all(out is not None for out in calls)
        torch.testing.assert_close(got, before(one).last_hidden_state, rtol=1e-5, atol=1e-5)
    model(one)
    assert len(calls) == 2


def test_a_block_of_ones_own_stays_with_torchs_products(monkeypatch):
    monkeypatch.setattr(few, "value", lambda *args: pytest.fail("FeedForward is torch's layers"))
    block = nonlin.nn.FeedForward(8, 16)
    assert isinstance(block, nn.Module)
    with torch.no_grad():
        block(torch.zeros(1, 8))
