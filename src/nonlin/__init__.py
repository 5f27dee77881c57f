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
    from nonlin.calls.checkup import Checkup, check
    from nonlin.calls.comparison import compare, resume_study
    from nonlin.calls.doctor import Doctor, doctor
    from nonlin.calls.extension import extend_study
    from nonlin.calls.ladder import Ladder, load_ladder
    from nonlin.calls.looking import build_report, watch
    from nonlin.calls.study import Study, compare_studies, load_study
    from nonlin.claims.call import ClaimsPackage
    from nonlin.errors import Interrupted, NonlinError, UserError
    from nonlin.functions import Definition, define, get, names
    from nonlin.ladder.call import LadderPackage
    from nonlin.patching.accelerate import accelerate, restore
    from nonlin.patching.act2fn import register_with_transformers
    from nonlin.patching.swap import swap
    from nonlin.subject.loading import load

    claims: ClaimsPackage
    ladder: LadderPackage

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "compare", "resume_study", "extend_study", "load_study", "watch", "build_report", "compare_studies",
    "Study",
    "ladder", "load_ladder", "Ladder",
    "claims", "advise", "check", "Checkup", "doctor", "Doctor",
    "get", "names", "define", "Definition",
    "accelerate", "restore", "swap", "load", "register_with_transformers",
    "NonlinError", "UserError", "Interrupted",
    "advice", "data", "errors", "functional", "functions", "health", "kernels", "metrics", "model", "nn", "patching",
    "report", "study", "training",
]

_HOMES = {
    "compare": "nonlin.calls.comparison",
    "resume_study": "nonlin.calls.comparison",
    "extend_study": "nonlin.calls.extension",
    "load_study": "nonlin.calls.study",
    "watch": "nonlin.calls.looking",
    "build_report": "nonlin.calls.looking",
    "compare_studies": "nonlin.calls.study",
    "Study": "nonlin.calls.study",
    "load_ladder": "nonlin.calls.ladder",
    "Ladder": "nonlin.calls.ladder",
    "advise": "nonlin.advice",
    "check": "nonlin.calls.checkup",
    "Checkup": "nonlin.calls.checkup",
    "doctor": "nonlin.calls.doctor",
    "Doctor": "nonlin.calls.doctor",
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
