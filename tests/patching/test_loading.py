"""Models load from where they lie; what is wrong with a file or a model is said in one line, and nothing is run."""

import json
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nonlin.errors import UserError
from nonlin.model import LanguageModel, ModelConfig, export_model
from nonlin.patching import find_blocks, load
from nonlin.patching.identification import identify_all
from tests.patching import real
from tests.patching.families import FAMILIES

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole Hugging Face folder: a small Llama."""
    where = tmp_path_factory.mktemp("llama")
    FAMILIES["llama"].build().save_pretrained(where)
    return where


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def test_folder(folder):
    loaded = load(folder)
    assert type(loaded.model).__name__ == "LlamaForCausalLM" and not loaded.model.training
    assert loaded.tokenizer is None and loaded.notes == ("the folder has no tokenizer",)
    same = FAMILIES["llama"].build().state_dict()
    assert all(torch.equal(same[k], v) for k, v in loaded.model.state_dict().items())


def test_module_is_taken_as_it_is():
    model = FAMILIES["gpt2"].build().train()
    loaded = load(model)
    assert loaded.model is model and model.training


def test_nonlins_own_folder(tmp_path):
    import nonlin

    model = LanguageModel(ModelConfig(layers=1, dim=16, heads=2, kv_heads=1, hidden=24), nonlin.get("swiglu_oai"))
    export_model(model, tmp_path)
    loaded = load(tmp_path)
    assert [b.name for b in find_blocks(loaded.model)] == ["blocks.0.feed_forward"]


def test_gguf_and_bert_of_the_real_world():
    loaded = real.loaded_smollm2()
    blocks = find_blocks(loaded.model)
    assert len(blocks) == 30 and (blocks[0].dim, blocks[0].hidden) == (576, 1536)
    assert {a.label for a in identify_all(loaded.model, blocks[:3])} == {"swiglu"}
    assert loaded.tokenizer("The capital of France is")["input_ids"]
    loaded = load(real.minilm())
    assert {a.label for a in identify_all(loaded.model, find_blocks(loaded.model))} == {"gelu"}
    assert loaded.notes == ()


def message(where, **options):
    with pytest.raises(UserError) as caught:
        load(where, call="check", **options)
    text = str(caught.value)
    assert text.startswith("check: ") and text.endswith(".") and "\n" not in text
    return text


def test_no_such_path(tmp_path):
    assert "hf download" in message(tmp_path / "nowhere")


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "hold weights" in message(copy)


def test_empty_folder(tmp_path):
    assert "hold config.json" in message(tmp_path)


def test_pickled_weights_are_refused_and_not_read(copy):
    (copy / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return open, (str(copy / "trapped"), "w")

    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    text = message(copy)
    assert "pickled" in text and "save_pretrained" in text and not (copy / "trapped").exists()


def test_truncated_safetensors(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "whole safetensors file" in message(copy)


def test_garbage_safetensors(copy):
    (copy / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "whole safetensors file" in message(copy)


def test_shard_that_is_missing(copy):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002" in message(copy)


def test_weights_of_another_model(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "weights of its feed-forward blocks" in message(copy)


def test_damaged_config(copy):
    (copy / "config.json").write_text("{")
    assert "must have JSON in config.json" in message(copy)


def test_unknown_architecture(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "nobody_made_this", "architectures": ["Nobody"]}))
    assert "can build" in message(copy)


def test_remote_code_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (copy / "evil.py").write_text(f"open({str(copy / 'trapped')!r}, 'w')\n")
    assert "--trust-remote-code" in message(copy) and not (copy / "trapped").exists()


def test_quantized_checkpoint(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert "bitsandbytes" in message(copy)


def test_quantized_module():
    class Linear4bit(nn.Linear):
        pass

    model = nn.Sequential(Linear4bit(4, 16), nn.GELU(), nn.Linear(16, 4))
    assert "Linear4bit" in message(model)


def test_module_on_several_devices_or_without_data():
    model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4, device="meta"))
    assert "meta device" in message(model)


def test_module_on_two_devices():
    class Spread(nn.Sequential):
        """Says of its parameters what one would say that accelerate spread over two GPUs."""

        def parameters(self, recurse=True):
            for i, _ in enumerate(super().parameters(recurse)):
                yield SimpleNamespace(device=f"cuda:{i % 2}", dtype=torch.float32, is_floating_point=lambda: True)

    assert "lie on one device; got 'cuda:0, cuda:1'" in message(Spread(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)))


def test_no_feed_forward_block():
    model = nn.ModuleDict({"attention": nn.Linear(4, 4), "embedding": nn.Embedding(3, 4)})
    assert "have a feed-forward block" in message(model)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_gguf(tmp_path, damage):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", torch.zeros(64, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-8000], "garbage": b"GARB" + whole[4:], "empty": b""}[damage])
    assert "whole GGUF file" in message(file)


def test_another_file(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    assert "ends in .gguf" in message(tmp_path / "weights.bin")
