"""The real program in processes of its own, and what it writes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = [sys.executable, "-m", "nonlin"]
ARMS = "gelu,twin=x*Phi(x),mine=x*sigmoid(2*x),swiglu"
INTERRUPT, KILL = signal.SIGINT, signal.SIGKILL
SMALL = ["--layers", "1", "--dim", "16", "--heads", "2", "--context", "16", "--batch", "4", "--steps", "24",
         "--seeds", "4", "--learning-rates", "2"]


class Program:
    """Runs nonlin; ``call`` waits for its end."""

    def call(self, *arguments, status=0, cwd=None, **environment):
        done = subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True,
                              errors="surrogateescape", timeout=600, cwd=cwd, env=os.environ | environment)
        assert done.returncode == status, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def stopped(self, how, until, *arguments):
        """Start nonlin, send it a signal once ``until()`` is true, and return (status, stdout, stderr)."""
        # A shell that starts the tests in the background has told them to ignore Ctrl-C.
        process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        while not until():
            if process.poll() is not None:
                raise AssertionError(("it ended before the signal", *process.communicate()))
            time.sleep(0.01)
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


class Study:
    """A finished study: its folder, and what the program printed."""

    def __init__(self, folder, done):
        self.folder, self.done = folder, done
        self.results = json.loads((folder / "results.json").read_text())
        self.arms = {arm["name"]: arm for arm in self.results["arms"]}


def without_timing(value):
    """The value less everything under a key "timing"."""
    if isinstance(value, dict):
        return {k: without_timing(v) for k, v in value.items() if k != "timing"}
    return [without_timing(v) for v in value] if isinstance(value, list) else value


def results(folder: Path):
    return json.loads((folder / "results.json").read_text())
