"""A subject's model, run on a few tokens to see what it is: its logits, its vocabulary, what its blocks see."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule, told
from nonlin.patching.blocks import Block, in_order
from nonlin.patching.identification import evaluating
from nonlin.subject.configuration import LAYERS

_CALL = "compare"
TOKENS = 16
"""Tokens on which a model is run to look at it."""
_LONGEST = 512  # tokens of a sequence whose attention is written out, to count its operations
_COUNTED = 256  # tokens at most, to count how many go through each expert


class Look:
    """A model that is run on a few tokens to see what it is."""

    def __init__(self, model: nn.Module, own: Mapping[str, Any], vocabulary: int, context: int):
        self.model, self.own, self.vocabulary = model, own, vocabulary
        self.tokens = min(TOKENS, context)
        self.context = context
        self.config: Any = getattr(model, "config", None)
        self._options: dict[str, Any] = {"use_cache": False}
        self.counts: dict[str, float] = {}

    def draw(self, length: int) -> Tensor:
        """Return random tokens (1, length) of the tokenizer's vocabulary."""
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, self.vocabulary, (1, length), generator=draw)
        first = next(self.model.parameters(), tokens)
        return tokens.to(first.device)

    def run(self, tokens: Tensor | None = None, **options: Any) -> Any:
        """Run the model; return what it returned."""
        return self.model(self.draw(self.tokens) if tokens is None else tokens, **self._options, **options)

    def logits(self, tokens: Tensor | None = None, **options: Any) -> Any:
        """Return what the model gives for the logits."""
        out = self.run(tokens, **options)
        if hasattr(out, "logits"):
            return out.logits
        return out[0] if isinstance(out, (tuple, list)) and out else out

    @torch.no_grad()
    def facts(self) -> dict[str, Any]:
        """Return what the description says of the whole model; UserError where it is no causal language model."""
        config = self.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        size = getattr(text, "vocab_size", None)
        if isinstance(size, int) and size < self.vocabulary:
            raise _vocabulary(self.vocabulary, size)
        logits = self._first()
        if logits.shape[-1] < self.vocabulary:
            raise _vocabulary(self.vocabulary, logits.shape[-1])
        if not logits.isfinite().all():
            raise UserError(rule(_CALL, "model", "give finite logits as it begins", self.own["name"],
                                 "Correct its configuration or its weights."))
        if self.tokens > 1:
            self._must_be_causal(logits)
        weight = None
        if getattr(text, "output_router_logits", False):
            weight = getattr(text, "router_aux_loss_coef", None)
        positions = getattr(text, "max_position_embeddings", None)
        return {"use_cache": "use_cache" in self._options, "router_loss": weight,
                "positions": positions if isinstance(positions, int) and positions > 0 else None,
                "vocabulary": logits.shape[-1], "dim": _width(self.model, text),
                "layers": next((n for f in LAYERS if (n := getattr(text, f, None)) is not None), None)}

    def _first(self) -> Tensor:
        tokens = self.draw(self.tokens)
        error: Exception = TypeError()
        for options in ({"use_cache": False}, {}):
            self._options = dict(options)
            try:
                logits = self.logits(tokens)
            except Exception as raised:  # code of any maker
                if not options or "use_cache" not in str(raised):  # that it is not taken says nothing of the model
                    error = raised
                continue
            if isinstance(logits, Tensor) and logits.ndim == 3 and logits.shape[:2] == tokens.shape:
                return logits
            error = TypeError(f"it returned {getattr(logits, 'shape', type(logits).__name__)}")
        self._must_know(tokens)
        raise UserError(rule(_CALL, "model", "take tokens (B, T) alone and return logits (B, T, V)",
                             f"{self.own['name']} ({told(error, 200)})",
                             "Pass a causal language model, or a function that returns one around it."))

    def _must_know(self, tokens: Tensor) -> None:
        """Raise UserError for a model that takes its first token but does not know all of the tokenizer's."""
        try:
            logits = self.logits(torch.zeros_like(tokens))
        except Exception:  # code of any maker: it takes no tokens at all
            return
        if isinstance(logits, Tensor) and logits.shape[:-1] == tokens.shape and logits.shape[-1] < self.vocabulary:
            raise _vocabulary(self.vocabulary, logits.shape[-1])

    def _must_be_causal(self, logits: Tensor) -> None:
        tokens = self.draw(self.tokens)
        other = tokens.clone()
        half = self.tokens // 2
        other[:, half:] = (other[:, half:] + 1) % self.vocabulary
        again, later = self.logits(tokens), self.logits(other)
        noise = float((again - logits)[:, :half].abs().max())
        off = float((later - logits)[:, :half].abs().max())
        if off > 10 * noise + 1e-3 * float(logits.abs().max()):
            raise UserError(rule(_CALL, "model", "predict a token from those before it alone", f"{self.own['name']}, "
                                 "whose logits change with tokens that come later",
                                 "Set is_decoder to true in its configuration, where the family has that field."))

    @torch.no_grad()
    def passes(self, blocks: Iterable[Block]) -> dict[str, float]:
        """Return how often each block is gone through per token, from counting on one run."""
        rows: dict[str, float] = {}
        handles, tokens = [], self.draw(min(self.context, _COUNTED))

        def count(name: str, stacked: bool) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
                given = [v for v in in_order(module, args, kwargs) if isinstance(v, Tensor)]
                value = given[1] if stacked and len(given) > 1 and not given[1].is_floating_point() else given[0]
                size = value.numel() if value is not given[0] else value.shape[:-1].numel()
                rows[name] = rows.get(name, 0) + size

            return hook

        for block in blocks:
            at = block.module if block.stacked else block.down.module
            handles.append(at.register_forward_pre_hook(count(block.name, block.stacked), with_kwargs=True))
        try:
            with evaluating(self.model):
                self.run(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return {name: size / tokens.numel() for name, size in rows.items()}

    def outside(self, blocks: list[Block]) -> dict[str, Any]:
        """Return the number of parameters outside the blocks, and the operations per token of a forward pass there."""
        inside = {id(q) for block in blocks for q in _own_parameters(block)}
        return {"parameters": sum(q.numel() for q in self.model.parameters() if id(q) not in inside),
                "forward_flops": self._flops(blocks)}

    def _flops(self, blocks: list[Block]) -> float | None:
        """Return the operations per token at the context; None where they cannot be counted.

        Of attention over all positions they grow with the context, which may be too long to write attention out. Those
        of a long one follow from two shorter ones.
        """
        lengths = [self.context] if self.context <= _LONGEST else [_LONGEST // 2, _LONGEST]
        try:
            found = [self._counted(blocks, length) for length in lengths]
        except Exception:  # what the counter cannot trace is left out of the plan
            return None
        if len(found) == 1:
            return found[0]
        return found[1] + (found[1] - found[0]) / (lengths[1] - lengths[0]) * (self.context - lengths[1])

    @torch.no_grad()
    def _counted(self, blocks: list[Block], length: int) -> float:
        """Return the operations per token outside the blocks in one sequence of that length."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        # The counter knows no fused attention of a processor.
        with evaluating(self.model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.run(self.draw(length))
        counts = counter.get_flop_counts()
        prefix = type(self.model).__name__
        total = sum(counts.get("Global", {}).values())
        for block in blocks:
            names = [block.name] if block.stacked else {p.name for p in block.projections.values()}
            total -= sum(sum(counts.get(f"{prefix}.{name}", {}).values()) for name in names)
        return total / length


def _own_parameters(block: Block) -> Iterator[nn.Parameter]:
    for p in block.projections.values():
        yield from p.module.parameters(recurse=not block.stacked)


def _vocabulary(tokenizer: int, model: int) -> UserError:
    return UserError(rule(_CALL, "tokenizer", f"have at most the model's {model:,} tokens", tokenizer,
                          "Pass the model's own tokenizer.json with --tokenizer, or a configuration with a larger "
                          "vocab_size."))


def _width(model: nn.Module, text: Any) -> int | None:
    found = getattr(text, "hidden_size", None)
    if isinstance(found, int):
        return found
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    return None if embedding is None else embedding.embedding_dim
