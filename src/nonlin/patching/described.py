"""Every feed-forward block of a model as one record: where it is, how it is built, what it computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from nonlin.patching.blocks import Block, Layout
from nonlin.patching.configuration import claimed, configuration_of
from nonlin.patching.finding import find_blocks
from nonlin.patching.identification import Identified, identify_all


@dataclass(frozen=True)
class Described:
    """One feed-forward block of a model.

    ``name`` is its module's in the model. ``kind`` is "gated" (act(gate) * up) or "plain" (act(up)), ``layout`` that of
    gate and up ("separate", "concatenated", "interleaved"). ``dim`` and ``hidden`` are its widths, ``experts`` their
    number or 0. ``activation`` is the name of the one that it computes, None if none fits (``identified`` says why).
    ``config`` is the configuration of the sub-model that it lies in (None outside transformers), ``claimed`` the
    activation that this names.
    """

    name: str
    kind: Literal["gated", "plain"]
    layout: Layout
    dim: int
    hidden: int
    experts: int
    activation: str | None
    config: Any
    claimed: str | None
    block: Block
    identified: Identified


def describe_blocks(model: nn.Module, run: Callable[[], Any] | None = None) -> list[Described]:
    """Return a record of every feed-forward block of a model, in the order of its modules; the model stays as it was.

    ``run()`` runs the model on any input; it is needed only where a block cannot be called by itself.

    >>> from torch import nn
    >>> found = describe_blocks(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)))
    >>> [(b.kind, b.layout, b.dim, b.hidden, b.experts, b.activation, b.claimed) for b in found]
    [('plain', 'plain', 4, 16, 0, 'gelu', None)]
    """
    records = []
    for answer in identify_all(model, find_blocks(model), run):
        block, claim = answer.block, claimed(model, answer.block)
        records.append(Described(
            block.name, "gated" if block.gated else "plain", block.layout, block.dim, block.hidden, block.experts,
            answer.matches[0].definition.name if answer.status in ("found", "ambiguous") else None,
            configuration_of(model, block.name), None if claim is None else claim.name, block, answer))
    return records
