"""The kinds of things that a folder of ours may hold, told from each other by their plans."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nonlin.errors import UserError, not_empty
from nonlin.files import Unreadable, printable, read_json
from nonlin.letters import quoted

STUDY, LADDER, CLAIMS, CALIBRATION = "a study", "a ladder", "claims", "A/A studies"
_LOOKED_AT, _NAMED = 20, 2  # folders, where another was meant
_FIELDS = {LADDER: "rungs", CLAIMS: "studies", STUDY: "arms"}  # of a plan
_NEXT = {
    STUDY: "nonlin compare --resume --out {0} continues it; to begin something else, give another folder.",
    LADDER: "nonlin ladder --resume --out {0} continues it; its studies are in {1}/rungs.",
    CLAIMS: "nonlin claims --resume --out {0} continues them; to begin something else, give another folder.",
    CALIBRATION: "The command that began them, without --resume, goes on with them; each is a study in {1}/studies.",
}


def kind_of(directory: str | Path) -> str | None:
    """Return the kind of what lies in a folder; None where it is none of ours, or damaged."""
    not_empty("nonlin", folder=directory)
    directory = Path(directory)
    path = directory / "plan.json"
    if os.path.lexists(path):
        try:
            values: Any = read_json(path)
        except Unreadable:
            return None
        return next((kind for kind, field in _FIELDS.items() if isinstance(values, Mapping) and field in values), None)
    begun = (directory / "machine.json", directory / "studies")
    return CALIBRATION if all(map(os.path.lexists, begun)) else None


def must_hold(directory: str | Path, wanted: str, call: str = "", also: Collection[str] = ()) -> None:
    """Raise UserError where a folder holds another kind of thing than the wanted one, with how to go on with that.

    The kinds in ``also`` may lie there too.
    """
    found = kind_of(directory)
    if found not in (None, wanted, *also):
        where = printable(str(directory))
        raise UserError(f"{call}{where} must hold {wanted}; it holds {found}. "
                        f"{_NEXT[found].format(quoted(directory), where)}")


def must_be(directory: str | Path, wanted: str, *also: str) -> None:
    """Raise UserError where a folder holds nothing of the wanted kinds; it is told by the plan's fields alone.

    A damaged plan passes: whoever reads it says what is wrong with it.
    """
    must_hold(directory, wanted, also=also)
    if not os.path.lexists(Path(directory) / "plan.json") and kind_of(directory) is None:
        raise _holds_none(directory, wanted)


def _holds_none(directory: str | Path, wanted: str) -> UserError:
    """Return the error of a folder that holds nothing of ours; it names those beside it that hold what is wanted."""
    directory = Path(directory)
    problem = "it has no plan.json" if os.path.lexists(directory) else "it does not exist"
    places = [directory.parent, Path("runs")] if directory.parent != Path("runs") else [directory.parent]
    found = [path.parent for place in places for path in sorted(place.glob("*/plan.json"))[:_LOOKED_AT]]
    near = [printable(str(folder)) for folder in dict.fromkeys(found) if kind_of(folder) == wanted][:_NAMED]
    hint = f", for example {' or '.join(near)}" if near else ""
    return UserError(f"{printable(str(directory))} must hold {wanted}; {problem}. Give the folder of {wanted}{hint}.")
