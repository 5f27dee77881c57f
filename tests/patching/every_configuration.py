"""Each size in each configuration of the installed transformers, changed: what the doors of nonlin say of it.

    python -m tests.patching.every_configuration FIRST LAST

prints what is neither built within its bounds nor refused in one line, of the families from FIRST to LAST.
"""

import copy
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from benchmarks.tiny_models import build, families

from nonlin.errors import UserError
from nonlin.patching import load
from nonlin.subject import describing
from tests.cli.in_this_process import Hang, bounded

VALUES = (10**9, 2**40, -1, "x", None)


class Built(Exception):
    """Memory was about to be taken for weights."""


def sizes(values, at=()):
    """The places of all whole numbers in a configuration, in its parts too."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from sizes(value, (*at, name))
        elif type(value) is int:
            yield (*at, name)


def first_of_lists(values, at=()):
    """The places of the first number in each list of whole numbers."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from first_of_lists(value, (*at, name))
        elif isinstance(value, list) and value and all(type(one) is int for one in value):
            yield (*at, name, 0)


def changed(values, at, new):
    values = inner = copy.deepcopy(values)
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = new
    return values


def _reached(*_, **__):
    raise Built("weights")


def open_folder(folder):
    """Open a model's folder up to where its weights are read."""
    from transformers import PreTrainedModel

    with mock.patch.object(PreTrainedModel, "_load_pretrained_model", _reached):
        load(folder, call="check")


def describe_configuration(folder):
    """Describe a configuration for ``compare --model`` up to where it is built in memory."""
    with mock.patch.object(describing, "_family", _reached):
        describing.describe({"wanted": {"path": str(folder / "config.json")}, "options": {}, "vocabulary": 64,
                             "context": 16, "rows": 4, "match": "params", "seed": 1, "arms": [{"name": "gelu"}],
                             "memory_bytes": 1 << 30})


DOORS = (open_folder, describe_configuration)


def outcome(door, folder):
    """Return "built", or "refused" in one line; raise AssertionError for anything else."""
    try:
        with bounded():
            door(folder)
    except Built:
        return "built"
    except Hang:
        raise AssertionError("over ten seconds of this process's time") from None
    except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 1500, text
        assert "MemoryError" not in text, text
        return "built" if "Built: weights" in text else "refused"
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    return "built"


def swept(kind, values=VALUES, most=None, doors=DOORS, places=sizes):
    """Return how often each door built and refused, and the faults, for every size of a family's configuration."""
    model, _ = build(kind)
    counts, faults = Counter(), []
    if model is None:
        return counts, faults
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        try:
            model.save_pretrained(folder)
        except Exception:  # its own fault
            return counts, faults
        whole = json.loads((folder / "config.json").read_text())
        for at in list(places(whole))[:most]:
            for new in values:
                (folder / "config.json").write_text(json.dumps(changed(whole, at, new)))
                for door in doors:
                    try:
                        counts[door.__name__, outcome(door, folder)] += 1
                    except AssertionError as fault:
                        faults.append((kind, ".".join(map(str, at)), new, door.__name__, str(fault)[:300]))
    return counts, faults


if __name__ == "__main__":
    torch.set_num_threads(1)
    total, number = Counter(), 0
    for kind in families()[int(sys.argv[1]):int(sys.argv[2])]:
        counts, faults = swept(kind)
        total += counts
        number += bool(counts)
        for fault in faults:
            print(*fault, flush=True)
        print(kind, dict(counts), flush=True)
    print(number, "families", dict(total))
