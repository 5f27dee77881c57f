"""A ladder's plan: its rungs, its rule, its machine; written before the first run, extended by rungs and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from nonlin.errors import UserError
from nonlin.kinds import LADDER
from nonlin.ladder import design
from nonlin.ladder.architecture import architecture_of
from nonlin.ladder.design import SMALL, Rung, Settings, Shapes
from nonlin.ladder.wellformed import LadderForm, must_be_rungs
from nonlin.study.plan import Sealed
from nonlin.study.request import Request

#: Parts of a request that belong to a rung and not to the ladder; parts that may differ from call to call.
_OF_RUNGS = ("model", "steps", "minutes", "seeds", "role")
_GROWS = ("seeds",)


@dataclass(frozen=True)
class LadderPlan(Sealed):
    """All that decides what a ladder runs; JSON-able. ``target`` is the size asked about, which decides no run.

    ``rungs``: each rung's values. "folder" is the folder of its study under rungs/; "before" is that of the same rung
    with fewer seeds, whose runs it takes over. ``model``: of a user's own architecture its configuration, the table of
    its widths (see :mod:`nonlin.ladder.architecture`), and as "subjects" each rung's model as a study describes it.
    """

    KIND: ClassVar[str] = LADDER
    UNCOUNTED: ClassVar[tuple[str, ...]] = ("name", "target", "timing", "workers")
    LATER: ClassVar[tuple[str, ...]] = ("model",)
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
    model: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        """Raise ValueError where rungs or activations come twice, or a folder of a rung lies elsewhere."""
        must_be_rungs(self.rungs, self.arms, self.baseline, self.model)

    @property
    def shapes(self) -> Shapes:
        """The rule that gives rungs their shapes."""
        return architecture_of(self.model) if self.model else SMALL

    @property
    def head_width(self) -> int:
        """The width of a head in every rung."""
        return self.model["head_width"] if self.model else self.rungs[0]["dim"] // self.rungs[0]["heads"]

    def subject(self, one: Rung) -> dict[str, Any] | None:
        """Return the description of a rung's model, where that is of the user's own architecture."""
        return self.model["subjects"][shape_name(one)] if self.model else None

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


def shape_name(one: Rung) -> str:
    """Return the name of a rung's shape, which rungs of other horizons share."""
    return f"{one.layers}x{one.dim}"


def request_of(request: Request) -> dict[str, Any]:
    """Return what a request says of the ladder as a whole: nothing of one rung's size and length."""
    return {key: value for key, value in request.as_dict().items() if key not in _OF_RUNGS}


def rows(rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Return a new ladder's rungs as the plan has them."""
    return [one.as_dict() | {"folder": one.name, "before": None} for one in rungs]


def extended(plan: LadderPlan, request: Mapping[str, Any], settings: Settings, target: float,
             sizes: Sequence[float] | None, model: str | None = None) -> LadderPlan:
    """Return the plan as a later call extends it: by sizes, by seeds, or for another target.

    Rungs that are there keep their roles; new ones carry their rates. UserError for anything else that differs;
    ``model`` is the hash of the configuration, of a user's own.
    """
    asked = {**request, **{k: v for k, v in settings_dict(settings).items() if k not in _GROWS}, "model": model}
    known = {**plan.request, **{k: v for k, v in plan.settings.items() if k not in _GROWS},
             "model": plan.model.get("sha256")}
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
    wanted = {(one := plan.shapes.rung(size, "carried", plan.head_width, settings)).parameters: one for size in sizes}
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
