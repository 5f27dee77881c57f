"""Looking at a study early: while it runs, stopped, complete; the looks change nothing."""

import json
import shutil
import threading
import time

import msgspec
import pytest

import nonlin
from nonlin.errors import UserError
from nonlin.report import LivePage, build
from nonlin.report.terminal import snapshot_text
from nonlin.study import Store, load
from nonlin.study.snapshot import PROGRESS, Watcher, is_running
from tests.study import studies


def plan():
    return studies.plan("gelu", "swiglu", "silu")


def looked_at(folder, look, made=None):
    """Run a plan and look at it from outside after each event; return what the looks found."""
    found = []

    def listener(event):
        found.append(look())

    studies.run(folder, made or plan(), listener)
    return found


def test_a_study_that_runs_is_seen_to_run_and_its_counts_only_grow(tmp_path, monkeypatch):
    monkeypatch.setattr("nonlin.study.snapshot._SECONDS", 0.0)
    for folder in (tmp_path / str(attempt) for attempt in range(12)):  # a loaded machine may show one but few states
        folder.mkdir()
        Store(folder).create(plan())
        watcher = Watcher(folder)
        assert watcher.look().state == "stopped" and watcher.look().judging.total == 12
        found = looked_at(folder, watcher.look)
        assert {now.state for now in found} == {"running"}
        done = [now.tuning.done + now.judging.done for now in found]
        assert done == sorted(done) and done[0] == 0 and all(now.seconds_left >= 0 for now in found)
        last = watcher.look()
        assert last.state == "complete" and last.seconds_left == 0.0 and not last.running
        assert (last.judging.done, last.judging.total) == (12, 12)
        assert [row.name for row in last.ranking] == load(folder).results["ranking"]
        assert not (folder / PROGRESS).exists() and not list(folder.glob(".*.tmp"))
        if len(set(done)) >= 3 and any(now.running and now.running[0].steps == 300 for now in found):
            return
    raise AssertionError("no study was seen with a run at work and at three counts")


