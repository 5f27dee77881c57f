"""Options that take a number: their bounds stand in the help, and are checked before the command runs."""

import math
from collections.abc import Callable
from typing import Any

import click


class Number(click.ParamType):
    """A number that is ``least`` or more, or above it; finite."""

    def __init__(self, least: float, above: bool = False, whole: bool = True, most: float = math.inf):
        self.least, self.above, self.whole, self.most = least, above, whole, most
        self.name = "integer" if whole else "number"

    @property
    def must(self) -> str:
        """Words for what is taken."""
        if self.most < math.inf:
            low, high = ("above", "and below") if self.above else ("from", "to")
            return f"{low} {self.least} {high} {self.most}"  # a whole number is an int, and has all of its digits
        return f"above {self.least:g}" if self.above else f"{self.least:g} or more"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        try:
            found = int(value) if self.whole else float(value)
            finite = math.isfinite(found)
        except (ValueError, OverflowError):  # a whole number of hundreds of digits is none to count with
            self.fail(f"must be a {'whole ' if self.whole else ''}number, {self.must}; got {value!r}.", param, ctx)
        high = found < self.most if self.above and self.most < math.inf else found <= self.most
        low = found > self.least if self.above else found >= self.least
        if not (low and high and finite):
            self.fail(f"must be {self.must}; got {value}.", param, ctx)
        return found


def number(flag: str, least: float, words: str = "", *, above: bool = False, whole: bool = True,
           most: float = math.inf, **others: Any) -> Callable[..., Any]:
    """Return click's decorator for an option that takes a number; its bounds stand behind the ``words`` of its help."""
    kind = Number(least, above, whole, most)
    must = kind.must[0].upper() + kind.must[1:]
    return click.option(flag, type=kind, help=f"{words} {must}.".strip(), **others)
