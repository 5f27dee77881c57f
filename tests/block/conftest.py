"""The folder's own helpers are importable, and each test compiles anew."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Dynamo gives up on a code object that was compiled too often: each test begins from none."""
    torch._dynamo.reset()
    torch.manual_seed(0)
