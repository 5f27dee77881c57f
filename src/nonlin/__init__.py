"""nonlin: which feed-forward activation should a language model use? Measured, not copied.

The public names load on first use, so that ``import nonlin`` costs nothing and loads no torch.
"""

import importlib
from typing import Any

from nonlin import _lazy

__version__ = "0.1.0"

_HOMES = {
    "compare": "nonlin.comparison",
    "resume_study": "nonlin.comparison",
    "load_study": "nonlin.outcome",
    "Study": "nonlin.outcome",
    "advise": "nonlin.advice",
    "check": "nonlin.health",
    "get": "nonlin.functions",
    "names": "nonlin.functions",
    "define": "nonlin.functions",
    "Definition": "nonlin.functions",
    "accelerate": "nonlin.patching.accelerate",
    "restore": "nonlin.patching.accelerate",
    "swap": "nonlin.patching.swap",
    "register_with_transformers": "nonlin.patching.act2fn",
    "NonlinError": "nonlin.errors",
    "UserError": "nonlin.errors",
    "Interrupted": "nonlin.errors",
}
_MODULES = ("claims", "data", "errors", "functional", "functions", "health", "kernels", "metrics", "model",
            "nn", "patching", "report", "study", "training")

__all__ = ["__version__", *_HOMES, *_MODULES]

_attribute = _lazy.attributes(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    return importlib.import_module(f"nonlin.{name}") if name in _MODULES else _attribute(name)


def __dir__() -> list[str]:
    return sorted(__all__)
