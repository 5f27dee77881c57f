"""Studies that are interrupted, killed, damaged, locked, out of disk: nothing finished is lost, ends are equal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nonlin.errors import NonlinError, UserError
from nonlin.study import ProcessEngine, Store, load
from nonlin.study.engines import ask, ask_all
from nonlin.study.tuning import trials_of
from tests.study import studies

PROGRAM = [sys.executable, str(Path(__file__).with_name("studies.py"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted study's results."""
    return studies.run(tmp_path_factory.mktemp("whole"), studies.plan())


def _first(directory, arm="swiglu", purpose="tune"):
    return next(t for t in trials_of(studies.plan(), purpose, {}) if t.arm == arm).key


def test_a_study_finds_what_was_planted(whole):
    arms = {arm["name"]: arm for arm in whole["arms"]}
    assert whole["status"] == "complete" and whole["winner"] == "swiglu" and whole["advice"].startswith("Use swiglu")
    assert {n: a["verdict"] for n, a in arms.items()} == {
        "gelu": "baseline", "swiglu": "better", "silu": "tie", "twin": "tie"}
    assert arms["twin"]["difference"]["mean"] == 0.0
    assert arms["swiglu"]["difference"]["mean"] == pytest.approx(-0.05, abs=0.003)
    assert all(arm["learning_rate"] == 0.01 for arm in arms.values())
    assert all(arm["layers"][1]["dead_share"] is None for arm in arms.values())  # nan is written as null


def test_files(tmp_path, whole):
    results = studies.run(tmp_path, studies.plan())
    on_disk = json.loads((tmp_path / "results.json").read_text())
    assert studies.without_timing(on_disk) == studies.without_timing(json.loads(json.dumps(results)))
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert rows[0].startswith("name,kind,verdict,bits_per_byte") and len(rows) == 5
    folder = load(tmp_path)
    for key, (config, record) in folder.trials().items():
        assert record["config_hash"] == key and config["format"] == 2
        there = {p.name for p in (tmp_path / "trials" / key).iterdir()}
        assert {"config.json", "result.json", "metrics.jsonl"} <= there
    assert not (tmp_path / "running").exists()


def test_what_a_kill_left_of_finished_attempts_is_removed(tmp_path, whole):
    """Killed between the rename that finishes a trial and the removal of its attempts: no later call runs it again."""
    studies.run(tmp_path, studies.plan())
    left, other = _first(tmp_path), "0" * 16
    for folder in (left, other):
        (tmp_path / "running" / folder / "1").mkdir(parents=True)
        (tmp_path / "running" / folder / "1" / "metrics.jsonl").write_text("{}")
    assert studies.without_timing(studies.run(tmp_path, studies.plan())) == studies.without_timing(whole)
    assert [path.name for path in (tmp_path / "running").iterdir()] == [other]  # nothing says that it is finished
    (tmp_path / "running" / other).rename(tmp_path / "elsewhere")
    studies.run(tmp_path, studies.plan())
    assert not (tmp_path / "running").exists()


def _program(directory, **environment):
    # A shell that starts the tests in the background has told them to ignore Ctrl-C.
    return subprocess.Popen([*PROGRAM, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | environment,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.mark.parametrize(("stage", "finished", "pause"), [
    ("tune", 0, 0.0), ("tune", 5, 0.03), ("tune", 10, 0.06), ("judge", 1, 0.01), ("judge", 9, 0.05)])
def test_kill_nine_and_the_same_command_again(tmp_path, whole, stage, finished, pause):
    first = _program(tmp_path, FAKE_SECONDS="0.1")
    for line in first.stdout:
        event = json.loads(line)
        if event.get("stage") == stage and event["done"] >= finished:
            break
    time.sleep(pause)  # into the middle of what runs now
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*/result.json")}
    second = _program(tmp_path)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    results = json.loads((tmp_path / "results.json").read_text())
    assert studies.without_timing(results) == studies.without_timing(json.loads(json.dumps(whole)))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*/result.json")}
    assert len(done) < len(after)  # it was killed before its end
    assert done.items() <= after.items()  # and what was finished did not run again


def test_control_c_ends_cleanly_with_what_is_known(tmp_path, whole):
    program = _program(tmp_path, FAKE_SECONDS="0.5")
    for line in program.stdout:
        event = json.loads(line)
        if event.get("stage") == "judge" and event["done"] >= 3:
            program.send_signal(signal.SIGINT)
            break
    out, err = program.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1]) == {"status": "interrupted"} and "Traceback" not in err
    known = json.loads((tmp_path / "results.json").read_text())
    assert known["advice"].startswith("No advice yet") and sum(len(a["judged"]) for a in known["arms"]) >= 3
    assert all(a["verdict"] in ("undecided", "baseline") for a in known["arms"])
    again = studies.run(tmp_path, studies.plan())
    assert studies.without_timing(again) == studies.without_timing(whole)


def test_a_worker_that_dies_once_is_replaced(tmp_path, whole, monkeypatch):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / _first(tmp_path)).touch()
    monkeypatch.setenv("FAKE_DIE", str(trap))
    told = []
    results = studies.run(tmp_path / "study", studies.plan(), lambda e: told.append(e["message"]))
    assert studies.without_timing(results) == studies.without_timing(whole)
    assert any(m and "ended unexpectedly" in m and "about to die" in m for m in told)


