"""accelerate: every family equal to the untouched model, judged against float64; refusals; restore."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from torch import nn

import nonlin
from nonlin.errors import UserError
from nonlin.patching.patch import install, recipe_of
from tests.patching.accelerated import MODES, arguments, awake, errors, exact, measured, output
from tests.patching.families import FAMILIES

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
BLOCKS_ARE_MODULES = [name for name in FAMILIES if name not in ("opt", "plain")]


def _model(name, **changes):
    # Every expert in use: what top-k chooses from values that rounding tips over is not what is compared here.
    if name in ("gpt_oss", "qwen3_moe"):
        changes = {"num_experts_per_tok": 4} | changes
    return awake(FAMILIES[name].build(**changes))


def _judge(name, model, twin, run=output):
    """The twin's errors against float64 must be the untouched model's, but for the luck of a few roundings."""
    family, eps = FAMILIES[name], torch.finfo(next(model.parameters()).dtype).eps
    truth = exact(model, family)
    (out, each, whole), (twin_out, twin_each, twin_whole) = (
        errors(measured(model, family), truth), errors(measured(twin, family, run), truth))
    assert twin_out <= 1.5 * out, (twin_out, out)
    assert twin_whole <= 2 * whole, (twin_whole, whole)
    # A gradient that is one number sums every token's: it keeps a few roundings more, where the other was lucky.
    rounding = {n: eps * (4 if p.numel() == 1 else 1) for n, p in model.named_parameters()}
    bad = {n: (e, each[n]) for n, e in twin_each.items() if e > 3 * (each[n] + rounding[n])}
    assert not bad, bad


@pytest.mark.parametrize("dtype", MODES, ids=str)
@pytest.mark.parametrize("name", BLOCKS_ARE_MODULES)
def test_a_family_equals_the_untouched_model_forward_and_backward(name, dtype):
    model = _model(name).to(dtype)
    twin = copy.deepcopy(model)
    report = nonlin.accelerate(twin)
    family = FAMILIES[name]
    assert len(report.changed) == family.blocks and not report.left_alone, str(report)
    assert {c.activation for c in report.changed} == {family.activation}
    assert list(twin.state_dict()) == list(model.state_dict())
    _judge(name, model, twin)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bert"])
def test_the_comparison_notices_another_activation(name):
    model = _model(name)
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin)
    other = nonlin.get({"llama": "geglu", "gpt_oss": "swiglu", "bert": "gelu_tanh"}[name])
    for module in twin.modules():
        if (recipe := recipe_of(module)) is not None:
            install(module, dataclasses.replace(recipe, definition=other))
    with pytest.raises(AssertionError):
        _judge(name, model, twin)


# Without a graph break, forward and backward, by the tracer and autograd that every compiler backend shares.
@pytest.mark.parametrize("dtype", MODES, ids=str)
@pytest.mark.parametrize("name", BLOCKS_ARE_MODULES)
def test_a_family_compiles_without_a_graph_break(name, dtype):
    one = {"num_hidden_layers": 1} if "num_hidden_layers" in FAMILIES[name].settings else {}
    one |= {"layer_types": ["full_attention"]} if name == "gpt_oss" else {}
    model = _model(name, **one).to(dtype)
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    _judge(name, model, twin, run=lambda _, family: output(compiled, family))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_inductor_gives_the_same(name):
    model = _model(name, num_hidden_layers=1)
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin)
    torch._dynamo.reset()
    compiled = torch.compile(twin)
    _judge(name, model, twin, run=lambda _, family: output(compiled, family))


@pytest.mark.parametrize("name", BLOCKS_ARE_MODULES)
def test_restore_gives_back_the_very_model(name):
    model = _model(name)
    before, classes = output(model, FAMILIES[name]), [type(m) for m in model.modules()]
    contents = [sorted(m.__dict__) for m in model.modules()]
    nonlin.accelerate(model)
    assert [type(m) for m in model.modules()] != classes
    assert len(nonlin.restore(model).changed) == FAMILIES[name].blocks
    assert [type(m) for m in model.modules()] == classes
    assert [sorted(m.__dict__) for m in model.modules()] == contents
    assert torch.equal(output(model, FAMILIES[name]), before)
    assert nonlin.restore(model).changed == ()


def test_saving_and_loading_are_unchanged(tmp_path):
    model = _model("llama")
    nonlin.accelerate(model)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.model.layers[0].mlp).__name__ == "LlamaMLP" and recipe_of(loaded.model.layers[0].mlp) is None
    nonlin.restore(model)
    assert torch.equal(output(loaded, FAMILIES["llama"]), output(model, FAMILIES["llama"]))


def test_copies_and_pickles_stay_accelerated():
    model = _model("phi3")
    nonlin.accelerate(model)
    expected = output(model, FAMILIES["phi3"])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin.model.layers[0].mlp, type(model.model.layers[0].mlp))
        assert twin.model.layers[0].mlp.down_proj is not model.model.layers[0].mlp.down_proj
        assert torch.equal(output(twin, FAMILIES["phi3"]), expected)
        nonlin.restore(twin)
    assert recipe_of(model.model.layers[0].mlp) is not None


def test_a_saved_module_loads_with_torch():
    model = _model("bert")
    nonlin.accelerate(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(output(torch.load(file, weights_only=False), FAMILIES["bert"]), output(model, FAMILIES["bert"]))


class _Renamed(nn.Module):
    """A block that no one has seen before; ``variant`` is what stands in its forward."""

    def __init__(self, variant="up second"):
        super().__init__()
        self.variant = variant
        self.alpha = nn.Linear(16, 80)
        self.omega = nn.Linear(40, 16)
        self.norm = nn.LayerNorm(40)

    def forward(self, tokens):
        if self.variant == "interleaved":
            product = self.alpha(tokens)
            return self.omega(product[..., 0::2] * nn.functional.mish(product[..., 1::2]))
        first, second = self.alpha(tokens).chunk(2, -1)
        if self.variant == "gate second":
            return self.omega(first * torch.relu(second) ** 2)
        hidden = nn.functional.silu(first) * second
        if self.variant == "norm":
            hidden = self.norm(hidden)
        if self.variant == "functional dropout":
            hidden = nn.functional.dropout(hidden, 0.1, self.training)
        if self.variant == "clamped far out":
            hidden = nn.functional.silu(first.clamp(max=20)) * second
        out = self.omega(hidden)
        if self.variant == "scaled":
            out = out * 1.01
        if self.variant == "residual":
            out = out + tokens
        return out


@pytest.mark.parametrize(("variant", "activation", "layout"), [
    ("up second", "swiglu", "concatenated"), ("gate second", "relu_squared_glu", "concatenated"),
    ("interleaved", "mish_glu", "interleaved")])
def test_a_block_of_an_unknown_class_is_recognised_by_computing(variant, activation, layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), _Renamed(variant))
    x = torch.randn(3, 5, 16) * 4
    expected = model(x)
    report = nonlin.accelerate(model)
    assert [(c.activation, c.layout) for c in report.changed] == [(activation, layout)]
    assert recipe_of(model[1]) is not None
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("variant", "word"), [
    ("norm", "no definition fits"), ("functional dropout", "training mode"), ("scaled", "differ"),
    ("residual", "differ"), ("clamped far out", "differs beyond")])
def test_what_cannot_be_proved_equal_is_refused_with_the_reason(variant, word):
    model = _Renamed(variant)
    model.train()
    x = torch.randn(2, 16)
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(UserError, match=word):
        nonlin.accelerate(model)
    assert type(model) is _Renamed and model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    if variant != "functional dropout":
        model(x)


def test_a_block_inside_its_layer_is_refused():
    model = FAMILIES["opt"].build()
    with pytest.raises(UserError, match="more than a feed-forward block"):
        nonlin.accelerate(model)
    assert not any(recipe_of(m) for m in model.modules())


def test_experts_that_write_their_activation_inline_are_refused():
    model = _model("qwen3_moe")
    model.set_experts_implementation("eager")
    with pytest.raises(UserError, match="set_experts_implementation"):
        nonlin.accelerate(model)
    gpt_oss = _model("gpt_oss")
    gpt_oss.set_experts_implementation("eager")  # which calls its own gate by name
    twin = copy.deepcopy(gpt_oss)
    nonlin.accelerate(twin)
    _judge("gpt_oss", gpt_oss, twin)


def test_the_report_says_what_was_left_alone():
    model = nn.ModuleList([_Renamed(), _Renamed("scaled"), _Renamed()])
    report = nonlin.accelerate(model)
    assert [c.name for c in report.changed] == ["0", "2"] and [c.name for c in report.left_alone] == ["1"]
    text = str(report)
    assert text.startswith("accelerated: 2 of 3 feed-forward blocks") and "left alone" in text and "(1)" in text
    with pytest.raises(UserError) as again:
        nonlin.accelerate(model)
    assert "accelerated already" in str(again.value)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="memory must be one of fast, lean, minimal; got 'less'"):
        nonlin.accelerate(_Renamed(), memory="less")
    with pytest.raises(UserError, match="must have a feed-forward block"):
        nonlin.accelerate(nn.Linear(3, 3))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_memory_modes_keep_less_and_compute_the_same(name):
    family, seen = FAMILIES[name], {}

    def kept(model):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t: (sizes.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()), t)[1],
                lambda t: t):
            out = output(model, family)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(n for at, n in sizes.items() if at not in own), out

    model = _model(name)
    seen["eager"], expected = kept(model)
    for memory in ("fast", "lean", "minimal"):
        twin = copy.deepcopy(model)
        nonlin.accelerate(twin, memory=memory)
        seen[memory], out = kept(twin)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert seen["minimal"] < seen["lean"] < seen["eager"]
    tokens, hidden, layers = arguments(family)["input_ids"].numel(), 40, 2
    assert seen["lean"] - seen["minimal"] == 4 * tokens * hidden * layers * (2 if name == "llama" else 1)
