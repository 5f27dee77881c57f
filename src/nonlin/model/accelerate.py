"""``nonlin.accelerate(model)``: the feed-forward blocks of a loaded model computed by nonlin, in place, and back."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from nonlin.errors import UserError, rule
from nonlin.model.blocks import Block, find_blocks
from nonlin.model.identification import Identified, identify_all
from nonlin.model.proof import Plan, Refused, plan, prove, refuse_weights
from nonlin.model.replacement import install, recipe_of, uninstall

MEMORY = ("fast", "lean", "minimal")


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


@dataclass(frozen=True)
class Report:
    """What :func:`accelerate` or :func:`restore` did; printed, it says it in a few lines."""

    verb: str
    changed: tuple[Change, ...]
    left_alone: tuple[LeftAlone, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.verb}: {len(self.changed)} of {len(self.changed) + len(self.left_alone)} feed-forward blocks"]
        done = [(f"{c.kind}: {c.activation}, {c.layout}", c.name) for c in self.changed]
        left = [(f"{c.kind} left alone: {c.reason}", c.name) for c in self.left_alone]
        return "\n".join([*lines, *_grouped(done), *_grouped(left)])


def _grouped(rows: list[tuple[str, str]]) -> Iterator[str]:
    for text, count in Counter(text for text, _ in rows).items():
        names = [name or "the module itself" for t, name in rows if t == text]
        shown = names[0] if count == 1 else f"{names[0]} … {names[-1]}"
        yield f"  {count} × {text} ({shown})"


def accelerate(model: nn.Module, *, memory: str = "lean", run: Callable[[], Any] | None = None) -> Report:
    """Let nonlin compute the model's feed-forward blocks, in place, and return what was done and what was not.

    Every block is proved equal to its replacement by computing before it is replaced: which activation it is and how
    gate and up lie, then value and gradients in float64 on a copy of the first block of each kind, and the value of
    every block in its own dtype. What cannot be proved equal is left alone, and the report says why. Weights are not
    moved: names, ``state_dict``, saving, loading, optimizers and adapters are as before; :func:`restore` undoes it.

    ``memory`` is what a training step keeps of each block; see :func:`nonlin.kernels.feed_forward`. ``run()`` runs
    the model on any input; it is needed only for a module of your own whose blocks cannot be called by themselves.
    Hooks and adapters (peft) on a projection go on working: such a block computes through its projections' modules
    and fuses the activation alone. Call it before FSDP2's ``fully_shard``.

    Raises UserError where the model has no feed-forward block, or where none of them could be replaced (the model is
    then untouched).

    >>> from torch import nn
    >>> from transformers import LlamaConfig, LlamaModel
    >>> model = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    ...                                num_attention_heads=2))
    >>> print(accelerate(model))
    accelerated: 2 of 2 feed-forward blocks
      2 × LlamaMLP: swiglu, separate (layers.0.mlp … layers.1.mlp)
    """
    if memory not in MEMORY:
        raise UserError(rule("accelerate", "memory", f"be one of {', '.join(MEMORY)}", memory, "Choose one of them."))
    plans, left = _plan(model, memory, run)
    if not plans:
        raise UserError(f"accelerate: no feed-forward block of {type(model).__name__} could be replaced; the model is "
                        "as it was.\n" + "\n".join(_grouped([(f"{c.kind}: {c.reason}", c.name) for c in left])))
    for made in plans:
        install(made.block.module, made.recipe)
    return Report("accelerated", tuple(_change(made.block, made.recipe) for made in plans), tuple(left))


def _change(block: Block, recipe: Any) -> Change:
    kind = getattr(type(block.module), "_nonlin_base", type(block.module)).__name__
    return Change(block.name, kind, recipe.definition.name, recipe.layout)


def _plan(model: nn.Module, memory: str, run: Callable[[], Any] | None) -> tuple[list[Plan], list[LeftAlone]]:
    """Return a proved plan of every block that can be replaced, and the blocks that cannot, with the reason."""
    blocks = find_blocks(model)
    if not blocks:
        raise UserError(rule("accelerate", "model", "have a feed-forward block (a projection into a hidden width and "
                             "one out of it)", type(model).__name__, "Pass a language model."))
    left: list[LeftAlone] = []
    able = []
    for block in blocks:
        try:
            if recipe_of(block.module) is not None:
                raise Refused("it is accelerated already: call nonlin.restore(model) first to change how")
            refuse_weights(block)
            able.append(block)
        except Refused as error:
            left.append(LeftAlone(block.name, type(block.module).__name__, str(error)))
    plans, proved, refused = [], set(), {}
    for block, found in zip(able, identify_all(model, able, run), strict=True):
        try:
            plans.append(_proved(block, found, memory, proved, refused))
        except Refused as error:
            left.append(LeftAlone(found.block.name, type(found.block.module).__name__, str(error)))
    order = {block.name: i for i, block in enumerate(blocks)}
    return plans, sorted(left, key=lambda c: order[c.name])


def _proved(block: Block, found: Identified, memory: str, proved: set[Any], refused: dict[Any, str]) -> Plan:
    """Return the block's plan, proved; the costly part once for blocks of one kind.

    Where the activations that fit cannot be told apart in the block's own dtype, the proof in float64 decides.
    """
    if found.status in ("unknown", "partial"):
        raise Refused(found.reason)
    reason = ""
    for match in found.matches:
        made = plan(block, match, memory)
        if made.kind in refused:
            reason = reason or refused[made.kind]
            continue
        try:
            prove(made, sharp=made.kind not in proved)
        except Refused as error:
            reason = reason or str(error)
            if made.kind not in proved:
                refused[made.kind] = str(error)
            continue
        proved.add(made.kind)
        return made
    raise Refused(reason)


def restore(model: nn.Module) -> Report:
    """Give every block that :func:`accelerate` replaced its own computation back, and return which ones.

    The model is then what it was, its weights as they are now. A block that FSDP2 wrapped in the meantime is left
    alone, with the reason.

    >>> from torch import nn
    >>> print(restore(nn.Linear(2, 2)))
    restored: 0 of 0 feed-forward blocks
    """
    changed, left = [], []
    for name, module in model.named_modules():
        recipe = recipe_of(module)
        if recipe is None:
            continue
        kind = getattr(type(module), "_nonlin_base", type(module)).__name__
        if uninstall(module):
            changed.append(Change(name, kind, recipe.definition.name, recipe.layout))
        else:
            left.append(LeftAlone(name, kind, "another class was put over it (FSDP2 does): restore before fully_shard"))
    return Report("restored", tuple(changed), tuple(left))
