"""Sizes of the small language model and what they cost; no torch."""

from dataclasses import asdict, dataclass

from nonlin.errors import UserError, rule


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model; ``hidden`` is the width inside the feed-forward block."""

    layers: int = 4
    dim: int = 128
    heads: int = 4
    kv_heads: int = 4
    context: int = 64
    vocabulary: int = 256
    hidden: int = 344
    tied: bool = False

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name != "tied" and value < 1:
                raise UserError(rule("model", name, "be positive", value, "Choose a larger value."))
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(rule("model", "dim", f"be an even multiple of heads ({self.heads})", self.dim,
                                 f"Try --dim {2 * self.heads * max(1, round(self.dim / 2 / self.heads))}."))
        if self.heads % self.kv_heads:
            raise UserError(rule("model", "kv-heads", f"divide heads ({self.heads})", self.kv_heads,
                                 "Try --kv-heads 1."))

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.dim // self.heads


def parameter_count(config: ModelConfig, gated: bool, activation_parameters: int = 0) -> int:
    """Return the number of parameters of the model, without making it.

    >>> parameter_count(ModelConfig(), gated=True)
    857472
    """
    attention = config.dim * config.head_width * 2 * (config.heads + config.kv_heads) + 2 * config.head_width
    block = attention + (3 if gated else 2) * config.dim * config.hidden + 2 * config.dim + activation_parameters
    embeddings = config.vocabulary * config.dim * (1 if config.tied else 2)
    return config.layers * block + embeddings + config.dim


def flops_per_token(config: ModelConfig, gated: bool) -> int:
    """Return floating-point operations a trained token: 6 by weight in a product, 12 by pair of positions.

    The usual count (forward 2, backward 4; attention as if it were not causal), without the activation.
    """
    attention = config.dim * config.head_width * 2 * (config.heads + config.kv_heads)
    weights = config.layers * (attention + (3 if gated else 2) * config.dim * config.hidden)
    weights += config.dim * config.vocabulary
    return 6 * weights + 12 * config.layers * config.dim * config.context
