"""What needs Triton is collected only where a test asks for it: in its interpreter, or on a GPU."""

import functools
import os

import pytest
import torch

from nonlin import functional
from nonlin.kernels.activation import fast_path
from nonlin.kernels.triton import backend as triton_backend
from nonlin.kernels.triton import ready
from tests.kernels.triton.device import INTERPRETED, Launches

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available() else [
    "device_*.py", "device.py", "as_on_a_gpu.py"]


@functools.cache
def _found(definition, find=triton_backend.find):
    kernel, reason = find(definition)
    return kernel and triton_backend.Kernel(Launches(kernel.forward), Launches(kernel.backward), kernel.exact), reason


@pytest.fixture
def served(monkeypatch):
    """The Triton kernels compute, in the interpreter those of the CPU too; tiles are small: every test has several.

    No launch is ready that another test made.
    """
    monkeypatch.setattr(ready, "_READY", {})
    if INTERPRETED:
        monkeypatch.setattr(fast_path, "_catalog", lambda: None)  # the processor's short calls would serve its tensors
        monkeypatch.setattr(triton_backend, "DEVICES", ("cuda", "cpu"))
        monkeypatch.setattr(triton_backend, "find", _found)
    monkeypatch.setattr(triton_backend, "_BLOCK", 64)
    functional._activation.cache_clear(), functional._packed.cache_clear()
    yield
    functional._activation.cache_clear(), functional._packed.cache_clear()
