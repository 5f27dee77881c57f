"""What every test begins from: the built-in activations alone, subnormal numbers that count, and a free compiler."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from nonlin.functions import registry

if level := os.environ.get("ATEN_CPU_CAPABILITY"):
    # torch.compile's cache does not know it: code of one level, read at another, gives wrong numbers (torch 2.13).
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"torchinductor-{level}"))


def pytest_make_parametrize_id(config, val, argname):
    """Name bytes by their argument: compressed ones hold the second they were made in, and parallel processes,
    which begin in different seconds, would collect tests of different names and run none."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def as_on_a_fresh_start(monkeypatch):
    """A test's own activations, and its flushing of denormals, end with it; it leaves torch.compile as it was."""
    monkeypatch.setattr(registry, "_USER", {})
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
    if "torch._dynamo" in sys.modules:
        left = torch._dynamo.eval_frame._stance.stance
        torch.compiler.set_stance("default")  # the next test is not to fail for this one
        assert left == "default"
