"""``nonlin.swap(model, "relu")``: another activation in a model's feed-forward blocks, for training it further."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule
from nonlin.functions import Definition, get
from nonlin.functions.registry import gate_of, gated_by
from nonlin.nn import Activation
from nonlin.patching.blocks import must_be_module, some_tensor
from nonlin.patching.identification import evaluating
from nonlin.patching.patch import Recipe, install, part, recipe_of, uninstall
from nonlin.patching.replacements import Change, class_name, replacements_of
from nonlin.patching.tokenizers import token_ids
from nonlin.patching.verify import Replacement, activation_path
from nonlin.patching.written import write

_KEY = "_nonlin_swap"


@dataclass
class _Undo:
    """The state of a block before its first swap, with the configuration's fields, and its present swap."""

    before: str
    by: str = ""
    path: str | None = None
    module: nn.Module | None = None
    config: list[tuple[Any, str, Any]] = field(default_factory=list)


def was_swapped(module: nn.Module) -> str | None:
    """Return how a block was swapped: "module" or "computation"; None where it was not."""
    undo = module.__dict__.get(_KEY)
    return None if undo is None else undo.by


def unswap(module: nn.Module) -> str:
    """Put back what the block had before its first swap and return that activation's name."""
    undo: _Undo = module.__dict__.pop(_KEY)
    if undo.path is not None and undo.module is not None:
        some = some_tensor(module)
        _put(module, undo.path, undo.module.to(some.device))
    for config, name, value in reversed(undo.config):
        setattr(config, name, value)
    return undo.before


@dataclass(frozen=True)
class Swapped:
    """The changes that :func:`swap` made; ``print`` shows a summary.

    ``parameters`` maps each feed-forward tensor's name in the checkpoint before to its name now; ``added`` are new
    (the new activation's learnable ones, at their start), ``dropped`` belonged to the old activation. ``config`` lists
    the configuration's fields that changed, as (field, before, now); where it is empty, ``note`` says why. Losses are
    nats per token, where text was given.
    """

    changed: tuple[Change, ...]
    before: tuple[str, ...]
    parameters: dict[str, str] = field(repr=False)
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    config: tuple[tuple[str, Any, Any], ...]
    note: str
    loss_nats_before: float | None = None
    loss_nats_after: float | None = None

    def __str__(self) -> str:
        lines = [f"swapped: {len(self.changed)} feed-forward blocks, {', '.join(dict.fromkeys(self.before))} to "
                 f"{', '.join(dict.fromkeys(c.activation for c in self.changed))}",
                 f"  parameters: {len(self.parameters)} kept under their names, {len(self.added)} added, "
                 f"{len(self.dropped)} dropped"]
        lines += [f"    + {name}" for name in self.added] + [f"    - {name}" for name in self.dropped]
        lines += [f"  config.{name}: {old!r} is now {new!r}" for name, old, new in self.config]
        if self.note:
            lines.append(f"  {self.note}")
        if self.loss_nats_before is not None:
            lines.append(f"  loss: {self.loss_nats_before:.4f} nats per token before, {self.loss_nats_after:.4f} now")
        return "\n".join(lines)


