"""Which backend computes an activation, and the two calls that everything above is built on.

:func:`forward` and :func:`backward` compute on the tensors they are given and record nothing for autograd: they
are the bodies of registered operations. :func:`explain` says who computes a call, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonlin.functions import Definition, get
from nonlin.kernels import torch_backend


@dataclass(frozen=True)
class Explanation:
    """Which backend serves a call, and why."""

    activation: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.activation}: {self.backend}, because {self.reason}"


def forward(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor] = ()) -> Tensor:
    """Return the activation of inputs (any shapes that broadcast, any strides, one float dtype).

    ``parameters`` are the learnable ones, in the definition's order, each of shape (1,) or any that broadcasts, in
    the inputs' dtype or wider. Computed in float32 (float64 for float64) and rounded once.
    """
    with torch.no_grad():
        return torch_backend.forward(definition, inputs, parameters)


def backward(definition: Definition, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor] = (),
             want_value: bool = False) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Return (gradients by the inputs, gradients by the parameters, the value or None) in one pass over memory.

    ``gradient`` is that of the output: its shape, any strides (broadcast too). Each result has its tensor's shape
    and dtype. With ``want_value`` the activation itself is computed again in the same pass.
    """
    with torch.no_grad():
        return torch_backend.backward(definition, gradient, inputs, parameters, want_value)


def explain(which: str | Definition, *tensors: Any) -> Explanation:
    """Return which backend serves an activation of these tensors, and why.

    >>> print(explain("solu"))
    solu: torch, because it is not pointwise
    """
    definition = get(which)
    if definition.expr is None:
        return Explanation(definition.name, "torch", "it is not pointwise")
    return Explanation(definition.name, "torch", "no compiled kernel serves it")
