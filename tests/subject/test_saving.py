"""Each arm's model on disk: the family's checkpoint where it can express it, else nonlin's own form."""

import json

import pytest
import torch

import nonlin
from nonlin.errors import UserError
from nonlin.health import check
from nonlin.subject import build, describe
from nonlin.subject.building import family_model
from nonlin.subject.saving import save
from tests.subject.tiny import CONTEXT, VOCABULARY, described, request, run_config

TOKENS = torch.randint(0, VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "arm", "act", "prove"), [
    ("llama", "geglu", "gelu", True), ("opt", "gelu", "gelu", False)])
def test_an_arm_that_the_family_can_express_is_its_checkpoint(name, arm, act, prove, tmp_path):
    """Loaded by transformers alone, in this process and, before it is written, in one without nonlin."""
    from transformers import AutoModelForCausalLM

    model = build(run_config(described(name), arm), nonlin.get(arm)).eval()
    told = save(model, tmp_path / "model", prove)
    assert told["format"] == "huggingface", told
    there = sorted(p.name for p in (tmp_path / "model").iterdir())
    assert "model.safetensors" in there and not any("nonlin" in n or "proof" in n or "logits" in n for n in there)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert act in {config.get("hidden_act"), config.get("activation_function")}
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()(TOKENS).logits
        assert torch.allclose(theirs, model(TOKENS), atol=1e-5)


def test_a_checkpoint_that_fails_its_proof_is_our_form_and_harms_nothing_there(tmp_path, monkeypatch):
    from nonlin.subject import saving

    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(saving, "_PROOF", "raise SystemExit('no')")
    told = save(build(run_config(described("llama"), "geglu"), nonlin.get("geglu")), tmp_path)
    assert told["format"] == "nonlin" and "cannot load its checkpoint (no)" in told["note"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nonlin.json", "nonlin.safetensors", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("name", "arm", "reason"), [
    ("llama", "relu", "have a gate"), ("gpt2", "swiglu", "have no gate"), ("llama", "swiglu_oai", "no activation"),
    ("qwen3_moe", "relu", "have a gate"), ("opt", "swiglu", "have no gate"), ("gpt2", "prelu", "no activation")])
def test_an_arm_that_the_family_cannot_express_is_our_form(name, arm, reason, tmp_path):
    from tests.subject.tiny import configuration

    found = describe(request({"config": configuration(name)}, arms=(arm,)))
    model = build(run_config(found, arm), nonlin.get(arm)).eval()
    told = save(model, tmp_path)
    assert told["format"] == "nonlin" and reason in told["note"] and "nonlin.load" in told["note"]
    loaded = nonlin.load(tmp_path)
    assert type(loaded) is type(family_model(found["own"], 0))
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS))
    seen = check(tmp_path, tokens=32, context=16)["blocks"][0]["activation"]["computed"]
    assert seen.partition("(")[0] == arm  # learned values follow in brackets


def test_a_damaged_form_is_named(tmp_path):
    model = build(run_config(described("llama"), "relu"), nonlin.get("relu"))
    save(model, tmp_path)
    (tmp_path / "nonlin.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="whole folder that nonlin wrote"):
        nonlin.load(tmp_path)
    with pytest.raises(UserError, match=r"folder or a \.gguf file that exists"):
        nonlin.load(tmp_path / "none")


def test_trained_weights_stay_and_a_pointwise_activation_becomes_the_gates(tmp_path):
    """From a checkpoint, an arm is the trained model with another activation: as nonlin.swap makes it."""
    family = family_model(described("llama")["own"], 7)
    family.save_pretrained(tmp_path)
    found = describe(request({"path": str(tmp_path), "checkpoint": True}, arms=("swiglu", "relu")))
    assert [a["kind"] for a in found["arms"]] == ["gated", "gated"] and found["arms"][1]["widths"] == [40]
    same, swapped = (build(run_config(found, arm), nonlin.get(arm)).eval() for arm in ("swiglu", "relu"))
    with torch.no_grad():
        assert torch.allclose(same(TOKENS), family.eval()(TOKENS).logits, atol=1e-5)
        with pytest.warns(UserWarning, match="further"):
            nonlin.swap(family, "relu")
        assert torch.allclose(swapped(TOKENS), family(TOKENS).logits, atol=1e-5)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8] + b"otherone")
    with pytest.raises(UserError, match="the one that the study began with"):
        build(run_config(found, "relu"), nonlin.get("relu"))


@pytest.mark.parametrize(("change", "words"), [
    ({"class": "pipeline"}, "of a class of models"), ({"class": "Trainer"}, "of a class of models"),
    ({"class": 3}, "whole folder that nonlin wrote"), ({"config": []}, "whole folder that nonlin wrote"),
    ({"kind": "factory", "factory": {"file": "/tmp/x.py", "name": "make", "sha256": "0"}}, "no code of its own"),
    ({"factory": 3}, "whole folder that nonlin wrote"), ({"hidden_size": 1 << 30}, "must have at most"),
    ({"vocab_size": 1 << 40}, "must have at most"),
    ({"num_hidden_layers": 10**9}, "at most 10,000 as num_hidden_layers"),
    ({"hidden_size": "16"}, "whole folder that nonlin wrote")], ids=repr)
def test_a_form_that_somebody_wrote_is_one_error(tmp_path, change, words):
    model = build(run_config(described("llama"), "relu"), nonlin.get("relu"))
    save(model, tmp_path)
    values = json.loads((tmp_path / "nonlin.json").read_text())
    inner = values["own"] if set(change) & {"class", "config", "kind", "factory"} else values["own"]["config"]
    inner |= change
    (tmp_path / "nonlin.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=words) as caught:
        nonlin.load(tmp_path)
    assert "\n" not in str(caught.value)
