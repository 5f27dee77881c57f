"""Sizes of the small language model and what they cost; no torch."""

from dataclasses import asdict, dataclass

from nonlin.errors import UserError, rule

MOST_LAYERS = 10_000  # each is made of objects, before a number of it is
NORMS, PLACES = ("rms", "layer", "none"), ("before", "after")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model; ``hidden`` is the width inside the feed-forward block.

    The last three make variants for experiments: without ``attention``; ``norm`` "rms", "layer" or "none".
    ``norm_place`` is "before" each part, or "after" the sum with its residual, as in the first Transformer.
    """

    layers: int = 4
    dim: int = 128
    heads: int = 4
    kv_heads: int = 4
    context: int = 64
    vocabulary: int = 256
    hidden: int = 344
    tied: bool = False
    attention: bool = True
    norm: str = "rms"
    norm_place: str = "before"

    def __post_init__(self):
        for name, known in (("norm", NORMS), ("norm_place", PLACES)):
            if getattr(self, name) not in known:
                raise UserError(rule("model", name, f"be one of {', '.join(known)}", getattr(self, name),
                                     "Choose one of them."))
        for name, value in asdict(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise UserError(rule("model", name, "be positive", value, "Choose a larger value."))
        if self.layers > MOST_LAYERS:
            raise UserError(rule("model", "layers", f"be at most {MOST_LAYERS:,}", self.layers, "Choose fewer."))
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(rule("model", "dim", f"be an even multiple of heads ({self.heads})", self.dim,
                                 f"Try --dim {2 * self.heads * max(1, round(self.dim / 2 / self.heads))}."))
        if self.heads % self.kv_heads:
            raise UserError(rule("model", "kv-heads", f"divide heads ({self.heads})", self.kv_heads,
                                 "Try --kv-heads 1."))

    @property
    def variant(self) -> bool:
        """Whether this is a variant for experiments: no other library has a name for it."""
        return not self.attention or (self.norm, self.norm_place) != ("rms", "before")

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
    norms = 0 if config.norm == "none" else config.dim
    block = (attention + norms) * config.attention + norms + (3 if gated else 2) * config.dim * config.hidden
    embeddings = config.vocabulary * config.dim * (1 if config.tied else 2)
    final = norms if config.norm_place == "before" else 0
    return config.layers * (block + activation_parameters) + embeddings + final


def flops_per_token(config: ModelConfig, gated: bool) -> int:
    """Return floating-point operations a trained token: 6 by weight in a product, 12 by pair of positions.

    The usual count (forward 2, backward 4; attention as if it were not causal), without the activation.
    """
    attention = config.dim * config.head_width * 2 * (config.heads + config.kv_heads) * config.attention
    weights = config.layers * (attention + (3 if gated else 2) * config.dim * config.hidden)
    weights += config.dim * config.vocabulary
    return 6 * weights + 12 * config.layers * config.dim * config.context * config.attention
