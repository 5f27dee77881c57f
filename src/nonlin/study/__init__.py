"""Many runs: the plan, the store, the runner; statistics and verdicts. Loads no torch.

The names load on first use: the command line's help reads ``nonlin.study.defaults`` alone.
"""

from typing import TYPE_CHECKING

from nonlin import _lazy

if TYPE_CHECKING:
    from nonlin.study.engines import Engine, ProcessEngine
    from nonlin.study.folder import StudyFolder, load
    from nonlin.study.plan import Plan, make_plan
    from nonlin.study.request import Arm, Request
    from nonlin.study.runner import run_study
    from nonlin.study.store import Store
    from nonlin.study.tuning import trials_of
    from nonlin.study.verdict import Verdict, judge

__all__ = ["Arm", "Request", "Plan", "make_plan", "trials_of", "Store", "Engine", "ProcessEngine", "run_study",
           "judge", "Verdict", "load", "StudyFolder"]

_HOMES = {
    "Engine": "engines", "ProcessEngine": "engines", "StudyFolder": "folder", "load": "folder", "Plan": "plan",
    "make_plan": "plan", "Arm": "request", "Request": "request", "run_study": "runner", "Store": "store",
    "trials_of": "tuning", "Verdict": "verdict", "judge": "verdict"}

if not TYPE_CHECKING:
    __getattr__ = _lazy.attributes(__name__, {k: f"nonlin.study.{v}" for k, v in _HOMES.items()})
    __dir__ = _lazy.listing(__all__)
