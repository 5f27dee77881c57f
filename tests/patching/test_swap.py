"""swap: the model computes what transformers computes with that activation; the map, the config, the way back."""

import copy
import pickle
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import nonlin
from nonlin.errors import UserError
from nonlin.patching.patch import recipe_of
from nonlin.patching.swap import loss_nats
from tests.patching.accelerated import awake, output
from tests.patching.families import FAMILIES

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
MODULE = ["bert", "gpt2", "llama", "qwen3_moe", "gemma", "phi3", "apertus", "nemotron", "t5_v1_1", "modernbert",
          "falcon"]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="swap: the model now computes")
        yield


def _loaded(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize("name", MODULE)
@pytest.mark.parametrize("accelerated", [False, True], ids=["plain", "accelerated"])
def test_a_swapped_model_saves_as_a_checkpoint_that_computes_the_same(name, accelerated, tmp_path):
    family = FAMILIES[name]
    model = awake(family.build())
    original = output(model, family)
    if accelerated:
        nonlin.accelerate(model, memory="minimal")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    target = "relu" if family.activation == "swiglu" else "silu"
    report = nonlin.swap(model, target)
    assert len(report.changed) == family.blocks and report.config and not report.note
    swapped = output(model, family)
    assert float((swapped - original).abs().max()) > 1e-3
    loaded = _loaded(model, tmp_path)
    torch.testing.assert_close(output(loaded, family), swapped, rtol=1e-4, atol=1e-5)
    kept = [k for k in state if k in model.state_dict()]
    assert all(torch.equal(model.state_dict()[k], state[k]) for k in kept)
    assert {m for m in model.modules() if recipe_of(m) is not None} == {
        m for m in model.modules() if recipe_of(m) is not None and recipe_of(m).memory == "minimal"}
    assert any(recipe_of(m) is not None for m in model.modules()) == accelerated
    assert {name: getattr(model.config, name) for name, _, _ in report.config} == {
        name: now for name, _, now in report.config}
    nonlin.restore(model)
    assert torch.equal(output(model, family), original)
    assert list(model.state_dict()) == list(state)
    fresh = family.build().config
    assert all(getattr(model.config, name) == getattr(fresh, name) for name, _, _ in report.config)


CTRL = {"n_embd": 32, "dff": 64, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 32}


@pytest.mark.parametrize("name, activations", [
    ("llama", ["silu"]), ("llama", ["relu", "relu"]), ("llama", ["softsign", "silu"]), ("gpt_oss", ["swiglu_oai"]),
    ("ctrl", ["relu"])])
def test_what_loads_as_it_is_has_no_note_of_an_old_activation(name, activations):
    model = transformers.CTRLModel(transformers.CTRLConfig(**CTRL)) if name == "ctrl" else FAMILIES[name].build()
    for activation in activations:
        report = nonlin.swap(model, activation)
    assert not report.config
    assert report.note == "config unchanged: a checkpoint saved now loads with this activation as it is"


def test_a_field_that_cannot_say_the_activation_is_still_told_of():
    model = transformers.CTRLModel(transformers.CTRLConfig(**CTRL))
    for activation in ("gelu", "gelu"):
        report = nonlin.swap(model, activation)
        assert "no field of CTRLConfig" in report.note and "loads with the old activation" in report.note


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("accelerated", [False, True], ids=["plain", "accelerated"])
def test_copies_and_pickles_stay_swapped_and_are_restored_alone(name, accelerated):
    family = FAMILIES[name]
    model = awake(family.build())
    original = output(model, family)
    if accelerated:
        nonlin.accelerate(model)
    nonlin.swap(model, "relu" if family.activation == "swiglu" else "silu")
    swapped = output(model, family)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(twin, family), swapped)
        nonlin.restore(twin)
        assert torch.equal(output(twin, family), original)
    assert torch.equal(output(model, family), swapped)


def test_the_parameter_map_says_what_is_kept_added_and_dropped():
    model = awake(FAMILIES["apertus"].build())
    report = nonlin.swap(model, "swish_beta")
    assert set(report.parameters) == {f"model.layers.{i}.mlp.{p}_proj.weight" for i in (0, 1) for p in ("up", "down")}
    assert report.added == tuple(f"model.layers.{i}.mlp.act_fn.beta" for i in (0, 1))
    # xIELU's beta is a constant of another meaning than the new one's, although they share a name.
    assert set(report.dropped) == {f"model.layers.{i}.mlp.act_fn.{p}" for i in (0, 1)
                                   for p in ("alpha_p", "alpha_n", "beta", "eps")}
    assert not report.config and "transformers has no 'swish_beta'" in report.note
    assert model.config.hidden_act == "xielu"
    output(model, FAMILIES["apertus"]).sum().backward()
    assert float(model.model.layers[0].mlp.act_fn.beta.grad) != 0
    nonlin.accelerate(model)
    nonlin.restore(model, swapped=False)
    assert hasattr(model.model.layers[0].mlp.act_fn, "beta") and not hasattr(model.model.layers[0].mlp.act_fn, "eps")


def test_a_gated_formula_replaces_the_whole_computation():
    model = awake(FAMILIES["llama"].build())
    mlp, x = model.model.layers[0].mlp, torch.randn(3, 16) * 3
    expected = mlp.down_proj(nonlin.functional.swiglu_oai(mlp.gate_proj(x), mlp.up_proj(x)))
    original = mlp(x)
    report = nonlin.swap(model, "swiglu_oai")
    torch.testing.assert_close(mlp(x), expected, rtol=1e-4, atol=1e-4)
    assert "cannot name this formula" in report.note and model.config.hidden_act == "silu"
    assert nonlin.restore(model, swapped=False).changed == ()
    torch.testing.assert_close(mlp(x), expected, rtol=1e-4, atol=1e-4)
    nonlin.restore(model)
    assert torch.equal(mlp(x), original)


