"""Export and import: transformers computes the same logits; damage and what is foreign are refused."""

import json

import pytest
import torch

import nonlin
from nonlin.errors import UserError
from nonlin.model import LanguageModel, ModelConfig, export_model, import_model
from nonlin.model.act2fn_names import hidden_act

transformers = pytest.importorskip("transformers")
SIZES = ModelConfig(layers=2, dim=32, heads=4, kv_heads=2, context=24, vocabulary=64, hidden=40)
POINTWISE = [name for name in nonlin.names() if nonlin.get(name).kind == "pointwise"]


def their_name(definition):
    """The name of ACT2FN under which it lists a pointwise activation: ours, or an alias of it."""
    return next((name for name in transformers.activations.ACT2FN
                 if nonlin.get(name) is definition), None)


def exportable():
    """Everything that transformers can compute in a block of ours, by ACT2FN's own list."""
    found = []
    for name in nonlin.names():
        definition = nonlin.get(name)
        if definition.kind == "pointwise" and their_name(definition):
            found.append(name)
        if definition.kind == "gated":
            gate, up = nonlin.functions.definition.GATE, nonlin.functions.definition.UP
            for other in map(nonlin.get, POINTWISE):
                x = nonlin.functions.definition.X
                if not other.parameters and definition.expr == other.expr.xreplace({x: gate}) * up and their_name(
                        other):
                    found.append(name)
    return found


def model_of(name, **changes):
    model = LanguageModel(ModelConfig(**vars(SIZES) | changes), nonlin.get(name), seed=2)
    with torch.no_grad():  # learned values and scales that are not those of the start
        for n, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(len(n))))
    return model


def logits(model, tokens):
    with torch.no_grad():
        out = model(tokens)
    return getattr(out, "logits", out)


TOKENS = torch.randint(0, 64, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", exportable())
def test_transformers_computes_the_same_logits(tmp_path, name):
    model = model_of(name)
    told = export_model(model, tmp_path)
    gated = model.definition.gated
    assert told["format"] == "huggingface"
    assert told["architecture"] == ("Qwen3ForCausalLM" if gated else "ApertusForCausalLM")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True)
    assert type(theirs).__name__ == told["architecture"]
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    want = logits(model, TOKENS)
    assert float((logits(theirs, TOKENS) - want).abs().max()) < 1e-5 * float(want.abs().max())
    assert torch.equal(logits(import_model(tmp_path), TOKENS), want)


@pytest.mark.parametrize("changes", [{"tied": True}, {"kv_heads": 1}, {"kv_heads": 4, "layers": 1}])
def test_sizes_of_every_kind_are_exported(tmp_path, changes):
    for name in ("swiglu", "relu_squared"):
        model = model_of(name, **changes)
        export_model(model, tmp_path)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        want = logits(model, TOKENS)
        assert float((logits(theirs, TOKENS) - want).abs().max()) < 1e-5 * float(want.abs().max())
        theirs.save_pretrained(tmp_path / "back")  # as after more training there
        assert torch.equal(logits(import_model(tmp_path / "back"), TOKENS), want)


@pytest.mark.parametrize("name", sorted(set(nonlin.names()) - set(exportable())))
def test_the_rest_is_saved_in_our_own_form_and_says_so(tmp_path, name):
    model = model_of(name)
    told = export_model(model, tmp_path)
    assert told["format"] == "nonlin" and name in told["note"] and "own form" in told["note"]
    assert {p.name for p in tmp_path.iterdir()} == {"nonlin.json", "nonlin.safetensors"}
    assert torch.equal(logits(import_model(tmp_path), TOKENS), logits(model, TOKENS))


def test_a_persons_own_formula_is_read_back_where_it_was_never_defined(tmp_path, monkeypatch):
    nonlin.define("steep", "x*sigmoid(3*x)")
    nonlin.define("my_gate", "gate*sigmoid(gate)*up")
    model = model_of("steep")
    assert export_model(model, tmp_path / "a")["format"] == "nonlin"
    monkeypatch.setattr(nonlin.functions.registry, "_USER", {})
    assert torch.equal(logits(import_model(tmp_path / "a"), TOKENS), logits(model, TOKENS))
    nonlin.define("my_gate", "gate*sigmoid(gate)*up")
    assert hidden_act(nonlin.get("my_gate")) == "silu"  # another name for what transformers has


def test_a_second_export_replaces_the_first(tmp_path):
    for first, second in (("softplus", "gelu"), ("gelu", "softplus")):
        export_model(model_of(first), tmp_path)
        export_model(model_of(second), tmp_path)
        assert import_model(tmp_path).definition.name == second


@pytest.mark.parametrize("name", ["swiglu", "softplus"])
@pytest.mark.parametrize("damage", ["weights cut", "weights gone", "weights of another", "description cut",
                                    "description gone", "description empty", "description a list"])
def test_damaged_exports_are_refused(tmp_path, name, damage):
    export_model(model_of(name), tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    described = next(tmp_path.glob("*.json"))
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "weights gone":
        weights.unlink()
    elif damage == "weights of another":
        export_model(model_of(name, hidden=48), tmp_path / "other")
        weights.write_bytes((tmp_path / "other" / weights.name).read_bytes())
    elif damage == "description gone":
        described.unlink()
    else:
        described.write_text({"description cut": described.read_text()[:80], "description empty": "{}",
                              "description a list": "[1]"}[damage])
    with pytest.raises(UserError, match="must hold a model that nonlin exported"):
        import_model(tmp_path)


@pytest.mark.parametrize(("key", "value", "word"), [
    ("model_type", "llama", "model_type"), ("hidden_act", "nonsense", "nonsense"),
    ("rms_norm_eps", 1e-5, "rms_norm_eps"),
    ("head_dim", 16, "heads of width 16"), ("attention_bias", True, "biases"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}, "rotary base of 1000000")])
def test_a_checkpoint_that_computes_something_else_is_refused(tmp_path, key, value, word):
    export_model(model_of("swiglu"), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {key: value}))
    with pytest.raises(UserError, match=word):
        import_model(tmp_path)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    model = model_of("swiglu")
    want = logits(model, TOKENS)
    export_model(model, tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # a tempting one
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert torch.equal(logits(import_model(tmp_path), TOKENS), want)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match="must hold a model"):
        import_model(tmp_path)
