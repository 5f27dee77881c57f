"""The worker process: one answer a request whatever a library prints, errors as answers, an end with the input."""

import json
import os
import subprocess
import sys

import pytest

from nonlin.report.page import _setting
from nonlin.study.engines.worker_process import ENVIRONMENT
from nonlin.training import worker


def serve(*lines, code="from nonlin.training.worker import main; main()"):
    done = subprocess.run([sys.executable, "-c", code], input="".join(line + "\n" for line in lines),
                          capture_output=True, text=True, timeout=60, env=os.environ | ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def conversation(tmp_path_factory, dataset):
    """One process, asked for everything, once: a library prints on standard output in every way there is."""
    made = {
        "format": 1, "purpose": "tune", "activation": {"name": "mine", "formula": "x*sigmoid(2*x)"},
        "model": {"layers": 1, "dim": 16, "heads": 2, "kv_heads": 1, "context": 16, "vocabulary": 256, "hidden": 24},
        "data": {"sha256": dataset.info["sha256"], "tokenizer": "bytes"},
        "training": {"steps": 25, "batch": 4, "learning_rate": 0.01, "weight_decay": 0.1, "warmup_fraction": 0.1,
                     "clip": 1.0, "evaluation_tokens": 500, "evaluations": 1, "probe_every": 10},
        "seed": 1, "machine": {"engine": "torch", "dtype": "float32", "threads": 1}}
    folder = str(tmp_path_factory.mktemp("trial"))
    where = {"dataset": str(dataset.directory)}
    requests = [
        {"do": "trial", "config": made, "trial": folder} | where,
        {"do": "nonsense"} | where,
        {"do": "trial", "config": made | {"data": {"sha256": "0", "tokenizer": "bytes"}}, "trial": folder} | where,
        {"do": "measure", "config": made, "seconds": 0.05} | where,
        {"do": "machine", "config": made, "seconds": 0.05} | where,
        {"do": "describe"} | where]
    code = ("import os, pickle, sys, torch\n"
            "import nonlin.training.worker as worker\n"
            "plain = worker.handle\n"
            "def noisy(request):\n"
            "    print('a library prints'), os.write(1, b'and C code too\\n'), os.system('echo so does a child')\n"
            "    return plain(request)\n"
            "def refuse(*a, **k): raise AssertionError('unpickled')\n"
            "pickle.load = pickle.loads = torch.load = refuse\n"
            "worker.main(noisy)\n"
            "print('the end', file=sys.stderr)\n")
    lines = [json.dumps(request) for request in requests]
    lines.insert(2, "this is no JSON")
    return serve(*lines, code=code)


def test_only_answers_reach_standard_output(conversation):
    answers, errors = conversation
    assert all(len(answer) == 1 and set(answer) <= {"progress", "done", "error"} for answer in answers)
    for text in ("a library prints", "and C code too", "so does a child"):
        assert errors.count(text) == 6
    assert "unpickled" not in errors and errors.endswith("the end\n")  # the end of the input ended it


def test_each_request_has_its_answer_in_its_turn(conversation):
    answers = [answer for answer in conversation[0] if "progress" not in answer]
    assert [next(iter(answer)) for answer in answers] == ["done", "error", "error", "error", "done", "done", "done"]
    trial, unknown, garbled, foreign, speed, machine, described = (next(iter(a.values())) for a in answers)
    assert trial["status"] == "finished" and 0 < trial["bits_per_byte"] < 8
    assert unknown == {"type": "NonlinError", "message": "unknown request 'nonsense'"}
    assert garbled["type"] == "JSONDecodeError"
    assert foreign["type"] == "UserError" and "its hash differs" in foreign["message"]
    assert speed["tokens_per_second"] > 0 and speed["seconds_overhead"] > 0
    rates = {json.dumps({k: o[k] for k in machine["machine"]}): o["tokens_per_second"] for o in machine["measured"]}
    assert rates[json.dumps(machine["machine"])] == max(rates.values())
    assert described["torch"] and described["cores"] >= 1


def test_progress_comes_before_the_end_of_a_run(conversation):
    kinds = [next(iter(answer)) for answer in conversation[0]]
    assert kinds[:3] == ["progress", "progress", "done"]
    assert [a["progress"]["step"] for a in conversation[0][:2]] == [1, 21]


def test_a_step_that_cannot_be_captured_is_launched_and_the_plan_says_why(monkeypatch):
    plain = {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cuda"}

    def measure(config, *_):
        if config["machine"].get("graphs"):
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return {"tokens_per_second": 1.0}

    monkeypatch.setattr(worker.machine, "candidates", lambda *_: [plain | {"graphs": True}, plain])
    monkeypatch.setattr(worker.measuring, "measure", measure)
    answer = worker._choose_machine({"config": {"model": {}, "training": {}}, "dataset": "."})
    reason = answer["machine"].pop("not captured")
    assert answer["machine"] == plain and reason.isprintable()
    assert reason.startswith("RuntimeError: operation not permitted")
    assert "since their capture as CUDA graphs raised RuntimeError" in _setting("not captured", reason)
    monkeypatch.setattr(worker.machine, "candidates", lambda *_: [plain])
    monkeypatch.setattr(worker.measuring, "measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker._choose_machine({"config": {"model": {}, "training": {}}, "dataset": "."})


@pytest.mark.skipif(os.name != "posix", reason="a process does not know of its parent's end")
def test_a_worker_whose_parent_is_gone_before_it_began_does_nothing():
    """Loading torch takes seconds: a call that is killed meanwhile has left a whole run to train in the pipe."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = subprocess.run([sys.executable, "-m", "nonlin.training.worker"], input="".join(
        json.dumps({"do": "describe"}) + "\n" for _ in range(2000)), capture_output=True, text=True, timeout=60,
        env=os.environ | ENVIRONMENT | {"NONLIN_END_WITH_PARENT": str(gone.pid)})
    assert done.returncode == 1 and done.stdout.count("\n") < 2000
