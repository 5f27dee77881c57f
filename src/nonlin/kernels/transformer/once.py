"""Backward passes that cannot be differentiated themselves, and say so."""

import functools
from collections.abc import Callable
from typing import Any

import torch

_MESSAGE = (b"the native engine has no second derivatives: its operations are once_differentiable. "
            b"Use the engine 'torch'.")


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backward whose gradients raise where they are differentiated.

    torch's decorator of this name raises only where the gradient that comes in depends on something. A second
    derivative through what forward saved would be left out in silence.
    """
    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        outputs = found if isinstance(found, tuple) else (found,)
        refusing = torch._C._functions.DelayedError(_MESSAGE, len(outputs))
        refused = refusing(*(None if g is None else g.detach().requires_grad_() for g in outputs))
        return refused if isinstance(refused, tuple) else (refused,)

    return wrapped
