"""One run inside a user's own model, in this process and on an engine: its record but for what it took."""

import copy
import os
import sys
from pathlib import Path

import pytest

from nonlin.study.engines import Request
from nonlin.training import run_trial
from nonlin.training.config import METRICS, config_hash


def tiny(folder):
    """Write tokens to the folder's data/; return the configuration of a run of Llama with ReLU, and its record."""
    from nonlin.data import Corpus, Dataset, prepare
    from tests.subject.test_recipe import config_of

    text = "".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(1800)).encode()
    prepare(Corpus((("a.txt", text),), "test text", "user"), folder / "data")
    config = config_of("llama", Dataset(folder / "data"), steps=2, probe_every=2)
    config["model"]["hidden"] = config["model"]["widths"][0]
    return config, run_trial(copy.deepcopy(config), folder / "data", folder / "here")


def trains_alike(engine, folder, config, expected):
    """Let an engine do the run in a folder of the study's, and compare its record."""
    folder.mkdir()
    engine.fit("cpu", {}, None)
    slot = next(slot for slot, count in engine.free().items() if count)
    engine.start(Request({"do": "trial", "config": config}, config_hash(config), 1, folder), slot)
    ended = None
    while ended is None:
        ended = next((event for event in engine.poll(1.0) if event.kind in ("done", "error", "lost")), None)
    assert ended.kind == "done", ended.value
    assert ended.value["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
    assert ended.value["outside_sha256"] == expected["outside_sha256"] and (folder / METRICS).read_text()


def path_of_workers():
    """What PYTHONPATH must be for workers to run this tree's nonlin."""
    return os.pathsep.join([*filter(None, sys.path), str(Path(__file__).parents[3])])
