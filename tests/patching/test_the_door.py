"""A model's folder at the door of its readers: whatever stands in its files, one line says it, and nothing hangs."""

import json
import os
import shutil

import pytest
import torch

import nonlin
from nonlin.errors import UserError
from nonlin.model import LanguageModel, ModelConfig, export_model, import_model
from nonlin.patching import load
from tests.patching.families import FAMILIES

pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small Qwen3, which both readers read, in two files of weights, and nonlin's own form."""
    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("models")
    config = ModelConfig(layers=2, dim=16, heads=2, kv_heads=1, hidden=24)
    export_model(LanguageModel(config, nonlin.get("swiglu")), where / "qwen3")
    export_model(LanguageModel(config, nonlin.get("swiglu_oai")), where / "own")
    FAMILIES["llama"].build().save_pretrained(where / "sharded", max_shard_size="4KB")
    return where


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "models") / "qwen3"


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(call, where):
    with pytest.raises(UserError) as caught:
        call(where)
    assert "\n" not in str(caught.value), str(caught.value)
    return str(caught.value)


FIELDS = {
    "auto_map": ["a", 3, ["x"]], "quantization_config": ["int8", 4, [1]],
    "architectures": ["LlamaForCausalLM", 3, [3], {}], "model_type": [3, ["qwen3"], {}],
    "num_hidden_layers": [10**9, "2", 2**70, [2], -1, 2.5],
    "hidden_size": [2**40, "16", [16], -1], "intermediate_size": [2**40, "a", {}], "vocab_size": [2**40, 10**30, "a"],
    "num_attention_heads": [2**40, 0, "2"], "head_dim": [2**40, "x"], "num_labels": [10**9]}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in FIELDS.items() for v in values], ids=repr)
@pytest.mark.parametrize("call", [load, import_model])
def test_fields_of_another_kind_or_absurd_size(folder, call, name, value):
    if call is import_model and name in ("auto_map", "architectures") and isinstance(value, (dict, list)):
        pytest.skip("nonlin's own model runs no code, and takes no class by name")
    if call is import_model and name == "architectures":
        pytest.skip("refused or not read")
    change(folder / "config.json", **{name: value})
    refused(call, folder)


@pytest.mark.parametrize("config", [
    {"model_type": "rag", "architectures": ["RagModel"], "question_encoder": {"model_type": "dpr"},
     "generator": {"model_type": "bart"}},  # sizes of parts that are not said
    {"model_type": "gpt2"}, {"model_type": "llama", "num_hidden_layers": 2},
    {"model_type": "bert", "max_position_embeddings": 2**40}, {"model_type": "gptj", "n_positions": 2**40},
    {"model_type": "albert", "num_hidden_groups": 10**9}, {"model_type": "mixtral", "num_local_experts": 10**5}],
    ids=lambda config: f"{config['model_type']}-{len(config)}")
def test_a_model_of_other_sizes_than_its_weights_is_not_built(folder, config, monkeypatch):
    """Fields that are missing are the family's own sizes, and others grow what no weights could fill."""
    from transformers import PreTrainedModel

    def fill(*_, **__):
        raise AssertionError("memory was taken for weights")

    monkeypatch.setattr(PreTrainedModel, "_load_pretrained_model", fill)
    (folder / "config.json").write_text(json.dumps(config))
    assert "must have" in refused(load, folder)


@pytest.mark.parametrize("fields", [{"layers": 10**9}, {"dim": 2**40}, {"hidden": 2**33}, {"vocabulary": 2**40},
                                    {"context": 2**40}, {"layers": "2"}, {"dim": 10_000_000, "heads": 1}])
@pytest.mark.parametrize("call", [load, import_model])
def test_absurd_sizes_in_nonlins_own_form(folder, call, fields):
    path = folder.parent / "own" / "nonlin.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"model": described["model"] | fields}))
    refused(call, path.parent)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "\udcff", '{"a": 1', '{"model": []}', "{}"], ids=range(7))
@pytest.mark.parametrize(("form", "name"), [("qwen3", "config.json"), ("own", "nonlin.json"),
                                            ("sharded", "model.safetensors.index.json")])
@pytest.mark.parametrize("call", [load, import_model])
def test_json_of_any_kind(folder, call, form, name, text):
    where = folder.parent / form
    (where / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(call, where)


NAMES = ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "nonlin.json",
         "model.safetensors.index.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "dangling"])
@pytest.mark.parametrize("call", [load, import_model])
def test_what_is_no_regular_file(folder, call, kind, name):
    path = folder / name
    path.unlink(missing_ok=True)
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "loop": lambda: path.symlink_to(path),
     "dangling": lambda: path.symlink_to(folder / "nowhere")}[kind]()
    refused(call, folder)


@pytest.mark.parametrize("name", ["../qwen3/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", 3,
                                  ["model.safetensors"], "model.bin"], ids=repr)
@pytest.mark.parametrize("call", [load, import_model])
def test_weights_stay_in_the_folder(folder, call, name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    text = refused(call, folder)
    assert "weight_map" in text or "lie beside" in text


def test_a_path_as_text_and_what_is_none(folder):
    assert isinstance(import_model(str(folder)), LanguageModel)
    assert "be a path" in refused(import_model, 3)


def test_the_folder_of_a_study(folder):
    study = folder.parent / "study"
    (study / "trials").mkdir(parents=True)
    shutil.copytree(folder, study / "model")
    loaded = load(study)
    assert type(loaded.model).__name__ == "Qwen3ForCausalLM" and "a study's" in loaded.notes[0]


@pytest.mark.parametrize("kind", ["whisper", "clip"])
def test_models_that_take_no_tokens_alone_are_refused_in_one_line(tmp_path, kind):
    import transformers

    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 64,
             "max_source_positions": 32, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1,
             "eos_token_id": 2, "decoder_start_token_id": 1}
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "whisper":
        model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes))
    else:
        model = transformers.CLIPModel(transformers.CLIPConfig(
            text_config=part | {"vocab_size": 64}, vision_config=part | {"image_size": 16, "patch_size": 8}))
    model.save_pretrained(tmp_path)
    assert "token ids alone" in refused(nonlin.health.check, tmp_path)


@pytest.mark.parametrize("fields", [
    {"_attn_implementation": "kernels-community/flash-attn2"}, {"_attn_implementation": "flash_attention_2"},
    {"attn_implementation": {"": "sdpa", "text_config": "owner/kernel@main:run"}}, {"use_kernels": True},
    {"per_layer_config": [{"_attn_implementation_internal": "owner/kernel"}]}, {"_experts_implementation": "deepgemm"},
    {"text_config": {"kernel_config": {"RMSNorm": "owner/kernel:Norm"}}}], ids=repr)
def test_a_kernel_that_would_be_fetched_is_code_that_must_be_trusted(folder, fields, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)  # refused before
    change(folder / "config.json", **fields)
    said = refused(load, folder)
    assert "need no code of its own" in said and "--trust-remote-code" in said


def test_the_attention_that_transformers_has_itself_is_no_code(folder):
    for name in ("eager", "sdpa", None):
        change(folder / "config.json", _attn_implementation=name, use_kernels=False)
        assert load(folder).model is not None
