"""The trials that a plan asks for, kept up to date record by record.

The set of trials is a pure function of the plan and the records (:mod:`nonlin.study.tuning`). Asking for it anew at
every record would cost the square of their number. Two properties of every rule here make that unnecessary. An arm's
trials depend on its own records alone. It asks for more only when all that it has asked for is there.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from nonlin.study.plan import Plan
from nonlin.study.tuning import Records, Trial, judge_trials, tune_trials, tuning


def asked(plan: Plan, arm: str, records: Records) -> list[Trial]:
    """Return all trials of an arm that the plan asks for, given the records so far, in their order."""
    return [*tune_trials(plan, arm, tuning(plan, arm, records).rates), *judge_trials(plan, arm, records)]


def expected(plan: Plan, arm: str, records: Records) -> Counter[str]:
    """Return how many more trials an arm is sure to ask for later, by purpose."""
    return Counter() if tuning(plan, arm, records).done else Counter(judge=len(plan.judge_seeds))


class Schedule:
    """The trials that a plan has asked for so far; ``add`` takes in a record.

    ``missing`` holds the trials without a record, by their hash.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.records: dict[str, Mapping[str, Any]] = {}
        self.missing: dict[str, Trial] = {}
        self._known: dict[str, set[str]] = {arm["name"]: set() for arm in plan.arms}
        self._open: Counter[str] = Counter()  # missing trials by arm
        self._asked: Counter[str] = Counter()  # by purpose
        self._left: Counter[tuple[str, str]] = Counter()  # missing by arm and purpose
        self._later: dict[str, Counter[str]] = {}
        self.first = [trial for arm in self._known for trial in self._ask(arm)]

    def add(self, key: str, record: Mapping[str, Any]) -> list[Trial]:
        """Take the record of a missing trial and return the trials that it makes the plan ask for."""
        trial = self.missing.pop(key)
        self.records[key] = record
        self._left[trial.arm, trial.purpose] -= 1
        self._open[trial.arm] -= 1
        return [] if self._open[trial.arm] else self._ask(trial.arm)

    def _ask(self, arm: str) -> list[Trial]:
        new = [trial for trial in asked(self.plan, arm, self.records) if trial.key not in self._known[arm]]
        self._known[arm] |= {trial.key for trial in new}
        self.missing |= {trial.key: trial for trial in new}
        self._open[arm] = len(new)
        self._asked += Counter(trial.purpose for trial in new)
        self._left += Counter((trial.arm, trial.purpose) for trial in new)
        self._later[arm] = expected(self.plan, arm, self.records)
        return new

    @property
    def stage(self) -> str:
        """The purpose of the earliest kind of trial that is missing or still to come; the last one at the end."""
        return "tune" if any(self._left[arm, "tune"] for arm in self._known) else "judge"

    def counts(self, stage: str) -> tuple[int, int]:
        """Return (done, total) of a stage's trials, those that are sure to be asked for later counted."""
        left = sum(self._left[arm, stage] for arm in self._known)
        asked_for = self._asked[stage]
        return asked_for - left, asked_for + sum(later[stage] for later in self._later.values())

    def seconds(self) -> tuple[float, float]:
        """Return (sum, longest) of the predicted seconds of all trials that are missing or still to come."""
        total = longest = 0.0
        left = self._left + Counter({(arm, purpose): count for arm, later in self._later.items()
                                     for purpose, count in later.items()})
        for (arm, purpose), count in left.items():
            each = self.plan.trial_seconds(arm, purpose)
            total, longest = total + count * each, max(longest, each)
        return total, longest

    def later_seconds(self) -> list[float]:
        """Return the predicted seconds of each trial that is sure to be asked for later."""
        return [self.plan.trial_seconds(arm, purpose) for arm, later in self._later.items()
                for purpose, count in later.items() for _ in range(count)]
