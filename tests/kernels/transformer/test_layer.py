"""A layer as one operation against the same layer operation by operation: the same bits, forward and backward."""

import pytest
import torch

from nonlin.errors import UserError
from nonlin.functions import define, get
from nonlin.kernels.transformer import layer, native
from nonlin.kernels.transformer.engine import engine
from nonlin.model import ModelConfig
from nonlin.model.language_model import Attention, LanguageModel

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native engine: {native.unavailable()}")
SMALL = {"layers": 2, "dim": 32, "heads": 2, "kv_heads": 1, "hidden": 47, "context": 17}
SHAPES = [{"layers": 1}, SMALL, SMALL | {"dim": 60, "heads": 3, "kv_heads": 3, "hidden": 300, "context": 40}]


def _trained(config, name, dtype, whole, monkeypatch):
    """The loss and all gradients of one step, by whole layers or by their operations; how many layers were whole."""
    calls, apply = [], layer.apply

    def counted(*args):
        calls.append(out := apply(*args) if whole else None)
        return out

    monkeypatch.setattr(layer, "apply", counted)
    tokens = torch.randint(0, 256, (3, config.context + 1), generator=torch.Generator().manual_seed(0))
    model = LanguageModel(config, get(name), engine("native", dtype), seed=1)
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    monkeypatch.undo()
    return loss, {n: p.grad for n, p in model.named_parameters()}, sum(x is not None for x in calls)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["swiglu", "gelu", "prelu", "xielu"])
def test_a_whole_layer_has_the_bits_of_its_operations(name, shape, dtype, monkeypatch):
    config = ModelConfig(**shape)
    one, gradients, count = _trained(config, name, dtype, True, monkeypatch)
    other, want, none = _trained(config, name, dtype, False, monkeypatch)
    assert (count, none) == (config.layers, 0) and torch.equal(one, other)
    assert [n for n in want if not torch.equal(gradients[n], want[n])] == []


def test_a_formula_of_ones_own_is_computed_whole(monkeypatch):
    config = ModelConfig(**SMALL)
    assert _trained(config, define("mine", "x * sigmoid(1.5 * x)").name, "bfloat16", True, monkeypatch)[2] == 2


@pytest.mark.parametrize("change", [{"norm": "layer"}, {"norm": "none"}, {"norm_place": "after"}, {"attention": False}],
                         ids=str)
def test_variants_are_computed_by_their_operations(change, monkeypatch):
    assert _trained(ModelConfig(**SMALL | change), "gelu", "bfloat16", True, monkeypatch)[2] == 0


def test_hooks_are_called():
    model = LanguageModel(ModelConfig(**SMALL), get("gelu"), engine("native", "bfloat16"))
    seen = []
    for part in (model.blocks[0].feed_forward.activation, model.blocks[1].attention):
        part.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    model(torch.zeros(1, 4, dtype=torch.long))
    assert seen == ["Activation", "Attention"]


def test_gradients_of_a_layer_are_those_of_its_frozen_twin():
    tokens = torch.randint(0, 256, (2, 18), generator=torch.Generator().manual_seed(0))
    found = []
    for frozen in (False, True):
        model = LanguageModel(ModelConfig(**SMALL), get("prelu"), engine("native", "bfloat16"), seed=1)
        for p in model.blocks[0].parameters():
            p.requires_grad_(not frozen)
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        found.append(model.embedding.weight.grad)
        assert all((p.grad is None) == frozen for p in model.blocks[0].parameters())
    assert torch.equal(*found)


def test_a_second_backward_gives_the_same_again():
    tokens = torch.randint(0, 256, (2, 18), generator=torch.Generator().manual_seed(0))
    model = LanguageModel(ModelConfig(**SMALL), get("prelu"), engine("native", "float32"), seed=1)
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_replaced_attention_is_called():
    class Nothing(Attention):
        def forward(self, x_BTD, residual_BTD, *rest):
            return residual_BTD

    model, tokens = LanguageModel(ModelConfig(**SMALL), get("gelu"), engine("native")), torch.tensor([[1, 2, 3]])
    before = model(tokens)
    model.blocks[0].attention.__class__ = Nothing
    assert not torch.equal(model(tokens), before)


def test_memory_lies_on_the_cpu_whatever_the_default_device_is():
    model = LanguageModel(ModelConfig(**SMALL), get("prelu"), engine("native"))
    x = torch.randn(1, 3, 32, requires_grad=True)
    torch.set_default_device("meta")
    try:
        model.forward_blocks(x).backward(torch.ones(1, 3, 32, device="cpu"))
    finally:
        torch.set_default_device(None)
    assert x.grad.isfinite().all()


def test_embeddings_longer_than_the_context_are_refused():
    model = LanguageModel(ModelConfig(**SMALL), get("gelu"), engine("native"))
    with pytest.raises(UserError, match="context of 17"):
        model.forward_blocks(torch.zeros(1, 18, 32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [16, 33, 64])
def test_vectors_of_another_width_are_refused_and_nothing_beyond_them_is_read(width, dtype):
    model = LanguageModel(ModelConfig(**SMALL), get("gelu"), engine("native", dtype))
    with pytest.raises(UserError, match="x must have 32 columns"):
        model.forward_blocks(torch.randn(1, 4, width))
    native_engine = engine("native", dtype)
    with pytest.raises(UserError, match="residual"):
        native_engine.linear_add(torch.randn(4, 8), torch.randn(width, 8), torch.randn(4, width - 1))


@pytest.mark.parametrize("name", ["attention.q", "attention.k", "attention.v", "attention.o", "feed_forward.gate",
                                  "feed_forward.up", "feed_forward.down", "attention_norm", "attention.k_norm"])
def test_a_layer_with_a_weight_of_fewer_rows_is_not_read_beyond_it(name, monkeypatch):
    model = LanguageModel(ModelConfig(**SMALL), get("swiglu"), engine("native", "float32"))
    part = model.blocks[1].get_submodule(name)
    part.weight = torch.nn.Parameter(part.weight[:len(part.weight) // 2].clone())
    found, apply = [], layer.apply
    monkeypatch.setattr(layer, "apply", lambda *args: found.append(apply(*args)) or found[-1])
    with pytest.raises((UserError, RuntimeError)):
        model(torch.zeros(1, 4, dtype=torch.long))
    assert [out is None for out in found] == [False, True]


def test_weights_that_do_not_fit_each_other_are_refused():
    model = LanguageModel(ModelConfig(**SMALL), get("gelu"), engine("native", "float32"))
    model.blocks[0].feed_forward.down.weight = torch.nn.Parameter(torch.randn(32, 12))
    with pytest.raises(UserError, match="x must have 12 columns"):
        model(torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("whole", [True, False])
def test_second_derivatives_are_refused_and_never_left_out(dtype, whole, monkeypatch):
    if not whole:
        monkeypatch.setattr(layer, "apply", lambda *_: None)
    model = LanguageModel(ModelConfig(**SMALL), get("gelu"), engine("native", dtype), seed=1)
    tokens = torch.randint(0, 256, (2, 18), generator=torch.Generator().manual_seed(0))
    weight = model.blocks[0].feed_forward.up.weight
    loss = model.loss(tokens[:, :-1], tokens[:, 1:]) + (weight**3).sum()  # a part that can be differentiated twice
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
