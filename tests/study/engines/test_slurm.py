"""A real SLURM on loopback: jobs are cancelled, requeued, preempted, a daemon and the driver are started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nonlin.data import Corpus, prepare
from nonlin.errors import UserError
from nonlin.study import ProcessEngine, Store, defaults, run_study
from nonlin.study.engines import Request, ask
from nonlin.study.engines.slurm_job import refusal
from nonlin.training.config import CHECKPOINT
from tests.study import studies
from tests.study.engines import own_model, slurm_cluster
from tests.study.engines.comparing import comparable

pytest.importorskip("submitit", reason="submitit is not installed")

from nonlin.study.engines.slurm import SlurmEngine

ARMS = ("gelu", "swiglu")


@pytest.fixture(scope="module")
def cluster():
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    root = str(Path(__file__).parents[3])
    with pytest.MonkeyPatch.context() as patched:
        try:
            made = slurm_cluster.SlurmCluster().__enter__()
        except RuntimeError as error:
            pytest.skip(f"SLURM does not start here: {error}")
        patched.setenv("SLURM_CONF", str(made.conf))
        patched.setenv("PATH", slurm_cluster.PATH)
        patched.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        yield made
        made.__exit__()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What processes on this machine find."""
    folder = tmp_path_factory.mktemp("processes")
    with ProcessEngine("nowhere", 2, studies.WORKER) as engine:
        run_study(studies.plan(*ARMS), Store(folder), engine)
    return comparable(folder)


def engine(folder, **options):
    return SlurmEngine(folder, {"time": "5"} | options.pop("slurm", {}), options.pop("workers", 6), studies.WORKER,
                       look_seconds=1.0, **options)


def running(cluster):
    asked = ("--noheader", "--array", "--states=RUNNING", "--sort=-S", "--format=%i")  # the last one started first
    return cluster.call("squeue", *asked).stdout.split()


def test_cancelled_requeued_and_a_daemon_that_dies(cluster, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "1.5")
    done, told = [], []

    def disturb(event):
        told.append(event["message"] or "")
        jobs = running(cluster)
        if not jobs or (event["done"] < 2 and event["stage"] == "tune"):
            return
        cancelled = any("ended as CANCELLED" in words for words in told)
        if not cancelled:  # a job may answer before it is cancelled
            cluster.call("scancel", jobs[0], check=False)
        elif done.count("requeue") < 3:
            done.append("requeue")
            cluster.call("scontrol", "requeue", jobs[0], check=False)
        elif "daemon" not in done and event["stage"] == "judge":
            done.append("daemon")
            cluster.stop_node()
            cluster.start_node()

    with engine(tmp_path) as slurm:
        results = run_study(studies.plan(*ARMS), Store(tmp_path), slurm, disturb)
    assert done == ["requeue"] * 3 + ["daemon"]
    assert results["status"] == "complete" and comparable(tmp_path) == expected
    assert results["timing"]["lost_attempts"].get("preempted", 0) >= 1, [words for words in told if words]
    assert not (tmp_path / "running").exists() and not list((tmp_path / "slurm").glob("questions/*"))
    for folder in (tmp_path / "trials").iterdir():
        assert {path.name for path in folder.iterdir()} <= {
            "config.json", "metrics.jsonl", "result.json", "weights.safetensors"}


DRIVER = """
import json, sys
from pathlib import Path
from nonlin.study import Store, run_study
from nonlin.study.engines.slurm import SlurmEngine
from tests.study import studies
folder = Path(sys.argv[1])
with SlurmEngine(folder, {"time": "5"}, 6, studies.WORKER, look_seconds=1.0) as engine:
    run_study(studies.plan("gelu", "swiglu"), Store(folder), engine,
              lambda event: print(json.dumps(event), flush=True))
"""


