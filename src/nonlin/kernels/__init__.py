"""How activations and the model's operations are computed: torch, and our C++ for the CPU."""

from nonlin import _lazy

__all__ = ["Explanation", "explain"]

__getattr__ = _lazy.attributes(__name__, {name: "nonlin.kernels.dispatch" for name in __all__})