def test_experts_that_write_their_own_formula():
    model = awake(FAMILIES["gpt_oss"].build())
    before = output(model, FAMILIES["gpt_oss"])
    report = nonlin.swap(model, "relu")
    assert {c.activation for c in report.changed} == {"reglu"} and not report.config
    packed = torch.randn(5, 80)
    got = model.model.layers[0].mlp.experts._apply_gate(packed)
    torch.testing.assert_close(got, torch.relu(packed[:, ::2]) * packed[:, 1::2])
    nonlin.restore(model)
    assert torch.equal(output(model, FAMILIES["gpt_oss"]), before)


def test_two_swaps_are_undone_at_once():
    model = awake(FAMILIES["llama"].build())
    before = output(model, FAMILIES["llama"])
    for name in ("relu", "swiglu_oai", "gelu"):
        nonlin.swap(model, name)
    assert model.config.hidden_act == "gelu"
    nonlin.restore(model)
    assert torch.equal(output(model, FAMILIES["llama"]), before) and model.config.hidden_act == "silu"


def test_the_loss_is_measured_on_text_and_the_warning_says_it():
    model = awake(FAMILIES["llama"].build())
    tokens = torch.randint(0, 64, (600,), generator=torch.Generator().manual_seed(0))
    total = sum(float(nn.functional.cross_entropy(model(p[None]).logits[0, :-1], p[1:], reduction="sum"))
                for p in (tokens[:512], tokens[512:]))
    with pytest.warns(UserWarning, match="nats per token before"):
        report = nonlin.swap(model, "relu", text=tokens)
    assert report.loss_nats_before == pytest.approx(total / 598, rel=1e-5)
    assert report.loss_nats_after == pytest.approx(loss_nats(model, tokens)) != report.loss_nats_before
    assert re.search(r"loss: \d+\.\d{4} nats per token before", str(report))


@pytest.mark.parametrize(("name", "activation", "options", "word"), [
    ("bert", "swiglu", {}, "have no gate"), ("llama", "nothing", {}, "unknown activation"),
    ("opt", "gelu", {}, "must be understood"), ("llama", "polynorm", {}, "pointwise or gated"),
    ("llama", "relu", {"text": "a"}, "tokenizer must be given"), ("bert", "relu", {"text": torch.arange(3)}, "causal"),
    ("gpt_oss", "swish_beta", {}, "no learnable parameters")])
def test_mistakes_leave_the_model_untouched(name, activation, options, word):
    model = FAMILIES[name].build()
    nonlin.accelerate(model) if name == "llama" else None
    state = [(type(m), sorted(m.__dict__)) for m in model.modules()]
    with pytest.raises(UserError, match=word):
        nonlin.swap(model, activation, **options)
    assert [(type(m), sorted(m.__dict__)) for m in model.modules()] == state


def test_registered_activations_work_in_any_configuration():
    from transformers.activations import ACT2FN

    kept = {name: dict.get(ACT2FN, name) for name in ACT2FN}  # a copy would hold what the table makes of its entries
    for name, content in kept.items():
        if isinstance(content, tuple) and content[0] is nonlin.nn.Activation:
            del ACT2FN[name]  # a doctest before this test registered it
    try:
        nonlin.define("steep_one", "x*sigmoid(3*x)")
        added = nonlin.register_with_transformers()
        assert {"softsign", "swish_beta", "elu", "steep_one", "relu_squared"} <= set(added)
        assert not {"gelu", "relu2", "silu"} & set(added) and not {"swiglu", "geglu"} & set(added)
        assert nonlin.register_with_transformers() == []
        assert type(ACT2FN["silu"]).__module__.startswith("transformers")
        model = awake(FAMILIES["llama"].build(hidden_act="steep_one"))
        mlp, x = model.model.layers[0].mlp, torch.randn(4, 16)
        gate = mlp.gate_proj(x)
        torch.testing.assert_close(mlp(x), mlp.down_proj(gate * torch.sigmoid(3 * gate) * mlp.up_proj(x)),
                                   rtol=1e-4, atol=1e-5)
        assert len(nonlin.accelerate(model).changed) == 2
        learned = awake(FAMILIES["nemotron"].build(hidden_act="swish_beta"))
        assert "model.layers.0.mlp.act_fn.beta" in learned.state_dict()
    finally:
        for key in set(ACT2FN) - set(kept):
            del ACT2FN[key]


def test_what_a_process_without_nonlin_can_load(tmp_path):
    from transformers.activations import ACT2FN

    kept = dict.copy(ACT2FN)
    model = awake(FAMILIES["llama"].build())
    try:
        nonlin.register_with_transformers()
        for act in ("relu", "softsign"):
            nonlin.swap(model, act)
            model.save_pretrained(tmp_path / act)
    finally:
        for key in set(ACT2FN) - set(kept):
            del ACT2FN[key]
    program = ("import sys, transformers as t; t.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
               "print('loaded', 'nonlin' in sys.modules)")

    def load(code, act):
        return subprocess.run([sys.executable, "-c", code, str(tmp_path / act)], capture_output=True, text=True)

    assert "loaded False" in load(program, "relu").stdout
    failed = load(program, "softsign")
    assert failed.returncode != 0 and "softsign" in failed.stderr
    assert "loaded True" in load("import nonlin; nonlin.register_with_transformers(); " + program, "softsign").stdout


def test_a_checkpoint_that_would_not_load_is_told_of(tmp_path):
    model = FAMILIES["apertus"].build()
    with pytest.warns(UserWarning):
        note = nonlin.swap(model, "swish_beta").note
    assert "does not load" in note and "act_fn.beta" in note
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        type(model).from_pretrained(tmp_path)
