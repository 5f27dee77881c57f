"""How activations and the model's operations are computed: torch, and our C++ for the CPU."""

from nonlin import _lazy

__all__ = ["Explanation", "explain"]

__getattr__ = _lazy.attributes(__name__, dict.fromkeys(__all__, "nonlin.kernels.dispatch"))
