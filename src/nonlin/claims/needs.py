"""How many seeds a claim's verdict needs: from the spread over seeds that a run showed.

An estimate: as if the true effects were those seen, and their spread too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special

from nonlin.study.defaults import POWER
from nonlin.study.statistics import half_width, power

_MOST_SEEDS = 4096


@dataclass(frozen=True)
class Question:
    """An effect that a rule holds against a margin, in its own unit.

    One-sided (``sides`` 1): yes where it surely exceeds zero and its mean the margin, no where it surely lies below
    the margin. Two-sided: yes where it surely is not zero and its mean lies beyond the margin, no where all of the
    interval lies within.
    """

    effect: Mapping[str, float]
    margin: float
    sides: int = 1

    @classmethod
    def below(cls, effect: Mapping[str, float], margin: float) -> "Question":
        """Return the one-sided question whether an effect is as far below zero."""
        turned = {"mean": -effect["mean"], "low": -effect["high"], "high": -effect["low"]}
        return cls({**effect, **turned}, margin)

    def seeds(self) -> int | None:
        """Return the fewest seeds that answer it with the usual power; None where thousands would not.

        >>> seen = {"mean": 0.001, "low": -0.049, "high": 0.051, "confidence": 0.95, "seeds": 6}
        >>> Question(seen, 0.02).seeds()
        52
        """
        e, n = self.effect, int(self.effect["seeds"])
        confidence = e.get("interval_confidence", e["confidence"])
        sd = (e["high"] - e["low"]) / 2 / half_width(1.0, n, confidence)
        low, high = 1, _MOST_SEEDS  # answered by high, not by low
        if self._answered(sd, high, confidence) < POWER:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._answered(sd, middle, confidence) >= POWER else (middle, high)
        return high

    def _answered(self, sd: float, seeds: int, confidence: float) -> float:
        """The probability of an answer."""
        if seeds < 2:
            return 0.0
        mean = self.effect["mean"]
        beyond = power(mean, sd, seeds, self.margin, confidence)
        if self.sides == 2:
            return max(beyond.better_or_worse, beyond.tie)
        if mean > self.margin:
            return beyond.better_or_worse
        error = sd / math.sqrt(seeds)
        room = self.margin - mean - half_width(sd, seeds, confidence)
        return float(special.ndtr(room / error)) if error else float(room > 0)


def share_needed(questions: Sequence[Question]) -> float | None:
    """Return how many times as many seeds answer all questions.

    None where an effect lies so near its margin that thousands of seeds would not tell.

    >>> seen = {"mean": 0.001, "low": -0.049, "high": 0.051, "confidence": 0.95, "seeds": 6}
    >>> round(share_needed([Question(seen, 0.02)]), 1)
    8.7
    """
    times = [None if (n := q.seeds()) is None else n / q.effect["seeds"] for q in questions]
    return None if None in times else max((t for t in times if t is not None), default=0.0)
