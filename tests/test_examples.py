"""Each script of examples/ runs from its command line, small, and prints the numbers it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = ["--data", str(ROOT / "docs")]
CALLS = {
    "train_your_own_loop.py": [*TEXT, "--steps", "4", "--context", "16", "--activation", "mine=x*sigmoid(2*x)"],
    "hugging_face_trainer.py": [*TEXT, "--steps", "2", "--out", "trained"],
    "your_own_formula.py": ["--formula", "tanh(gate)*up"],
    "patch_and_measure.py": ["--tokens", "16", "--rounds", "1"],
    "compare_from_python.py": [*TEXT, "--small", "--out", "study"],
    "read_a_study_with_pandas.py": ["study"]}
PRINTED = {
    "train_your_own_loop.py": r"step +3 +\d\.\d+ bits per byte",
    "hugging_face_trainer.py": r"accelerated: 2 of 2 feed-forward blocks(.|\n)*step 2: loss \d\.\d+ nats(.|\n)*saved",
    "your_own_formula.py": r"gradcheck: +True",
    "patch_and_measure.py": r"saved for backward: [\d,]+ bytes before, [\d,]+ after",
    "compare_from_python.py": r"gelu: baseline(.|\n)*winner \w+: [\d,]+ parameters",
    "read_a_study_with_pandas.py": r"status complete(.|\n)*Paired differences by seed:(.|\n)*Cost:"}


def test_every_script_is_run_and_listed():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == set(CALLS) == set(PRINTED)
    assert set(re.findall(r"`(\w+\.py)`", (ROOT / "examples" / "README.md").read_text())) == scripts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all: what one script writes another reads."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", CALLS)
def test_an_example_runs(name, folder):
    done = subprocess.run([sys.executable, str(ROOT / "examples" / name), *CALLS[name]], cwd=folder,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(PRINTED[name], done.stdout), done.stdout[-3000:]


def test_patching_saves_memory_and_changes_no_loss(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "examples" / "patch_and_measure.py"), "--tokens", "64",
                           "--rounds", "1", "--memory", "minimal"], cwd=tmp_path, capture_output=True, text=True)
    before, after = (int(n.replace(",", "")) for n in re.search(
        r"backward: ([\d,]+) bytes before, ([\d,]+)", done.stdout).groups())
    assert after < before
    losses = [float(n) for n in re.search(r"loss: +([\d.]+) before, ([\d.]+)", done.stdout).groups()]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
