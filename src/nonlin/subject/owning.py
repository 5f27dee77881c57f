"""Whether a block's weights are its own: what another part uses too, or what is computed, has no other size."""

from collections import defaultdict
from collections.abc import Iterable

from torch import nn

from nonlin.patching.blocks import Block


def not_own(model: nn.Module, blocks: Iterable[Block]) -> dict[str, str]:
    """Return, by a block's name, the reason why its weights cannot be replaced; nothing of a block whose can.

    A module that several layers share is one module, and its weights are its own.

    >>> model = nn.Sequential(nn.Embedding(16, 4), nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)))
    >>> model[1][0].weight = model[0].weight
    >>> from nonlin.patching.finding import find_blocks
    >>> not_own(model, find_blocks(model))
    {'1': 'its weights are those of another part, too: 0.weight is 1.0.weight'}
    """
    places: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is not None:
                places[id(p)].append(f"{name}.{key}" if name else key)
    found = {}
    for block in blocks:
        for projection in block.projections.values():
            module = projection.module
            if not block.stacked and "weight" not in module._parameters:
                found.setdefault(block.name, f"the weights of {projection.name} are computed from others")
            for p in module.parameters(recurse=False):
                if len(shared := places[id(p)]) > 1:
                    found.setdefault(block.name, "its weights are those of another part, too: "
                                     f"{shared[0]} is {shared[1]}")
    return found
