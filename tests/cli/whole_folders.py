"""Small real folders to change: a study, a ladder, claims; each with something left to run."""

import contextlib
import json
import shutil

import nonlin
from nonlin.claims import everything
from nonlin.claims.plan import ClaimsPlan
from nonlin.data import Sources
from nonlin.progress import listener
from nonlin.study import Store
from nonlin.training import one_model
from nonlin.training.config import Stopped
from tests.claims import planted
from tests.cli.in_this_process import call
from tests.ladder import tiny

STUDY = {"layers": 1, "dim": 16, "heads": 2, "context": 16, "batch": 4, "steps": 8, "seeds": 4, "learning_rates": 2,
         "progress": False}


def study(folder, text):
    """A study of two activations, one judged run stopped at a checkpoint."""
    made = nonlin.compare(text, "gelu,mine=x*sigmoid(2*x)", out=folder, **STUDY)
    stop(folder, made.results.arms[1].judged[-1].config_hash)
    return folder


def stop(folder, key):
    """Take a finished run back to a checkpoint in its middle."""
    config = json.loads((folder / "trials" / key / "config.json").read_text())
    shutil.rmtree(folder / "trials" / key)
    _, attempt = Store(folder).begin(config)
    steps = iter(range(100))
    with contextlib.suppress(Stopped):
        one_model.train({"do": "trial", "config": config, "trial": str(attempt), "dataset": str(folder / "data")},
                        lambda _: None, lambda: next(steps) > 3)
    assert (attempt / "checkpoint.safetensors").exists()


def ladder(folder, text):
    """A ladder whose last rung lacks a run."""
    nonlin.ladder("1M", text, out=folder, activations=["gelu", "swiglu"], **tiny.TINY)
    last = sorted((folder / "rungs").iterdir())[-1]
    shutil.rmtree(sorted((last / "trials").iterdir())[-1])
    return folder


def claims(folder, text):
    """Claims of which the first has run but for one experiment."""
    sources = Sources([str(text)])
    words = listener(False)
    data = sources.prepare(sources.read(folder, words), folder, words) | {"paths": [str(text)]}
    made = planted.plan()
    values = made.as_dict() | {"data": data, "request": made.request | {
        "rules": {str(claim.number): claim.rule for claim in everything.all_claims()}, "data": data["sha256"]}}
    values.pop("hash")
    Store(folder, ClaimsPlan).create(ClaimsPlan(**values))
    call("claims", "1", "--resume", "--out", folder)
    shutil.rmtree(sorted((folder / "trials").iterdir())[0])
    return folder
