"""How activations and the model's operations are computed: our C++ for the CPU, Triton for the GPU, and torch."""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.kernels.dispatch import Explanation, explain
    from nonlin.kernels.ffn.api import feed_forward

__all__ = ["Explanation", "explain", "feed_forward"]

_HOMES = {
    "Explanation": "nonlin.kernels.dispatch",
    "explain": "nonlin.kernels.dispatch",
    "feed_forward": "nonlin.kernels.ffn.api",
}

if not TYPE_CHECKING:  # these load torch
    __getattr__, __dir__ = _lazy.attributes(__name__, _HOMES), _lazy.listing(__all__)
