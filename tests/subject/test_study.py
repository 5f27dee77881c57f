"""A study inside a user's own model, from the call to the report; and the mistakes that are said before anything is."""

import importlib
import json
import shutil
import sys

import pytest

import nonlin
from nonlin.errors import UserError
from nonlin.study import load
from nonlin.subject.words import small_first_weights
from tests.subject.tiny import configuration, request

SMALL = {"steps": 8, "seeds": 4, "learning_rates": 2, "context": 16, "batch": 4}
FACTORY = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, 16), nn.Linear(16, 256)
        self.block = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.block(x))

def make():
    return Tiny()
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(1500)))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(configuration("llama", vocab_size=256)))
    return path


@pytest.fixture(scope="module")
def study(text, config, tmp_path_factory):
    return nonlin.compare(text, ["swiglu", "relu"], model=config, out=tmp_path_factory.mktemp("studies") / "own",
                          progress=False, **SMALL)


def test_a_study_of_an_own_model_is_a_study(study):
    assert study.status == "complete" and list(study.arms) == ["swiglu", "relu"]
    assert study.plan.baseline == "swiglu"  # the family's own activation
    assert {run.parameters for run in study.runs()} == {next(a["parameters"] for a in study.plan.arms)}
    assert {run.hidden for run in study.runs() if run.activation == "relu"} == {60}
    assert all(run.flops_per_token for run in study.runs())
    assert study.report.exists() and "LlamaForCausalLM" in study.report.read_text()
    layers = study.arms["relu"].layers
    assert len(layers) == 2 and layers[0]["zero_output_share"] > 0.2
    assert study.arms["swiglu"].layers[0]["gradient_rms"] > 0
    assert study.arms["relu"].sparsity is not None


def test_runs_of_a_seed_begin_alike_outside_the_blocks(study):
    found = {}
    for config, record in load(study.directory).trials().values():
        found.setdefault(config["seed"], set()).add(record["outside_sha256"])
    assert len(found) == 6 and all(len(hashes) == 1 for hashes in found.values())
    assert len(set().union(*found.values())) == 6


def test_the_configuration_and_its_hash_are_in_the_plan_and_in_every_run(study):
    own = study.plan.model["own"]
    assert own["config"]["model_type"] == "llama" and len(own["sha256"]) == 64
    assert all(config["model"]["own"] == own for config, _ in load(study.directory).trials().values())
    words = study.plan.describe()
    assert "Replaced: 2 × LlamaMLP" in words and "relu: hidden 60" in words and "MFLOPs" in words


@pytest.mark.parametrize(("std", "dim", "said"), [(0.02, 64, "0.16"), (0.125, 64, ""), (0.02, 1024, ""), (0.0, 64, "")])
def test_first_weights_that_begin_nearly_linear_are_said(std, dim, said):
    own = {"blocks": [{"std": {"gate": std, "up": 0.5, "down": 0.001}, "dim": dim},
                      {"std": {"up": 0.0, "down": 0.0}, "dim": 64}, {"std": {"up": 0.5, "down": 0.001}, "dim": 64}]}
    told = " ".join(small_first_weights(own))
    assert bool(told) is bool(said)
    assert not said or (f"give pre-activations of {said}, where GELU" in told and "0.12 suits this width" in told)
    assert not small_first_weights(own | {"checkpoint": {"folder": "x"}})


def test_the_same_call_goes_on_and_a_run_made_again_is_the_same_run(study, text, config):
    trials = study.directory / "trials"
    first = sorted(trials.iterdir())[0]
    before = json.loads((first / "result.json").read_text())
    shutil.rmtree(first)
    again = nonlin.compare(text, ["swiglu", "relu"], model=config, out=study.directory, progress=False, **SMALL)
    after = json.loads((first / "result.json").read_text())
    assert after["bits_per_byte"] == before["bits_per_byte"] and after["outside_sha256"] == before["outside_sha256"]
    assert again.plan.hash == study.plan.hash


def test_a_model_and_its_samples(study):
    assert study.sample("1: ", "relu", length=4).startswith("1: ")
    assert type(study.model("relu").inner).__name__ == "LlamaForCausalLM"


