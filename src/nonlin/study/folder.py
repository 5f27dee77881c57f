"""Reading a study that lies on disk."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nonlin.errors import UserError
from nonlin.files import Unreadable, finite, read_bytes, read_json
from nonlin.kinds import STUDY, must_be
from nonlin.numbers import typeset
from nonlin.study.plan import Plan
from nonlin.study.results import results as results_of
from nonlin.study.store import DamagedRecord, Store
from nonlin.study.wellformed import BadForm, must_be_measures, whole_results

_SENTENCES = {"headline", "advice", "remarks"}  # another version may say the same numbers in other words
_OF_A_CALL = ("environment", "timing")  # what no record says


@dataclass(frozen=True)
class StudyFolder:
    """A study on disk: its plan, its results as far as its runs go, and its trials.

    ``notes`` say what of the folder was damaged or changed.
    """

    directory: Path
    plan: Plan
    results: dict[str, Any]
    notes: tuple[str, ...] = ()

    def trials(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Return (config, record) of every finished trial by its hash; damaged ones are left out."""
        return _trials(Store(self.directory))[0]

    def trial(self, key: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        """Return (config, record, lines of metrics.jsonl) of one trial. UserError if it is damaged or not there."""
        try:
            config, record = Store(self.directory).read(key)
        except DamagedRecord as damage:
            raise _must_hold(self.directory, key, damage) from damage
        lines = measures_of(self.directory, key)
        try:
            must_be_measures(lines)
        except BadForm as damage:
            raise _must_hold(self.directory, key, Unreadable(f"metrics.jsonl does not hold its measures: {damage}")
                             ) from damage
        return config, record, lines


def measures_of(directory: Path, key: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, none where it has no such file. UserError if it is damaged."""
    path = directory / "trials" / key / "metrics.jsonl"
    try:
        lines = read_bytes(path).splitlines() if os.path.lexists(path) else []
        return _measures(lines)
    except Unreadable as damage:
        raise _must_hold(directory, key, damage) from damage


def _measures(lines: list[bytes]) -> list[dict[str, Any]]:
    try:
        found = [_mapping(json.loads(line)) for line in lines]
    except (ValueError, RecursionError):
        found = [None]
    if None in found:
        raise Unreadable("metrics.jsonl has lines that are no measures")
    return [line for line in found if line is not None]


def _must_hold(directory: Path, key: str, damage: Exception) -> UserError:
    return UserError(f"{directory} must hold the finished run {key}; {damage}. Give the command that made it again: "
                     "the run is made anew.")


def load(directory: str | Path) -> StudyFolder:
    """Return the study in a folder, one that runs or was stopped too. UserError where there is none.

    Its results are made from its records; where results.json says something else, the notes name it.
    """
    directory, plan = Path(directory), plan_in(directory)
    store = Store(directory)
    if not os.path.lexists(directory / "results.json"):
        trials, notes = _trials(store)
        return StudyFolder(directory, plan, _made(plan, trials, False), tuple(notes))
    return StudyFolder(directory, plan, *_results(store, plan))


def plan_in(directory: str | Path) -> Plan:
    """Return the plan of the study in a folder, without a look at its runs. UserError where there is none."""
    must_be(directory, STUDY)
    return Store(directory).plan()


def _made(plan: Plan, trials: Mapping[str, tuple[Any, dict[str, Any]]], interrupted: bool) -> dict[str, Any]:
    records = {key: record for key, (_, record) in trials.items()}
    return json.loads(json.dumps(finite(results_of(plan, records, interrupted=interrupted))))


def _trials(store: Store) -> tuple[dict[str, tuple[dict[str, Any], dict[str, Any]]], list[str]]:
    """Return the trials that are whole, and a word on each that is not."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    damaged: list[str] = []
    for key in store.hashes():
        try:
            found[key] = store.read(key)
        except DamagedRecord as damage:
            damaged.append(f"The finished run {key} is damaged ({damage}) and left out; the study's command runs it "
                           "again.")
    return found, damaged


def _results(store: Store, plan: Plan) -> tuple[dict[str, Any], tuple[str, ...]]:
    path = store.directory / "results.json"
    try:
        written = _mapping(read_json(path))
        if written is None:
            raise Unreadable("it holds no results")
    except Unreadable as error:
        raise UserError(f"{path} must be JSON; {error}. Give the study's command again: it writes it anew.") from error
    trials, notes = _trials(store)
    if not trials and not notes:  # results that were copied without their runs
        try:
            written = whole_results(written)
        except BadForm as error:
            raise UserError(f"{path} must hold a study's results; {error}. Copy the folder again, with its runs."
                            ) from error
        return written, ("There are no runs' records here to check results.json with.",)
    made = _made(plan, trials, written.get("status") == "interrupted")
    made |= {key: written[key] for key in _OF_A_CALL if _like(made[key], written.get(key))}
    changed = [] if _went_on(made, written) else list(_differences(made, written))
    if any(place.split(".")[0] not in _SENTENCES for place in changed):
        places = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        notes.append(f"results.json does not say what the runs' records say ({places}): it was edited, or written by "
                     "another version of nonlin. The figures shown are made from the records.")
    return made, tuple(notes)


def _went_on(made: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    """Whether the study has more runs by now, or a plan that was extended, than when its results were written."""
    plan = _mapping(written.get("plan"))
    if plan is not None and plan.get("hash") in [stage["hash"] for stage in made["plan"].get("history") or ()]:
        return True
    ours, theirs = _run_hashes(made), _run_hashes(written)
    return theirs is not None and ours is not None and theirs < ours


def _run_hashes(results: Mapping[str, Any]) -> set[str] | None:
    """The hashes of all runs in results; None where they have another form."""
    try:
        return {run["config_hash"] for arm in results["arms"] for run in (*arm["tuning"], *arm["judged"])}
    except (KeyError, TypeError):
        return None


def _mapping(value: Any) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any] | None:
    return cast("list[Any]", value) if isinstance(value, list) else None


def _like(made: Any, written: Any) -> bool:
    """Whether a value has the shape of ours, so that it can stand in its place."""
    ours, theirs = _mapping(made), _mapping(written)
    if ours is not None:
        return theirs is not None and all(_like(ours[key], theirs.get(key)) for key in ours)
    return isinstance(written, int | float) if isinstance(made, int | float) else type(made) is type(written)


def _differences(made: Any, written: Any, place: str = "") -> Iterator[str]:
    """Yield where two values differ, but for what no record says."""
    ours, theirs = _mapping(made), _mapping(written)
    one, other = _list(made), _list(written)
    if ours is not None and theirs is not None:
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in _OF_A_CALL:
                yield from _differences(ours.get(key), theirs.get(key), f"{place}.{key}".lstrip("."))
    elif one is not None and other is not None and len(one) == len(other):
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            name = (_mapping(first) or {}).get("name", index)
            yield from _differences(first, second, f"{place}.{name}")
    elif made != written and not _rounded(made, written) and not _set_alike(made, written):
        yield place


def _set_alike(made: Any, written: Any) -> bool:
    """Whether two sentences differ in the setting of their numbers alone (95%, 95 %), as those of two versions do."""
    return isinstance(made, str) and isinstance(written, str) and typeset(made) == typeset(written)


def _rounded(made: Any, written: Any) -> bool:
    """Whether two numbers differ by rounding alone: another processor's linear algebra has other last bits."""
    return isinstance(made, float) and isinstance(written, float) and math.isclose(made, written, rel_tol=1e-6,
                                                                                   abs_tol=1e-9)