def swap(model: nn.Module, activation: str | Definition, *, text: str | Tensor | None = None, tokenizer: Any = None,
         run: Callable[[], Any] | None = None) -> Swapped:
    """Put another activation into every feed-forward block of a loaded model, in place, and return what changed.

    The weights stay, under their names; the function changes, and with it the loss: the model is for further
    training (ReLU for sparsity, for example), and a warning says so. In a gated block a pointwise activation becomes
    the gate's, "relu" making relu(gate) * up; a gated one ("swiglu_oai") replaces the whole formula. The
    configuration follows where ``transformers`` holds the new activation (``ACT2FN``), so that a saved checkpoint
    loads as it is. Otherwise the report says what a loaded one would compute. :func:`nonlin.restore` undoes it;
    accelerated blocks stay accelerated.

    ``text``, with a ``tokenizer``, or token ids (N,), measures the loss of a causal model before and after, on at
    most 2,048 tokens. ``run`` is that of :func:`nonlin.accelerate`.

    Raises UserError, the model untouched, where a block's activation cannot be told or separated from the rest. It
    does so too for a gated activation in a block without a gate.

    >>> from transformers import LlamaConfig, LlamaModel
    >>> model = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
    ...                                num_attention_heads=2))
    >>> with warnings.catch_warnings(action="ignore"):
    ...     print(swap(model, "relu"))
    swapped: 2 feed-forward blocks, swiglu to reglu
      parameters: 6 kept under their names, 0 added, 0 dropped
      config.hidden_act: 'silu' is now 'relu'
    """
    must_be_module(model, "swap")
    wanted = get(activation)
    tokens = None if text is None else _tokens(model, text, tokenizer)
    loss_before = None if tokens is None else loss_nats(model, tokens)
    installed = {m: r for m in model.modules() if (r := recipe_of(m)) is not None}
    wrapped = [m for m in installed if "_nonlin_base" not in vars(type(m))]
    if wrapped:
        raise UserError(rule("swap", "model", "not be wrapped by FSDP2 yet", type(wrapped[0]).__name__,
                             "Swap before fully_shard."))
    for module in installed:
        uninstall(module)
    try:
        steps = _steps(model, wanted, run)
    except BaseException:
        for module, recipe in installed.items():
            install(module, recipe)
        raise
    accelerated = {m: r for m, r in installed.items() if was_swapped(m) != "computation"}
    kept, dropped = _names(model, steps)
    for step in steps:
        step.apply(accelerated.get(step.made.block.module))
    added = _names(model, steps)[1]
    written = write(model, [s.made for s in steps], _common([s.named for s in steps]))
    steps[0].made.block.module.__dict__[_KEY].config.extend(written.undo)
    loss_after = None if tokens is None else loss_nats(model, tokens)
    done = Swapped(
        tuple(Change(s.made.block.name, class_name(s.made.block.module), s.definition.name, s.made.recipe.layout)
              for s in steps),
        tuple(s.made.recipe.definition.name for s in steps), {n: n for n in kept}, tuple(added), tuple(dropped),
        written.changed, written.note, loss_before, loss_after)
    seen = "" if loss_after is None else (
        f" (on this text {loss_before:.3f} nats per token before, {loss_after:.3f} now)")
    warnings.warn("swap: the model now computes another function than the one it was trained with; expect a worse "
                  f"loss until it is trained further{seen}.", UserWarning, stacklevel=2)
    return done


@dataclass(frozen=True)
class _Step:
    """One block's swap: by its activation's module at ``path``, or by exchanging the whole computation (None)."""

    made: Replacement
    definition: Definition
    act: Definition | None
    path: str | None
    named: Definition | None  # the pointwise activation that a configuration's field may name

    def apply(self, accelerated: Recipe | None) -> None:
        module = self.made.block.module
        weight = self.made.block.down.weight
        undo: _Undo = module.__dict__.setdefault(_KEY, _Undo(self.made.recipe.definition.name))
        undo.by = "computation" if self.path is None else "module"
        if self.path is not None:
            if undo.path is None:
                undo.path, undo.module = self.path, part(module, self.path)
            _put(module, self.path, Activation(self.act or self.definition, weight.device, weight.dtype))
        recipe = replace(self.made.recipe, definition=self.definition, swapped=self.path is None,
                         activation=self.path if self.definition.parameters else None)
        if accelerated is not None or self.path is None:
            install(module, recipe if accelerated is None else replace(recipe, memory=accelerated.memory))


def _common(acts: list[Definition | None]) -> Definition | None:
    """Return the one activation of all blocks that a configuration's field can name, or None."""
    return acts[0] if all(a is acts[0] for a in acts) else None


