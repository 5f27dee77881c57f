"""What the finder takes for a block, and what the proof reaches: lengths, extreme values, whatever a block raises."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nonlin
from nonlin.errors import UserError
from nonlin.patching import anew, describe_blocks, find_blocks
from tests.patching.families import FAMILIES, SMALL

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


class Block(nn.Module):
    """A plain block whose activation is of a test's choice."""

    def __init__(self, act, hidden=32):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.act = nn.Linear(8, hidden), nn.Linear(hidden, 8), act

    def forward(self, x):
        return self.down(self.act(self.up(x)))


class Long(Block):
    def forward(self, x):
        return super().forward(x) if x.shape[-2] <= 200 else super().forward(x).tanh()


class Batched(Block):
    def forward(self, x):
        return super().forward(x) if x.ndim < 3 or x.shape[0] == 1 else super().forward(x) * 2


CLAMPS = [1e3, 1e4, 1e6, 1e12, 1e20, 1e30, 1e36]


@pytest.mark.parametrize("module", [Long(F.gelu), Batched(F.gelu), *(
    Block(lambda x, at=at: F.relu(x).clamp(max=at)) for at in CLAMPS)], ids=["long", "batched", *map(str, CLAMPS)])
def test_what_differs_far_out_is_refused(module):
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(UserError, match="differ"):
        nonlin.accelerate(module)
    assert type(module) in (Block, Long, Batched)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", [F.gelu, F.silu, F.relu, F.mish, F.hardswish, F.quick_gelu if hasattr(F, "quick_gelu")
                                 else torch.tanh])
def test_what_is_equal_far_out_too_is_replaced(act, dtype):
    assert len(nonlin.accelerate(Block(act).to(dtype)).changed) == 1


class Raises(Block):
    """Raises at a stage of the examination: the first call, a long input, float64, training, huge values."""

    def __init__(self, when):
        super().__init__(F.gelu)
        self.when = when

    def forward(self, x):
        if {"always": True, "long": x.shape[-2] > 500, "double": x.dtype == torch.float64, "training": self.training,
                "huge": float(x.detach().abs().max()) > 1e6, "grad": torch.is_grad_enabled()}[self.when]:
            raise KeyError("a foreign block's own error")
        return super().forward(x)


@pytest.mark.parametrize("when", ["always", "long", "double", "training", "huge", "grad"])
@pytest.mark.parametrize("call", [nonlin.accelerate, lambda m: nonlin.swap(m, "relu")], ids=["accelerate", "swap"])
def test_whatever_a_block_raises_is_a_refusal(when, call):
    model = Raises(when).eval()
    state = [(type(m), sorted(m.__dict__), m.training, dict(m._forward_hooks)) for m in model.modules()]
    with pytest.raises(UserError, match="KeyError: \"a foreign block's own error\""):
        call(model)
    assert [(type(m), sorted(m.__dict__), m.training, dict(m._forward_hooks)) for m in model.modules()] == state


def test_a_layer_that_computes_in_chunks():
    model = FAMILIES["bert"].build(chunk_size_feed_forward=5)
    tokens = torch.arange(10)[None] + 3
    with torch.no_grad():
        before = model(tokens).last_hidden_state
        assert len(nonlin.accelerate(model).changed) == 2
        torch.testing.assert_close(model(tokens).last_hidden_state, before, rtol=1e-4, atol=1e-5)


class Mixer(nn.Module):
    """Mamba's shapes: a packed projection in, one out, a convolution and further products between."""

    def __init__(self):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(8, 32), nn.Linear(16, 8)
        self.x_proj, self.dt_proj, self.conv1d = nn.Linear(16, 6), nn.Linear(2, 16), nn.Conv1d(16, 16, 4, groups=16)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(3))


class Both(nn.Module):
    """Two projections into a common space around two models, as CLIP has them."""

    def __init__(self):
        super().__init__()
        self.text, self.image = Block(F.gelu), Block(F.gelu)
        self.text_projection, self.visual_projection = nn.Linear(8, 8), nn.Linear(8, 8)


class Nested(nn.Module):
    """CPM-Ant's: gate and up in a part of their own."""

    class DenseGated(nn.Module):
        def __init__(self):
            super().__init__()
            self.w_0, self.w_1 = nn.Linear(8, 32), nn.Linear(8, 32)

        def forward(self, x):
            return F.gelu(self.w_0(x)) * self.w_1(x)

    def __init__(self):
        super().__init__()
        self.w_in, self.w_out = self.DenseGated(), nn.Linear(32, 8)

    def forward(self, x):
        return self.w_out(self.w_in(x))


class SquareMLP(Block):
    """Perceiver's: as wide inside as outside."""

    def __init__(self):
        super().__init__(F.gelu, hidden=8)


class Chunked(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = SquareMLP()

    def feed_forward_chunk(self, x):
        return self.mlp(x)

    def forward(self, x, mask=None):
        return x + self.feed_forward_chunk(x)


def test_a_layer_around_a_square_block_is_not_the_block():
    model = Chunked()
    assert [b.name for b in find_blocks(model)] == ["mlp"]
    assert [c.name for c in nonlin.accelerate(model).changed] == ["mlp"]


class LowRank(nn.Module):
    """Gemma 3n's: a product in two parts, with nothing between them."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return x + self.norm(self.right(self.left(x)))


class Several(nn.Module):
    """Gemma 3n's: several streams, each with a product of its own."""

    def __init__(self):
        super().__init__()
        self.streams = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])

    def forward(self, x):
        return sum(stream(x) for stream in self.streams)


