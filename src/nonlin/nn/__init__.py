"""Modules, and the hidden width at equal parameters (which needs no torch)."""

import importlib
from typing import Any

from nonlin.nn.widths import matched_hidden

__all__ = ["Activation", "FeedForward", "matched_hidden"]


def __getattr__(name: str) -> Any:
    if name in ("Activation", "FeedForward"):  # these load torch
        return getattr(importlib.import_module("nonlin.nn.modules"), name)
    raise AttributeError(f"module 'nonlin.nn' has no attribute {name!r}")
