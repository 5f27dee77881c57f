"""What every test begins from: the built-in activations alone, and subnormal numbers that count."""

import pytest
import torch

from nonlin.functions import registry


@pytest.fixture(autouse=True)
def as_on_a_fresh_start(monkeypatch):
    """A test's own activations, and its flushing of denormals, end with it."""
    monkeypatch.setattr(registry, "_USER", {})
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
