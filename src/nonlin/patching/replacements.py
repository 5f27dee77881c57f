"""A verified replacement for every feed-forward block of a model, and the reason for each that gets none."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nonlin.functions import Definition
from nonlin.functions.registry import gated_by
from nonlin.nn import Activation
from nonlin.patching.blocks import Block, must_be_module
from nonlin.patching.finding import find_convolved, some_blocks
from nonlin.patching.identification import Identified, Match, identify_all
from nonlin.patching.keeping import left_as_it_was
from nonlin.patching.patch import Recipe, recipe_of
from nonlin.patching.verify import Refused, Replacement, prove, refuse_weights, replacement


@dataclass(frozen=True)
class Change:
    """One block that was replaced: its name in the model, its class, its activation and how its weights lie."""

    name: str
    kind: str
    activation: str
    layout: str


@dataclass(frozen=True)
class LeftAlone:
    """One block that was not touched, and why."""

    name: str
    kind: str
    reason: str


def change_of(module: nn.Module, name: str, recipe: Recipe) -> Change:
    """Return the record of a block computed by a recipe."""
    return Change(name, class_name(module), recipe.definition.name, recipe.layout)


def class_name(module: nn.Module) -> str:
    """Return the name of the module's own class, whether it is replaced or not."""
    return getattr(type(module), "_nonlin_base", type(module)).__name__


def grouped(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Write rows of (text, block's name), those of one text in one line."""
    for text, count in Counter(text for text, _ in rows).items():
        names = [name or "the module itself" for t, name in rows if t == text]
        shown = names[0] if count == 1 else f"{names[0]} … {names[-1]}"
        yield f"  {count} × {text} ({shown})"


def replacements_of(model: nn.Module, memory: str, run: Callable[[], Any] | None, call: str = "accelerate"
             ) -> tuple[list[Replacement], list[LeftAlone]]:
    """Return a verified replacement of every block that can have one, and the other blocks with the reason."""
    must_be_module(model, call)
    blocks = some_blocks(model, call)
    left = [LeftAlone(c.name, class_name(c.module), "its products are convolutions of one position: only matrix "
                      "products over the last dimension are replaced") for c in find_convolved(model)]
    with _without_modes(blocks[0]):
        return _replacements_of(model, blocks, left, memory, run, whole=call == "accelerate")


@contextlib.contextmanager
def _without_modes(block: Block) -> Iterator[None]:
    """Leave inference mode and autocast: a proof needs gradients, and products in the block's own dtype."""
    device = block.up.weight.device.type
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if device != "meta" and torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _replacements_of(model: nn.Module, blocks: Sequence[Block], left: list[LeftAlone], memory: str,
                     run: Callable[[], Any] | None, whole: bool) -> tuple[list[Replacement], list[LeftAlone]]:
    able: list[Block] = []
    for block in blocks:
        try:
            if recipe_of(block.module) is not None:
                raise Refused("it is accelerated already: call nonlin.restore(model) first to change how")
            refuse_weights(block)
            able.append(block)
        except Refused as error:
            left.append(LeftAlone(block.name, class_name(block.module), str(error)))
    replacements, proved, refused = list[Replacement](), dict[Any, Any](), dict[Any, str]()
    for block, found in zip(able, identify_all(model, able, run), strict=True):
        try:
            replacements.append(_proved(block, found, memory, proved, refused, whole))
        except Refused as error:
            left.append(LeftAlone(found.block.name, class_name(block.module), str(error)))
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return replacements, sorted(left, key=lambda c: order.get(c.name, len(order)))


def _stated(block: Block) -> Iterator[Match]:
    """Yield the matches that the block's nonlin.nn.Activation states: learned values may stand for constants."""
    modules = (m for m in block.module.modules() if isinstance(m, Activation))
    act: Definition | None = next((m.definition for m in modules), None)  # type: ignore[assignment]
    if act is None or act.kind != "pointwise":
        return
    layouts = {"concatenated": ("concatenated", "interleaved"), "interleaved": ("interleaved", "concatenated")}
    for layout in layouts.get(block.layout, (block.layout,)):
        for gate_first in (True, False) if block.gated else (True,):
            yield Match(gated_by(act) if block.gated else act, layout, gate_first, {})  # type: ignore[arg-type]


def _proved(block: Block, found: Identified, memory: str, proved: dict[Any, Any], refused: dict[Any, str],
            whole: bool) -> Replacement:
    """Return the block's replacement, verified; the costly part runs once for blocks of one kind.

    ``whole``: the block's own forward does nothing beside.
    The proof in float64 decides between activations that the block's own dtype cannot distinguish.
    """
    matches = list(found.matches) if found.status in ("found", "ambiguous") else []
    reason = "" if matches else found.reason
    for match in (*matches, *_stated(block)):
        try:
            with left_as_it_was(block.module):
                made = replacement(block, match, memory)
        except Refused as error:
            reason = reason or str(error)
            continue
        if made.kind in refused:
            reason = reason or refused[made.kind]
            continue
        try:
            with left_as_it_was(block.module):
                reads = prove(made, made.kind not in proved, whole)
        except Refused as error:
            reason = reason or str(error)
            if made.kind not in proved:
                refused[made.kind] = str(error)
            continue
        reads = proved.setdefault(made.kind, reads)
        return replace(made, recipe=replace(made.recipe, reads=reads))
    raise Refused(reason)
