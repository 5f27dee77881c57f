"""What every test begins from: the built-in activations alone, and subnormal numbers that count."""

import sys
from pathlib import Path

import pytest
import torch

from nonlin.functions import registry

sys.path.insert(0, str(Path(__file__).parent))  # what tests of several folders share


@pytest.fixture(autouse=True)
def as_on_a_fresh_start(monkeypatch):
    """A test's own activations, and its flushing of denormals, end with it."""
    monkeypatch.setattr(registry, "_USER", {})
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