def test_the_check_and_the_advice_read_the_study(study, tmp_path):
    """The exported winner is checked on the study's own text; each arm saves, as its family's checkpoint or ours."""
    found = nonlin.check(study.directory, tokens=64, context=16, progress=False)
    assert [b.activation.computed for b in found.blocks] == [study.winner] * 2
    assert "the study's own text" in found.values["text"]
    forms = {name: study.save_model(tmp_path / name, name)["format"] for name in ("swiglu", "relu")}
    assert forms == {"swiglu": "huggingface", "relu": "nonlin"}
    advice = nonlin.advise(params=1e6, tokens=1e7, study=study.directory, measure=False)
    assert advice.evidence[0].own and set(advice.evidence[0].found) == {"swiglu", "relu"}


def test_a_a_studies_are_of_the_baseline_inside_the_model(study):
    """Every twin has the baseline's widths and a random stream of its own."""
    from nonlin.calls.calibration import aa_plan, twins
    from nonlin.study import Arm, Request

    asked = {key: value for key, value in study.plan.request.items() if key not in ("arms", "left_out")}
    request = Request(arms=[Arm(**arm) for arm in study.plan.request["arms"]], **asked)
    plan = aa_plan(request, twins(request, "private"), 0, {"swiglu": 1000.0, "relu": 1000.0}, study.plan.machine, 1)
    configs = [plan.config(arm["name"], "judge", 0.01, plan.judge_seeds[0]) for arm in plan.arms]
    assert {tuple(c["model"]["widths"]) for c in configs} == {(40,)}
    assert {c["streams"]["feed_forward"] for c in configs} == {"swiglu-1", "swiglu-2"}
    assert {c["activation"]["name"] for c in configs} == {"swiglu"}


def module_of(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module(path.stem)


def test_a_function_that_returns_a_module_is_a_model(text, tmp_path, monkeypatch):
    """The function lies in a file, which the processes that train run too."""
    path = tmp_path / "tiny_factory.py"
    path.write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("tiny_factory")
    study = nonlin.compare(text, ["gelu", "swiglu"], model=module.make, out=tmp_path / "study", progress=False, **SMALL)
    assert study.status == "complete" and study.arms["swiglu"].hidden == 21
    must_be_passed(study, monkeypatch, tmp_path)
    with pytest.raises(UserError, match="top of a Python file"):
        nonlin.compare(text, ["gelu", "swiglu"], model=lambda: None, out=tmp_path / "other", progress=False)
    with pytest.raises(UserError, match="pass a function"):
        nonlin.compare(text, ["gelu", "swiglu"], model=module.make(), out=tmp_path / "other", progress=False)


def must_be_passed(study, monkeypatch, tmp_path):
    """Nothing that a folder names is run for a user who has not passed that function, from that file, here."""
    form = study.save_model(tmp_path / "form", "swiglu")
    assert form["format"] == "nonlin" and nonlin.load(tmp_path / "form") is not None
    monkeypatch.setenv("NONLIN_CACHE", str(tmp_path / "of another user"))
    monkeypatch.setattr("nonlin.subject.vouching._here", set())
    monkeypatch.setattr("nonlin.subject.building.factory_of", lambda _: pytest.fail("code of the folder runs"))
    tuning = next(key for key, (config, _) in study.folder.trials().items() if config["purpose"] == "tune")
    shutil.rmtree(study.directory / "trials" / tuning)  # a run is missing, and no arm's model
    for call in (lambda: nonlin.resume_study(study.directory, progress=False), study.model,
                 lambda: nonlin.extend_study(study.directory, seeds=5, progress=False), study.sample,
                 lambda: study.save_model(tmp_path / "again")):
        with pytest.raises(UserError, match=r"a function that you have passed on this machine; got .*make"):
            call()
    for call in (nonlin.load, nonlin.check, nonlin.health.check):
        with pytest.raises(UserError, match="need no code of its own"):
            call(tmp_path / "form")


@pytest.mark.parametrize(("changes", "words"), [
    ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "need no code of its own"),
    ({"quantization_config": {"quant_method": "gptq"}}, "not quantized .* got 'gptq'"),
    ({"vocab_size": 100}, "at most the model's 100 tokens; got 256"),
    ({"max_position_embeddings": 8}, "at most the model's 8 positions"),
    ({"model_type": "lamma"}, r"Did you mean .*llama"), ({"model_type": "mamba"}, "feed-forward block"),
    ({"hidden_size": 1 << 20, "intermediate_size": 1 << 22}, "GiB of memory that are free"),
    ({"auto_map": ["modeling.Mine"]}, "need no code of its own; got .*modeling.Mine"),
    ({"quantization_config": "int4"}, "not quantized .* got 'int4'"),
    ({"intermediate_size": 0}, "hidden width of 1 or more; got 'model.layers.0.mlp, of width 0'"),
    ({"rms_norm_eps": float("nan")}, "finite logits"), ({"hidden_act": "no_such"}, "KeyError: 'no_such'")])
