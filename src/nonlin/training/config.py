"""A trial's configuration: the values that determine a run, and no others; loads no torch."""

import hashlib
import json
from typing import Any

from nonlin.functions import Definition, define, get

#: The file in which a run that was stopped lies, and the one of its measures, in the run's folder.
CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


class Stopped(Exception):
    """A run was asked to stop, and lies in its checkpoint."""


def config_hash(config: dict[str, Any]) -> str:
    """Return the name of a configuration: the hash of its canonical JSON.

    >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def definition_of(config: dict[str, Any]) -> Definition:
    """Return the activation that the configuration names, defining the user's own from its formula."""
    described = config["activation"]
    return define(described["name"], described["formula"]) if described.get("formula") else get(described["name"])