def test_a_run_that_always_kills_its_worker_is_an_error_and_the_rest_stays(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / _first(tmp_path)).touch()
    monkeypatch.setenv("FAKE_DIE_ALWAYS", str(trap))
    with pytest.raises(NonlinError, match=r"swiglu.*ended unexpectedly.*3 times"):
        studies.run(tmp_path / "study", studies.plan())
    monkeypatch.delenv("FAKE_DIE_ALWAYS")
    assert studies.run(tmp_path / "study", studies.plan())["status"] == "complete"


def test_a_full_disk_in_a_worker(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / _first(tmp_path, "twin")).touch()
    monkeypatch.setenv("FAKE_FULL", str(trap))
    with pytest.raises(UserError, match=r"disk .* is full; every finished run is kept"):
        studies.run(tmp_path / "study", studies.plan())
    kept = len(load(tmp_path / "study").trials())
    monkeypatch.delenv("FAKE_FULL")
    assert studies.run(tmp_path / "study", studies.plan())["status"] == "complete"
    assert kept >= 1


def test_a_full_disk_where_results_are_written(tmp_path, monkeypatch):
    import errno

    plan = studies.plan()
    from nonlin.study import store

    def full(path, text):
        if path.name == "results.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, text)

    real = store.write_atomically
    monkeypatch.setattr(store, "write_atomically", full)
    with pytest.raises(UserError, match="is full"):
        studies.run(tmp_path, plan)
    monkeypatch.setattr(store, "write_atomically", real)
    assert len(load(tmp_path).trials()) > 16
    assert studies.run(tmp_path, plan)["status"] == "complete"


@pytest.mark.parametrize("damage", [
    lambda f: (f / "result.json").write_bytes((f / "result.json").read_bytes()[:40]),
    lambda f: (f / "result.json").write_text(
        (f / "result.json").read_text().replace('"spike_score": 0.0', '"spike_score": 0.5')),
    lambda f: (f / "result.json").unlink(),
    lambda f: (f / "metrics.jsonl").write_text("{}\n"),
    lambda f: (f / "config.json").write_text("[]"),
    lambda f: (f / "result.json").write_text("null"),
])
def test_a_damaged_record_is_noticed_put_aside_and_run_again(tmp_path, whole, damage):
    studies.run(tmp_path, studies.plan())
    key = _first(tmp_path)
    damage(tmp_path / "trials" / key)
    told = []
    again = studies.run(tmp_path, studies.plan(), lambda e: told.append(e["message"]))
    assert studies.without_timing(again) == studies.without_timing(whole)
    assert any(m and key in m and "put aside" in m for m in told)
    assert (tmp_path / "trials" / f"{key}.damaged-1").exists()


def test_a_damaged_plan_is_an_error(tmp_path):
    studies.run(tmp_path, studies.plan())
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"margin": 0.005', '"margin": 0.5'))
    with pytest.raises(UserError, match=r"plan\.json was damaged or changed"):
        load(tmp_path)
    (tmp_path / "plan.json").write_text(text[:100])
    with pytest.raises(UserError, match=r"plan\.json was damaged or changed"):
        studies.run(tmp_path, studies.plan())


def test_a_folder_that_holds_another_study_or_other_files(tmp_path):
    studies.run(tmp_path / "study", studies.plan())
    with pytest.raises(UserError, match="holds another study: its seeds differs"):
        Store(tmp_path / "study").resume(studies.request(seeds=5))
    with pytest.raises(UserError, match="another study"):
        studies.run(tmp_path / "study", studies.plan(seeds=5))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex"):
        Store(tmp_path / "mine")
    with pytest.raises(UserError, match="it is a file"):
        Store(tmp_path / "mine" / "thesis.tex")


def test_one_process_a_study(tmp_path):
    store = Store(tmp_path)
    store.create(studies.plan())
    with store.lock(), pytest.raises(UserError, match="another one runs it now"):
        studies.run(tmp_path, studies.plan())
    assert studies.run(tmp_path, studies.plan())["status"] == "complete"  # released at the end


def test_a_learning_rate_at_which_everything_diverges(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_DIVERGE_ABOVE", "0")
    with pytest.raises(UserError, match=r"all 4 diverged at every rate .* --learning-rate"):
        studies.run(tmp_path, studies.plan())
    assert json.loads((tmp_path / "results.json").read_text())["advice"].startswith("No advice: every activation")


def test_an_arm_that_always_diverges_is_worse_and_a_result(tmp_path):
    results = studies.run(tmp_path, studies.plan("gelu", "exploding"))
    arm = results["arms"][1]
    assert (arm["verdict"], arm["bits_per_byte"]) == ("worse", None) and "diverged at every" in arm["reason"]


def test_errors_of_a_worker_reach_the_caller(tmp_path):
    with ProcessEngine("nowhere", 2, studies.WORKER) as engine:
        with pytest.raises(UserError, match="no such request"):
            ask(engine, {"do": "nonsense"})
        assert ask(engine, {"do": "describe"}) == {"cpu": "fake"}  # it goes on, and ignores lines that are no answers
        assert ask_all(engine, [{"do": "describe"}] * 5) == [{"cpu": "fake"}] * 5


def test_results_do_not_depend_on_the_number_of_workers(tmp_path, whole):
    results = studies.run(tmp_path, studies.plan(), workers=1)
    assert studies.without_timing(results) == studies.without_timing(whole)
