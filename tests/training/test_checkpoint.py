"""A run that is stopped in its middle and goes on ends as one that was never stopped, to the last bit."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from nonlin.study.engines.worker_process import ENVIRONMENT
from nonlin.training import run_trial
from nonlin.training.checkpoint import Checkpoints, Stopped
from nonlin.training.config import CHECKPOINT


def without_timing(record):
    return {k: v for k, v in record.items() if k != "timing"}


@pytest.fixture
def whole(config, dataset, tmp_path):
    made = config("prelu", steps=30, evaluations=3)
    return made, run_trial(made, dataset.directory, tmp_path / "whole")


@pytest.mark.parametrize("stops", [[1], [7], [10, 11, 29], [20]])
def test_stopped_and_gone_on_is_never_stopped(whole, dataset, tmp_path, stops):
    made, record = whole
    folder = tmp_path / "parts"
    for stop in stops:
        seen = []
        with pytest.raises(Stopped):
            run_trial(made, dataset.directory, folder, checkpoints=stopping_at(folder, stop, seen))
        torch.manual_seed(99)  # what else the process did is not to matter
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 999}\n')  # written after the checkpoint, before the kill
    again = run_trial(made, dataset.directory, folder, checkpoints=Checkpoints(folder))
    assert without_timing(again) == without_timing(record)
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (folder / CHECKPOINT).exists()
    assert again["timing"]["seconds"] > 0


def stopping_at(folder, step, seen):
    """Checkpoints of a run that is asked to stop after so many steps."""
    made = Checkpoints(folder)
    plain = made.save

    def save(key, devices, optimizer, position, losses):
        if position["course"]["step"] == step:
            seen.append(step)
            made.asked = lambda: True
        plain(key, devices, optimizer, position, losses)

    made.due, made.save = lambda: True, save
    return made


@pytest.mark.parametrize("damage", ["cut", "of another", "no metrics"])
def test_a_checkpoint_that_is_of_no_use_is_not_used(whole, config, dataset, tmp_path, damage):
    made, record = whole
    folder = tmp_path / "parts"
    with pytest.raises(Stopped):
        run_trial(made, dataset.directory, folder, checkpoints=stopping_at(folder, 9, []))
    if damage == "cut":
        (folder / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes()[:-100])
    elif damage == "no metrics":
        (folder / "metrics.jsonl").unlink()
    else:
        other = config("prelu", steps=30, evaluations=3, seed=2)
        with pytest.raises(Stopped):
            run_trial(other, dataset.directory, folder, checkpoints=stopping_at(folder, 5, []))
    again = run_trial(made, dataset.directory, folder, checkpoints=Checkpoints(folder))
    assert without_timing(again) == without_timing(record)


def test_a_worker_told_to_end_writes_its_checkpoint_and_the_next_goes_on(config, dataset, tmp_path):
    made = config("gelu", steps=400)
    request = {"do": "trial", "config": made, "dataset": str(dataset.directory)}
    command = [sys.executable, "-m", "nonlin.training.worker"]

    def start(folder):
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  env=os.environ | ENVIRONMENT)
        worker.stdin.write(json.dumps(request | {"trial": str(folder)}) + "\n")
        worker.stdin.flush()
        return worker

    stopped = start(tmp_path / "run")
    first = json.loads(stopped.stdout.readline())
    stopped.send_signal(signal.SIGUSR2)  # as SLURM does, before the job's program tells the worker to end
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 128 + signal.SIGTERM and "progress" in first
    assert (tmp_path / "run" / CHECKPOINT).exists()
    after = start(tmp_path / "run")
    out, _ = after.communicate(timeout=120)
    answers = [json.loads(line) for line in out.splitlines()]
    assert answers[0]["progress"]["step"] > first["progress"]["step"]
    whole = run_trial(made, dataset.directory, tmp_path / "whole")
    assert without_timing(answers[-1]["done"]) == without_timing(whole)
