"""Compile the small model's C++ on the first call, and call it through pointers.

Without a compiler :func:`library` returns None with the reason in :func:`unavailable`, and callers use torch.
"""

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError
from nonlin.kernels.codegen.cpp import HEADERS
from nonlin.kernels.cpu import build

_HERE = Path(__file__).parent
SOURCES = (*HEADERS[:2], *(_HERE / name for name in ("gemm.h", "bf16_gemm.h", "bf16_ops.h", "float32_ops.h", "layer.h",
                                                  "adamw.h", "ops.cpp")))

_mode, _FAKE = torch._C._get_dispatch_mode, torch._C._TorchDispatchModeKey.FAKE


class Shape(ctypes.Structure):
    """The C++ struct of the same name: sizes of one attention call."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "time", "heads", "kv_heads", "width")]


class Layer(ctypes.Structure):
    """The C++ struct of the same name, with the one that it holds: a layer's sizes, weights and activation."""

    _fields_ = [("shape", Shape), ("dim", ctypes.c_int64), ("hidden", ctypes.c_int64), ("eps", ctypes.c_float),
                ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p), ("weights", ctypes.c_void_p * 11),
                ("value", ctypes.c_void_p), ("derivatives", ctypes.c_void_p), ("entry", ctypes.c_void_p),
                ("dtype", ctypes.c_int64), ("parameters", ctypes.c_int64), ("values", ctypes.c_void_p),
                ("sums", ctypes.c_void_p)]


class AdamW(ctypes.Structure):
    """The C++ struct of the same name: what one step of a group does."""

    _fields_ = [(name, ctypes.c_double) for name in ("rate", "beta1", "beta2", "epsilon", "decay")]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("NONLIN_NATIVE") == "0":
        return None, "NONLIN_NATIVE=0"
    try:
        made = ctypes.CDLL(str(build.compile_shared(SOURCES[-1].read_text("utf-8"), "transformer",
                                                    (*build.FLAGS, *build.target()), SOURCES)))
    except build.FAILURES as error:
        return None, build.reason(error)
    i, p, f = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    made.nl_rms_norm.argtypes = [i, i, f, p, p, p, p]
    made.nl_rms_norm_backward.argtypes = [i, i, p, p, p, p, p, p]
    made.nl_cross_entropy.argtypes = [i, i, p, p, p]
    made.nl_cross_entropy.restype = ctypes.c_double
    made.nl_attention.argtypes = [Shape, f, *[p] * 9]
    made.nl_attention_backward.argtypes = [Shape, f, *[p] * 14]
    for kind in ("nl_", "nl_bf16_"):
        for name, types in {"linears": [i, i, p, i, p, p, p], "linear_add": [i, i, p, i, p, p, p],
                            "linears_backward": [i, i, p, i, p, p, p, p, p],
                            "linear_add_backward": [i, i, p, i, p, p, p, p]}.items():
            getattr(made, kind + name).argtypes = types
    made.nl_bf16_rms_norm.argtypes = [i, i, f, p, p, p, p]
    made.nl_bf16_rms_norm_backward.argtypes = [i, i, p, p, p, p, p, p]
    made.nl_bf16_attention.argtypes = [Shape, f, *[p] * 9, i]
    made.nl_bf16_attention_backward.argtypes = [Shape, f, *[p] * 8, i, *[p] * 6]
    made.nl_layer_bytes.restype, made.nl_layer_bytes.argtypes = i, [p, ctypes.c_int, ctypes.c_int]
    made.nl_layer.argtypes = [p, ctypes.c_int, p, p, p]
    made.nl_layer_backward.argtypes = [p, ctypes.c_int, *[p] * 6]
    made.nl_sum_of_squares.argtypes = [i, p, p]
    made.nl_sum_of_squares.restype = ctypes.c_double
    made.nl_adamw.argtypes = [i, *[p] * 6, AdamW, f]
    return made, ""


def pointers(tensors: Sequence[Tensor]) -> Any:
    """Return the addresses of tensors as a C array."""
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def library() -> ctypes.CDLL | None:
    """Return the compiled library, built on the first call, or None if it cannot be built."""
    return _load()[0]


def unavailable() -> str:
    """Return why :func:`library` returned None, or an empty text."""
    return _load()[1]


def operations() -> ctypes.CDLL:
    """Return the compiled operations; UserError where they cannot be built, or where tensors have no memory."""
    if _mode(_FAKE) is not None:  # even of real inputs, results would be fake
        raise UserError("the transformer kernels read and write memory, which fake tensors do not have. "
                        "Use the engine 'torch' under FakeTensorMode.")
    made = library()
    if made is None:
        raise UserError(f"the transformer kernels are not available: {unavailable()}. Use the engine 'torch'.")
    return made
