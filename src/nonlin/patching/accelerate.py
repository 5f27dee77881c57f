"""``nonlin.accelerate(model)``: let nonlin compute a loaded model's feed-forward blocks, in place; and undo it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from nonlin.errors import UserError, rule
from nonlin.kernels.ffn import few
from nonlin.patching.blocks import must_be_module, some_tensor
from nonlin.patching.observing import asked_of
from nonlin.patching.patch import install, recipe_of, uninstall
from nonlin.patching.replacements import Change, LeftAlone, change_of, class_name, grouped, replacements_of
from nonlin.patching.sparse import Sparsity, decide, prepare, summary
from nonlin.patching.swap import unswap, was_swapped

MEMORY = ("fast", "lean", "minimal")

_ON_CPU = ("on a CPU, training saves less for backward and takes about the same time, sometimes a little more; "
           "measured in docs/accelerate.md")


@dataclass(frozen=True)
class Report:
    """The blocks that :func:`accelerate` or :func:`restore` changed and left alone; ``print`` shows a summary.

    ``sparse`` has an entry for each changed block where ``sparse=True`` was asked for.
    """

    verb: str
    changed: tuple[Change, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    note: str = ""
    sparse: tuple[Sparsity, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.verb}: {len(self.changed)} of {len(self.changed) + len(self.left_alone)} feed-forward blocks"]
        done = [(f"{c.kind}: {c.activation}, {c.layout}", c.name) for c in self.changed]
        left = [(f"{c.kind} left alone: {c.reason}", c.name) for c in self.left_alone]
        sparse, note = grouped(summary(self.sparse)), [f"  {self.note}"] if self.note else []
        return "\n".join([*lines, *grouped(done), *grouped(left), *sparse, *note])


def accelerate(model: nn.Module, *, memory: str = "lean", run: Callable[[], Any] | None = None,
               sparse: bool | Literal["always"] = False, calibration: Any = None, tokenizer: Any = None,
               share: float | None = None, error: float | None = None) -> Report:
    """Let nonlin compute the model's feed-forward blocks, in place, and return a report.

    Each block is first proved equal to its replacement by computing. Its activation and the layout of gate and up are
    identified. Value and gradients are compared in float64 on a copy of the first block of each kind. The value of
    every block is compared in its own dtype. A block without proof is left alone, and the report gives the reason.
    Weights are not moved: names, ``state_dict``, saving, loading, optimizers and adapters are as before;
    :func:`restore` undoes it.

    ``memory`` selects the tensors saved for backward; see :func:`nonlin.kernels.feed_forward`. ``run()`` runs the model
    on any input; only a module of your own with blocks that cannot be called alone needs it. Hooks and adapters (peft)
    on a projection keep working: such a block computes through its projections' modules and fuses the activation
    alone. Call it before FSDP2's ``fully_shard``.

    On a CPU, products of our own compute a block's output for one token without a gradient (in float32 for two). They
    take about half of the time of torch's. The first call compiles them, in some seconds.

    ``sparse=True`` is for decoding on a CPU: at 1 to 8 tokens without gradients, blocks leave out the weights of
    hidden units that are zero. Exact (float32 inside, one rounding) where the activation is zero on a set: relu,
    relu_squared, reglu, drelu, fatrelu. Others skip units below a threshold, as TEAL does (arXiv:2408.14690). They
    need ``calibration`` (texts with their ``tokenizer``, token ids, or inputs of the model), and ``share``, of values
    to skip, or ``error``, the mean relative error of a block's output. The report has each block's share and error on
    the last quarter of those tokens. Every block is timed both ways, and stays dense where sparse does not pay;
    "always" leaves that out. A copy of ``down`` is kept outside the checkpoint. More tokens, gradients, autocast and
    torch.compile take the dense path.

    Raises UserError, the model untouched, if it has no feed-forward block, if none could be replaced, or with
    ``sparse`` if none has units to skip.

    >>> from torch import nn
    >>> from transformers import LlamaConfig, LlamaModel
    >>> model = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    ...                                num_attention_heads=2))
    >>> print(accelerate(model))
    accelerated: 2 of 2 feed-forward blocks
      2 × LlamaMLP: swiglu, separate (layers.0.mlp … layers.1.mlp)
      on a CPU, training saves less for backward and takes about the same time, sometimes a little more; measured in ...
    """
    if memory not in MEMORY:
        raise UserError(rule("accelerate", "memory", f"be one of {', '.join(MEMORY)}", memory, "Choose one of them."))
    asked = asked_of(sparse, calibration, tokenizer, share, error)
    replacements, left = replacements_of(model, memory, run)
    if not replacements:
        why = "; ".join(line.strip() for line in grouped([(f"{c.kind}: {c.reason}", c.name) for c in left]))
        raise UserError(f"accelerate: no feed-forward block of {type(model).__name__} could be replaced; the model is "
                        f"as it was. {why}")
    prepared = [] if asked is None else prepare(model, replacements, asked, run)
    for made in replacements:
        install(made.block.module, made.recipe)
    on_cpu = any(some_tensor(made.block.module).device.type == "cpu" for made in replacements)
    if on_cpu:
        few.prepare()
    outcomes = () if asked is None else decide(prepared, asked)
    changed = tuple(change_of(made.block.module, made.block.name, made.recipe) for made in replacements)
    return Report("accelerated", changed, tuple(left), _ON_CPU if on_cpu else "", outcomes)


def restore(model: nn.Module, swapped: bool = True) -> Report:
    """Undo :func:`accelerate` and :func:`swap` in every block, and return a report.

    The original model remains with its current weights, the configuration's activation included; ``swapped=False``
    keeps swapped activations. A block that FSDP2 wrapped in the meantime is left alone, and the report says so.

    >>> from torch import nn
    >>> print(restore(nn.Linear(2, 2)))
    restored: 0 of 0 feed-forward blocks
    """
    must_be_module(model, "restore")
    changed, left = [], []
    for name, module in list(model.named_modules()):
        recipe, by = recipe_of(module), was_swapped(module)
        if recipe is None and (by is None or not swapped):
            continue
        if recipe is not None and by == "computation" and not swapped:
            continue
        if recipe is not None and not uninstall(module):
            left.append(LeftAlone(name, class_name(module), "another class was put over it (FSDP2 does): restore "
                                  "before fully_shard"))
            continue
        before = unswap(module) if by is not None and swapped else None
        changed.append(Change(name, class_name(module), before or (recipe.definition.name if recipe else ""),
                              recipe.layout if recipe else "its own computation"))
    return Report("restored", tuple(changed), tuple(left))
