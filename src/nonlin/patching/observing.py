"""The inputs of a model's feed-forward blocks on a text, on token ids, or where nothing is given on random tokens."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule
from nonlin.patching.blocks import some_tensor
from nonlin.patching.tokenizers import token_ids
from nonlin.patching.verify import Replacement

TOKENS = 1024
"""The most tokens that are run: three quarters to fit on, one to judge by."""
_CONTEXT, _RANDOM = 256, 64


@dataclass(frozen=True)
class Asked:
    """The user's request for sparse blocks; ``batches`` are token ids (1, T), or inputs of another model (..., D)."""

    always: bool = False
    batches: tuple[Tensor, ...] = ()
    share: float | None = None
    error: float | None = None

    @property
    def approximate(self) -> bool:
        """Whether units that are not zero may be skipped."""
        return self.share is not None or self.error is not None


def asked_of(sparse: bool | str, calibration: Any, tokenizer: Any, share: float | None, error: float | None
             ) -> Asked | None:
    """Return what was asked for, checked; None where ``sparse`` is False. Raises UserError."""
    call = "accelerate"
    if sparse not in (True, False, "always"):
        raise UserError(rule(call, "sparse", 'be True, False or "always"', sparse, "Choose one of them."))
    if not sparse:
        given = [n for n, v in (("calibration", calibration), ("share", share), ("error", error)) if v is not None]
        if given:
            raise UserError(rule(call, given[0], "come with sparse=True", "sparse=False", "Pass both, or neither."))
        return None
    if share is not None and error is not None:
        raise UserError(rule(call, "share and error", "not both be given", (share, error), "Choose one of them."))
    for name, value in (("share", share), ("error", error)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < 1):
            raise UserError(rule(call, name, "lie between 0 and 1", value, "Pass 0.05 for five per cent."))
        if value is not None and calibration is None:
            raise UserError(rule(call, name, "come with calibration", None, "Pass texts or token ids of your use."))
    batches = () if calibration is None else tuple(_batches(calibration, tokenizer))
    if calibration is not None and sum(_count(b) for b in batches) < 32:
        raise UserError(rule(call, "calibration", "have at least 32 tokens", sum(_count(b) for b in batches),
                             "Pass more text."))
    return Asked(sparse == "always", batches, share, error)


def _count(batch: Tensor) -> int:
    return batch.numel() if not batch.is_floating_point() else batch.numel() // batch.shape[-1]


def _batches(calibration: Any, tokenizer: Any) -> Iterator[Tensor]:
    """Yield at most TOKENS tokens, the same number of each text or tensor, in pieces of a context."""
    parts = [calibration] if isinstance(calibration, (str, Tensor)) else calibration
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(p, (str, Tensor)) for p in parts):
        raise UserError(rule("accelerate", "calibration", "be texts or tensors of token ids",
                             type(calibration).__name__, "Pass a list of texts with tokenizer=, or of tensors."))
    each = -(-TOKENS // len(parts))
    for one in parts[:TOKENS]:
        if isinstance(one, str):
            if tokenizer is None:
                raise UserError(rule("accelerate", "tokenizer", "be given with texts", None,
                                     "Pass the model's tokenizer, or token ids."))
            one = torch.tensor(token_ids(tokenizer, one, "accelerate"), dtype=torch.long, device="cpu")
        if one.is_floating_point():
            yield one.reshape(-1, one.shape[-1])[:each][None]
        elif one.is_complex() or one.dtype is torch.bool:
            raise UserError(rule("accelerate", "calibration", "be token ids, or a module's inputs", one.dtype,
                                 "Pass a LongTensor."))
        else:
            yield from (piece[None] for piece in one.flatten()[:each].split(_CONTEXT) if piece.numel())


def observed(model: nn.Module, replacements: Sequence[Replacement], asked: Asked, run: Callable[[], Any] | None
             ) -> dict[str, tuple[Tensor, str]]:
    """Return the inputs (N, D) of each block by its name, in the order of the tokens, and what they are.

    They are those of the calibration; else of ``run()``; else of random token ids. A model that takes none of these
    gets rows drawn from a unit normal.
    """
    if asked.batches:
        with _recording(replacements) as rows:
            for batch in asked.batches:
                _call(model, _checked(model, batch))
        return {name: (x, "your text" if not batch.is_floating_point() else "your inputs")
                for name, x in _joined(rows).items()}
    with _recording(replacements) as rows:
        if run is not None:
            run()
        elif (vocabulary := _vocabulary(model)) is not None:
            with contextlib.suppress(Exception):  # random tokens may not suit a model
                _call(model, torch.randint(vocabulary, (1, _RANDOM), device="cpu",
                                           generator=torch.Generator().manual_seed(0)))
    found = {name: (x, "random tokens" if run is None else "run()") for name, x in _joined(rows).items()}
    return found | {p.block.name: (_normal(p), "random numbers") for p in replacements if p.block.name not in found}


def _normal(made: Replacement) -> Tensor:
    weight = made.block.up.weight
    return torch.randn(_RANDOM, made.block.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float32,
                       device="cpu").to(weight)


def _joined(rows: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(some)[:TOKENS] for name, some in rows.items() if some}


@contextlib.contextmanager
def _recording(replacements: Sequence[Replacement]) -> Iterator[dict[str, list[Tensor]]]:
    rows: dict[str, list[Tensor]] = {p.block.name: [] for p in replacements}

    def hook(made: Replacement) -> Callable[..., None]:
        def record(_: Any, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs[made.recipe.argument]
            some = rows[made.block.name]
            if sum(map(len, some)) < TOKENS:
                some.append(x.detach().reshape(-1, x.shape[-1]).clone())
        return record

    handles = [p.block.module.register_forward_pre_hook(hook(p), with_kwargs=True) for p in replacements]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _vocabulary(model: nn.Module) -> int | None:
    found = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    return None if found is None else found.num_embeddings


def _checked(model: nn.Module, batch: Tensor) -> Tensor:
    if batch.is_floating_point():
        return batch
    vocabulary = _vocabulary(model)
    if vocabulary is not None and not 0 <= int(batch.min()) <= int(batch.max()) < vocabulary:
        raise UserError(rule("accelerate", "calibration", f"be token ids below {vocabulary:,}",
                             (int(batch.min()), int(batch.max())), "Make them with this model's own tokenizer."))
    return batch


def _call(model: nn.Module, batch: Tensor) -> None:
    some = some_tensor(model)
    batch = batch.to(some.device, some.dtype if batch.is_floating_point() else torch.long)
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    model(batch, decoder_input_ids=batch) if both else model(batch)
