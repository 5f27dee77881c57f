"""A ladder's plan: its rungs, its rule, its machine; written before the first run, extended by rungs and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from nonlin.errors import UserError
from nonlin.ladder import design
from nonlin.ladder.design import Rung, Settings
from nonlin.ladder.wellformed import LadderForm, must_be_rungs
from nonlin.study.kinds import LADDER
from nonlin.study.plan import Sealed
from nonlin.study.request import Request

#: Parts of a request that belong to a rung and not to the ladder; parts that may differ from call to call.
_OF_RUNGS = ("model", "steps", "minutes", "seeds", "role")
_GROWS = ("seeds",)


@dataclass(frozen=True)
class LadderPlan(Sealed):
    """All that decides what a ladder runs; JSON-able. ``target`` is the size asked about, which decides no run.

    ``rungs``: each rung's values. "folder" is the folder of its study under rungs/; "before" is that of the same rung
    with fewer seeds, whose runs it takes over.
    """

    KIND: ClassVar[str] = LADDER
    UNCOUNTED: ClassVar[tuple[str, ...]] = ("name", "target", "timing", "workers")
    FORM = LadderForm

    name: str
    request: dict[str, Any]
    settings: dict[str, Any]
    rungs: list[dict[str, Any]]
    baseline: str
    rule: dict[str, Any]
    transfer: dict[str, Any]
    machine: dict[str, Any]
    data: dict[str, Any]
    target: float
    timing: dict[str, Any]
    workers: int
    format: int = 2

    def check(self) -> None:
        """Raise ValueError where rungs or activations come twice, or a folder of a rung lies elsewhere."""
        must_be_rungs(self.rungs, self.arms, self.baseline)

    @property
    def arms(self) -> list[str]:
        """The names of the activations."""
        return [arm["name"] for arm in self.request["arms"]]

    @property
    def steady(self) -> Settings:
        """The settings that all rungs share."""
        return Settings(**self.settings)

    def ordered(self) -> list[tuple[Rung, str]]:
        """Return the rungs in the order in which they run, each with the folder of its study."""
        names = {f.name for f in fields(Rung)}
        return [(Rung(**{k: v for k, v in row.items() if k in names}), row["folder"]) for row in self.rungs]

    def folder_before(self, folder: str) -> str | None:
        """Return the folder whose runs a rung takes over; None where there is none."""
        return next(row["before"] for row in self.rungs if row["folder"] == folder)


def request_of(request: Request) -> dict[str, Any]:
    """Return what a request says of the ladder as a whole: nothing of one rung's size and length."""
    return {key: value for key, value in request.as_dict().items() if key not in _OF_RUNGS}


def rows(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Return a new ladder's rungs as the plan has them."""
    return [one.as_dict() | {"folder": one.name, "before": None} for one in rungs]


def extended(plan: LadderPlan, request: Mapping[str, Any], settings: Settings, target: float,
             sizes: Sequence[float] | None) -> LadderPlan:
    """Return the plan as a later call extends it: by sizes, by seeds, or for another target.

    Rungs that are there keep their roles; new ones carry their rates. UserError for anything else that differs.
    """
    asked = {**request, **{k: v for k, v in settings_dict(settings).items() if k not in _GROWS}}
    known = {**plan.request, **{k: v for k, v in plan.settings.items() if k not in _GROWS}}
    changed = [key for key in asked if asked[key] != known.get(key)]
    if changed:
        raise UserError(f"ladder: the folder holds another ladder: its {' and '.join(changed)} "
                        f"{'differs' if len(changed) == 1 else 'differ'} from this command's. Choose another folder "
                        "with --out, or give the command that began it.")
    if settings.seeds < plan.settings["seeds"]:
        raise UserError(f"ladder: seeds must be {plan.settings['seeds']} or more, as many as the ladder has; got "
                        f"{settings.seeds}. Runs that are there are not taken away.")
    there = plan.rungs if sizes is None else _with_sizes(plan, sizes, settings)
    if settings.seeds > plan.settings["seeds"]:
        there = [row | {"folder": f"{row['name']}-seeds-{settings.seeds}", "before": row["folder"]}
                 if row["folder"] in {old["folder"] for old in plan.rungs} else row for row in there]
    return replace(plan, rungs=there, settings=settings_dict(settings), target=target)


def settings_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON values."""
    return {f.name: getattr(settings, f.name) for f in fields(settings)}


def _with_sizes(plan: LadderPlan, sizes: Sequence[float], settings: Settings) -> list[dict[str, Any]]:
    head = plan.rungs[0]["dim"] // plan.rungs[0]["heads"]
    wanted = {(one := design.rung(size, "carried", head, settings)).parameters: one for size in sizes}
    plain = {row["parameters"] for row in plan.rungs if row["longer"] == 1}
    if lost := sorted(plain - set(wanted)):
        raise UserError(f"ladder: sizes must hold those of the ladder that is there; {design.size_name(lost[0])} is "
                        "not among them. Sizes can be added, not taken away.")
    new = [wanted[size] for size in sorted(set(wanted) - plain)]
    added = [one.as_dict() | {"folder": f"{one.name}-seeds-{settings.seeds}" if settings.seeds >
                              plan.settings["seeds"] else one.name, "before": None} for one in new]
    order = sorted([row for row in [*plan.rungs, *added] if row["longer"] == 1], key=lambda row: row["parameters"])
    tuned = max(i for i, row in enumerate(order) if row["role"] == "tuned") + 1
    # The tuned rungs come first, wherever they lie: the others take their rates.
    order.sort(key=lambda row: (row["role"] != "tuned", row["parameters"]))
    return [*order[:tuned], *(row for row in plan.rungs if row["longer"] != 1), *order[tuned:]]
