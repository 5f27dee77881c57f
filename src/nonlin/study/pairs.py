"""The better arms compared with each other, after the comparisons with the baseline and without touching them."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nonlin.study.response import Fit, Run
from nonlin.study.verdict import Corrected, Verdict, by_interval, corrected, difference_of


@dataclass(frozen=True)
class Pair:
    """The answer about two arms that are both better than the baseline; ``difference`` is first − second.

    The first is the one of less loss. ``verdict``: "better" (than the second), "tie" or "undecided".
    """

    first: str
    second: str
    verdict: str
    difference: dict[str, float]
    seeds_needed: int | None
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the values of results.json."""
        return {"first": self.first, "second": self.second, "verdict": self.verdict, "difference": self.difference,
                "seeds_needed": self.seeds_needed, "reason": self.reason}


def error_rate(rule_: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> float:
    """Return the family-wise error at which pairs are tested.

    If every arm differs from the baseline, the comparisons with it have no error left to spend. The pairs get the whole
    error of the rule. Else some comparison with the baseline may spend that error, and the pairs get a part on top.
    """
    alpha = 1 - rule_["confidence"]
    told = all(v.difference is not None and v.difference["p_value"] <= alpha
               for v in verdicts.values() if v.verdict != "baseline")
    return alpha if told else alpha * rule_["pairs"]


def judge_pairs(rule_: Mapping[str, Any], verdicts: Mapping[str, Verdict],
                responses: Mapping[str, Sequence[Run]], baseline: str) -> list[Pair]:
    """Return the comparisons of all arms found better, the best pair first; none by rules of older studies.

    Holm's correction runs over the pairs, at :func:`error_rate`; the margin is the rule's.
    """
    better = [arm for arm, found in verdicts.items() if found.verdict == "better"]
    if "pairs" not in rule_ or len(better) < 2:
        return []
    compared = [arm for arm, found in verdicts.items() if found.difference is not None or arm == baseline]
    fit = Fit({arm: responses[arm] for arm in (compared if set(better) <= set(compared) else better)})
    order = sorted(better, key=fit.whole.__getitem__)
    error = error_rate(rule_, verdicts)
    effects = {pair: fit.effect(*pair) for pair in itertools.combinations(order, 2)}
    found = corrected(rule_, error, effects)
    return [_pair(first, second, rule_, found[first, second], error) for first, second in effects]


def _pair(first: str, second: str, rule_: Mapping[str, Any], found: Corrected, error: float) -> Pair:
    verdict, needed, reason = by_interval(rule_, found, error)
    return Pair(first, second, verdict, difference_of(found, 1 - error), needed, reason)
