"""Worker processes on this machine: what they see, what becomes of them, and which kind of end is tried again."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nonlin.errors import NonlinError, UserError
from nonlin.study import Plan, ProcessEngine, Store, load, make_plan, run_study
from nonlin.study.engines import Request, ask, ask_all, asking, opening, processes
from nonlin.study.engines.choice import EngineChoice
from nonlin.study.engines.opening import choose_machine, crowded, fit_to_records, measure_and_fit, open_engine
from nonlin.study.schedule import Schedule
from nonlin.training.config import CHECKPOINT, METRICS
from tests.study import studies
from tests.study.engines.comparing import comparable

SEES = {"do": "environment", "name": "CUDA_VISIBLE_DEVICES"}


def sees(device):
    return SEES | {"config": {"machine": {"device": device}}}


@pytest.fixture
def engine():
    with ProcessEngine("nowhere", None, studies.WORKER) as made:
        yield made


def test_trials_on_the_processor_see_no_gpu_and_those_on_gpus_see_their_own(engine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")  # what a user, or a cluster, left of a machine
    assert ask(engine, sees("cpu")) == "" and ask(engine, SEES | {"do": "environment"}) == ""
    engine.trials_per_gpu = 2
    engine.fit("cuda", {"gpus": 3}, None)
    assert engine.total() == 6
    shared = ask_all(engine, [sees("cuda")] * 12)
    assert set(shared) <= {"4", "5", "7"}
    handles = [engine.start(Request({"do": "sleep", "config": {"machine": {"device": "cuda"}}})) for _ in range(6)]
    assert sorted(w.visible for w in engine._busy) == ["4", "4", "5", "5", "7", "7"] and len(set(handles)) == 6
    with pytest.raises(NonlinError, match="idle"):
        engine.start(Request(sees("cpu")))


def test_one_trial_may_have_several_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with ProcessEngine("nowhere", None, studies.WORKER, devices_per_trial=2) as engine:
        engine.fit("cuda", {"gpus": 5}, None)
        assert engine.gpu_sets == ["0,1", "2,3"] and engine.total() == 2 and engine.slot.gpus == 2
        with pytest.raises(UserError, match=r"devices-per-trial must be at most this machine's 1 GPUs; got 2"):
            engine.fit("cuda", {"gpus": 1}, None)


def test_workers_are_the_cores_that_may_be_used_as_far_as_memory_allows(monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: 48)
    engine = ProcessEngine("nowhere")
    assert engine.total() == 48
    monkeypatch.setattr("nonlin.training.resources.available_memory_bytes", lambda: 10 * 2**30)
    engine.fit("cpu", {}, 2**30)
    assert engine.total() == 8
    few = ProcessEngine("nowhere", 3)
    few.fit("cpu", {}, 2**30)
    assert few.total() == 3
    assert ProcessEngine("nowhere", devices_per_trial=4).total() == 12


def test_a_study_that_goes_on_without_a_finished_run_knows_what_one_takes(monkeypatch, tmp_path):
    """It began with two runs at once; on a machine of many cores it would have taken all memory."""
    monkeypatch.setattr(processes, "usable_cores", lambda: 48)
    monkeypatch.setattr("nonlin.training.resources.available_memory_bytes", lambda: 10 * 2**30)
    speeds = {name: {"tokens_per_second": 1e5, "peak_memory_bytes": size} for name, size in (
        ("gelu", 2**30), ("silu", 2**31), ("swiglu", 2**29))}
    plan = make_plan(studies.request("gelu", "silu", "swiglu"), speeds, studies.MACHINE)
    assert Plan.from_dict(plan.as_dict()).memory_bytes == 2**31
    store = Store(tmp_path / "study")
    store.create(plan)
    engine = ProcessEngine("nowhere")
    fit_to_records(engine, plan.machine, {}, store, plan.memory_bytes)
    assert engine.total() == 4


def test_more_runs_at_once_than_memory_holds_are_said():
    engine, gib = ProcessEngine("nowhere", 8), 2**30
    assert crowded(engine, {}, 2 * gib, 10 * gib) == [
        "Take care: 8 runs at once take about 16.0 GiB of memory, and 10.0 are free. Take fewer --workers."]
    for each, free in ((gib, 10 * gib), (0, 10 * gib), (gib, None)):
        assert crowded(engine, {}, each, free) == []
    assert "1 run at once takes" in crowded(ProcessEngine("nowhere", 1), {}, 11 * gib, 10 * gib)[0]


def test_measuring_fills_all_workers_and_the_answer_is_by_name():
    with open_engine(EngineChoice(workers=3), Path("nowhere"), studies.WORKER) as engine:
        machine = choose_machine(engine, {"machine": {}}, {"gpus": 0})
        assert machine["device"] == "cpu"
        speeds = measure_and_fit(engine, {"a": {}, "b": {}}, machine, {})
    assert list(speeds) == ["a", "b"] and all(s["tokens_per_second"] for s in speeds.values())


def test_speeds_that_decide_training_times_are_medians_of_turns(monkeypatch):
    asked, disturbed = [], iter([1, 0, 0, 1, 0, 0, 0, 0, 1, 0])  # other work comes and goes

    def answers(engine, bodies):
        asked.extend(body["config"]["name"] for body in bodies)
        return [{"tokens_per_second": {"a": 100.0, "b": 80.0}[body["config"]["name"]] / (1 + next(disturbed)),
                 "seconds_overhead": 1.0 if body["evaluate"] else 0.0, "peak_memory_bytes": 7} for body in bodies]

    monkeypatch.setattr(asking, "ask_all", answers)
    engine = ProcessEngine("nowhere", 2)
    speeds = measure_and_fit(engine, {name: {"name": name} for name in "ab"}, {"device": "cpu"}, {}, equal_times=True)
    assert asked == ["a", "b"] * 5
    assert {name: one["tokens_per_second"] for name, one in speeds.items()} == {"a": 100.0, "b": 80.0}
    assert all(one["seconds_overhead"] == 1.0 and one["peak_memory_bytes"] == 7 for one in speeds.values())


@pytest.mark.parametrize(("overhead", "slower", "room", "chosen"), [
    (0.0, lambda count: 1 / count, 8, 1),  # a GPU that serves processes in turns is shared in vain
    (0.3, lambda count: 1 / count, 8, 4),  # but for what a run does beside its steps
    (0.3, lambda count: 1.0, 8, 8),
    (0.3, lambda count: 1.0, 2, 2)])  # more do not fit its memory
def test_trials_share_a_gpu_where_more_runs_end_a_second(monkeypatch, overhead, slower, room, chosen):
    asked, tokens = [], 1000 * 8 * 64

    def answers(engine, bodies):
        asked.append((len(bodies), bodies[0]["seconds"] > 0))
        if len(bodies) > room:
            raise NonlinError("out of memory")
        return [{"tokens_per_second": tokens * slower(len(bodies)), "seconds_overhead": overhead}] * len(bodies)

    monkeypatch.setattr(opening, "ask_all", answers)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = {"training": {"batch": 8}, "model": {"context": 64}}
    assert opening._measure_sharing(ProcessEngine("nowhere"), config, 1000) == chosen
    # Whoever is measured has trained before: one that still starts leaves the GPU to another.
    assert all(asked[at - 1] == (count, False) for at, (count, timed) in enumerate(asked) if timed)


def test_the_process_that_looked_at_all_gpus_trains_on_the_only_one(engine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    ask(engine, SEES | {"do": "environment", "config": {"machine": {}}})
    (looked,) = engine._idle
    looked.visible = None  # as of the question what the machine is
    engine.trials_per_gpu = 1
    engine.fit("cuda", {"gpus": 1}, None)
    ask(engine, sees("cuda"))
    assert engine._idle == [looked] and looked.visible == "7"


def test_steps_on_several_devices_are_not_said_to_be_captured(monkeypatch):
    found = {"engine": "torch", "dtype": "bfloat16", "threads": 1, "device": "cuda", "graphs": True}
    monkeypatch.setattr(opening, "ask", lambda *_: {"machine": found, "measured": [found]})
    made = []
    for devices in (1, 2):
        engine = ProcessEngine("nowhere", devices_per_trial=devices)
        engine.trials_per_gpu = 1
        made.append(choose_machine(engine, {"machine": {}}, {"gpus": 2}))
    assert made == [found, {**{k: v for k, v in found.items() if k != "graphs"}, "devices": 2, "parallel": "ddp"}]


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": "dask"}, "unknown engine 'dask'"), ({"workers": 0}, "workers must be 1 or more"),
    ({"trials_per_gpu": -1}, "trials-per-gpu must be 1 or more"), ({"slurm": {"time": "1"}}, "--engine slurm"),
    ({"address": "10.0.0.1:6379"}, "--engine ray"), ({"parallel": "fsdp"}, "devices-per-trial")])
def test_choices_that_make_no_engine(changes, words):
    with pytest.raises(UserError, match=words):
        EngineChoice(**changes)


def test_a_python_error_and_want_of_memory_are_results_said_with_what_to_do_and_the_others_go_on(tmp_path, monkeypatch):
    for name, words in (("ValueError", "ValueError: planted"), ("OutOfMemoryError", "Run fewer at once")):
        trap = tmp_path / name
        trap.mkdir()
        studies.trap(trap, "swiglu")
        monkeypatch.setenv("FAKE_FAIL", f"{name}:{trap}")
        told = []
        folder = tmp_path / f"{name}-study"
        with ProcessEngine("nowhere", 2, studies.WORKER) as engine, pytest.raises(NonlinError, match=words):
            run_study(studies.plan(), Store(folder), engine, lambda e, told=told: told.append(e["message"]))
        starts = (trap / "starts").read_text().splitlines()
        assert len(starts) == 1  # it is a result: not tried again
        judged = {a["name"]: len(a["judged"]) for a in load(folder).results["arms"]}
        assert judged == {"gelu": 4, "swiglu": 0, "silu": 4, "twin": 4}
        monkeypatch.delenv("FAKE_FAIL")
        assert studies.run(folder, studies.plan())["status"] == "complete"


def finished(trial):
    return {"config_hash": trial.key, "status": "finished", "bits_per_byte": 2.0, "initial_bits_per_byte": 8.0,
            "parameters": 1, "flops_per_token": 1, "layers": None, "timing": {"seconds": 0.0}}


def test_a_worker_given_up_for_dead_cannot_overwrite_a_later_attempt(tmp_path):
    """It comes back after the run was started again, and after that was finished."""
    store = Store(tmp_path)
    plan = studies.plan("gelu", "swiglu")
    trial = Schedule(plan).first[0]
    first, dead = store.begin(trial.config)
    second, alive = store.begin(trial.config)
    assert (first, second) == (1, 2) and dead != alive
    record = finished(trial)
    store.clear(dead)
    (dead / "metrics.jsonl").write_text("a dead worker writes\n")
    (alive / "metrics.jsonl").write_text("the living one\n")
    sealed = store.finish(alive, record | {"attempt": 2})
    with pytest.raises(FileNotFoundError):
        (dead / "weights.safetensors").write_bytes(b"")
    dead.mkdir(parents=True)
    (dead / "config.json").write_text((tmp_path / "trials" / trial.key / "config.json").read_text())
    assert store.finish(dead, record | {"attempt": 1}) == sealed
    assert (tmp_path / "trials" / trial.key / "metrics.jsonl").read_text() == "the living one\n"
    assert store.read(trial.key)[1]["attempt"] == 2


def test_a_later_attempt_goes_on_from_the_checkpoint_of_the_one_before(tmp_path):
    store, trial = Store(tmp_path), Schedule(studies.plan("gelu", "swiglu")).first[0]
    _, first = store.begin(trial.config)
    (first / CHECKPOINT).write_bytes(b"where it was")
    (first / METRICS).write_text("a line\n")
    (first / "weights.tmp").write_bytes(b"half of them")
    store.clear(first)
    _, second = store.begin(trial.config)
    assert {path.name for path in second.iterdir()} == {"config.json", CHECKPOINT, METRICS}
    assert (second / CHECKPOINT).read_bytes() == b"where it was" and not list(first.iterdir())
    store.clear(second)
    _, third = store.begin(trial.config)
    assert (third / METRICS).read_text() == "a line\n"
    (third / CHECKPOINT).unlink()  # a run that ends removes it
    store.finish(third, finished(trial))
    assert not (tmp_path / "running" / trial.key).exists()
    assert sorted(store.read(trial.key)[1]["files"]) == ["config.json", METRICS]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_workers_end_with_the_process_that_runs_the_study(tmp_path, how):
    """They write nothing that could fail: each holds one end of a pipe, which is closed when the last is gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER.format(study=str(tmp_path / "study"), worker=WORKER)],
                              env=os.environ | {"PYTHONPATH": os.pathsep.join([ROOT, *sys.path]), "HELD": str(pipe)},
                              preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    workers = b""
    try:
        while workers.count(b"\n") < 2:
            assert driver.poll() is None
            if select.select([reader], [], [], 0.1)[0]:
                workers += os.read(reader, 100)
            else:
                time.sleep(0.05)
        driver.send_signal(how)
        assert driver.wait(60) == -how
        assert select.select([reader], [], [], 120)[0] and os.read(reader, 100) == b""
    finally:
        driver.kill()
        driver.wait()
        os.close(reader)
        for worker in workers.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGKILL)


