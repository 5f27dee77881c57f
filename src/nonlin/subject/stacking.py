"""Stacked experts whose class applies the activation inside its own loop: nonlin's forward in place of that loop.

Two forms are known. "looped" experts get tokens (N, D) with the experts' numbers and weights (N, K) and return their
weighted sum. "batched" ones get the rows of all experts one after the other (E n, D) and return as many. Which one a
class is, and what it computes, is proved by computing. Shapes: N tokens, D model width, H hidden width, E experts.
"""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nonlin import functional
from nonlin.errors import told
from nonlin.functions import Definition
from nonlin.patching.blocks import Block, Projection
from nonlin.patching.configuration import claimed
from nonlin.patching.identification import evaluating

ACTIVATION = "nonlin_activation"
"""The name of the part that holds the experts' activation."""
STYLES = ("looped", "batched")
_EQUAL = 1e-5  # of the output's norm, in float32
_ROWS = 6


class Refused(Exception):
    """Why stacked experts cannot be computed by nonlin's forward."""


class _Looped:
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        module: Any = self
        out = torch.zeros_like(hidden_states)
        count = module.down_proj.shape[0]
        for expert in top_k_index.unique().tolist():
            rows, places = torch.where(top_k_index == expert)
            x = hidden_states[rows]
            # A number beyond the experts is that of one without computation: the token itself.
            y = _expert(module, expert, x) if expert < count else x
            out.index_add_(0, rows, (y * top_k_weights[rows, places, None]).to(out.dtype))
        return out


class _Batched:
    def forward(self, hidden_states: Tensor) -> Tensor:
        module: Any = self
        count = module.down_proj.shape[0]
        x = hidden_states.view(count, -1, hidden_states.shape[-1])
        hidden = getattr(module, ACTIVATION)(torch.bmm(x, _into(module)))
        return torch.bmm(hidden, _turned(module, module.down_proj)).view(hidden_states.shape)


def _turned(module: Any, stored: Tensor) -> Tensor:
    """Return a stored weight as (E, in, out)."""
    return stored if module.__dict__["nonlin_transposed"] else stored.transpose(-1, -2)


def _into(module: Any) -> Tensor:
    own = module._parameters
    return _turned(module, own["gate_up_proj" if "gate_up_proj" in own else "up_proj"])


def _expert(module: Any, expert: int, x: Tensor) -> Tensor:
    hidden = getattr(module, ACTIVATION)(x @ _into(module)[expert])
    return hidden @ _turned(module, module.down_proj)[expert]


@functools.cache
def _class(base: type, style: str) -> type:
    mixin = {"looped": _Looped, "batched": _Batched}[style]
    return type(base.__name__, (mixin, base), {"__module__": base.__module__, "__qualname__": base.__qualname__,
                                               "_nonlin_base": base})


def exchange(module: nn.Module, style: str, transposed: bool) -> None:
    """Let the experts compute by nonlin's forward; their activation is the part named :data:`ACTIVATION`."""
    module.__dict__["nonlin_transposed"] = transposed
    module.__class__ = _class(type(module), style)


def fields(model: nn.Module, block: Block) -> dict[str, Any]:
    """Return how stacked experts are replaced, as the fields of their description; raise Refused with the reason."""
    block = _as_stored(block)
    found = claimed(model, block)
    if found is None or found.parameters:
        raise Refused("its experts apply an activation inside their forward that their configuration does not name")
    names = [q.name for q in inspect.signature(block.module.forward).parameters.values()
             if q.kind in (q.POSITIONAL_ONLY, q.POSITIONAL_OR_KEYWORD)]
    style = {1: "batched", 3: "looped"}.get(len(names))
    if style is None:
        raise Refused(f"its experts take {', '.join(names)}, not their rows, or tokens with the experts' numbers")
    try:
        with torch.no_grad(), evaluating(block.module):
            same = _same(block, style, found)
    except Exception as error:  # any code may stand in a class
        raise Refused(f"its experts cannot be called alone ({told(error)})") from error
    if not same:
        raise Refused(f"its experts compute something else than {found.name} of their products")
    return {"style": style, "block": block, "activation": None, "computes": found.name, "gate": None, "up": "",
            "down": "", "gate_first": True, "hidden_dropout": None, "out_dropout": None, "argument": "x",
            "fused": False}


def _as_stored(block: Block) -> Block:
    """Return the block with its widths as the shapes of its tensors say; raise Refused where they say none."""
    own = dict(block.module.named_parameters(recurse=False))
    into = "gate_up_proj" if "gate_up_proj" in own else "up_proj"
    if block.down.module is not block.module or into not in own:
        raise Refused("its experts are products of their own modules, sorted by expert between them")
    if any(name.endswith("bias") for name in own):
        raise Refused("its experts have biases and apply the activation inside their forward")
    factor = 2 if into == "gate_up_proj" else 1
    (_, a, b), (count, c, d) = own[into].shape, own["down_proj"].shape
    sizes = {False: (b, a, d, c), True: (a, b, c, d)}
    turned = next((t for t, (dim, out, hidden, back) in sizes.items() if (out, back) == (factor * hidden, dim)), None)
    if turned is None:
        raise Refused("its experts' matrices have other shapes than a feed-forward block's")
    dim, _, hidden, _ = sizes[turned]

    def projection(parameter: str, part: Any = "all") -> Projection:
        return Projection(block.name, block.module, parameter, None, turned, part)

    gate = projection(into, "first") if factor == 2 else None
    return Block(block.name, block.module, "concatenated" if factor == 2 else "plain", gate,
                 projection(into, "second" if factor == 2 else "all"), projection("down_proj"), dim, hidden, count)


def _same(block: Block, style: str, definition: Definition) -> bool:
    """Whether the experts' own forward gives what the definition gives of their products, on random rows."""
    draw = torch.Generator().manual_seed(0)
    module, count = block.module, block.experts
    if style == "batched":
        x = torch.randn(count * _ROWS, block.dim, generator=draw)
        parts = x.view(count, _ROWS, block.dim)
        expected = torch.cat([_computed(block, e, parts[e], definition) for e in range(count)])
        got = module(x)
    else:
        x = torch.randn(_ROWS, block.dim, generator=draw)
        index = torch.stack([torch.randperm(count, generator=draw)[:min(2, count)] for _ in range(_ROWS)])
        weights = torch.rand(index.shape, generator=draw)
        expected = torch.stack([sum((weights[i, k] * _computed(block, int(index[i, k]), x[i:i + 1], definition)[0]
                                     for k in range(index.shape[1])), torch.zeros(block.dim)) for i in range(_ROWS)])
        got = module(x, index, weights)
    return got.shape == expected.shape and float((got - expected).norm()) <= _EQUAL * float(
        expected.norm().clamp(min=1e-30))


def _computed(block: Block, expert: int, x: Tensor, definition: Definition) -> Tensor:
    inputs = tuple(x @ p.weight[expert].t() for p in _inputs(block))
    return functional.activation(definition)(*inputs) @ block.down.weight[expert].t()


def _inputs(block: Block) -> Iterator[Projection]:
    if block.gate is not None:
        yield block.gate
    yield block.up

