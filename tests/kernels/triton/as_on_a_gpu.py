"""Triton's interpreter, made to round as a GPU does.

It computes a fused multiply-add with two roundings, and cuts a float32 off where a bfloat16 is stored. A GPU rounds
once, to nearest; so does what stands here in their place.
"""

import numpy as np
import torch
from triton import language as tl
from triton.runtime import interpreter


def _fma(self, x, y, z):
    a, b, c = (np.asarray(v.data) for v in (x, y, z))
    with np.errstate(all="ignore"):
        if a.dtype != np.float32:
            return interpreter.TensorHandle(a * b + c, z.dtype.scalar)
        product = a.astype(np.float64) * b.astype(np.float64)  # exact
        wide = c.astype(np.float64)
        total = product + wide
        # Where float64 rounded the sum, its last bit is made odd, so that the second rounding is the only one.
        part = total - product
        lost = (product - (total - part)) + (wide - part)
        bits = total.view(np.int64) if total.ndim else np.array(total).view(np.int64)
        even = (bits & 1) == 0
        away = np.where((lost > 0) == (total > 0), bits + 1, bits - 1)
        fixed = np.where((lost != 0) & even & np.isfinite(total), away, bits).view(np.float64)
        return interpreter.TensorHandle(fixed.astype(np.float32).reshape(total.shape), z.dtype.scalar)


def _cast(self, src, dst_type, _usual=interpreter.InterpreterBuilder.cast_impl):
    if dst_type.scalar == tl.bfloat16 and src.dtype.scalar == tl.float32:
        data = np.ascontiguousarray(src.data)
        rounded = torch.from_numpy(data.reshape(-1).copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(rounded.reshape(data.shape), tl.bfloat16)
    if dst_type.scalar == tl.float32 and src.dtype.scalar == tl.bfloat16:
        data = np.asarray(src.data)
        return interpreter.TensorHandle((data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    with np.errstate(all="ignore"):
        return _usual(self, src, dst_type)


def install():
    """Correct this process's interpreter."""
    interpreter.InterpreterBuilder.create_fma = _fma
    interpreter.InterpreterBuilder.cast_impl = _cast
