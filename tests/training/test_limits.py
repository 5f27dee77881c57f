"""Sizes that no machine has: a run says so in one line before anything of it is made."""

import json

import pytest

from nonlin.errors import UserError
from nonlin.model.language_model import LanguageModel
from nonlin.training import limits, load_trained, measure, run_trial, trial
from tests.subject.tiny import configuration
from tests.training.test_worker import serve

OF_WEIGHTS = ("dim", "layers", "vocabulary")
ABSURD = [("model", "dim", 2**20), ("model", "layers", 10**6), ("model", "context", 10**9),
          ("model", "context", 10**15),
          ("model", "vocabulary", 10**12), ("model", "hidden", 10**12), ("model", "heads", 2**40),
          ("training", "batch", 10**12)]


@pytest.fixture
def absurd(config, monkeypatch):
    """A configuration with one size changed, where nothing may be made of it."""
    def refuse(*_, **__):
        raise AssertionError("a model was made")

    def make(part, name, value):
        monkeypatch.setattr(trial, "build_model", refuse)
        monkeypatch.setattr("nonlin.training.trained.build_model", refuse)
        made = config()
        made[part][name] = value
        return made

    return make


@pytest.mark.parametrize(("part", "name", "value"), ABSURD)
def test_an_absurd_size_is_one_error_before_anything_is_made(absurd, dataset, tmp_path, part, name, value):
    made = absurd(part, name, value)
    for call in (lambda: run_trial(made, dataset.directory, tmp_path), lambda: measure(made, dataset.directory)):
        with pytest.raises(UserError, match="must") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "name", "value"), [one for one in ABSURD if one[1] in OF_WEIGHTS])
def test_a_trained_model_of_absurd_size_is_not_opened(absurd, tmp_path, part, name, value):
    (tmp_path / "config.json").write_text(json.dumps(absurd(part, name, value)))
    with pytest.raises(UserError, match="must"):
        load_trained(tmp_path)


def test_a_worker_answers_an_absurd_size_and_goes_on(config, dataset, tmp_path):
    """A process of its own, which no test double bounds: sizes whose memory a system would promise, and then end it."""
    asked = []
    for part, name, value in [("model", "layers", 10**6), ("training", "batch", 10**8), ("model", "dim", 2**17)]:
        made = config()
        made[part][name] = value
        asked.append({"do": "trial", "config": made, "trial": str(tmp_path), "dataset": str(dataset.directory)})
    answers, _ = serve(*map(json.dumps, asked), json.dumps({"do": "describe"}))
    assert [answer.get("error", {}).get("type") for answer in answers] == ["UserError"] * 3 + [None]


@pytest.mark.parametrize(("values", "most", "needed"), [({}, 10**5, "must fit"), ({}, 10**9, None)])
def test_what_a_run_needs_is_held_against_the_machine(config, dataset, monkeypatch, values, most, needed):
    monkeypatch.setattr(limits, "machine_memory_bytes", lambda: most)
    made = config(**values)
    if needed is None:
        return limits.must_be_possible(made, dataset)
    with pytest.raises(UserError, match=needed):
        limits.must_be_possible(made, dataset)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_the_parameters_are_those_of_the_model(config, activation):
    made = config(activation)
    assert limits.parameters(made) == sum(p.numel() for p in trial.build_model(made).parameters())
    assert isinstance(trial.build_model(made), LanguageModel)


@pytest.mark.parametrize(("fields", "words"), [({"num_hidden_layers": 10**9}, "at most"),
                                               ({"num_labels": 10**9}, "at most"), ({"hidden_size": 2**40}, "must"),
                                               ({}, None)])
def test_a_users_own_configuration_is_counted_without_memory(config, dataset, fields, words):
    pytest.importorskip("transformers", reason="transformers is not installed")
    made = config()
    made["model"] = {"context": 16, "widths": [], "own": {
        "class": "LlamaForCausalLM", "config": configuration("llama") | fields, "blocks": []}}
    if words is None:
        limits.must_be_possible(made, dataset)
        assert 0 < limits.parameters(made) < 10**7
    else:
        with pytest.raises(UserError, match=words):
            limits.must_be_possible(made, dataset)