def test_the_driver_is_killed_and_the_next_one_finds_its_jobs(cluster, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "2.0")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                              cwd=Path(__file__).parents[3])
    for line in driver.stdout:
        if json.loads(line)["done"] >= 2 and running(cluster):
            break
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    submitted = {path.parent.parent.name: json.loads(path.read_text())["job"]
                 for path in (tmp_path / "running").glob("*/*/slurm.json")}
    monkeypatch.delenv("FAKE_SECONDS")
    deadline = time.monotonic() + 60  # they go on without a driver
    while time.monotonic() < deadline and not list((tmp_path / "running").glob("*/*/answer.json")):
        time.sleep(0.2)
    answered = {path.parent.parent.name for path in (tmp_path / "running").glob("*/*/answer.json")}
    assert answered and answered <= submitted.keys()
    with engine(tmp_path) as slurm:
        results = run_study(studies.plan(*ARMS), Store(tmp_path), slurm)
    assert results["status"] == "complete" and comparable(tmp_path) == expected
    trials = tmp_path / "trials"
    attempts = {key: json.loads((trials / key / "result.json").read_text())["attempt"] for key in submitted}
    assert all(attempts[key] == 1 for key in answered)  # found, not run again
    # So were those still in the queue, but for what SLURM itself may fail to start on a busy machine.
    assert list(attempts.values()).count(1) >= len(submitted) - sum(results["timing"]["lost_attempts"].values())


def test_another_engine_goes_on_and_late_jobs_write_to_no_one(cluster, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "3.0")

    def stop(event):
        if running(cluster):
            raise KeyboardInterrupt

    with engine(tmp_path) as slurm:
        assert run_study(studies.plan(*ARMS), Store(tmp_path), slurm, stop)["status"] == "interrupted"
    monkeypatch.delenv("FAKE_SECONDS")
    assert running(cluster)  # Ctrl-C leaves jobs in the queue
    with ProcessEngine("nowhere", 2, studies.WORKER) as here:
        assert run_study(studies.plan(*ARMS), Store(tmp_path), here)["status"] == "complete"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").rglob("*")}
    cluster.call("scancel", f"--name={slurm.name}", check=False)
    assert comparable(tmp_path) == expected
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").rglob("*")}


def test_a_partition_that_is_not_there_is_said_and_finished_records_stay(cluster, tmp_path):
    def stop(event):
        if event["done"] >= 3:
            raise KeyboardInterrupt

    with ProcessEngine("nowhere", 2, studies.WORKER) as here:
        run_study(studies.plan(*ARMS), Store(tmp_path), here, stop)
    kept = Store(tmp_path).hashes()
    with (engine(tmp_path, slurm={"partition": "nonsense"}) as slurm,
          pytest.raises(UserError, match=r"sbatch must accept the jobs; it says: .*partition.*Every finished run")):
        run_study(studies.plan(*ARMS), Store(tmp_path), slurm)
    assert len(kept) >= 3 and Store(tmp_path).hashes() == kept
    with pytest.raises(UserError, match="whole numbers"):
        SlurmEngine(tmp_path, {"time": "an hour"})


@pytest.mark.slow
def test_a_preempted_job_runs_again(cluster, tmp_path, monkeypatch):
    """Jobs of an urgent partition take the cores; SLURM puts ours back into the queue."""
    beat = tmp_path / "beat"
    monkeypatch.setenv("FAKE_SECONDS", "4.0")
    urgent = []

    def preempt(event):
        if not urgent and len(running(cluster)) >= 2:
            urgent.append(cluster.call("sbatch", "--partition=urgent", "--cpus-per-task=3", "--output=/dev/null",
                                       f"--wrap=date > {beat}").stdout)
            monkeypatch.delenv("FAKE_SECONDS")

    with engine(tmp_path / "study") as slurm:
        results = run_study(studies.plan(*ARMS), Store(tmp_path / "study"), slurm, preempt)
    assert urgent and beat.exists() and results["status"] == "complete"
    records = [json.loads(path.read_text()) for path in (tmp_path / "study" / "trials").glob("*/result.json")]
    assert any(record["restarts"] >= 1 for record in records)


