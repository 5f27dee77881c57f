"""One model on two processes is the model on one: the same start, the same losses and weights within rounding."""

import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from nonlin.errors import NonlinError, UserError
from nonlin.training import Run, ranks, run_trial

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


def together(config, dataset, folder, **machine):
    """Run a configuration on two processes; return (record, lines of metrics.jsonl, progress)."""
    made = config | {"machine": config["machine"] | {"devices": 2} | machine}
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    record = ranks.run({"do": "trial", "config": made, "trial": str(folder), "dataset": str(dataset.directory)},
                       told.append)
    return record, _lines(folder), told


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


MUON = {"optimizer": "muon", "schedule": "wsd", "accumulation": 2}


@pytest.mark.parametrize(("parallel", "engine", "activation", "recipe"), [
    ("ddp", "torch", "swiglu", {}), ("fsdp", "torch", "xielu", {}), ("ddp", "native", "swiglu", MUON),
    ("fsdp", "torch", "swiglu", MUON)], ids=["ddp", "fsdp", "ddp-muon", "fsdp-muon"])
def test_two_processes_train_what_one_does(config, dataset, tmp_path, parallel, engine, activation, recipe):
    made = config(activation, steps=12, evaluations=1, engine=engine, **recipe)
    loose = 50 if recipe else 1  # Muon's iteration rounds to bfloat16
    alone = run_trial(made, dataset.directory, tmp_path / "one")
    record, lines, told = together(made, dataset, tmp_path / "two", parallel=parallel)
    assert record["status"] == alone["status"] == "finished" and told[0]["step"] == 1
    # Rounding alone: sums of other order, in float32.
    assert record["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=loose * 2e-5)
    assert record["initial_bits_per_byte"] == pytest.approx(alone["initial_bits_per_byte"], rel=1e-6)
    assert record["parameters"] == alone["parameters"]
    single = _lines(tmp_path / "one")
    assert [line["kind"] for line in lines] == [line["kind"] for line in single]
    for ours, theirs in zip(lines, single, strict=True):
        if ours["kind"] == "train":
            assert ours["loss_nats"] == pytest.approx(theirs["loss_nats"], rel=loose * 2e-5), ours["step"]
            assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=loose * 2e-4), ours["step"]
        if ours["kind"] == "probe":
            for layer, other in zip(ours["layers"], theirs["layers"], strict=True):
                assert layer == pytest.approx(other, rel=loose * 1e-3, abs=1e-6)
    assert record["sparsity"] == pytest.approx(alone["sparsity"], abs=0.02)
    ours, theirs = (load_file(tmp_path / name / "weights.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        # Adam divides by a gradient's own size: where that is nearly zero, rounding moves a weight by a step.
        assert float((ours[name] - weight).norm()) <= loose * 1e-3 * float(weight.norm()) + 1e-5, name


def test_the_first_loss_is_the_mean_over_all_tokens(config, dataset, tmp_path):
    """Before any step the two differ in the order of one sum alone."""
    made = config("gelu", steps=1, evaluations=1)
    _, lines, _ = together(made, dataset, tmp_path)
    loss = next(line["loss_nats"] for line in lines if line["kind"] == "train")
    assert loss == pytest.approx(Run(made, dataset).step()[0], rel=1e-6)


def test_measuring_and_mistakes(config, dataset):
    made = config("gelu", steps=2)
    made["machine"]["devices"] = 2
    request = {"do": "measure", "config": made, "dataset": str(dataset.directory), "seconds": 0.1}
    assert ranks.run(request, print)["tokens_per_second"] > 0
    odd = json.loads(json.dumps(made))
    odd["training"]["batch"] = 3
    with pytest.raises(UserError, match=r"devices-per-trial must divide the batch of 3 sequences; got 2.*--batch 4"):
        ranks.run(request | {"config": odd}, print)
    broken = json.loads(json.dumps(made))
    broken["model"]["dim"] = 15
    with pytest.raises(NonlinError):
        ranks.run(request | {"config": broken}, print)
    assert torch.get_num_threads() >= 1


def test_parts_must_divide_what_a_device_trains_on(monkeypatch):
    from nonlin.training.devices import SeveralDevices

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert SeveralDevices("ddp", 8, 4).size == 2
    with pytest.raises(UserError, match=r"accumulation must divide the 2 sequences of a device; got 4.*--batch 8"):
        SeveralDevices("ddp", 4, 4)
