"""A dense feed-forward block for one or two tokens on a CPU, by our own products: one call of our C++.

torch's products of one token read weights at less than half of the speed that memory has. Sums are float32; hidden
values and the output are rounded to the weights' dtype.
"""

import ctypes
import functools

import torch
from torch import Tensor

from nonlin.functions import Definition
from nonlin.kernels.cpu import backend
from nonlin.kernels.ffn.sparse import CODES, library

MOST = {torch.float32: 2, torch.bfloat16: 1, torch.float16: 1}
"""The most tokens by dtype; with more, torch's products are as fast or faster, since they read a weight once."""


def prepare() -> bool:
    """Compile what computes the blocks, if need be; return whether it can. Until then torch computes."""
    global _library
    _library, _ = library()
    return _library is not None


_library: ctypes.CDLL | None = None


@functools.lru_cache(maxsize=1024)
def _activation(definition: Definition) -> int:
    """Return the address of the activation's function of float32, 0 where it has none or learns parameters."""
    found = None if definition.parameters else backend.functions(definition, torch.float32)
    return 0 if found is None else found[0]


def value(definition: Definition, x: Tensor, gate: Tensor | None, up: Tensor, down: Tensor,
          gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None) -> Tensor | None:
    """Return a block's output (..., O) of x (..., D), or None where torch is to compute it.

    The tensors are plain, contiguous and of one dtype, and nothing records a gradient: who calls this has asked.
    """
    if _library is None or not 0 < (count := x.numel()) <= MOST.get(x.dtype, 0) * x.shape[-1] \
            or not (activation := _activation(definition)):
        return None
    (hidden, inputs), outputs, threads = up.shape, down.shape[0], torch.get_num_threads()
    out = x.new_empty((*x.shape[:-1], outputs))
    words = (ctypes.c_int64 * 16)(
        CODES[x.dtype], count // inputs, inputs, hidden, outputs, x.data_ptr(), 0 if gate is None else gate.data_ptr(),
        up.data_ptr(), down.data_ptr(), 0 if gate_bias is None else gate_bias.data_ptr(),
        0 if up_bias is None else up_bias.data_ptr(), 0 if down_bias is None else down_bias.data_ptr(), out.data_ptr(),
        activation, threads, backend.parallel() if threads > 1 else 0)
    return out if _library.nl_block(words) else None
