"""The typed records of claims: each statement's verdict, and the results of them all."""

from typing import Any, Literal

from nonlin.records import Record
from nonlin.study.records import RunTimes


class ClaimTiming(Record, frozen=True, kw_only=True):
    """Seconds that the claim's own experiments took; studies are shared between claims."""

    experiments: float


class ClaimMinutes(Record, frozen=True, kw_only=True):
    """Minutes of a run of all claims: planned, and needed to decide what is open, as if this run's effects were true.

    ``needed`` is None for what is decided, and for effects so near their margin that a run's most seeds would not tell.
    So it is where a part has no effect, since its runs did not train.
    """

    planned: float
    needed: float | None


class ClaimResult(Record, frozen=True, kw_only=True):
    """One statement and what its rule says of the numbers; ``verdict`` is None until all its runs have ended.

    ``on`` names what the verdict depends on, ``parts`` the questions with their answers; ``measures`` holds the
    claim's own numbers. ``missing`` says what must be installed for all of it to run.
    """

    number: int
    slug: str
    statement: str
    rule: str
    verdict: Literal["holds", "does not hold here", "depends", "not settled"] | None
    summary: str
    on: str | None
    parts: dict[str, Literal["yes", "no", "open"]]
    measures: dict[str, Any] | None
    missing: str | None = None
    timing: ClaimTiming | None = None
    minutes: ClaimMinutes | None = None


class ClaimsResults(Record, frozen=True, kw_only=True):
    """results.json of claims: every statement's verdict and numbers, and the plan they came from."""

    format: int
    status: Literal["complete", "interrupted", "partial"]
    claims: list[ClaimResult]
    plan: dict[str, Any]
    data: dict[str, Any]
    timing: RunTimes | None = None
    environment: dict[str, Any] = {}
