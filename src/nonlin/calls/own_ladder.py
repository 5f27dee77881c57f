"""A ladder inside the user's own architecture: its shapes, and each rung's model as a study describes it."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nonlin.calls import own_model
from nonlin.calls.arguments import Asked, tokenizer_of
from nonlin.calls.comparison import definitions_of
from nonlin.data import Sources
from nonlin.errors import UserError, rule
from nonlin.ladder.architecture import Architecture, largest_of
from nonlin.ladder.design import Rung, Settings
from nonlin.ladder.plan import LadderPlan, shape_name
from nonlin.study import Arm, ProcessEngine, Request
from nonlin.study.engines import ask
from nonlin.subject.asking import Shaped, Wanted, wanted
from nonlin.subject.widths import main_group
from nonlin.subject.words import own_lines

_PROBED = 16  # the width of a head in the model that the ladder's request is made from


def asked_for(model: Any, from_checkpoint: bool = False) -> Wanted | None:
    """Return the architecture that is asked for; None for nonlin's small model. UserError for one without sizes."""
    if from_checkpoint:
        raise UserError(rule("ladder", "from-checkpoint", "be left out: weights are of one size, and a ladder trains "
                             "several", "it", "Leave it out, or run nonlin compare --from-checkpoint."))
    if model is None:
        return None
    found = wanted(model)
    if "factory" in found.values:
        raise UserError(rule("ladder", "model", "be a configuration or an architecture's name, whose sizes nonlin can "
                             "set", f"the function {found.values['factory']['name']}",
                             "Run nonlin.compare(model=...) with a function at each size."))
    return found


def unsaid(model: Wanted | None) -> dict[str, Any]:
    """Return the values of arguments that are left out, which depend on the model."""
    if model is None:
        return {}
    own = None if model.folder is None else model.folder / "tokenizer.json"
    return {"tokenizer": str(own) if own is not None and own.is_file() else "bytes",
            "learning_rate": own_model.LEARNING_RATE}