@pytest.mark.parametrize("other", [LowRank, Several])
@pytest.mark.parametrize("call", [nonlin.accelerate, lambda m: nonlin.swap(m, "relu")], ids=["accelerate", "swap"])
def test_products_without_a_function_are_no_block(call, other):
    model = nn.ModuleDict({"other": other(), "mlp": nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))})
    assert [b.name for b in find_blocks(model)] == ["mlp"]
    assert [c.name for c in call(model).changed] == ["mlp"]


@pytest.mark.parametrize(("module", "names"), [
    (Mixer(), []), (Attention(), []), (Both(), ["text", "image"]), (Nested(), [""]),
    (nn.ModuleDict({"mixer": Mixer(), "mlp": Block(F.relu)}), ["mlp"])])
def test_mixers_are_no_blocks_and_nested_ones_are(module, names):
    assert [b.name for b in find_blocks(module)] == names


def test_a_nested_gated_block_is_replaced():
    assert [c.activation for c in nonlin.accelerate(Nested()).changed] == ["geglu"]


def mixed():
    """A vision-language model: plain blocks by quick_gelu, gated ones by silu, a projector by gelu."""
    vision = transformers.CLIPVisionConfig(hidden_size=16, intermediate_size=40, num_hidden_layers=2,
                                           num_attention_heads=2, image_size=16, patch_size=8)
    config = transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(**SMALL),
                                      image_token_index=60)
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).eval()


def test_each_block_is_described_from_its_own_configuration():
    model = mixed()
    found = {(b.kind, b.activation, b.claimed, type(b.config).__name__) for b in describe_blocks(model)}
    assert found == {("plain", "quick_gelu", "quick_gelu", "CLIPVisionConfig"),
                     ("gated", "swiglu", "swiglu", "LlamaConfig"), ("plain", "gelu", "gelu", "LlavaConfig")}
    record = nonlin.health.check(model, tokens=32, context=8)
    assert all(b["activation"]["agrees"] for b in record["blocks"])
    assert not [f for f in record["findings"] if f["grade"] == "serious"]


def test_a_swap_of_a_mixed_model_is_written_into_every_configuration(tmp_path):
    model = mixed()
    with warnings.catch_warnings(action="ignore"):
        report = nonlin.swap(model, "relu")
    assert {name for name, _, _ in report.config} == {
        "projector_hidden_act", "vision_config.hidden_act", "text_config.hidden_act"} and not report.note
    nonlin.restore(model)
    assert (model.config.projector_hidden_act, model.config.text_config.hidden_act) == ("gelu", "silu")


def test_what_would_lie_is_not_written_and_said(tmp_path):
    """The head of BERT reads the same field as its blocks."""
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval()
    tokens = torch.arange(8)[None] + 3
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        before = model(tokens).logits
        report = nonlin.swap(model, "relu")
        model.save_pretrained(tmp_path)
        loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(tokens).logits, before)
    assert not report.config and "cls.predictions.transform.transform_act_fn" in report.note
    assert "loads with the old activation" in report.note


def test_a_field_of_an_odd_name_is_written(tmp_path):
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()
    tokens = torch.arange(8)[None] + 3
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        report = nonlin.swap(model, "relu")
        model.save_pretrained(tmp_path)
        loaded = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert [name for name, _, _ in report.config] == ["afn"] and not report.note


@pytest.mark.parametrize("name", ["XLM", "Flaubert"])
@pytest.mark.parametrize(("activation", "field"), [("relu", ["gelu_activation"]), ("silu", [])])
def test_a_field_that_knows_two_activations_is_written_or_the_note_says_so(name, activation, field, tmp_path):
    config = getattr(transformers, f"{name}Config")(emb_dim=16, n_layers=2, n_heads=2, vocab_size=50, dropout=0.1)
    model = getattr(transformers, f"{name}WithLMHeadModel")(config).eval()
    tokens = torch.arange(8)[None] + 3
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        report = nonlin.swap(model, activation)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        same = torch.allclose(loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert [written for written, _, _ in report.config] == field and same is bool(field)
    assert bool(report.note) is not same and ("loads with the old activation" in report.note) is not same


def test_the_note_of_prelu_is_true():
    with warnings.catch_warnings(action="ignore"):
        report = nonlin.swap(FAMILIES["nemotron"].build(), "prelu")
    assert "keeps the learned values of 'prelu' under other names" in report.note


class _Answers(nn.Module):
    """A model of tokens whose output is given."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=50))

    def __init__(self, output):
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.zeros(1)), output

    def forward(self, **_):
        return (self.output,)


@pytest.mark.parametrize(("theirs", "words"), [
    (torch.ones(2, 3), None), (torch.ones(3, 2), "the shape"), (torch.full((2, 3), 1.1), "by 0.1"),
    (torch.tensor([[1.0, 1, 1], [1, 1, float("nan")]]), "finite in one")])
def test_outputs_that_differ_are_said_in_shape_and_in_nan_too(theirs, words):
    found = anew.outputs_differ(_Answers(torch.ones(2, 3)), _Answers(theirs))
    assert found is None if words is None else words in found


def test_the_same_nan_in_both_is_no_difference():
    output = torch.tensor([1.0, float("nan"), float("inf")])
    assert anew.outputs_differ(_Answers(output), _Answers(output.clone())) is None
