"""Which backend computes an activation, and the two calls that everything above is built on.

:func:`forward` and :func:`backward` compute on the tensors they are given and record nothing for autograd: they
are the bodies of registered operations (ops.py). :func:`explain` says who computes a call, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nonlin.functions import Definition, get
from nonlin.kernels import compiled, torch_backend


@dataclass(frozen=True)
class Explanation:
    """Which backend serves a call ("compiled" or "torch"), and why."""

    activation: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.activation}: {self.backend}, because {self.reason}"


def _choose(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor],
            ) -> tuple[compiled.Kernel | None, str]:
    if refused := compiled.refusal(inputs, parameters):
        return None, refused
    return compiled.find(definition)


def forward(definition: Definition, inputs: Sequence[Tensor], parameters: Sequence[Tensor] = ()) -> Tensor:
    """Return the activation of inputs (any shapes that broadcast, any strides, one float dtype), contiguous.

    ``parameters`` are the learnable ones, in the definition's order, each of shape (1,) or any that broadcasts, in
    the inputs' dtype or wider. Computed in float32 (float64 for float64) and rounded once.
    """
    if (few := compiled.few_of(definition, inputs)) is not None:
        return compiled.forward_few(few, inputs)
    kernel, _ = _choose(definition, inputs, parameters)
    with torch.no_grad():
        if kernel is not None:
            return compiled.forward(kernel, inputs, parameters)
        return torch_backend.forward(definition, inputs, parameters).contiguous()


def backward(definition: Definition, gradient: Tensor, inputs: Sequence[Tensor], parameters: Sequence[Tensor] = (),
             want_value: bool = False, into: Sequence[Tensor] | None = None,
             ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Return (gradients by the inputs, gradients by the parameters, the value or None) in one pass over memory.

    ``gradient`` is that of the output: its shape, any strides (broadcast too). Each result has its tensor's shape
    and dtype. With ``want_value`` the activation itself is computed again in the same pass. ``into`` names tensors
    of the inputs' common shape, with at most two strides, that take the inputs' gradients.
    """
    if into is None and (few := compiled.few_of(definition, (*inputs, gradient))) is not None:
        outs = compiled.backward_few(few, gradient, inputs, want_value)
        return outs[:len(inputs)], [], outs[-1] if want_value else None
    kernel, _ = _choose(definition, inputs, parameters)
    with torch.no_grad():
        if kernel is not None:
            return compiled.backward(kernel, gradient, inputs, parameters, want_value, into)
        outs, learned, value = torch_backend.backward(definition, gradient, inputs, parameters, want_value)
        if into is not None:
            outs = [place.copy_(d) for place, d in zip(into, outs, strict=True)]
        return ([d.contiguous() for d in outs] if into is None else outs, [d.contiguous() for d in learned],
                None if value is None else value.contiguous())


def explain(which: str | Definition, *tensors: Tensor) -> Explanation:
    """Return which backend serves an activation of these tensors (none: of float32 on the CPU), and why.

    ``tensors`` are the inputs, then learnable parameters. A kernel that is not yet compiled is compiled.

    >>> print(explain("solu"))
    solu: torch, because it is not pointwise
    """
    definition = get(which)
    if definition.expr is None:
        return Explanation(definition.name, "torch", "it is not pointwise")
    count = len(definition.variables)
    inputs = tensors[:count] or [torch.empty(0)] * count
    kernel, reason = _choose(definition, inputs, tensors[count:])
    return Explanation(definition.name, "torch" if kernel is None else "compiled", reason)
