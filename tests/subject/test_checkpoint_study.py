"""A study that begins with trained weights: it measures recovery, and says so."""

import json

import pytest
import torch

import nonlin
from nonlin.errors import UserError
from nonlin.study.results import _recovery
from nonlin.subject.building import family_model
from nonlin.training.records import TrialRecord
from tests.subject.test_study import SMALL, text
from tests.subject.tiny import configuration, request

__all__ = ["text"]


@pytest.fixture(scope="module")
def study(text, tmp_path_factory):
    from nonlin.subject.configuration import described

    own = {"kind": "transformers", **described({"config": configuration("llama", vocab_size=256)})}
    folder = tmp_path_factory.mktemp("trained")
    family_model(own, 3).save_pretrained(folder)
    return nonlin.compare(text, ["silu", "relu"], model=folder, from_checkpoint=True, progress=False,
                          out=tmp_path_factory.mktemp("studies") / "trained", **SMALL)


def test_recovery_is_measured_and_said(study):
    assert study.status == "complete" and study.plan.baseline == "silu"  # the gate's own activation
    assert {arm.kind for arm in study.arms.values()} == {"gated"}  # relu became the gate's
    own, swapped = study.arms["silu"].recovery, study.arms["relu"].recovery
    assert own.before == pytest.approx(own.points[0][1], abs=1e-6) and own.back_at_tokens == 0
    assert swapped.before == own.before and len(swapped.points) >= 8 and swapped.points[-1][0] == 8 * 4 * 16
    page = study.report.read_text()
    assert "Recovery from the swap" in page and "not the activation" in page
    assert any("recovers from another activation" in remark for remark in study.results.remarks)
    assert study.plan.learning_rates == [5e-5, 1e-4]


def test_an_evaluation_that_was_no_number_leaves_its_point_out(study):
    records = [record for config, record in study.folder.trials().values() if config["purpose"] == "judge"]
    whole = _recovery(study.plan, records)["recovery"]["points"]
    records[0]["evaluations"][2][1] = None
    assert _recovery(study.plan, records)["recovery"]["points"] == [*whole[:2], *whole[3:]]
    assert TrialRecord.from_dict(records[0]).evaluations == records[0]["evaluations"]  # and is a record


def test_every_run_begins_with_the_same_trained_weights(study):
    hashes = {record["outside_sha256"] for _, record in study.folder.trials().values()}
    assert len(hashes) == 1


def saved(folder):
    from nonlin.subject.configuration import described

    own = {"kind": "transformers", **described({"config": configuration("llama", vocab_size=256)})}
    family_model(own, 3).save_pretrained(folder)
    return folder


def with_weights(folder, change):
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def with_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(("harm", "words"), [
    (lambda f: with_weights(f, lambda w: {n: v for n, v in w.items() if n != Q}), f"not hold {Q}"),
    (lambda f: with_weights(f, lambda w: {f"x.{n}": v for n, v in w.items()}), "not hold lm_head.weight.* and 18 more"),
    (lambda f: with_weights(f, lambda w: w | {Q: (100 * w[Q]).to(torch.int8)}), f"not quantized.*; got '{Q} in I8'"),
    (lambda f: with_weights(f, lambda w: w | {Q: w[Q] * float("nan")}), "finite logits"),
    (lambda f: with_config(f, intermediate_size=48), "each in its shape.*mlp.down_proj"),
    (lambda f: with_config(f, num_hidden_layers=3), "not hold model.layers.2.input_layernorm"),
    (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "whole safetensors"),
], ids=["missing", "renamed", "quantized", "nan", "shaped", "layers", "cut"])
def test_weights_that_are_not_the_models_are_refused(harm, words, tmp_path):
    """What is missing would be drawn anew, and the study begin with a model that nobody trained."""
    from nonlin.subject import describe, wanted

    folder = saved(tmp_path)
    harm(folder)
    with pytest.raises(UserError, match=words):
        describe(request(dict(wanted(folder, True).values), arms=("silu", "relu"), vocabulary=256))


def test_weights_that_have_no_place_are_said(tmp_path):
    from nonlin.subject import describe, wanted
    from nonlin.subject.words import own_lines

    saved(tmp_path)
    with_weights(tmp_path, lambda w: {n: v * (3 if ".layers.0.mlp." in n else 1) for n, v in w.items()})
    found = describe(request(dict(wanted(tmp_path, True).values), arms=("silu", "relu"), vocabulary=256))
    assert len(found["own"]["blocks"]) == 1  # training makes weights of every std: they are one kind of block
    with_config(tmp_path, num_hidden_layers=1)
    found = describe(request(dict(wanted(tmp_path, True).values), arms=("silu", "relu"), vocabulary=256))
    assert any("Not used of the weights" in line and "model.layers.1.input_layernorm.weight" in line
               and "6 more" in line for line in own_lines(found["own"], ()))


def test_quantized_modules_are_refused():
    from nonlin.patching.loading import refuse

    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(UserError, match="not quantized to 8 or 4 bits"):
        refuse(torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}), "compare")