@pytest.mark.slow
def test_a_run_longer_than_the_time_limit_goes_on_from_its_checkpoint(cluster, tmp_path):
    """A job of two minutes, told to save after 30 to 90 seconds, whose run takes longer than that."""
    text = b"the same words again and again, in every order\n" * 2000
    info = prepare(Corpus((("a.txt", text),), "a text", "user"), tmp_path / "data")
    model = {"layers": 1, "dim": 32, "heads": 2, "kv_heads": 2, "context": 32, "vocabulary": 256, "hidden": 64}
    training = {"steps": 1000, "batch": 8, "learning_rate": 1e-2} | defaults.TRAINING | {"evaluation_tokens": 1024}
    config = {"format": 2, "purpose": "judge", "activation": {"name": "gelu", "formula": None}, "model": model,
              "data": {"sha256": info["sha256"], "tokenizer": "bytes"}, "training": training,
              "seed": 1, "streams": {"feed_forward": "pointwise"},
              "machine": {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cpu"}}
    with ProcessEngine(tmp_path / "data", 1) as here:
        speed = ask(here, {"do": "measure", "config": config, "seconds": 2.0})["tokens_per_second"]
        training["steps"] = int(100 * speed / 256)
        here.start(_trial(config, tmp_path / "at-once"), next(iter(here.free())))
        whole = _answer(here)
    with SlurmEngine(tmp_path, {"time": "2", "signal_delay_s": "30"}, 1, look_seconds=1.0) as slurm:
        slurm.start(request := _trial(config, tmp_path / "in-parts"), next(iter(slurm.free())))
        parts = _answer(slurm)
    assert parts.pop("restarts") >= 1 and parts.pop("processor")
    assert studies.without_timing(parts) == studies.without_timing(whole)
    assert not (request.folder / CHECKPOINT).exists()


@pytest.mark.slow
def test_a_time_limit_too_short_to_begin_is_said(cluster, tmp_path, monkeypatch):
    """The fake worker writes no checkpoint: each job is as one whose start takes all of its time."""
    monkeypatch.setenv("FAKE_SECONDS", "300")
    with engine(tmp_path, slurm={"time": "1", "signal_delay_s": "50"}) as slurm:
        slurm.start(_trial({"seed": 1, "purpose": "judge", **_FAKE}, tmp_path / "trial"), next(iter(slurm.free())))
        deadline, events = time.monotonic() + 600, []
        while not events and time.monotonic() < deadline:
            events = [event for event in slurm.poll(1.0) if event.kind in ("error", "done", "lost")]
    assert events[0].kind == "error", events
    assert "time must be enough for a run to begin; in 4 jobs" in events[0].value["message"]


_FAKE = {"activation": {"name": "gelu"}, "training": {"learning_rate": 0.01, "steps": 10}, "model": {"hidden": 8},
         "machine": {"device": "cpu"}}


def _trial(config, folder):
    folder.mkdir()
    return Request({"do": "trial", "config": config, "checkpoint_seconds": 60.0}, "a run", 1, folder)


def _answer(engine):
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        for event in engine.poll(1.0):
            assert event.kind in ("progress", "done", "told"), event
            if event.kind == "done":
                return dict(event.value)
    raise AssertionError("no answer")


def test_nodes_that_differ_are_refused_or_left_out():
    wanted = {"versions": {"nonlin": "1", "torch": "2"}, "processor": "A"}
    assert refusal(wanted, {"nonlin": "1", "torch": "2"}, "A") is None
    kind, value = refusal(wanted, {"nonlin": "1", "torch": "3"}, "A")
    assert kind == "error" and value["type"] == "UserError" and "torch 3 where the driver has 2" in value["message"]
    kind, value = refusal(wanted, {"nonlin": "1", "torch": "2"}, "B")
    assert kind == "lost" and value["cause"] == "node" and "another processor (B)" in value["reason"]


def test_questions_are_jobs_too(cluster, tmp_path):
    with engine(tmp_path) as slurm:
        assert ask(slurm, {"do": "describe"}) == {"cpu": "fake"}
        visible = ask(slurm, {"do": "environment", "name": "CUDA_VISIBLE_DEVICES", "config": {"machine": {
            "device": "cpu"}}})
    assert visible == ""


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch"):
        SlurmEngine(tmp_path)


def test_a_users_model_trains_in_a_job_as_here(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", own_model.path_of_workers())
    config, expected = own_model.tiny(tmp_path)
    with SlurmEngine(tmp_path, {"time": "5"}, 1, look_seconds=1.0) as there:
        own_model.trains_alike(there, tmp_path / "slurm", config, expected)
