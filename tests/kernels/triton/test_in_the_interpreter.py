"""Runs the tests of this folder that need Triton's interpreter, each file in a process where it is on.

Whether Triton interprets is decided when a kernel is defined, for the whole process.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("device_*.py"))


def test_there_are_such_files():
    assert [path.stem for path in FILES] == ["device_accuracy", "device_again", "device_calls"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (the extra gpu)")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_in_the_interpreter(path, tmp_path):
    options = ["-o", "addopts=--import-mode=importlib", "-o", f"python_files={path.name}", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *options, str(path)], capture_output=True, text=True,
        cwd=Path(__file__).parents[3], env=os.environ | {"TRITON_INTERPRET": "1", "NONLIN_CACHE": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-1000:]
