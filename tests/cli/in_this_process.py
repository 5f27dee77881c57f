"""The program in this process, its runs trained here too, and all that a crafted folder could make it do noticed."""

import contextlib
import io
import os
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from nonlin.calls import comparison, extension, ladder_comparison, study
from nonlin.cli import main
from nonlin.files import inside, write_atomically
from nonlin.functions import registry
from nonlin.model import ModelConfig, parameter_count
from nonlin.report import drawing, style
from nonlin.study.engines import opening
from nonlin.study.engines.protocol import Event, Slot
from nonlin.training import machine, one_model, trained
from tests.ladder import tiny
from tests.study import fake_worker

MEMORY, SECONDS = 1 << 30, 10
MACHINE = {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cpu"}


class Here:
    """An engine whose one worker is this process; runs beyond a tiny one's size are answered without training."""

    detached, devices_per_trial = False, 1

    def __init__(self, dataset="", *_, **__):
        self.dataset, self.number, self.told = Path(dataset), 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def fit(self, *_):
        pass

    def find(self, _):
        pass

    def stop(self, _):
        pass

    def total(self):
        return 1

    def free(self):
        return {Slot("one"): 0 if self.told else 1}

    def start(self, request, _=None):
        self.number += 1
        body = {**request.body, "dataset": str(self.dataset)}
        if request.folder is not None:
            body["trial"] = str(request.folder)
        try:
            event = Event("done", str(self.number), answer(body))
        except Exception as error:  # as a worker's process answers
            event = Event("error", str(self.number), {"type": type(error).__name__, "message": str(error)})
        self.told.append(event)
        return event.handle

    def poll(self, _):
        found, self.told = self.told, []
        return found


def answer(body):
    do = body["do"]
    if do == "trial":
        if not small(body["config"]):
            return fake_worker.run(body["config"], Path(body["trial"]))
        return one_model.train(body, lambda _: None)
    if do == "sample":
        keys = ("prompt", "length", "temperature", "seed")
        return trained.sample(Path(body["trial"]), Path(body["dataset"]), **{key: body[key] for key in keys})
    if do == "export":
        return trained.export_winner(Path(body["trial"]), Path(body["dataset"]), Path(body["out"]))
    if do == "experiment":
        from nonlin.claims.worker import run_experiment

        return run_experiment(body["config"])
    return {"describe": machine.describe(), "machine": {"machine": MACHINE, "measured": [MACHINE]},
            "measure": {"tokens_per_second": 1e5, "seconds_overhead": 0.1, "peak_memory_bytes": 1}}[do]


def small(config):
    """Whether a run is one of moments."""
    training, model = config["training"], config["model"]
    tokens = training["steps"] * training["batch"] * model["context"]
    return tokens < 1e5 and training["evaluation_tokens"] < 1e5 and parameter_count(ModelConfig(**model), True) < 1e6


@contextlib.contextmanager
def trained_here(drawn=False):
    """Let every engine be this process, and runs as short as a tiny ladder's; figures take longer than those."""
    with pytest.MonkeyPatch.context() as patch, tiny.short_runs():
        @contextlib.contextmanager
        def opened(_, directory, command=None):
            yield Here(directory / "data")

        for module in (comparison, extension, ladder_comparison, opening):
            patch.setattr(module, "open_engine", opened)
        patch.setattr(comparison, "_LENGTH", 4)
        for module in (comparison, study):
            patch.setattr(module, "ProcessEngine", Here)
        if not drawn:
            patch.setattr(style, "inline", _inline)
            patch.setattr(drawing, "drawn", _drawn)
        yield


def _inline(_, name, title, folder=None, look=None):
    if folder:
        write_atomically(folder / f"{name}.svg", "<svg/>")
    return "<svg/>"


def _drawn(_, folder):
    write_atomically(inside(folder) / "curves.svg", "<svg/>")
    return {}


class Hang(BaseException):
    """The call took more of this process's time than any call here may."""


def _hang(*_):
    raise Hang


@contextlib.contextmanager
def bounded():
    """Let a block take a GiB more memory and ten seconds of this process's time."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGPROF, _hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def call(*arguments):
    """Return the status, standard output and error of the program, called here; ``told``: its words as one line."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    registry._USER.clear()
    interrupt = signal.getsignal(signal.SIGINT)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded():
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        finally:
            signal.signal(signal.SIGINT, interrupt)
    told = [stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err)]
    return SimpleNamespace(status=status, out=told[0], err=told[1], told=" ".join(told[1].split()))


def must_be_told(done):
    """Assert that a call ended well, with a finding, or with one error."""
    errors = [line for line in done.err.splitlines() if line.startswith(("Error:", "Usage:"))]
    assert "Traceback" not in done.err, done.err[-3000:]
    assert done.status in (0, 1, 2), (done.status, done.err[-2000:])
    assert len(errors) == (done.status == 2), done.err[-2000:]
    assert max(map(len, done.err.splitlines()), default=0) < 4000


def what_lies_in(folder):
    """Every name below a folder, with what is in the files."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where) / name
            found[str(path.relative_to(folder))] = (
                os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None)
    return found


