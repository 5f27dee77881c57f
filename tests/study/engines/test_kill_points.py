"""A study whose workers and driver are killed at random moments: nothing finished is lost, nothing is run over."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nonlin.study import Store, load
from tests.study import studies
from tests.study.engines.comparing import comparable

DRIVER = [sys.executable, str(Path(studies.__file__))]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    studies.run(folder, studies.plan())
    return folder


def _workers(pid):
    """Its workers: threads of it may have started them, so that all tasks are asked."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def _kill_at_random(folder, order, points):
    """Run the study until its end; kill a worker or the driver, drawn by chance, at each of these many moments."""
    killed = {"worker": 0, "driver": 0}
    program = None
    while sum(killed.values()) < points:
        if program is None:
            program = subprocess.Popen([*DRIVER, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                       cwd=ROOT, env=os.environ | {"FAKE_SECONDS": "0.3"})
            _until(lambda started=program: _workers(started.pid) or started.poll() is not None)
        time.sleep(order.uniform(0.0, 0.8))
        if program.poll() is not None:
            break
        workers = _workers(program.pid)
        if workers and order.random() < 0.5:
            killed["worker"] += 1
            os.kill(order.choice(workers), signal.SIGKILL)
        else:
            killed["driver"] += 1
            program.kill()
            program.communicate()
            program = None
    if program is not None:
        program.kill()
        program.communicate()
    return killed


def _until(ready):
    deadline = time.monotonic() + 60
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.02)


def _check(tmp_path, whole, seed, points):
    seen = {}
    order = random.Random(seed)
    total = 0
    for _ in range(points):
        total += sum(_kill_at_random(tmp_path, order, 1).values())
        now = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*/result.json")}
        assert seen.items() <= now.items()  # a finished record is never written again
        seen = now
    results = studies.run(tmp_path, studies.plan())
    assert results["status"] == "complete" and comparable(tmp_path) == comparable(whole)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob("*/result.json")}
    assert seen.items() <= after.items()
    assert Store(tmp_path).hashes() == Store(whole).hashes()  # damaged ones would be left out, lost ones missing
    assert len(load(tmp_path).trials()) == len(after) and not (tmp_path / "running").exists()
    for path in after:
        assert json.loads(path.read_text())["attempt"] >= 1
    return total


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found in /proc")
@pytest.mark.parametrize("seed", [0])
def test_a_few_random_kills(tmp_path, whole, seed):
    assert _check(tmp_path, whole, seed, 3) >= 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found in /proc")
@pytest.mark.parametrize("seed", range(10, 15))
def test_thirty_random_kills(tmp_path, whole, seed):
    assert _check(tmp_path, whole, seed, 6) >= 1
