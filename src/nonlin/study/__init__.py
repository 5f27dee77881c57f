"""Many runs: the plan, the store, the runner; statistics and verdicts. Loads no torch."""

from nonlin.study.engine import Engine, ProcessEngine
from nonlin.study.folder import StudyFolder, load
from nonlin.study.plan import Plan, make_plan
from nonlin.study.request import Arm, Request
from nonlin.study.results import results
from nonlin.study.runner import run_study
from nonlin.study.store import Store
from nonlin.study.tuning import trials_of
from nonlin.study.verdict import Verdict, judge

__all__ = ["Arm", "Request", "Plan", "make_plan", "trials_of", "Store", "Engine", "ProcessEngine", "run_study",
           "results", "judge", "Verdict", "load", "StudyFolder"]
