"""A layer of the small language model as one operation: forward and backward are each one call of our C++.

It calls the same C++ in the same order as the operations do one by one, and gives the same bits. Calls from Python are
a large share of what a small model's step costs beside its products.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.functions import Definition
from nonlin.kernels.cpu import backend as cpu
from nonlin.kernels.transformer import native
from nonlin.kernels.transformer.native import operations
from nonlin.kernels.transformer.once import once_differentiable
from nonlin.kernels.transformer.torch_engine import EPS

_SUMMED = (0, 4, 5, 7)  # of a layer's weights, the norms: their gradients are added to
_Q, _K, _Q_NORM, _GATE, _UP = 1, 2, 4, 8, 9
_MOST_WIDTH = 512  # of a head


@functools.cache
def _kernel(definition: Definition, dtype: torch.dtype) -> tuple[int, int, int, int] | None:
    """Return the addresses of an activation's two calls and of its entry, and its dtype's number, or None."""
    kernel, _ = cpu.find(definition)
    if kernel is None or dtype not in cpu.CODES:
        return None
    library = kernel.library
    value, derivatives = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (library.nl_value, library.nl_slopes))
    return value, derivatives, kernel.entry, cpu.CODES[dtype]


class _Form:
    """What a layer's C++ is told: the struct, and the numbers that it points to."""

    def __init__(self, x: Tensor, narrow: bool, heads: int, weights: Sequence[Tensor | None],
                 kernel: tuple[int, int, int, int], learned: Sequence[Tensor]):
        (batch, time, dim), width, up = x.shape, weights[_Q_NORM].numel(), weights[_UP]  # type: ignore[union-attr]
        self.narrow, self.plain = narrow, weights[_GATE] is None
        self.values = (ctypes.c_double * (len(learned) + 1))(*(q.item() for q in learned))
        self.sums = (ctypes.c_double * (len(learned) + 1))()
        shape = native.Shape(batch, time, heads, weights[_K].shape[0] // width, width)  # type: ignore[union-attr]
        value, derivatives, entry, code = kernel
        self.layer = native.Layer(
            shape=shape, dim=dim, hidden=up.shape[0], eps=EPS, value=value,  # type: ignore[union-attr]
            derivatives=derivatives, entry=entry, dtype=code, parameters=len(learned),
            values=ctypes.addressof(self.values), sums=ctypes.addressof(self.sums))

    def read(self, cos: Tensor, sin: Tensor, weights: Sequence[Tensor]) -> Any:
        """Point to these tensors, and return the struct's address."""
        addresses = [w.data_ptr() for w in weights]
        if self.plain:
            addresses.insert(_GATE, 0)
        self.layer.cos, self.layer.sin = cos.data_ptr(), sin.data_ptr()
        self.layer.weights[:] = addresses
        return ctypes.addressof(self.layer)

    def room(self, backward: bool) -> Tensor:
        """Return memory for what forward leaves, or for backward's gradients."""
        size = operations().nl_layer_bytes(ctypes.addressof(self.layer), self.narrow, backward)
        return torch.empty(size, dtype=torch.uint8, device="cpu")  # whatever the default device is


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, form, learned, x, cos, sin, *tensors):
        ctx.form, ctx.learned = form, learned
        address, out = form.read(cos, sin, tensors[:len(tensors) - learned]), torch.empty_like(x)
        memory = form.room(False)
        operations().nl_layer(address, form.narrow, x.data_ptr(), memory.data_ptr(), out.data_ptr())
        ctx.save_for_backward(x, cos, sin, memory, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, cos, sin, memory, *tensors = ctx.saved_tensors
        form, count, grad = ctx.form, len(tensors) - ctx.learned, grad.contiguous()
        weights, learned = tensors[:count], tensors[count:]
        address, room = form.read(cos, sin, weights), form.room(True)
        summed = [k - (form.plain and k > _GATE) for k in _SUMMED]
        dw = [torch.zeros_like(w) if k in summed else torch.empty_like(w) for k, w in enumerate(weights)]
        addresses = [d.data_ptr() for d in dw]
        if form.plain:
            addresses.insert(_GATE, 0)
        dx = torch.empty_like(x)
        ctypes.memset(form.sums, 0, ctypes.sizeof(form.sums))
        operations().nl_layer_backward(address, form.narrow, x.data_ptr(), memory.data_ptr(), grad.data_ptr(),
                                       room.data_ptr(), dx.data_ptr(), (ctypes.c_void_p * len(addresses))(*addresses))
        dq = [torch.tensor(s, dtype=torch.float64, device="cpu").to(q.dtype).reshape(q.shape)
              for q, s in zip(learned, form.sums[:len(learned)], strict=True)]
        return None, None, dx, None, None, *dw, *dq


def apply(dtype: torch.dtype, x: Tensor, weights: Sequence[Tensor | None], activation: Definition,
          learned: Sequence[Tensor], heads: int, cos: Tensor, sin: Tensor) -> Tensor | None:
    """Return the layer's output, or None where the operations are to be called one by one.

    ``dtype`` is of what is multiplied; the rest is as TorchEngine.layer says.
    """
    there = [w for w in weights if w is not None]
    if not all(map(_plain, (x, cos, sin, *there, *learned))) or not _fit(x, heads, weights, (cos, sin)):
        return None  # the operations say what is wrong
    kernel = None if activation.expr is None else _kernel(activation, dtype)
    if kernel is None:
        return None
    form = _Form(x, dtype == torch.bfloat16, heads, weights, kernel, learned)
    return _Layer.apply(form, len(learned), x, cos, sin, *there, *learned)  # type: ignore[return-value]


def _fit(x: Tensor, heads: int, weights: Sequence[Tensor | None], angles: Sequence[Tensor]) -> bool:
    """Return whether C++ computes heads of this width, and every tensor has the sizes that it reads."""
    if x.ndim != 3:
        return False
    dim, width = x.shape[2], weights[_Q_NORM].numel()  # type: ignore[union-attr]
    queries, keys, hidden = (weights[place].shape[0] for place in (_Q, _K, _UP))  # type: ignore[union-attr]
    if width % 2 or not 0 < width <= _MOST_WIDTH or queries != heads * width:
        return False
    if not keys or queries % keys or keys % width:
        return False
    want = ((dim,), (queries, dim), (keys, dim), (keys, dim), (width,), (width,), (dim, queries), (dim,), (hidden, dim),
            (hidden, dim), (dim, hidden))
    return all(w is None or w.shape == shape for w, shape in zip(weights, want, strict=True)) \
        and all(angle.shape == (x.shape[1], width) for angle in angles)


def _plain(x: Tensor) -> bool:
    return (type(x) is Tensor or type(x) is nn.Parameter) and x.dtype == torch.float32 and x.is_cpu \
        and x.is_contiguous()
