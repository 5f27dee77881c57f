"""A recipe of one's own in a model of one's own: Muon's matrices, and batches in parts."""

import copy

import pytest

from nonlin.data import Corpus, Dataset, prepare
from nonlin.subject import describe
from nonlin.training import Run
from nonlin.training.recipe import describe as describe_recipe
from tests.subject.tiny import configuration, request, run_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    text = "".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(1800)).encode()
    prepare(Corpus((("a.txt", text),), "test text", "user"), folder)
    return Dataset(folder)


def config_of(family, dataset, arm="relu", options=None, **training):
    found = describe(request({"config": configuration(family, vocab_size=256)}, options=options or {}, vocabulary=256))
    made = run_config(found, arm, engine="torch", threads=1)
    recipe = {"steps": 10, "batch": 4, "learning_rate": 0.01, "weight_decay": 0.1, "warmup_fraction": 0.1, "clip": 1.0,
              "evaluation_tokens": 500, "evaluations": 1, "probe_every": 10}
    return copy.deepcopy({
        "format": 2, "purpose": "judge", "activation": {"name": arm, "formula": None}, **made,
        "data": {"sha256": dataset.info["sha256"], "tokenizer": "bytes"}, "training": recipe | training})


def test_muon_takes_the_matrices_inside_the_layers(dataset):
    run = Run(config_of("gpt2", dataset, optimizer="muon"), dataset)
    muon, adamw = run.optimizer.parts
    names = {id(p): n for n, p in run.model.named_parameters()}
    inside = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert inside == {n for n, p in run.model.named_parameters() if ".h." in n and p.ndim == 2}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert rest == set(names.values()) - inside and "inner.transformer.wte.weight" in rest
    losses = [run.step()[0] for _ in range(10)]
    assert losses[-1] < losses[0]


def test_the_plan_says_what_muon_does_not_take(dataset):
    """Stacked experts are no matrices, which torch's Muon wants."""
    config = config_of("qwen3_moe", dataset, optimizer="muon")
    run = Run(config, dataset)
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert not [names[id(p)] for p in run.optimizer.parts[0].param_groups[0]["params"] if "experts" in names[id(p)]]
    assert "inside the layers but not the stacked experts" in describe_recipe(config["training"], config["model"], {})
    assert "stacked" not in describe_recipe(config["training"], config_of("llama", dataset)["model"], {})


@pytest.mark.parametrize(("family", "arm"), [
    ("llama", "relu"), ("llama", "swiglu"), ("gpt2", "relu"), ("apertus", "prelu"), ("opt", "swiglu"),
    ("qwen3_moe", "relu")])
def test_activation_checkpointing_changes_no_step_and_no_probe(family, arm, dataset):
    """A probed layer is computed again in the backward pass, in the same way, and its values count once."""
    found = []
    for options in ({}, {"checkpointing": True}):
        run = Run(config_of(family, dataset, arm, options), dataset)
        found.append([run.step(probe=True), run.step(), run.step(probe=True), run.sparsity()])
        assert not run.model._hooked
    assert found[0] == found[1]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_batch_in_parts_is_the_batch(family, dataset):
    found = []
    for parts in (1, 2):
        run = Run(config_of(family, dataset, accumulation=parts), dataset)
        found.append([run.step(), run.step(probe=True)])
    for (loss, _, norm, layers), (other, _, other_norm, other_layers) in zip(*found, strict=True):
        # The router's own loss is of the tokens that it sees together.
        loose = 1e-4 if family == "llama" else 0.05
        assert loss == pytest.approx(other, rel=loose) and norm == pytest.approx(other_norm, rel=10 * loose)
        for mine, whole in zip(layers or (), other_layers or (), strict=True):
            assert mine["gradient_rms"] == pytest.approx(whole["gradient_rms"], rel=20 * loose)
            assert mine["output_rms"] == pytest.approx(whole["output_rms"], rel=20 * loose)
            assert mine["dead_share"] == pytest.approx(whole["dead_share"], abs=100 * loose * loose)
