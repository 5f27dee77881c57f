"""Configurations as JSON: read, sized, hashed, and built again as they were."""

import json
import math

import pytest

from nonlin.errors import UserError
from nonlin.subject.asking import wanted
from nonlin.subject.configuration import configuration, described
from tests.subject.tiny import configuration as small

SIZES = {"dim": 64, "heads": 4, "kv_heads": 2, "layers": 3, "context": 32, "vocabulary": 300}


def test_infinite_numbers_survive_in_plain_json():
    """Mamba's time steps have no upper limit; a run's hash is of JSON that has no infinities."""
    found = described({"config": small("llama") | {"model_type": "bamba", "architectures": ["BambaForCausalLM"],
                                                   "mamba_n_heads": 4, "time_step_limit": [0.0, math.inf]}})
    text = json.dumps(found, allow_nan=False)
    again = configuration(json.loads(text)["config"])
    assert list(again.time_step_limit) == [0.0, math.inf]


@pytest.mark.parametrize("found", [
    {"num_hidden_layers": 10**9}, {"num_labels": 10**9}, {"text_config": {"num_labels": 10**9}}])
def test_numbers_of_which_each_is_an_object_are_bounded(tmp_path, found):
    (tmp_path / "config.json").write_text(json.dumps(small("llama") | found))
    for asked in ({"path": str(tmp_path / "config.json")}, {"path": str(tmp_path)}, {"config": small("llama") | found}):
        with pytest.raises(UserError, match=r"at most [\d,]+ as .*; it is 1,000,000,000"):
            described(asked)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "llama", "qwen3_moe"])
def test_an_architecture_by_name_has_the_sizes_of_the_call(name):
    config = configuration(described({"name": name, "sizes": SIZES})["config"])
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)
    assert (config.vocab_size, config.max_position_embeddings) == (300, 32)
    if name != "gpt2":
        assert config.num_key_value_heads == 2 and getattr(config, "head_dim", 16) == 16
    if name == "qwen3_moe":
        assert config.moe_intermediate_size == 24  # 768 of 2048


@pytest.mark.parametrize(("name", "field", "width"), [
    ("bart", "decoder_ffn_dim", 256), ("opt", "ffn_dim", 256), ("ctrl", "dff", 408)])
def test_a_name_sizes_the_decoder_and_its_blocks_too(name, field, width):
    """BART's common names are its encoder's, and OPT's and CTRL's widths have names of their own."""
    config = described({"name": name, "sizes": SIZES})["config"]
    assert config[field] == width  # 4096 of 1024, 3072 of 768, 8192 of 1280
    for one, size in (("decoder_layers", 3), ("decoder_attention_heads", 4), ("word_embed_proj_dim", 64)):
        assert config.get(one, size) == size


def test_the_hash_is_of_what_builds_the_model():
    one, two = (described({"config": small("llama") | extra}) for extra in ({}, {"transformers_version": "4.0"}))
    other = described({"config": small("llama", intermediate_size=48)})
    assert one["sha256"] == two["sha256"] != other["sha256"] and one["class"] == "LlamaForCausalLM"


def test_sizes_that_make_no_model_are_named():
    with pytest.raises(UserError, match="no_such_model"):
        described({"name": "no_such_model", "sizes": SIZES})


def test_what_is_wanted_is_told_by_its_form(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert wanted(tmp_path).values == {"path": str(tmp_path)} and wanted(tmp_path).folder == tmp_path
    assert wanted("qwen3").sized and wanted({"model_type": "llama"}).values["config"] == {"model_type": "llama"}
    for value in (3, [1]):
        with pytest.raises(UserError, match="model must be a path"):
            wanted(value)


@pytest.mark.parametrize("found", [
    {"_attn_implementation": "owner/kernel"}, {"attn_implementation": "flash_attention_2"},
    {"text_config": {"experts_implementation": "sonicmoe"}}, {"kernel_config": {"RMSNorm": "owner/kernel:Norm"}}])
def test_kernels_of_the_hub_are_code_of_its_own(tmp_path, found):
    values = small("llama") | found
    (tmp_path / "config.json").write_text(json.dumps(values))
    for call, asked in ((described, {"path": str(tmp_path)}), (described, {"config": values}), (configuration, values)):
        with pytest.raises(UserError, match=r"must need no code of its own; got .* it names "):
            call(asked)
    assert described({"config": small("llama") | {"_attn_implementation": "eager"}})["class"] == "LlamaForCausalLM"
