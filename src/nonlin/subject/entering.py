"""Blocks that their layer computes in its own forward, entered rather than replaced; and the proof that this works.

The first projection becomes an :class:`nonlin.subject.blocks.FeedForwardEntry`, which returns the activated values.
The layer's activation becomes the identity, and the second factor of a gated block the number one. Norms, dropouts and
residuals of the layer stay. The part that is the activation is found by trying. With the right one, the down projection
gets what the entry returned, and with the family's own activation the model's logits are as before.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.functions import Definition, get
from nonlin.nn import Activation
from nonlin.patching.blocks import Block, first_tensor
from nonlin.patching.identification import evaluating, identify
from nonlin.patching.patch import part
from nonlin.subject.blocks import FeedForwardEntry, One, put

_EQUAL = 1e-4  # of the logits' norm: the activation is computed by another kernel


class Refused(Exception):
    """Why a block cannot be entered."""


def fields(model: nn.Module, block: Block, logits: Callable[[], Tensor], why: str) -> dict[str, Any]:
    """Return how a block is entered, as the fields of its description; raise Refused, with the reason.

    ``why`` it is not replaced whole.
    """
    found = identify(block, logits)
    block = found.block
    if block.layout not in ("plain", "separate"):
        raise Refused("its layer computes it in its own forward, from one packed product")
    if found.status not in ("found", "ambiguous"):
        raise Refused(f"its layer computes it in its own forward, and its activation was not found: {found.reason}")
    paths = {role: p.name[len(block.name) + 1:] if block.name else p.name for role, p in block.projections.items()}
    if any(not path for path in paths.values()):
        raise Refused("its projections are parameters of the layer itself")
    definition = found.matches[0].definition
    with evaluating(model), torch.no_grad():
        truth = logits()
        for path in _candidates(block.module, set(paths.values())):
            if _works(block, paths, path, definition, truth, logits):
                return {"style": "entered", "block": block, "activation": path, "computes": definition.name,
                        "gate": paths.get("gate"), "up": paths["up"], "down": paths["down"], "gate_first": True,
                        "hidden_dropout": None, "out_dropout": None, "argument": "x", "fused": False}
    raise Refused(f"{why}; and no part that it calls is its activation")


def _candidates(module: nn.Module, taken: set[str]) -> Iterator[str]:
    """Yield the paths of parts that may be the activation: without parameters, or functions that a part keeps."""
    for path, inner in module.named_modules():
        if path and path not in taken and not list(inner.children()) and not isinstance(inner, nn.Dropout) and not any(
                path.startswith(f"{t}.") for t in taken):
            yield path
        for name, value in vars(inner).items():
            if not name.startswith("_") and callable(value) and not isinstance(value, type):
                yield f"{path}.{name}" if path else name


def _works(block: Block, paths: dict[str, str], path: str, definition: Definition, truth: Tensor,
           logits: Callable[[], Tensor]) -> bool:
    """Whether the block can be entered with this part as its activation."""
    module = block.module
    at = paths.get("gate", paths["up"])
    kept = {where: part(module, where) for where in {at, paths["up"], path}}
    gate = kept[at] if "gate" in paths else None
    plain = get("bilinear") if gate is not None else get("identity")
    try:
        for known, goal in ((plain, None), (definition, truth)):
            entry = FeedForwardEntry(kept[paths["up"]], gate, Activation(known).to(block.up.weight.device))
            put(module, at, entry)
            if gate is not None:
                put(module, paths["up"], One())
            put(module, path, nn.Identity())
            seen = _between(entry, block.down.module, logits)
            if seen is None:
                return False
            (made, reached), out = seen
            if goal is None and not torch.equal(made, reached):
                return False
            if goal is not None and float((out - goal).norm()) > _EQUAL * float(goal.norm().clamp(min=1e-30)):
                return False
    except Exception:  # any code may stand in a layer
        return False
    finally:
        for where, value in kept.items():
            put(module, where, value)
    return True


def _between(entry: nn.Module, down: nn.Module, logits: Callable[[], Tensor]
             ) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
    """Return what the entry returned and what the down projection got, and the logits; None where either was not run.
    """
    made, reached = [], []
    handles = [entry.register_forward_hook(lambda m, a, out: made.append(out.clone())),  # what follows may write there
               down.register_forward_pre_hook(lambda m, a, k: reached.append(first_tensor(a, k)), with_kwargs=True)]
    try:
        out = logits()
    finally:
        for handle in handles:
            handle.remove()
    if not made or not reached or made[0].numel() != reached[0].numel():
        return None
    return (made[0].flatten(), reached[0].flatten()), out
