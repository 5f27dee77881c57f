"""Plans of absurd sizes, under a hash that fits, given to the program and its own worker processes: one error each."""

import json
import os
import subprocess
import sys

import pytest

from nonlin.study.engines.worker_process import ENVIRONMENT
from tests.changed_values import changed
from tests.cli import changed_folders, whole_folders
from tests.cli.in_this_process import trained_here
from tests.ladder import tiny


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    base = tmp_path_factory.mktemp("absurd")
    with trained_here():
        return whole_folders.study(base / "study", tiny.write_text(base))


def resumed(study, *places):
    """The program's answer where the plan's values at these places are others."""
    path = study / "plan.json"
    before = path.read_text()
    plan = json.loads(before)
    for at, new in places:
        plan = changed(plan, at, new)
    changed_folders.seal_plan(plan)
    path.write_text(json.dumps(plan))
    trials = sorted((study / "trials").iterdir())
    try:
        done = subprocess.run([sys.executable, "-m", "nonlin", "compare", "--resume", "--out", str(study)], text=True,
                              capture_output=True, timeout=300, env=os.environ | ENVIRONMENT)
    finally:
        path.write_text(before)
    assert done.returncode == 2 and done.stderr.count("Error:") == 1 and "Traceback" not in done.stderr, done.stderr
    assert sorted((study / "trials").iterdir()) == trials, "something was trained"
    return done.stderr


def model(name, new):
    return [(("model", name), new), (("request", "model", name), new)]


@pytest.mark.parametrize(("places", "words"), [
    (model("layers", 10**6), "layers must be at most 10,000"),
    ([(("machine", "devices"), 1000)], "devices must be at most"),
    ([(("machine", "threads"), 10_000)], "machine.threads"),
    pytest.param(model("dim", 2**20), "GiB of memory", marks=pytest.mark.slow),
    pytest.param(model("context", 10**9), "be longer than the context", marks=pytest.mark.slow),
    pytest.param(model("vocabulary", 10**9), "GiB of memory", marks=pytest.mark.slow),
    pytest.param([(("arms", 0, "hidden"), 10**9)], "GiB of memory", marks=pytest.mark.slow),
    pytest.param([(("training", "batch"), 10**9)], "GiB of memory", marks=pytest.mark.slow),
    ([(("training", "evaluations"), 10**9)], "evaluations must be a whole number from 1 to"),
    ([(("training", "probe_every"), 0)], "probe_every must be a whole number from 1")], ids=str)
def test_an_absurd_size_is_one_error_before_anything_is_trained(study, places, words):
    assert words in " ".join(resumed(study, *places).split())
