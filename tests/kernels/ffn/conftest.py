"""Each test compiles anew."""

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Dynamo gives up on a code object that was compiled too often: each test begins from none."""
    torch._dynamo.reset()
    torch.manual_seed(0)
