"""How activations and the model's operations are computed: our C++ for the CPU, Triton for the GPU, and torch."""

from nonlin import _lazy

_HOMES = {"Explanation": "nonlin.kernels.dispatch", "explain": "nonlin.kernels.dispatch",
          "feed_forward": "nonlin.kernels.ffn.api"}
__all__ = ["Explanation", "explain", "feed_forward"]

__getattr__ = _lazy.attributes(__name__, _HOMES)
