"""nonlin: which feed-forward activation should a language model use? Measured, not copied.

The public names load on first use, so that ``import nonlin`` costs nothing and loads no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "get": "nonlin.functions",
    "names": "nonlin.functions",
    "define": "nonlin.functions",
    "Definition": "nonlin.functions",
    "NonlinError": "nonlin.errors",
    "UserError": "nonlin.errors",
}
_MODULES = ("data", "errors", "functional", "functions", "kernels", "model", "nn", "report", "study", "training")

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"nonlin.{name}")
    raise AttributeError(f"module 'nonlin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
