"""Our model as Qwen3 and Apertus checkpoints and back; checkpoints it cannot compute are refused with the reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import nonlin
from nonlin.errors import UserError
from nonlin.model import LanguageModel, ModelConfig, export_model, import_model
from tests.patching.families import FAMILIES

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
CONFIG = ModelConfig(layers=2, dim=16, heads=2, kv_heads=1, context=32, vocabulary=50, hidden=24)
OURS = {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
TOKENS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ["swiglu", "geglu_tanh", "reglu", "relu_squared", "gelu", "xielu"])
@pytest.mark.parametrize("tied", [False, True])
def test_our_model_loads_in_transformers_with_equal_logits(activation, tied, tmp_path):
    model = LanguageModel(ModelConfig(**(vars(CONFIG) | {"tied": tied})), nonlin.get(activation))
    if activation == "xielu":
        with torch.no_grad():
            for block in model.blocks:
                block.feed_forward.activation.alpha_p.fill_(0.7)
                block.feed_forward.activation.alpha_n.fill_(-0.4)
    assert export_model(model, tmp_path)["format"] == "huggingface"
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(theirs.eval()(TOKENS).logits, model(TOKENS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(import_model(tmp_path)(TOKENS), model(TOKENS))


@pytest.mark.parametrize(("name", "act", "activation"), [
    ("qwen3", "silu", "swiglu"), ("qwen3", "relu2", "relu_squared_glu"), ("qwen3", "mish", "mish_glu"),
    ("apertus", "xielu", "xielu"), ("apertus", "gelu_pytorch_tanh", "gelu_tanh")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_their_checkpoints_load_in_our_model(name, act, activation, dtype, tmp_path):
    theirs = FAMILIES[name].build(**OURS, hidden_act=act, vocab_size=64, num_key_value_heads=1)
    theirs.to(dtype).save_pretrained(tmp_path, max_shard_size="8kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = import_model(tmp_path)
    assert model.definition.name == activation
    # Loaded anew: bfloat16 has rounded the rotary frequencies of the one in hand, which no checkpoint holds.
    expected = type(theirs).from_pretrained(tmp_path, dtype=torch.float32).eval()(TOKENS).logits
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "changes", "word"), [
    ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "a rotary base of 1000000.0"),
    ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "type 'linear'"),
    ("qwen3", {"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"), ("qwen3", {"head_dim": 16}, "heads of width 16"),
    ("qwen3", {"attention_bias": True}, "biases"), ("qwen3", {"attention_dropout": 0.1}, "attention dropout 0.1"),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}, "sliding"),
    ("qwen3", {"hidden_act": "prelu"}, "learned values"), ("apertus", {"rope_parameters": None}, "rotary positions"),
    ("llama", {}, "neither qwen3 nor apertus")])
def test_features_that_our_model_lacks_are_refused(name, changes, word, tmp_path):
    FAMILIES[name].build(**(OURS | changes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=word):
        import_model(tmp_path)


def test_xielu_with_other_constants_is_refused(tmp_path):
    FAMILIES["apertus"].build(**OURS).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["model.layers.1.mlp.act_fn.beta"] = torch.tensor(0.25)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"act_fn.beta is 0.25; nonlin's xIELU has 0.5"):
        import_model(tmp_path)


def test_weights_that_do_not_belong_are_refused(tmp_path):
    FAMILIES["qwen3"].build(**OURS).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    extra = state | {"model.layers.0.mlp.extra.weight": torch.zeros(1)}
    save_file(extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"extra\.weight"):
        import_model(tmp_path)
    state["model.norm.weight"] = torch.ones(1)  # would broadcast
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"norm\.weight has the shape"):
        import_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(UserError, match="must hold a model"):
        import_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config)[:-9])
    with pytest.raises(UserError, match="must hold a model"):
        import_model(tmp_path)
