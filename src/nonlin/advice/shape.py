"""A shape for a number of parameters: width, depth, heads, vocabulary."""

import math
from dataclasses import dataclass

from nonlin.errors import UserError
from nonlin.model.config import MOST_LAYERS, ModelConfig, parameter_count
from nonlin.nn.widths import matched_hidden

SMALLEST, LARGEST = 100_000, 2_000_000_000_000
MULTIPLE = {"gpu": 128, "cpu": 64}
WHY_MULTIPLE = {"gpu": "tiles of a GPU's matrix products are 128 wide", "cpu": "64 numbers fill whole vectors"}


@dataclass(frozen=True)
class Shape:
    """A model of about the asked number of parameters; ``multiple`` is what the hidden width is a multiple of."""

    layers: int
    dim: int
    heads: int
    vocabulary: int
    tied: bool
    context: int
    multiple: int

    def hidden(self, gated: bool) -> int:
        """Return the hidden width at equal parameters."""
        return matched_hidden(self.dim, "gated" if gated else "pointwise", multiple=self.multiple)

    def parameters(self, gated: bool, learned: int = 0) -> int:
        """Return the whole model's parameters; ``learned`` is how many the activation has."""
        config = ModelConfig(layers=self.layers, dim=self.dim, heads=self.heads, kv_heads=self.heads,
                             context=self.context, vocabulary=self.vocabulary, hidden=self.hidden(gated),
                             tied=self.tied)
        return parameter_count(config, gated, learned)


def shape_for(params: int, hardware: str) -> Shape:
    """Return the shape nearest to ``params`` whose width over depth is the customary one.

    That ratio is 64 up to 125M parameters (GPT-2's 768 by 12) and grows to 128 at 7B (Llama's 4096 by 32). Raises
    UserError below 100 thousand and above 2 trillion parameters.

    >>> shape = shape_for(125_000_000, "gpu")
    >>> shape.layers, shape.dim, shape.hidden(gated=True), shape.hidden(gated=False)
    (14, 768, 2048, 3072)
    """
    if not SMALLEST <= params <= LARGEST:
        raise UserError(f"advise: --params must lie between 100K and 2T; got {params:,}. Name the model's size.")
    vocabulary = 32_768 if params >= 40e6 else 4_096 if params >= 3e6 else 256
    tied, context = params < 1e9, 1024 if params < 1e9 else 4096
    wanted = 64 * 2 ** min(1.0, max(0.0, math.log(params / 125e6) / math.log(7e9 / 125e6)))
    candidates = (_candidate(params, dim, vocabulary, tied, context, MULTIPLE[hardware]) for dim in _widths(params))
    return min((shape for shape in candidates if shape.layers <= MOST_LAYERS),
               key=lambda s: (abs(math.log(s.dim / s.layers / wanted))
                              + 8 * abs(math.log(s.parameters(gated=True) / params))))


def _widths(params: int) -> list[int]:
    most = math.sqrt(params / 12)  # one layer
    return [dim for step, low, high in ((32, 32, 256), (64, 256, 512), (128, 512, 2048), (256, 2048, 4096),
                                    (512, 4096, 65537))
            for dim in range(low, high, step) if dim <= max(most, 32)]


def _candidate(params: int, dim: int, vocabulary: int, tied: bool, context: int, multiple: int) -> Shape:
    head = 128 if dim >= 2048 else 64 if dim >= 256 else 32
    multiple = multiple if dim >= 512 else 8  # a coarse step would leave a small block far from its parameters
    one = Shape(1, dim, dim // head, vocabulary, tied, context, multiple)
    block = one.parameters(True) - vocabulary * dim * (1 if tied else 2) - dim
    layers = max(1, round((params - (one.parameters(True) - block)) / block))
    return Shape(layers, dim, dim // head, vocabulary, tied, context, multiple)
