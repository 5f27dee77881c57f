"""The feed-forward blocks of any torch model: where they are, their projections, and how these store gate and up.

:mod:`nonlin.patching.finding` finds them, :mod:`nonlin.patching.identification` says what stands between
the projections. Shapes: D model width, H hidden width, E experts.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule

Layout = Literal["plain", "separate", "concatenated", "interleaved"]
Part = Literal["all", "first", "second", "even", "odd"]


def split(tensor: Tensor, part: Part, dim: int = -1) -> Tensor:
    """Return a view of the part of ``tensor`` along ``dim``: a half, or every second entry.

    >>> split(torch.arange(4), "odd")
    tensor([1, 3])
    """
    if part == "all":
        return tensor
    size = tensor.shape[dim]
    if part in ("first", "second"):
        return tensor.narrow(dim, 0 if part == "first" else size // 2, size // 2)
    index = [slice(None)] * tensor.ndim
    index[dim] = slice(0 if part == "even" else 1, None, 2)
    return tensor[tuple(index)]


@dataclass(frozen=True)
class Projection:
    """One matrix product of a block: the module that does it and where in it the weights lie.

    ``transposed`` is how ``transformers``' Conv1D and some experts store it: (in, out). ``part`` is the share of
    the outputs that is this projection's.
    """

    name: str
    module: nn.Module
    parameter: str = "weight"
    bias_parameter: str | None = "bias"
    transposed: bool = False
    part: Part = "all"

    @property
    def weight(self) -> Tensor:
        """A view of the weight, (out, in), or (E, out, in) for experts."""
        stored = getattr(base_of(self.module), self.parameter)
        return split(stored.transpose(-1, -2) if self.transposed else stored, self.part, -2)

    @property
    def bias(self) -> Tensor | None:
        """A view of the bias, (out,) or (E, out); None where there is none."""
        stored = getattr(base_of(self.module), self.bias_parameter, None) if self.bias_parameter else None
        return None if stored is None else split(stored, self.part, -1)

    @property
    def parameter_name(self) -> str:
        """The weight's name within the model, as its checkpoint has it."""
        return f"{self.name}.{self.parameter}" if self.name else self.parameter

    def output(self, produced: Tensor) -> Tensor:
        """Return this projection's share of what its module returned."""
        return split(produced, self.part)


@dataclass(frozen=True)
class Block:
    """One feed-forward block. ``gate`` is None where it is plain; ``experts`` is 0 where there are none.

    ``layout`` "concatenated" has gate and up as halves of one product, "interleaved" as every second output.
    """

    name: str
    module: nn.Module
    layout: Layout
    gate: Projection | None
    up: Projection
    down: Projection
    dim: int
    hidden: int
    experts: int = 0

    @property
    def gated(self) -> bool:
        """Whether the block has a gate."""
        return self.gate is not None

    @property
    def stacked(self) -> bool:
        """Whether all experts' weights are parameters of the block's own module, which is called for all of them."""
        return self.experts > 0 and self.down.module is self.module

    @property
    def projections(self) -> dict[str, Projection]:
        """The projections by role: gate (where there is one), up, down."""
        found = {"gate": self.gate, "up": self.up, "down": self.down}
        return {role: p for role, p in found.items() if p is not None}

    def with_layout(self, layout: Layout, gate_first: bool) -> "Block":
        """Return the block with gate and up where computing found them."""
        assert self.gate is not None
        if layout == "separate":
            return self if gate_first else replace(self, gate=self.up, up=self.gate)
        first: tuple[Part, Part] = ("first", "second") if layout == "concatenated" else ("even", "odd")
        gate, up = first if gate_first else first[::-1]
        return replace(self, layout=layout, gate=replace(self.gate, part=gate), up=replace(self.up, part=up))


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that torch.compile wrapped, or the module itself."""
    return getattr(model, "_orig_mod", model)


def must_be_module(model: Any, call: str) -> None:
    """Raise UserError, in the name of ``call``, for anything but a torch module."""
    if not isinstance(model, nn.Module):
        raise UserError(rule(call, "model", "be a torch module", model,
                             "Load it first: nonlin.patching.load(path).model."))


def some_tensor(module: nn.Module) -> Tensor:
    """Return one of a module's parameters, or of its buffers where it has no others: all have its device and dtype."""
    return next(t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())


def base_of(module: nn.Module) -> nn.Module:
    """Return the linear layer inside an adapter's wrapper (peft), or the module itself."""
    inner = getattr(module, "base_layer", None)
    return base_of(inner) if isinstance(inner, nn.Module) else module


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def projection_of(name: str, module: nn.Module) -> Projection | None:
    """Return the projection that a linear layer is, under its name in the model; None for any other module."""
    base = base_of(module)
    if isinstance(base, nn.Linear) or _is_conv1d(base):
        return Projection(name, module, transposed=_is_conv1d(base))
    return None


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what a module is called on, however its caller names it; None where it is no tensor."""
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)


def in_order(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return what a module is called on in the order of its forward's arguments, however its caller names them."""
    names = list(inspect.signature(module.forward).parameters)[len(args):] if kwargs else []
    return [*args, *(kwargs[name] for name in names if name in kwargs),
            *(value for name, value in kwargs.items() if name not in names)]


def sizes_of(p: Projection) -> tuple[int, int]:
    """Return (in, out) of a projection, from what the module says, since a shard's shape is not the layer's."""
    base: Any = base_of(p.module)
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    return base.weight.shape[0], base.nf


def fed_forward(block: Block, x: Tensor, activation: Any, expert: int | None = None) -> Tensor:
    """Return the block's output (..., D) of x (..., D) computed from its weights and ``activation``.

    ``activation`` takes (gate, up), or (up,) where the block is plain; the reference that a replacement of the
    block is compared with. ``expert`` picks one where there are experts.
    """

    def product(p: Projection, value: Tensor) -> Tensor:
        weight, bias = p.weight, p.bias
        if expert is not None:
            weight, bias = weight[expert], None if bias is None else bias[expert]
        return torch.nn.functional.linear(value, weight, bias)

    inputs = (block.up,) if block.gate is None else (block.gate, block.up)
    return product(block.down, activation(*(product(p, x) for p in inputs)))