def test_a_configuration_that_makes_no_study_is_one_error(changes, words):
    from nonlin.subject import describe

    values = configuration("llama", vocab_size=256) | changes
    with pytest.raises(UserError, match=words):
        describe(request({"config": values}, arms=("swiglu", "relu"), vocabulary=256, memory_bytes=1 << 33))


def test_sequences_of_one_token_are_a_model_too():
    """None holds a token that another could see, nor two documents."""
    from nonlin.subject import describe

    for packing in ("stream", "documents"):
        found = describe(request({"config": configuration("llama", vocab_size=256)}, arms=("swiglu", "relu"),
                                 vocabulary=256, context=1, packing=packing))
        assert found["context"] == 1


FAULTY = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, 1 << 16), nn.Linear(1 << 16, 256)
        self.block = nn.Sequential(nn.Linear(1 << 16, 1 << 18), nn.GELU(), nn.Linear(1 << 18, 1 << 16))

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.block(x))

def wide():
    return Wide()

def raises():
    raise RuntimeError("no such file")

def exits():
    raise SystemExit("usage: train.py")
"""


@pytest.mark.parametrize(("name", "words"), [
    ("wide", "8.0 GiB of memory that are free; got '34,393,"), ("raises", "raises raised RuntimeError: no such file"),
    ("exits", "exits raised SystemExit: usage")])
def test_a_function_that_makes_no_study_is_one_error(name, words, tmp_path, monkeypatch):
    """One that is too large is never built: it would take 512 GiB."""
    from nonlin.subject import describe, wanted

    (tmp_path / "faulty.py").write_text(FAULTY)
    function = getattr(module_of(tmp_path / "faulty.py", monkeypatch), name)
    with pytest.raises(UserError, match=words):
        describe(request(dict(wanted(function).values), arms=("swiglu", "relu"), vocabulary=256, memory_bytes=1 << 33))


@pytest.mark.parametrize(("changes", "call", "words"), [
    ({"vocab_size": 100}, {}, "at most the model's 100 tokens"),  # said by a process of its own
    ({}, {"layers": 3}, "be left to the model's configuration"), ({}, {"match": "size"}, "match"),
    ({}, {"from_checkpoint": True}, "folder that holds safetensors"), ({}, {"compile": "perhaps"}, "compile"),
    ({}, {"accumulation": 0}, "accumulation must be a whole number from 1 on")])
def test_mistakes_are_said_before_anything_is_written(text, tmp_path, changes, call, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(configuration("llama", vocab_size=256) | changes))
    with pytest.raises(UserError, match=words):
        nonlin.compare(text, ["swiglu", "relu"], model=path, out=tmp_path / "out", progress=False,
                       **SMALL | call)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_named(text, tmp_path):
    with pytest.raises(UserError, match=r"config\.json or a folder that is there"):
        nonlin.compare(text, ["swiglu", "relu"], model="no/such/config.json", out=tmp_path / "out", progress=False)


def test_a_context_longer_than_the_text_leaves_nothing_behind(text, config, tmp_path):
    """How many tokens a text has is known when it is tokenized: what was written for that is removed."""
    long = tmp_path / "config.json"
    long.write_text(json.dumps(configuration("llama", vocab_size=256, max_position_embeddings=100_000)))
    with pytest.raises(UserError, match="context must be shorter than the text"):
        nonlin.compare(text, ["swiglu", "relu"], model=long, out=tmp_path / "out", progress=False,
                       **SMALL | {"context": 30_000, "batch": 1})
    assert not (tmp_path / "out").exists()


def test_a_mistake_leaves_no_folder_of_studies_behind(text, tmp_path, monkeypatch):
    """The text is copied beside the studies while it is read: the folder for it goes again."""
    monkeypatch.chdir(tmp_path)
    for out in (None, "a/b/c"):
        with pytest.raises(UserError, match="context must be shorter than the text"):
            nonlin.compare(text, ["gelu", "relu"], context=30_000, batch=1, steps=2, out=out, progress=False)
        assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="context must be shorter"):
        nonlin.compare(text, ["gelu", "relu"], context=30_000, batch=1, steps=2, progress=False)
    assert (tmp_path / "runs").exists()