def _put(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(part(module, parent), name, new)


def _steps(model: nn.Module, wanted: Definition, run: Callable[[], Any] | None) -> list[_Step]:
    replacements, left = replacements_of(model, "lean", run, "swap")
    if left:
        raise UserError(f"swap: every feed-forward block must be understood before any is changed; "
                        f"{left[0].name or 'the module itself'} is not: {left[0].reason}. The model is as it was.")
    steps = []
    for made in replacements:
        old = made.recipe.definition
        definition, act = _meant(wanted, old)
        simple = act is not None and (not old.gated or gate_of(old) is not None)
        path = activation_path(made) if simple else None
        if path is None and definition.parameters:
            raise UserError(rule("swap", "activation", "have no learnable parameters where the block "
                                 f"({made.block.name}) has no module to hold them", wanted.name, "Choose another."))
        if path is None and (definition.expr is None or made.recipe.activation is not None):
            raise UserError(rule("swap", "activation", f"be one that {made.block.name} can take in place of "
                                 f"{old.name}", wanted.name, "Choose another."))
        steps.append(_Step(made, definition, act if path is not None else None, path, act))
    return steps


def _meant(wanted: Definition, old: Definition) -> tuple[Definition, Definition | None]:
    """Return (the block's activation, the module's one or None where the formula is more than act(gate) * up)."""
    if not old.gated:
        if wanted.gated:
            raise UserError(rule("swap", "activation", f"be one of x: the blocks ({old.name}) have no gate",
                                 wanted.name, "Choose a pointwise activation."))
        return wanted, wanted
    if wanted.gated:
        return wanted, gate_of(wanted)
    if wanted.expr is None:
        raise UserError(rule("swap", "activation", "be pointwise or gated", wanted.name, "Choose another."))
    return gated_by(wanted), wanted


def _names(model: nn.Module, steps: list[_Step]) -> tuple[list[str], list[str]]:
    """Return the names in ``state_dict`` of the blocks' matrices, and of their activations' parameters."""
    products, activations = [], []
    for s in steps:
        products += [f"{p.name}." for p in s.made.block.projections.values()]
        if s.path is not None:
            activations.append(f"{s.made.block.name}.{s.path}." if s.made.block.name else f"{s.path}.")
    names = list(model.state_dict())
    return [n for n in names if n.startswith(tuple(products))], [n for n in names if n.startswith(tuple(activations))]


def _tokens(model: nn.Module, text: str | Tensor, tokenizer: Any) -> Tensor:
    if isinstance(text, Tensor):
        ids = text.flatten()
    elif tokenizer is None:
        raise UserError(rule("swap", "tokenizer", "be given with text", None,
                             "Pass the model's tokenizer, or token ids."))
    else:
        ids = torch.tensor(token_ids(tokenizer, text, "swap"), dtype=torch.long, device="cpu")
    if ids.numel() < 2:
        raise UserError(rule("swap", "text", "have at least two tokens", ids.numel(), "Pass more text."))
    if ids.is_floating_point() or ids.is_complex():
        raise UserError(rule("swap", "text", "be whole numbers, the token ids", ids.dtype, "Pass a LongTensor."))
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is not None and not 0 <= int(ids.min()) <= int(ids.max()) < embedding.num_embeddings:
        raise UserError(rule("swap", "text", f"be token ids below {embedding.num_embeddings:,}",
                             (int(ids.min()), int(ids.max())), "Make them with this model's own tokenizer."))
    if not _is_causal(model, ids[:8]):
        raise UserError(rule("swap", "text", "come with a causal language model", type(model).__name__,
                             "Leave text out."))
    return ids[:2048]


@torch.no_grad()
def _is_causal(model: nn.Module, ids: Tensor) -> bool:
    """Whether the model gives logits that do not change with what comes after, found by changing it."""
    with evaluating(model):
        try:
            first, second = (_logits(model, piece[None]) for piece in (ids, torch.cat((ids[:-1], ids[:1]))))
        except Exception:  # a model that needs more than tokens has no loss on text alone
            return False
    return first is not None and torch.allclose(first[:, :-1], second[:, :-1], rtol=1e-2, atol=1e-3)


def _logits(model: nn.Module, ids: Tensor) -> Any:
    out = model(ids.to(some_tensor(model).device))
    return out if isinstance(out, Tensor) else getattr(out, "logits", None)


@torch.no_grad()
def loss_nats(model: nn.Module, tokens: Tensor, window: int = 512) -> float:
    """Return a causal model's mean cross-entropy in nats per token, in windows of at most ``window`` tokens."""
    total, count = 0.0, 0
    with evaluating(model):
        for piece in tokens.split(window):
            if piece.numel() > 1:
                logits = _logits(model, piece[None])[0, :-1].float()
                total += float(nn.functional.cross_entropy(logits, piece[1:].to(logits.device), reduction="sum"))
                count += piece.numel() - 1
    return total / count
