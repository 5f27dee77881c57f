"""The feed-forward blocks of any torch model: where they are, their projections, and how these store gate and up.

Found by structure, not by a list of families: a projection into a hidden width (one, two, or one of twice the
width) and one out of it, whatever their names. What stands between them is identified by computing; see
:mod:`nonlin.patching.identification`. Shapes: D model width, H hidden width, E experts.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule

Layout = Literal["plain", "separate", "packed", "interleaved"]
Part = Literal["all", "first", "second", "even", "odd"]

# Never a feed-forward block, however its shapes may look.
_ELSEWHERE = re.compile(r"attn|attention|\bqkv|query|rotary|embed|pooler|lm_head|router|project_(in|out)", re.I)
_GATE = re.compile(r"gate|wi_0|linear_g\b|\bw1\b|\bv\b", re.I)


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
        stored = getattr(_base(self.module), self.parameter)
        return split(stored.transpose(-1, -2) if self.transposed else stored, self.part, -2)

    @property
    def bias(self) -> Tensor | None:
        """A view of the bias, (out,) or (E, out); None where there is none."""
        stored = getattr(_base(self.module), self.bias_parameter, None) if self.bias_parameter else None
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

    ``layout`` "packed" has gate and up as halves of one product, "interleaved" as every second output.
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
    def projections(self) -> dict[str, Projection]:
        """The projections by role: gate (where there is one), up, down."""
        found = {"gate": self.gate, "up": self.up, "down": self.down}
        return {role: p for role, p in found.items() if p is not None}

    def with_layout(self, layout: Layout, gate_first: bool) -> "Block":
        """Return the block with gate and up where computing found them."""
        assert self.gate is not None
        if layout == "separate":
            return self if gate_first else replace(self, gate=self.up, up=self.gate)
        first: tuple[Part, Part] = ("first", "second") if layout == "packed" else ("even", "odd")
        gate, up = first if gate_first else first[::-1]
        return replace(self, layout=layout, gate=replace(self.gate, part=gate), up=replace(self.up, part=up))


def find_blocks(model: nn.Module) -> list[Block]:
    """Return the model's feed-forward blocks in the order of its modules; an empty list where it has none.

    A packed block's gate is taken to be the first half, and the two of a separate one are told apart by name,
    until :func:`nonlin.patching.identification.identify` has computed what they are.

    >>> block = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))
    >>> [(b.name, b.layout, b.dim, b.hidden, b.up.name, b.down.name) for b in find_blocks(block)]
    [('', 'plain', 4, 16, '0', '2')]
    """
    return list(_walk("", model))


def must_be_module(model: Any, call: str) -> None:
    """Raise UserError, in the name of ``call``, for anything but a torch module."""
    if not isinstance(model, nn.Module):
        raise UserError(rule(call, "model", "be a torch module", model,
                             "Load it first: nonlin.patching.load(path).model."))


def _base(module: nn.Module) -> nn.Module:
    """The linear layer inside an adapter's wrapper (peft), or the module itself."""
    inner = getattr(module, "base_layer", None)
    return _base(inner) if isinstance(inner, nn.Module) else module


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _projection(name: str, module: nn.Module) -> Projection | None:
    base = _base(module)
    if isinstance(base, nn.Linear) or _is_conv1d(base):
        return Projection(name, module, transposed=_is_conv1d(base))
    return None


def _sizes(p: Projection) -> tuple[int, int]:
    """(in, out) of a projection, from what the module says, since a shard's shape is not the layer's."""
    base: Any = _base(p.module)
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    return base.weight.shape[0], base.nf


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _elsewhere(name: str) -> bool:
    return bool(_ELSEWHERE.search(name))


def _walk(prefix: str, module: nn.Module) -> Iterator[Block]:
    experts = _experts(prefix, module)
    if experts is not None:
        yield experts
        return
    children = [(name, child) for name, child in module.named_children() if not _elsewhere(name)]
    direct = [p for name, child in children if (p := _projection(_join(prefix, name), child))]
    if isinstance(module, nn.Sequential):
        yield from _chain(prefix, module, direct)
    elif (block := _match(prefix, module, direct)) is not None:
        yield block
    found = False
    for name, child in children:
        if _projection(name, child) is None:
            for block in _walk(_join(prefix, name), child):
                found = True
                yield block
    # BERT's way: one projection in each of two neighbours, the block being the layer around them.
    if not found and not direct:
        spread = [p for name, child in children if (p := _only_projection(_join(prefix, name), child))]
        if (block := _match(prefix, module, spread)) is not None:
            yield block


def _only_projection(prefix: str, module: nn.Module) -> Projection | None:
    found = [p for name, child in module.named_modules() if (p := _projection(_join(prefix, name), child))]
    return found[0] if len(found) == 1 else None


def _chain(prefix: str, module: nn.Module, direct: list[Projection]) -> Iterator[Block]:
    """Every two linear layers that follow each other with something between them."""
    names = [name for name, _ in module.named_children()]
    for up, down in itertools.pairwise(direct):
        between = names.index(down.name.rpartition(".")[2]) - names.index(up.name.rpartition(".")[2])
        if _sizes(up)[1] == _sizes(down)[0] and between > 1:
            yield Block(prefix, module, "plain", None, up, down, *_sizes(up))


def _match(prefix: str, module: nn.Module, candidates: list[Projection]) -> Block | None:
    """Pair the projections by their shapes: D to H once or twice, or to 2 H; and H to D."""
    for down in reversed(candidates):
        hidden, dim = _sizes(down)
        into = [p for p in candidates if p is not down and _sizes(p)[0] == dim]
        single = [p for p in into if _sizes(p)[1] == hidden]
        packed = [p for p in into if _sizes(p)[1] == 2 * hidden]
        if len(single) == 2:
            gate, up = single if _GATE.search(_last(single[0])) or not _GATE.search(_last(single[1])) else single[::-1]
            return Block(prefix, module, "separate", gate, up, down, dim, hidden)
        if len(single) == 1:
            return Block(prefix, module, "plain", None, single[0], down, dim, hidden)
        if len(packed) == 1 and not single:
            gate, up = (replace(packed[0], part=part) for part in ("first", "second"))
            return Block(prefix, module, "packed", gate, up, down, dim, hidden)
    return None


def _last(p: Projection) -> str:
    return p.name.rpartition(".")[2]


def _experts(prefix: str, module: nn.Module) -> Block | None:
    """Experts whose weights are three-dimensional parameters, as ``transformers`` 5 keeps them."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
    down = own.get("down_proj")
    into = "gate_up_proj" if "gate_up_proj" in own else "up_proj"
    if down is None or into not in own:
        return None
    gated, transposed = into == "gate_up_proj", bool(getattr(module, "is_transposed", False))

    def projection(parameter: str, part: Part = "all") -> Projection:
        bias = f"{parameter}_bias" if hasattr(module, f"{parameter}_bias") else None
        return Projection(prefix, module, parameter, bias, transposed, part)

    count, hidden, dim = down.shape if transposed else (down.shape[0], down.shape[2], down.shape[1])
    if not gated:
        return Block(prefix, module, "plain", None, projection(into), projection("down_proj"), dim, hidden, count)
    packed = bool(getattr(module, "is_concatenated", True))
    parts: tuple[Part, Part] = ("first", "second") if packed else ("even", "odd")
    gate, up = (projection(into, part) for part in parts)
    return Block(prefix, module, "packed" if packed else "interleaved", gate, up, projection("down_proj"), dim,
                 hidden, count)


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