@dataclass
class Own:
    """An architecture: a process that builds it, what is known of it, and of the study that is asked for.

    ``roles``: whether the rule of transfer needs the roles of its parameters.
    """

    engine: ProcessEngine
    request: dict[str, Any]
    roles: bool
    found: dict[str, Any] = field(default_factory=dict[str, Any])
    tables: dict[int, list[dict[str, int]]] = field(default_factory=dict[int, list[dict[str, int]]])
    describing: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def sha256(self) -> str:
        """The hash of its configuration."""
        self.table(_PROBED)
        return self.found["sha256"]

    @property
    def shapes(self) -> Architecture:
        """Its shapes."""
        self.table(_PROBED)
        return Architecture(self.found["period"], self.table)

    def table(self, head_width: int) -> list[dict[str, int]]:
        """Return its table of widths for heads of a width."""
        if head_width not in self.tables:
            self.found = ask(self.engine, {"do": "sizes", "head_width": head_width, **self.request})
            self.tables[head_width] = self.found.pop("rows")
        return self.tables[head_width]

    def head_width(self, one: Rung) -> int:
        """Return the width of a rung's heads."""
        return next(width for width, rows in self.tables.items()
                    if any((row["dim"], row["heads"]) == (one.dim, one.heads) for row in rows))

    def probe(self) -> Shaped:
        """Return its smallest model, which says what all rungs share."""
        return Shaped(self._wanted(self.found["period"], self.table(_PROBED)[0], _PROBED))

    def _wanted(self, layers: int, row: Mapping[str, int], head_width: int) -> dict[str, Any]:
        shape = {"layers": layers, "dim": row["dim"], "heads": row["heads"], "kv_heads": row["kv_heads"],
                 "head_width": head_width}
        return {"config": self.found["config"], "shape": shape} | (
            {"fixed": self.found["fixed"]} if self.roles else {})

    def asking(self, asked: Asked) -> None:
        """Note what is asked of each rung's model."""
        self.describing = own_model.describing(asked, definitions_of(asked.activations), asked.sources)

    def described(self, rungs: Sequence[Rung], head_width: int, known: Mapping[str, Any], baseline: str
                  ) -> tuple[list[Rung], dict[str, Any]]:
        """Return the rungs with their operations as the built models have them, and by shape what was described."""
        found: dict[str, Any] = dict(known)
        for one in rungs:
            if shape_name(one) not in found:
                row = next(row for row in self.table(head_width) if row["dim"] == one.dim)
                made = ask(self.engine, self.describing | {"wanted": self._wanted(one.layers, row, head_width)})
                arms = [{key: value for key, value in arm.items() if key != "outside"} for arm in made["arms"]]
                found[shape_name(one)] = {"own": made["own"], "arms": arms}
        _must_be_alike(list(found.values()))
        return [counted(one, found[shape_name(one)], baseline) for one in rungs], found

    def model(self, head_width: int, subjects: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a plan holds of it."""
        return {**self.found, "head_width": head_width, "rows": self.table(head_width), "subjects": dict(subjects)}

    def widened(self, plan: LadderPlan) -> LadderPlan:
        """Return a plan with as many widths as are known now."""
        rows = self.table(plan.head_width)
        return plan if len(rows) <= len(plan.model["rows"]) else replace(plan, model=plan.model | {"rows": rows})

    def completed(self, plan: LadderPlan) -> LadderPlan:
        """Return a plan with a description of every rung."""
        known = plan.model["subjects"]
        rungs, subjects = self.described([one for one, _ in plan.ordered()], plan.head_width, known, plan.baseline)
        if len(subjects) == len(known):
            return plan
        rows = [row | {"flops": one.flops} for one, row in zip(rungs, plan.rungs, strict=True)]
        return replace(plan, rungs=rows, model=plan.model | {"subjects": subjects})


def _must_be_alike(subjects: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError where a factor that the family puts on its stream depends on the size: CompleteP sets those."""
    streams = [found["own"]["roles"]["stream"] for found in subjects if "roles" in found["own"]]
    for stream in streams[1:]:
        for part in stream:
            if stream[part] != streams[0][part]:
                raise UserError(rule("ladder", "transfer", "be standard in this model: CompleteP sets how a model's "
                                     f"factors follow its size, and its own of the {part} do", "completep",
                                     "Use --transfer standard."))


def counted(one: Rung, subject: Mapping[str, Any], baseline: str) -> Rung:
    """Return a rung with the operations of its baseline's model, where they could be counted."""
    found = next(arm["flops_per_token"] for arm in subject["arms"] if arm["name"] == baseline)
    return one if found is None else replace(one, flops=float(found) * one.tokens)


@contextlib.contextmanager
def opened(model: Wanted | None, tokenizer: Any, settings: Settings, sizes: Sequence[float] | None, target: float,
           transfer: str) -> Generator[Own | None]:
    """Open a process for the architecture; None without one. UserError for one that makes no ladder."""
    if model is None:
        yield None
        return
    tokens = own_model.tokens_of(Sources(tokenizer=tokenizer_of(tokenizer)))
    request = {"wanted": dict(model.values), "vocabulary": tokens["vocabulary"], "context": settings.context,
               "largest": largest_of(sizes, target)}
    with ProcessEngine(".", 1) as engine:
        yield Own(engine, request, transfer == "completep")


def shared(whole: Request) -> Request:
    """Return a request without what belongs to the model that it was made from."""
    return replace(whole, arms=[replace(arm, own=None) for arm in whole.arms],
                   model={"context": whole.model["context"], "vocabulary": whole.model["vocabulary"]})


def of_rung(whole: Request, subject: Mapping[str, Any], context: int, vocabulary: int
            ) -> tuple[list[Arm], dict[str, Any]]:
    """Return a rung's arms and its model, as a study inside a user's own model has them."""
    own = subject["own"]
    main, by_name = main_group(own), {arm["name"]: arm for arm in subject["arms"]}
    arms = []
    for arm in whole.arms:
        one = by_name[arm.name]
        arms.append(replace(arm, kind=one["kind"], hidden=one["widths"][main], parameters=one["parameters"],
                            own={"widths": one["widths"], "flops_per_token": one["flops_per_token"]}))
    return arms, {"context": context, "layers": own["layers"], "dim": own["dim"], "own": own, "vocabulary": vocabulary}


def lines(made: LadderPlan) -> list[str]:
    """Return a plan's lines on a user's own architecture: what is replaced at the smallest rung, and so at each."""
    found = made.subject(made.ordered()[0][0])
    if found is None:
        return []
    return [f"Inside {made.model['class']}, heads {made.model['head_width']} wide; the smallest rung:",
            *own_lines(found["own"], [arm | {"own": arm} for arm in found["arms"]])]
