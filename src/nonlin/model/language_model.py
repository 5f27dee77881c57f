"""The small language model: decoder-only, and by design the computation of two architectures of transformers.

With a gated feed-forward block it is Qwen3, with a plain one Apertus. Both have RMSNorm before each part, rotary
positions, normalized queries and keys, grouped-query attention, no biases. Shapes: B batch, T time, D width, V
vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nonlin import streams
from nonlin.errors import UserError, rule
from nonlin.functions import Definition
from nonlin.kernels.transformer.torch_engine import TorchEngine
from nonlin.model.config import ModelConfig
from nonlin.nn import Activation, FeedForward
from nonlin.nn.modules import changed_everywhere, hooked

ROPE_BASE = 10_000.0
EMBEDDING_STD, HEAD_STD = 1.0, 0.02
"""Standard deviations of the initial embedding and output weights. Blocks read the embedding through a
norm: its size decides how soon their outputs count beside it, and how soon a run of a minute learns."""


class Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, width = config, config.head_width
        self.q = nn.Linear(config.dim, config.heads * width, bias=False)
        self.k = nn.Linear(config.dim, config.kv_heads * width, bias=False)
        self.v = nn.Linear(config.dim, config.kv_heads * width, bias=False)
        self.o = nn.Linear(config.heads * width, config.dim, bias=False)
        self.q_norm, self.k_norm = Norm(width), Norm(width)

    def forward(self, x_BTD: Tensor, residual_BTD: Tensor, cos: Tensor, sin: Tensor, engine: TorchEngine) -> Tensor:
        """Return the residual stream with what attention reads in x added."""
        width = self.config.head_width
        parts = engine.linears(x_BTD, (self.q.weight, self.k.weight, self.v.weight))
        q, k, v = (part.unflatten(-1, (-1, width)) for part in parts)
        y = engine.attention(q, k, v, self.q_norm.weight, self.k_norm.weight, cos, sin)
        return engine.linear_add(y, self.o.weight, residual_BTD)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, activation: Definition):
        super().__init__()
        self.config, normed = config, config.norm != "none"
        self.attention_norm = Norm(config.dim) if normed and config.attention else None
        self.feed_forward_norm = Norm(config.dim) if normed else None
        self.attention = Attention(config) if config.attention else None
        self.feed_forward = FeedForward(config.dim, config.hidden, activation)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, engine: TorchEngine, watch: list | None) -> Tensor:
        if watch is None and self._as_one() and (out := self._one(x_BTD, cos, sin, engine)) is not None:
            return out
        if self.attention is not None:
            attention = self.attention
            x_BTD = self._residual(x_BTD, self.attention_norm, lambda x, to: attention(x, to, cos, sin, engine), engine)
        return self._residual(x_BTD, self.feed_forward_norm, lambda x, to: self._feed_forward(x, to, engine, watch),
                              engine)

    def _as_one(self) -> bool:
        """Return whether the layer is as an engine may know it: no variant, and nothing hooks or replaces its parts."""
        return not self.config.variant and changed_everywhere() is None \
            and type(self.attention) is Attention and type(self.feed_forward.activation) is Activation \
            and not hooked(self.attention) and not hooked(self.feed_forward.activation)

    def _one(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, engine: TorchEngine) -> Tensor | None:
        attention, block = self.attention, self.feed_forward
        assert attention is not None and self.attention_norm is not None and self.feed_forward_norm is not None
        weights = (self.attention_norm.weight, attention.q.weight, attention.k.weight, attention.v.weight,
                   attention.q_norm.weight, attention.k_norm.weight, attention.o.weight, self.feed_forward_norm.weight,
                   None if block.gate is None else block.gate.weight, block.up.weight, block.down.weight)
        return engine.layer(x_BTD, weights, block.activation.definition, tuple(block.activation.parameters()),
                            self.config.heads, cos, sin)

    def _residual(self, x_BTD: Tensor, norm: Norm | None, part: Callable[[Tensor, Tensor], Tensor],
                  engine: TorchEngine) -> Tensor:
        if self.config.norm_place == "before":
            return part(normalized(x_BTD, norm, self.config, engine, narrow=True), x_BTD)
        return normalized(part(x_BTD, x_BTD), norm, self.config, engine)

    def _feed_forward(self, x_BTD: Tensor, residual_BTD: Tensor, engine: TorchEngine, watch: list | None) -> Tensor:
        block = self.feed_forward
        *gate, up = engine.linears(x_BTD, [part.weight for part in (block.gate, block.up) if part is not None])
        hidden = engine.activation(block.activation, *gate, up)
        if watch is None:
            return engine.linear_add(hidden, block.down.weight, residual_BTD)
        out = engine.linear(hidden, block.down.weight)
        watch.append((tuple(x.float() for x in (*gate, up)), hidden.float(), out))
        return residual_BTD + out


def normalized(x_BTD: Tensor, norm: Norm | None, config: ModelConfig, engine: TorchEngine, narrow: bool = False
               ) -> Tensor:
    """Return x normalized as the configuration says; unchanged where there is no norm.

    ``narrow``: products alone read it.
    """
    if norm is None:
        return x_BTD
    if config.norm == "rms":
        return engine.rms_norm(x_BTD, norm.weight, narrow)
    return engine.layer_norm(x_BTD, norm.weight)


class LanguageModel(nn.Module):
    """A decoder-only language model; ``forward(tokens)`` gives logits, ``loss(tokens, targets)`` nats per token.

    >>> import torch, nonlin
    >>> model = LanguageModel(ModelConfig(layers=1, dim=16, heads=2, kv_heads=1, hidden=24), nonlin.get("swiglu"))
    >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 256])
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, activation: Definition, engine: TorchEngine | None = None, seed: int = 0,
                 stream: str | None = None):
        super().__init__()
        self.config, self.definition, self.engine = config, activation, engine or TorchEngine()
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(Block(config, activation) for _ in range(config.layers))
        self.norm = Norm(config.dim) if config.norm != "none" and config.norm_place == "before" else None
        self.head = nn.Linear(config.dim, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        steps = torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width
        angles = torch.outer(torch.arange(config.context, dtype=torch.float32), 1.0 / ROPE_BASE**steps).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.reset_parameters(seed, stream)

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0, stream: str | None = None) -> None:
        """Draw the weights: normal, by the square root of the inputs' number; into the residual, by depth too.

        Feed-forward weights come from a random stream of their own. So two models that differ in the activation alone
        begin with the same weights everywhere else. ``stream`` names it. By default it is the activation's kind, so
        that activations of one kind share those weights too.
        """
        outside = streams.generator("initialization", seed)
        blocks = streams.generator("feed-forward initialization", seed, stream or self.definition.kind)
        for name, weight in self.named_parameters():
            if weight.ndim != 2:
                continue
            drawn = (blocks if ".feed_forward." in name else outside).standard_normal(weight.shape, np.float32)
            weight.copy_(torch.from_numpy(drawn) * self._std(name, weight))

    def _std(self, name: str, weight: Tensor) -> float:
        if name.startswith("embedding"):
            return HEAD_STD if self.config.tied else EMBEDDING_STD  # a tied one makes the logits too
        if name.startswith("head"):
            return HEAD_STD
        into_residual = name.endswith(("attention.o.weight", "feed_forward.down.weight"))
        return weight.shape[1] ** -0.5 / ((2 * self.config.layers) ** 0.5 if into_residual else 1.0)

    def forward(self, tokens_BT: Tensor, watch: list[Any] | None = None) -> Tensor:
        """Return logits (B, T, V); into ``watch``, a list, go each block's (inputs, hidden, output)."""
        return self.engine.linear(self.forward_blocks(self.embedding(tokens_BT), watch), self.head.weight)

    def forward_blocks(self, x_BTD: Tensor, watch: list[Any] | None = None) -> Tensor:
        """Return what the head reads (B, T, D), of embeddings (B, T, D)."""
        time = x_BTD.shape[1]
        if time > self.config.context:  # compiled operations would read angles from beyond their table
            raise UserError(rule("forward", "tokens", f"fit the context of {self.config.context}", time,
                                 "Pass fewer tokens."))
        cos, sin = self.cos[:time], self.sin[:time]
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin, self.engine, watch)
        return normalized(x_BTD, self.norm, self.config, self.engine, narrow=True)

    def cross_entropy(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per token."""
        return self.engine.cross_entropy(logits_BTV, targets_BT)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, watch: list[Any] | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per token."""
        return self.cross_entropy(self(tokens_BT, watch), targets_BT)
