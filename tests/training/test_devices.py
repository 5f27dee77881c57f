"""One model on two processes is the model on one: the same start, the same losses and weights within rounding."""

import contextlib
import json
import os
import queue
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file

from nonlin.errors import NonlinError, UserError
from nonlin.study.engines.worker_process import COMMAND, WorkerProcess, fate
from nonlin.training import Run, ranks, run_trial
from nonlin.training.config import CHECKPOINT, Stopped
from tests import two_ranks

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


def trial(config, dataset, folder, **machine):
    """The request for a run on two processes."""
    made = config | {"machine": config["machine"] | {"devices": 2} | machine}
    folder.mkdir(parents=True, exist_ok=True)
    return {"do": "trial", "config": made, "trial": str(folder), "dataset": str(dataset.directory)}


def together(config, dataset, folder, **machine):
    """Run a configuration on two processes; return (record, progress)."""
    told = []
    record = ranks.run(trial(config, dataset, folder, **machine), told.append)
    return record, told


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


MUON = {"optimizer": "muon", "schedule": "wsd", "accumulation": 2}


#: How a run is spread, what computes it, its activation, its recipe.
KINDS = {"ddp": ("ddp", "torch", "swiglu", {}), "fsdp": ("fsdp", "torch", "xielu", {}),
         "ddp-muon": ("ddp", "native", "swiglu", MUON), "fsdp-muon": ("fsdp", "torch", "swiglu", MUON)}


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def whole(config, dataset, tmp_path_factory, kept):
    """Return a kind's run on two processes, made once: (configuration, folder, record, progress)."""

    def make(kind):
        if kind not in kept:
            parallel, engine, activation, recipe = KINDS[kind]
            made = config(activation, steps=12, evaluations=1, engine=engine, **recipe)
            folder = tmp_path_factory.mktemp(kind)
            record, told = together(made, dataset, folder, parallel=parallel)
            kept[kind] = made, folder, record, told
        return kept[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_does(whole, dataset, tmp_path, kind):
    recipe = KINDS[kind][-1]
    made, folder, record, told = whole(kind)
    lines = _lines(folder)
    loose = 50 if recipe else 1  # Muon's iteration rounds to bfloat16
    alone = run_trial(made, dataset.directory, tmp_path / "one")
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
    ours, theirs = (load_file(place / "weights.safetensors") for place in (folder, tmp_path / "one"))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        # Adam divides by a gradient's own size: where that is nearly zero, rounding moves a weight by a step.
        assert float((ours[name] - weight).norm()) <= loose * 1e-3 * float(weight.norm()) + 1e-5, name


def _descendants(of):
    """The processes that a process started, and those that they did."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {of}


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")


@needs_proc
def test_a_run_on_two_processes_that_was_killed_and_stopped_goes_on_from_its_whole_state(whole, dataset, tmp_path):
    """FSDP2: each process has half of the weights and of the moments; the checkpoint has all of them."""
    made, folder, record, _ = whole("fsdp-muon")
    before = _descendants(os.getpid())

    def kill(progress):
        deadline = time.monotonic() + 60
        while not (place / CHECKPOINT).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        ours = _descendants(os.getpid()) - before
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(max(pid for pid in ours if not _descendants(pid)), signal.SIGKILL)

    for attempt in range(10):  # a busy machine may be too late with the blow
        place = tmp_path / f"parts-{attempt}"
        request = trial(made, dataset, place, parallel="fsdp") | {"checkpoint_seconds": 0.0}
        with contextlib.suppress(ranks.Lost):
            ranks.run(request, kill)
            continue
        break
    assert 1 <= _step(place) < 12
    with safe_open(place / CHECKPOINT, "pt") as file:
        up = next(name for name in file.keys() if name.startswith("model.") and name.endswith("up.weight"))  # noqa: SIM118
        assert file.get_tensor(up).shape == (24, 16)
    if (step := _step(place)) < 11:
        with pytest.raises(Stopped):
            ranks.run(request, print, lambda: True)
        assert _step(place) > step
    again = ranks.run(request, print)
    assert again | {"timing": None} == record | {"timing": None} and record["status"] == "finished"
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (place / name).read_bytes() == (folder / name).read_bytes()
    assert not (place / CHECKPOINT).exists()


def _step(folder):
    with safe_open(folder / CHECKPOINT, "pt") as file:
        return json.loads(file.metadata()["position"])["course"]["step"]


@pytest.mark.slow
@needs_proc
def test_a_worker_that_is_killed_takes_the_processes_with_it_and_one_that_loses_them_is_lost(config, dataset, tmp_path):
    def start(name):
        worker = WorkerProcess(COMMAND, lambda _, answer: heard.put(answer))
        worker.send(trial(config("gelu", steps=10**6), dataset, tmp_path / name))
        assert heard.get(timeout=120)[0] == "progress"
        return worker, _descendants(worker.process.pid)

    heard = queue.SimpleQueue()
    worker, others = start("killed")
    assert len(others) == 3
    worker.end()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in others) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]
    while heard.get(timeout=60) is not None:
        pass
    worker, others = start("loses")
    os.kill(max(pid for pid in others if not _descendants(pid)), signal.SIGKILL)
    while (answer := heard.get(timeout=120)) is not None:
        assert answer[0] == "progress"
    assert "those that train together" in worker.last_words()
    kind, value = fate(worker, True)  # it ends as the one that was killed
    assert kind == "error" and value["type"] == "OutOfMemory"

def test_the_first_loss_is_the_mean_over_all_tokens(config, dataset, tmp_path):
    """Before any step the two differ in the order of one sum alone."""
    made = config("gelu", steps=1, evaluations=1)
    together(made, dataset, tmp_path)
    loss = next(line["loss_nats"] for line in _lines(tmp_path) if line["kind"] == "train")
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


def test_processes_whose_tokens_reach_different_experts_train_each(tmp_path):
    two_ranks.run(Path(__file__).with_name("experts_worker.py"), tmp_path)
