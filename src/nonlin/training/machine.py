"""Machine settings: the fastest kernels for training here, and the machine's description.

The measurements behind the choices are in docs/log.md. One process a core, each with one thread, flushes
denormals and keeps its memory; the processes' environment is set where they are started.
"""

import contextlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nonlin.kernels.cpu import build
from nonlin.kernels.transformer import native
from nonlin.system import most_memory_bytes
from nonlin.training.recipe import capturable, native_cannot
from nonlin.training.resources import processor, usable_cores


def candidates(precision: str = "auto", model: Mapping[str, Any] | None = None,
               training: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the settings worth measuring on this machine for a model's sizes, the expected best first.

    ``precision`` is "float32" or "bfloat16", or "auto" for the one that trains faster here. With "auto", bfloat16 is a
    candidate only where the processor has instructions for it. Without, its products are emulated and slower than
    float32 by an order of magnitude. On a GPU a step may be a CUDA graph ("graphs"), if the recipe ``training`` allows.
    """
    dtypes = [precision]
    if torch.cuda.is_available():
        dtypes = ["bfloat16"] if precision == "auto" else dtypes
        plain: list[dict[str, Any]] = [{"engine": "torch", "dtype": d, "threads": 1, "device": "cuda"} for d in dtypes]
        return [option | {"graphs": True} for option in plain if capturable(training or {})] + plain
    if precision == "auto":
        fast = {"amx_bf16", "avx512_bf16"} & set(processor()["instructions"])
        dtypes = ["bfloat16", "float32"] if fast else ["float32"]
    engines = ["native", "torch"] if native.library() and not (model and native_cannot(model)) else ["torch"]
    pairs = [(e, d) for e in engines for d in dtypes]
    if ("native", "bfloat16") in pairs and "amx_bf16" in processor()["instructions"]:
        pairs.insert(1, ("mixed", "bfloat16"))  # torch multiplies tiles there, our kernels pairs
    return [{"engine": e, "dtype": d, "threads": 1, "device": "cpu"} for e, d in pairs]


def own_candidates(precision: str = "auto") -> list[dict[str, Any]]:
    """Return the settings worth measuring for a user's own model, which computes by torch; see :func:`candidates`.

    bfloat16 is autocast's: weights and moments stay float32.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = [precision]
    if precision == "auto":
        fast = device == "cuda" or {"amx_bf16", "avx512_bf16"} & set(processor()["instructions"])
        dtypes = ["bfloat16", "float32"] if fast else ["float32"]
    return [{"engine": "torch", "dtype": d, "threads": 1, "device": device} for d in dtypes]


def prepare_process(threads: int = 1) -> None:
    """Set this process up for training: its threads, and denormals flushed to zero."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def describe() -> dict[str, Any]:
    """Return the environment a study records."""
    import numpy
    import scipy

    from nonlin import __version__

    return {
        "nonlin": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "numpy": numpy.__version__, "scipy": scipy.__version__, "system": platform.platform(),
        "processor": processor(), "cores": usable_cores(), "native_engine": native.library() is not None,
        "native_unavailable": native.unavailable(), "compiler": build.compiler() is not None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
    }


def reset_peak_memory() -> None:
    """Begin a new measurement of this process' peak memory, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Return the most memory this process has held since :func:`reset_peak_memory`."""
    try:
        status = Path("/proc/self/status").read_text(errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return most_memory_bytes() or 0
