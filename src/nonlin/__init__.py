"""nonlin: which feed-forward activation should a language model use? Measured, not copied.

The public names load on first use, so that ``import nonlin`` costs nothing and loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin import (
        advice,
        data,
        errors,
        functional,
        functions,
        health,
        kernels,
        metrics,
        model,
        nn,
        patching,
        report,
        study,
        training,
    )
    from nonlin.advice import advise
    from nonlin.checkup import Checkup, check
    from nonlin.claims.call import ClaimsPackage
    from nonlin.comparison import compare, resume_study
    from nonlin.errors import Interrupted, NonlinError, UserError
    from nonlin.extension import extend_study
    from nonlin.functions import Definition, define, get, names
    from nonlin.ladder.call import LadderPackage
    from nonlin.ladder_outcome import Ladder, load_ladder
    from nonlin.outcome import Study, compare_studies, load_study, watch
    from nonlin.patching.accelerate import accelerate, restore
    from nonlin.patching.act2fn import register_with_transformers
    from nonlin.patching.swap import swap
    from nonlin.subject.loading import load
    from nonlin.surroundings import Doctor, doctor

    claims: ClaimsPackage
    ladder: LadderPackage

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "compare", "resume_study", "extend_study", "load_study", "watch", "compare_studies", "Study",
    "ladder", "load_ladder", "Ladder",
    "claims", "advise", "check", "Checkup", "doctor", "Doctor",
    "get", "names", "define", "Definition",
    "accelerate", "restore", "swap", "load", "register_with_transformers",
    "NonlinError", "UserError", "Interrupted",
    "advice", "data", "errors", "functional", "functions", "health", "kernels", "metrics", "model", "nn", "patching",
    "report", "study", "training",
]

_HOMES = {
    "compare": "nonlin.comparison",
    "resume_study": "nonlin.comparison",
    "extend_study": "nonlin.extension",
    "load_study": "nonlin.outcome",
    "watch": "nonlin.outcome",
    "compare_studies": "nonlin.outcome",
    "Study": "nonlin.outcome",
    "load_ladder": "nonlin.ladder_outcome",
    "Ladder": "nonlin.ladder_outcome",
    "advise": "nonlin.advice",
    "check": "nonlin.checkup",
    "Checkup": "nonlin.checkup",
    "doctor": "nonlin.surroundings",
    "Doctor": "nonlin.surroundings",
    "get": "nonlin.functions",
    "names": "nonlin.functions",
    "define": "nonlin.functions",
    "Definition": "nonlin.functions",
    "accelerate": "nonlin.patching.accelerate",
    "restore": "nonlin.patching.accelerate",
    "swap": "nonlin.patching.swap",
    "load": "nonlin.subject.loading",
    "register_with_transformers": "nonlin.patching.act2fn",
    "NonlinError": "nonlin.errors",
    "UserError": "nonlin.errors",
    "Interrupted": "nonlin.errors",
}

_MODULES = tuple(name for name in __all__ if name not in _HOMES and name != "__version__")

if not TYPE_CHECKING:
    _attribute = _lazy.attributes(__name__, _HOMES)
    __dir__ = _lazy.listing(__all__)

    def __getattr__(name: str) -> Any:
        return importlib.import_module(f"nonlin.{name}") if name in _MODULES else _attribute(name)
