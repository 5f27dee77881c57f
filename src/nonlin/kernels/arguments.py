"""What a caller may pass: dense tensors, and jagged nested ones, which are computed on their values."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError, rule
from nonlin.kernels import operands

LAYOUTS = ("concatenated", "interleaved")
"""How one tensor holds gate and up."""
FIRST = ("gate", "up")
"""Which of the two comes first in it."""


def traced(inputs: Sequence[Any]) -> bool:
    """Return whether an input stands for a tensor and takes calls itself, as a symbolic trace's proxies do."""
    return any(not isinstance(x, Tensor) and hasattr(type(x), "__torch_function__") for x in inputs)


def check(call: str, name: str, x: Any) -> None:
    """Raise UserError for what is no tensor, and for tensors that hold no number for each place."""
    if not isinstance(x, Tensor):
        raise UserError(rule(call, name, "be a tensor", x, "Pass torch.tensor(...) of it."))
    if isinstance(x, torch.masked.MaskedTensor):
        raise UserError(rule(call, name, "have no mask", "a MaskedTensor",
                             "Call it on get_data(), and mask the result with get_mask()."))
    if x.layout is torch.strided and not x.is_nested:
        return
    if x.is_nested and x.layout is not torch.jagged:
        raise UserError(rule(call, name, "be dense or jagged", "a nested tensor of strided layout",
                             "Make it with torch.nested.nested_tensor(..., layout=torch.jagged)."))
    if not x.is_nested:
        raise UserError(rule(call, name, "be dense", f"a tensor of layout {x.layout}", "Call it on to_dense()."))


def must_be_one_of(call: str, name: str, value: object, known: Sequence[str]) -> None:
    """Raise UserError for what is none of these words; an array is none, whatever it compares to."""
    if not isinstance(value, str) or value not in known:
        raise UserError(rule(call, name, f"be one of {', '.join(known)}", value, "Choose one of them."))


def alike(call: str, name: str, x: Tensor, like: Tensor) -> None:
    """Raise UserError for a tensor on another device: what a kernel would read there is not its numbers."""
    if x.device != like.device:
        raise UserError(rule(call, name, f"be on the device of the first input, {like.device}", str(x.device),
                             "Move it there."))


def learned(call: str, name: str, value: Any, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return a learnable parameter as a tensor beside inputs, of its own precision; UserError where it is none.

    It is a number, or a float tensor of one number or of a shape that broadcasts to ``shape``, that of all inputs.
    """
    # Parameters keep their own precision: rounded to 16 bits they would be other numbers.
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool):
        try:
            number = float(value)
            if abs(number) > torch.finfo(wide).max:  # infinite, as a kernel rounds it; torch would refuse it
                number = math.copysign(math.inf, number)
            return torch.full((1,), number, device=like.device, dtype=wide)
        except (OverflowError, ValueError):
            raise UserError(rule(call, name, "be a number that 64 bits hold", "a larger one",
                                 "Choose another.")) from None
    if not isinstance(value, Tensor):
        raise UserError(rule(call, name, "be a number or a tensor", f"a {type(value).__name__}",
                             "Pass torch.tensor([...]) of it."))
    check(call, name, value)
    if value.dtype not in operands.DTYPES:
        raise UserError(rule(call, name, "have a float dtype of 16, 32 or 64 bits", str(value.dtype),
                             "Convert it first."))
    alike(call, name, value, like)
    if value.numel() == 1:
        return value if value.ndim <= max(1, like.ndim) else value.reshape(1)
    if shape is None or not _broadcasts(value.shape, shape):
        wanted = "" if shape is None else f", or a shape that broadcasts to {tuple(shape)}"
        raise UserError(rule(call, name, f"have one element{wanted}", tuple(value.shape), "Reshape it."))
    return value


def _broadcasts(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) <= len(wanted) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(wanted), strict=False))


def on_values(call: str, function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Return a jagged tensor of the function's values at the jagged tensors' values; all must be jagged alike."""
    first: Any = tensors[0]
    for x in tensors:
        if not x.is_nested or x.shape != first.shape:
            raise UserError(rule(call, "inputs", "be jagged alike where one is", [tuple(x.shape) for x in tensors],
                                 "Make them from one tensor of offsets."))
    out = function(*(x.values() for x in tensors))
    return torch.nested.nested_tensor_from_jagged(
        out, first.offsets(), first.lengths(), jagged_dim=first._ragged_idx,
        min_seqlen=first._maybe_min_seqlen, max_seqlen=first._maybe_max_seqlen)
