"""The runs and rules of the claims, fixed before the first run.

The language model's part is a handful of ordinary studies, each with a plan of its own inside this one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from msgspec import Meta

from nonlin.errors import UserError, rule
from nonlin.functions import get
from nonlin.kinds import CLAIMS
from nonlin.model import ModelConfig, parameter_count
from nonlin.nn import matched_hidden
from nonlin.records import Record
from nonlin.study import Arm, Plan, Request, make_plan
from nonlin.study.budget import makespan
from nonlin.study.plan import Sealed, learning_rate_grid
from nonlin.study.tuning import trials_of
from nonlin.study.wellformed import DataForm, Natural, PlanForm, Size

MINUTES = 20.0
RESERVE_SECONDS = 40.0  # starting up, measuring, the page
EXPERIMENT_SECONDS = 200.0  # of one worker, all experiments that train no language model, on the reference machine
REFERENCE_SPEED = 48_000.0  # tokens per second of the CORE model there
EVALUATION_TOKENS = 24576
MINIMUM_STEPS = 30

#: The ladder's models, (layers, width): about 41 k, 130 k, 270 k and 570 k parameters. They differ in width alone:
#: deeper ones spend runs of this length on the plateau where the loss of every model begins.
LADDER = {"XS": (2, 32), "S": (2, 64), "M": (2, 96), "L": (2, 144)}
CORE = "S"
TANDEM = (1, 32)
CORE_ARMS = ("relu", "gelu", "silu", "swiglu", "identity")
TANDEM_ARMS = ("gelu", "relu", "swiglu")
NORMS = {"rms-before": {}, "rms-after": {"norm_place": "after"}, "layer-before": {"norm": "layer"},
         "layer-after": {"norm": "layer", "norm_place": "after"}, "none": {"norm": "none"}}
ATTENTION = {"on": {}, "off": {"attention": False}}


@dataclass(frozen=True)
class Extent:
    """How much is run: learning rates of the wide grid, tuning seeds there, judged seeds, and the same elsewhere."""

    wide_rates: int
    wide_seeds: int
    judge_seeds: int
    tune_seeds: int
    tandem_rates: int
    tandem_seeds: int


#: From the most to the least; the first whose runs get the steps it names is taken. More minutes than the default's buy
#: seeds before steps: what is left open there is open for want of seeds.
EXTENTS = ((900, Extent(7, 24, 40, 3, 3, 24)), (500, Extent(7, 12, 20, 2, 3, 12)), (600, Extent(7, 8, 12, 2, 3, 8)),
           (150, Extent(7, 4, 6, 2, 3, 4)), (100, Extent(6, 3, 5, 1, 3, 4)), (0, Extent(5, 3, 4, 1, 2, 4)))


MOST_MINUTES = 10_000_000  # 19 years


class _RequestForm(Record, frozen=True, kw_only=True):
    minutes: Natural


class _BudgetForm(Record, frozen=True, kw_only=True):
    minutes: Natural


class ClaimsForm(Record, frozen=True, kw_only=True):
    """plan.json of claims, checked where it is read."""

    request: _RequestForm
    seed: Annotated[int, Meta(ge=0, le=999_999)]
    steps: Size
    studies: dict[str, PlanForm]
    machine: dict[str, Any]
    data: DataForm
    speeds: dict[str, Natural]
    budget: _BudgetForm
    workers: Size
    format: int


@dataclass(frozen=True)
class ClaimsPlan(Sealed):
    """All that decides what runs; JSON-able."""

    KIND = CLAIMS
    UNCOUNTED = ("budget", "workers")
    FORM = ClaimsForm

    request: dict[str, Any]
    seed: int
    steps: int
    studies: dict[str, dict[str, Any]]
    machine: dict[str, Any]
    data: dict[str, Any]
    speeds: dict[str, float]
    budget: dict[str, Any]
    workers: int
    format: int = 2

    def study(self, name: str) -> Plan:
        """Return one of the language model's studies; UserError where the plan has none of that name."""
        if name not in self.studies:
            raise UserError(f"claims: plan.json must hold the study {name!r}; it was changed, or written by another "
                            "version. Restore the file, or start in another folder.")
        return Plan.from_dict(self.studies[name])

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of experiments: eight that no other --seed shares."""
        return [1000 * self.seed + i for i in range(1, 9)]

    @property
    def short(self) -> bool:
        """Whether the time is so short that experiments are cut too."""
        return self.request["minutes"] < 6

    def describe(self) -> str:
        """Return the plan in words."""
        trials = sum(len(first_trials(self.study(name))) for name in self.studies)
        return (f"Thirteen claims on {self.data.get('description', 'text')}: experiments on small networks, and at "
                f"least {trials} trainings of small language models in {len(self.studies)} studies, the longest of "
                f"{self.steps} steps. All of it takes about {self.budget['minutes']:.0f} minutes, {self.workers} runs "
                "at a time; every rule was fixed before the first run.")


def first_trials(study: Plan) -> list[Any]:
    """Return the trials that a study starts with, and as many as its judged ones."""
    tuning = trials_of(study, "tune", {})
    return tuning + tuning[:1] * (len(study.arms) * len(study.judge_seeds))


def model_of(size: tuple[int, int], **variant: Any) -> dict[str, Any]:
    """Return a model's sizes from (layers, width); heads are 32 wide, or half the width where that is less."""
    layers, dim = size
    heads = max(2, dim // 32)
    return {"layers": layers, "dim": dim, "heads": heads, "kv_heads": heads, "context": 64, "vocabulary": 256,
            **variant}


def arm_of(name: str, model: Mapping[str, Any], wide: bool = False) -> Arm:
    """Return an arm with as many parameters as a plain block of 4 dim, or with its width where ``wide``."""
    kind = get(name).kind
    hidden = 4 * model["dim"] if wide else matched_hidden(model["dim"], kind)
    count = parameter_count(ModelConfig(**model, hidden=hidden), kind == "gated")
    return Arm(name, kind, hidden, count)


def speed_requests(data: Mapping[str, Any]) -> dict[str, Request]:
    """Return the studies whose arms' speeds are measured, by the size's name."""
    sizes = {**LADDER, "tandem": TANDEM}
    return {name: _request(CORE_ARMS if name == CORE else ("gelu", "swiglu"), model_of(size), data, 100, 4)
            for name, size in sizes.items()}


def _request(arms: Iterable[str], model: Mapping[str, Any], data: Mapping[str, Any], steps: int, seeds: int,
             baseline: str | None = None, wide: bool = False, match: str = "params") -> Request:
    made = [arm_of(name, model, wide) for name in arms]
    return Request(made, baseline or made[0].name, model, data, minutes=None, steps=steps, seeds=seeds, match=match,
                   margin=0.005, training={"evaluation_tokens": EVALUATION_TOKENS, "keep_weights": False})


def check(minutes: float, seed: int) -> None:
    """Raise UserError for values that make no plan."""
    if not 1 <= minutes <= MOST_MINUTES:
        raise UserError(rule("claims", "minutes", f"be from 1 to {MOST_MINUTES:,}", minutes,
                             "Use --minutes 20, or 2 for a first look."))
    if not 0 <= seed < 10**6:
        raise UserError(rule("claims", "seed", "be from 0 to 999999", seed, "Choose another one."))


def make(asked: Mapping[str, Any], speeds: Mapping[str, Mapping[str, float]], machine: Mapping[str, Any],
         data: Mapping[str, Any], workers: int) -> ClaimsPlan:
    """Return the plan that fits the minutes asked for at the measured speeds.

    ``asked``: "minutes", "seed", "rules" and the data's description; ``speeds``: by "SIZE ACTIVATION"
    {"tokens_per_second", "seconds_overhead"} of one worker while all are busy.
    """
    check(asked["minutes"], asked["seed"])
    minutes = asked["minutes"]
    for least, extent in EXTENTS:
        steps = _most_steps(asked, speeds, machine, data, extent, workers)
        if steps >= max(least, MINIMUM_STEPS) or extent is EXTENTS[-1][1]:
            break
    studies = _studies(asked["seed"], steps, speeds, machine, data, extent)
    return ClaimsPlan(
        request=dict(asked), seed=asked["seed"], steps=steps, studies={k: v.as_dict() for k, v in studies.items()},
        machine=dict(machine), data=dict(data), speeds={k: v["tokens_per_second"] for k, v in speeds.items()},
        budget={"minutes": _minutes(studies, speeds, minutes, workers)}, workers=workers)


def _most_steps(asked: Mapping[str, Any], speeds: Any, machine: Any, data: Any, extent: Extent, workers: int) -> int:
    low, high = MINIMUM_STEPS // 10, 400
    while low < high:
        middle = (low + high + 1) // 2
        studies = _studies(asked["seed"], 10 * middle, speeds, machine, data, extent)
        fits = _minutes(studies, speeds, asked["minutes"], workers) <= asked["minutes"]
        low, high = (middle, high) if fits else (low, middle - 1)
    return 10 * low


def _minutes(studies: Mapping[str, Plan], speeds: Mapping[str, Any], minutes: float, workers: int) -> float:
    slower = REFERENCE_SPEED / speeds[f"{CORE} gelu"]["tokens_per_second"]
    whole = EXPERIMENT_SECONDS * slower * (0.5 if minutes < 6 else 1.0)
    jobs, known = [whole / 100] * 100, set()
    for study in studies.values():
        for trial in trials_of(study, "tune", {}):
            if trial.key not in known:
                known.add(trial.key)
                jobs.append(study.trial_seconds(trial.arm, "tune"))
        for arm in study.arms:
            key = (arm["name"], arm["hidden"], arm["judge_steps"], str(sorted(study.model.items())))
            if key not in known:
                known.add(key)
                jobs += [study.trial_seconds(arm["name"], "judge")] * len(study.judge_seeds)
    return (makespan(jobs, workers) + RESERVE_SECONDS) / 60


def minutes_for(plan: ClaimsPlan, share: float) -> float | None:
    """Return the fewest minutes whose plan has ``share`` times as many seeds in every study; None where none has.

    Seeds come in steps, so that a little more time buys none.
    """
    core, tandem = plan.study("core"), plan.study(f"tandem-{next(iter(NORMS))}-on")
    speeds = _costs(plan)
    for least, extent in reversed(EXTENTS):
        if extent.wide_seeds >= share * len(core.tune_seeds) and extent.judge_seeds >= share * len(core.judge_seeds) \
                and extent.tandem_seeds >= share * len(tandem.judge_seeds):
            studies = _studies(plan.seed, max(least, MINIMUM_STEPS), speeds, plan.machine, plan.data, extent)
            planned: float = plan.request["minutes"]
            return max(planned, _minutes(studies, speeds, planned, plan.workers))
    return None


def _costs(plan: ClaimsPlan) -> dict[str, dict[str, float]]:
    """Return a plan's speeds with what a run costs beside its steps, which the trials' times tell."""
    bare = {key: {"tokens_per_second": speed, "seconds_overhead": 0.0} for key, speed in plan.speeds.items()}
    without = _studies(plan.seed, plan.steps, bare, plan.machine, plan.data, EXTENTS[-1][1])
    for key, cost in bare.items():
        size, arm = key.split(" ", 1)
        name = {CORE: "core", "tandem": f"tandem-{next(iter(NORMS))}-on"}.get(size, f"ladder-{size}")
        cost["seconds_overhead"] = max(0.0, plan.study(name).trial_seconds(arm, "judge")
                                       - without[name].trial_seconds(arm, "judge"))
    return bare


def _studies(seed: int, steps: int, speeds: Mapping[str, Any], machine: Any, data: Any, extent: Extent
             ) -> dict[str, Plan]:
    """Return the language model's studies; trials with equal configurations are one run."""
    def study(name: str, size: str, request: Request, rates: list[float], tune: int, extensions: int) -> Plan:
        costs = {arm.name: _speed(speeds, size, arm.name) for arm in request.arms}
        plan = make_plan(request, costs, machine, 1, name)  # it has no minutes of its own to fit
        return replace(plan, learning_rates=rates, learning_rate_extensions=extensions,
                       tune_seeds=[1000 * seed + 501 + i for i in range(tune)],
                       judge_seeds=[1000 * seed + 1 + i for i in range(request.seeds)],
                       learning_rate_factor=2.0)

    core, seeds = model_of(LADDER[CORE]), extent.judge_seeds
    wide = learning_rate_grid(0.016, extent.wide_rates, 2.5)
    near = learning_rate_grid(0.01, 3, 2.0)
    found = {"core": study("core", CORE, _request(CORE_ARMS, core, data, steps, seeds, "relu"), wide,
                           extent.wide_seeds, 0)}
    found["core"] = replace(found["core"], learning_rate_factor=2.5, learning_rate_extensions=1)
    pair = ("silu", "swiglu")
    for match in ("params", "width", "time"):
        request = _request(pair, core, data, steps, seeds, "silu", match == "width", match)
        found[f"gate-{match}"] = study(f"gate-{match}", CORE, request, near, extent.tune_seeds, 2)
    for size, shape in LADDER.items():
        request = _request(("gelu", "swiglu"), model_of(shape), data, steps, seeds)
        found[f"ladder-{size}"] = study(f"ladder-{size}", size, request, near, extent.tune_seeds, 2)
    for norm, variant in NORMS.items():
        for attention, switch in ATTENTION.items():
            request = _request(TANDEM_ARMS, model_of(TANDEM, **variant, **switch), data, steps, extent.tandem_seeds)
            name = f"tandem-{norm}-{attention}"
            rates = learning_rate_grid(0.016, extent.tandem_rates, 2.5)
            found[name] = study(name, "tandem", request, rates, 1, 1)
    return found


def _speed(speeds: Mapping[str, Any], size: str, arm: str) -> Mapping[str, float]:
    return speeds.get(f"{size} {arm}") or speeds[f"{size} {'swiglu' if get(arm).gated else 'gelu'}"]
