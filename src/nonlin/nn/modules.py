"""Modules: an activation with its learnable parameters, and the feed-forward block around it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nonlin import functional
from nonlin.errors import UserError, rule
from nonlin.functions import Definition, get
from nonlin.nn.widths import matched_hidden


class Activation(nn.Module):
    """An activation by name: ``Activation("gelu")(x)``, ``Activation("swiglu")(gate, up)``.

    Learnable parameters have shape (1,) and carry ``_no_weight_decay = True``.

    >>> import torch
    >>> Activation("prelu")(torch.tensor([-4.0]))
    tensor([-1.], grad_fn=<...>)
    """

    def __init__(self, name: str | Definition, device: Any = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.definition = get(name)
        self._function = functional.activation(self.definition)
        for q in self.definition.parameters:
            parameter = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
            self.register_parameter(q.name, parameter)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the learnable parameters at their start."""
        for q in self.definition.parameters:
            getattr(self, q.name).fill_(q.initial)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the activation of x, or of gate and up."""
        return self._function(*inputs, **{q.name: getattr(self, q.name) for q in self.definition.parameters})

    def extra_repr(self) -> str:
        return f"{self.definition.name}: {self.definition.formula}"


class FeedForward(nn.Module):
    """The feed-forward block: down(act(up x)), or down(act(gate x, up x)) where the activation is gated.

    ``hidden=None`` takes the width whose parameters equal a plain block's of 4 dim; see
    :func:`nonlin.nn.matched_hidden`. Input and output are (..., dim).

    >>> import torch
    >>> block = FeedForward(128)
    >>> block.hidden, block(torch.zeros(2, 5, 128)).shape
    (344, torch.Size([2, 5, 128]))
    """

    def __init__(self, dim: int, hidden: int | None = None, activation: str | Definition = "swiglu",
                 bias: bool = False, device: Any = None, dtype: torch.dtype | None = None):
        super().__init__()
        if dim < 1 or (hidden is not None and hidden < 1):
            raise UserError(rule("FeedForward", "dim and hidden", "be positive", (dim, hidden), "Pass widths."))
        self.activation = Activation(activation, device, dtype)
        kind = self.activation.definition.kind
        self.dim, self.hidden = dim, hidden or matched_hidden(dim, kind)
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.gate = nn.Linear(dim, self.hidden, **options) if kind == "gated" else None
        self.up = nn.Linear(dim, self.hidden, **options)
        self.down = nn.Linear(self.hidden, dim, **options)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights from a normal of deviation 1/sqrt(inputs); biases are 0; the activation starts anew."""
        for layer in (self.gate, self.up, self.down):
            if layer is not None:
                layer.weight.normal_(0.0, 1 / math.sqrt(layer.in_features), generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
        self.activation.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (..., dim) of x (..., dim)."""
        inputs = (self.up(x),) if self.gate is None else (self.gate(x), self.up(x))
        return self.down(self.activation(*inputs))