ROOT = str(Path(__file__).parents[3])
#: The real worker's main; a trial holds the pipe and never ends.
WORKER = ("import os, time\nfrom nonlin.training import worker\n"
          "def hold(request):\n"
          "    held = os.open(os.environ['HELD'], os.O_WRONLY)\n"
          "    os.write(held, b'%d\\n' % os.getpid())\n"
          "    time.sleep(1000)\n"
          "worker.main(hold)\n")
DRIVER = ("import sys\nfrom nonlin.study import ProcessEngine, Store, run_study\nfrom tests.study import studies\n"
          "with ProcessEngine('nowhere', 2, [sys.executable, '-c', {worker!r}]) as engine:\n"
          "    run_study(studies.plan(), Store({study!r}), engine)\n")


def test_engines_one_after_the_other_continue_one_folder(tmp_path):
    """The first stops in the middle; what it finished is taken, whatever engine goes on."""
    plan = studies.plan()
    with ProcessEngine("nowhere", 2, studies.WORKER) as engine:
        run_study(plan, Store(tmp_path / "whole"), engine)

    def stop(event):
        if event["stage"] == "judge" and event["done"] >= 2:
            raise KeyboardInterrupt

    with ProcessEngine("nowhere", 2, studies.WORKER) as engine:
        assert run_study(plan, Store(tmp_path / "parts"), engine, stop)["status"] == "interrupted"
    with ProcessEngine("nowhere", 5, studies.WORKER) as engine:
        assert run_study(plan, Store(tmp_path / "parts"), engine)["status"] == "complete"
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")
