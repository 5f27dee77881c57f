"""One run: its configuration, recipe, loop, evaluation, probes and machine settings."""

import importlib
from typing import Any

from nonlin.training.config import config_hash, definition_of

_LAZY = ("run_trial", "measure", "sample", "export_winner", "load_trained", "build_model", "Run")
__all__ = ["config_hash", "definition_of", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:  # these load torch
        return getattr(importlib.import_module("nonlin.training.trial"), name)
    raise AttributeError(f"module 'nonlin.training' has no attribute {name!r}")
