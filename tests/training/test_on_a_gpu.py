"""Training on a GPU: steps captured as a graph, checkpoints, whole studies, the user's own model, check."""

import json
import subprocess
import sys

import pytest
import torch

import nonlin
from nonlin.training import Run, run_trial
from nonlin.training.checkpoint import Checkpoints
from nonlin.training.config import Stopped

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


def on_gpu(made, graphs=True, dtype="float32"):
    made["machine"] = {"engine": "torch", "dtype": dtype, "threads": 1, "device": "cuda"} | (
        {"graphs": True} if graphs else {})
    return made


def without_timing(record):
    return {key: value for key, value in record.items() if key not in ("timing", "config_hash")}


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "prelu"])
def test_captured_steps_are_the_launched_steps(config, dataset, activation):
    runs = [Run(on_gpu(config(activation, probe_every=7), graphs), dataset) for graphs in (True, False)]
    losses = [[run.step(index % 7 == 6)[:3] for index in range(20)] for run in runs]
    for captured, launched in zip(*losses, strict=True):
        assert captured == pytest.approx(launched, rel=2e-4)
    assert losses[0][-1][0] < losses[0][0][0]
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_run_is_a_pure_function_of_its_configuration(config, dataset, tmp_path, graphs):
    made = on_gpu(config("swiglu"), graphs, "bfloat16")
    one, two = (run_trial(made, dataset.directory, tmp_path / name) for name in ("one", "two"))
    assert without_timing(one) == without_timing(two)
    assert one["status"] == "finished"


@pytest.mark.parametrize("graphs", [True, False])
def test_the_gpu_trains_as_the_processor_does(config, dataset, tmp_path, graphs):
    here = run_trial(on_gpu(config("swiglu", steps=60), graphs), dataset.directory, tmp_path / "gpu")
    there = run_trial(config("swiglu", steps=60), dataset.directory, tmp_path / "cpu")
    assert here["bits_per_byte"] == pytest.approx(there["bits_per_byte"], abs=2e-3)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_stopped_run_goes_on(config, dataset, tmp_path, graphs):
    made, asked = on_gpu(config("swiglu"), graphs), []
    whole = run_trial(made, dataset.directory, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_trial(made, dataset.directory, tmp_path / "part", lambda _: asked.append(1),
                  Checkpoints(tmp_path / "part", asked=lambda: len(asked) > 1))
    part = run_trial(made, dataset.directory, tmp_path / "part", None, Checkpoints(tmp_path / "part"))
    assert part["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], abs=1e-4)
    assert len((tmp_path / "part" / "metrics.jsonl").read_text().splitlines()) == len(
        (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())


def _text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}; " for n in range(20000)))
    return path


def test_a_study(tmp_path):
    command = [sys.executable, "-m", "nonlin", "compare", "--data", str(_text(tmp_path)), "--layers", "1",
               "--dim", "32", "--steps", "60", "--seeds", "4", "--learning-rates", "2",
               "--activations", "gelu,swiglu,relu", "--out", str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    plan = json.loads((tmp_path / "study" / "plan.json").read_text())
    assert plan["machine"]["device"] == "cuda", plan["machine"]
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert len(results["arms"]) == 3, list(results)


def test_a_study_of_the_users_own_model(tmp_path):
    pytest.importorskip("transformers")
    command = [sys.executable, "-m", "nonlin", "compare", "--model", "qwen3", "--layers", "1", "--dim", "32",
               "--data", str(_text(tmp_path)), "--steps", "40", "--seeds", "4", "--learning-rates", "2",
               "--activations", "swiglu,gelu", "--out", str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "study" / "plan.json").read_text())["machine"]["device"] == "cuda"


def test_check_on_the_gpu_says_what_check_on_the_processor_says(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    told = [nonlin.check(tmp_path / "model", device=device, progress=False) for device in ("cpu", "cuda")]
    for here, there in zip(*(report.blocks for report in told), strict=True):
        assert here["activation"]["computed"] == there["activation"]["computed"] == "swiglu"
        assert here["sparsity"] == pytest.approx(there["sparsity"], abs=0.01)
