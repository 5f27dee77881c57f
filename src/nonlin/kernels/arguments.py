"""What a caller may pass: dense tensors, and jagged nested ones, which are computed on their values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.errors import UserError, rule


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