def test_watch_ends_with_the_study_and_shows_one_that_does_not_run_once(tmp_path):
    Store(tmp_path).create(plan())
    assert [now.state for now in nonlin.watch(tmp_path, seconds=0.01)] == ["stopped"]
    began, go_on, seen = threading.Event(), threading.Event(), []

    def hold(event):
        began.set()
        go_on.wait(20)

    worker = threading.Thread(target=studies.run, args=(tmp_path, plan(), hold))
    worker.start()
    began.wait(20)
    for now in nonlin.watch(tmp_path, seconds=0.01):
        seen.append(now.state)
        go_on.set()
    worker.join()
    assert seen[0] == "running" and seen[-1] == "complete" and set(seen) == {"running", "complete"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "study"
    studies.run(folder, plan())
    return folder


def part_of(finished, folder, judged):
    """A study with all tuning runs and so many judged ones of another that is finished."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("results.*", "*.html"))
    keys = [run["config_hash"] for arm in load(finished).results["arms"] for run in arm["judged"]]
    for key in keys[judged:]:
        shutil.rmtree(folder / "trials" / key)
    return folder


def test_a_page_of_a_study_that_runs_says_so_and_refreshes_and_one_of_a_stopped_study_does_not(finished, tmp_path):
    folder = part_of(finished, tmp_path / "study", 8)
    with Store(folder).lock():
        running = build(folder).read_text()
    stopped = build(folder).read_text()
    assert '<meta http-equiv="refresh"' in running and "This study runs" in running and "explorer-data" not in running
    assert "Judging on fresh seeds: 8 of 12 runs" in running and running.count("<figure") >= 5
    assert "refresh" not in stopped and "it was stopped" in stopped and "--resume" in stopped
    for text in (running, stopped):
        assert text.count(">not yet</span>") == 2 and 'class="winner"' not in text  # though one arm has all its runs
        assert "The better ones with each other" not in text
    studies.run(folder, plan())
    whole = build(folder).read_text()
    assert "refresh" not in whole and "not yet" not in whole and 'class="warn"' not in whole


def test_a_page_before_the_first_judged_run_shows_what_tuning_found_so_far(finished, tmp_path):
    folder = part_of(finished, tmp_path / "study", 0)
    page = build(folder).read_text()
    assert page.count("<figure") == 1 and 'data-figure="learning_rates"' in page
    assert "Judging on fresh seeds: 0 of 12 runs" in page and 'href="#rates"' in page
    assert not any(f'id="{part}"' in page for part in ("differences", "layers", "costs", "curves", "quality"))
    assert {path.stem for path in (folder / "figures").iterdir()} == {"learning_rates"}


def test_a_page_before_the_first_run_has_no_figures(tmp_path):
    Store(tmp_path / "study").create(plan())
    page = build(tmp_path / "study").read_text()
    assert "<figure" not in page and "#rates" not in page and not (tmp_path / "study" / "figures").exists()


def test_the_page_is_there_while_the_study_runs_and_ends_with_it(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("nonlin.report.live._SECONDS", 0.05)
    folder = part_of(finished, tmp_path / "study", 5)
    page = folder / "report.html"
    with LivePage(folder), Store(folder).lock():
        until(page.exists)
        first = page.read_text()
        until(lambda: page.read_text() != first and 'data-figure="differences"' in page.read_text())
        assert "This study runs" in page.read_text()
    after = page.read_text()
    assert "it was stopped" in after and "refresh" not in after and after.count("<figure") >= 5


def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stopped_study_that_went_on_is_shown_by_its_records_without_an_alarm(finished, tmp_path):
    """Its results.json is of the first stop: it was not edited."""
    folder = part_of(finished, tmp_path / "study", 5)
    stopped = load(folder).results | {"status": "interrupted"}
    (folder / "results.json").write_text(json.dumps(stopped))
    assert not load(folder).notes
    shutil.copytree(finished / "trials", folder / "trials", dirs_exist_ok=True)
    assert not load(folder).notes and load(folder).results["status"] == "complete"
    other = part_of(finished, tmp_path / "other", 5)
    (other / "results.json").write_text(json.dumps(stopped | {"winner": "silu"}))
    assert "results.json does not say" in load(other).notes[0]


def test_looking_needs_a_study_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="must hold a study"):
        next(nonlin.watch(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists() and not is_running(tmp_path)
    Store(tmp_path / "study").create(plan())
    before = {path.name for path in (tmp_path / "study").iterdir()}
    text = snapshot_text(next(nonlin.watch(tmp_path / "study")))
    assert "stopped" in text and "Tuning learning rates: 0/18" in text
    assert {path.name for path in (tmp_path / "study").iterdir()} == before


def test_a_progress_file_that_is_none_is_no_trouble(tmp_path):
    Store(tmp_path).create(plan())
    for text in ("", "[]", '{"running": 3}'):
        (tmp_path / PROGRESS).write_text(text)
        assert Watcher(tmp_path).look().state == "stopped"
        seen = []

        def stop(event, text=text, seen=seen):
            (tmp_path / PROGRESS).write_text(text)
            seen.append(Watcher(tmp_path).look())
            raise KeyboardInterrupt

        studies.run(tmp_path, plan(), stop)
        assert seen[0].state == "running"


def test_a_stage_without_runs_is_not_shown(tmp_path):
    """A rung whose rates are carried tunes nothing."""
    Store(tmp_path / "study").create(plan())
    now = next(nonlin.watch(tmp_path / "study"))
    assert "Tuning learning rates: 0/" in snapshot_text(now)
    carried = msgspec.structs.replace(now, tuning=msgspec.structs.replace(now.tuning, total=0))
    assert "Tuning" not in snapshot_text(carried) and "Judging on fresh seeds: 0/" in snapshot_text(carried)
