"""A study's plan: the question, the runs and the rule, fixed before the first run."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Self

from nonlin.errors import UserError, rule
from nonlin.files import printable
from nonlin.kinds import STUDY
from nonlin.numbers import counted, number, short
from nonlin.progress import span
from nonlin.records import Record
from nonlin.study import defaults
from nonlin.study.budget import choose_steps, predict
from nonlin.study.request import Arm, Request, trial_config
from nonlin.study.verdict import rule_sentence, rule_text
from nonlin.study.wellformed import BadForm, PlanForm, must_be, must_be_one
from nonlin.subject.words import headline, own_lines, small_first_weights
from nonlin.training import recipe, transfer

_LONGEST = 1e12  # minutes of a study
_MINUTES = 300  # up to which a study's time is told in minutes
_WHOLE = ("evaluations", "probe_every", "evaluation_tokens", "accumulation", "batch")
_NUMBERS = ("weight_decay", "clip", "warmup_fraction", "decay_fraction", "final_fraction", "beta1", "beta2", "epsilon",
            "momentum")


class Sealed:
    """A plan as a dataclass of JSON values whose file says, by its hash, whether it was changed.

    ``UNCOUNTED`` names the fields that do not decide its results. Those of ``LATER``, which earlier versions did not
    have, are in its file and its hash only where they hold something.
    """

    UNCOUNTED: ClassVar[tuple[str, ...]] = ()
    LATER: ClassVar[tuple[str, ...]] = ()
    FORM: ClassVar[type[Record]]

    @property
    def hash(self) -> str:
        """The plan's identity: of everything that decides its results."""
        counted = {k: v for k, v in self._values().items() if k not in self.UNCOUNTED}
        text = json.dumps(counted, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, its hash among them."""
        return {"hash": self.hash} | self._values()

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {k: v for k, v in values.items() if v or k not in self.LATER}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the plan of :meth:`as_dict`; UserError if its hash says that it was changed since."""
        try:
            must_be(cls.FORM, values)
            named = {f.name for f in fields(cls)}  # type: ignore[arg-type]
            plan = cls(**{name: value for name, value in values.items() if name in named})
            plan.check()
            if plan.hash != values["hash"]:
                raise BadForm("its hash is another one")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            why = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise UserError("the study's plan.json was damaged or changed after the study began, so its rule and "
                            f"its runs no longer belong together ({printable(why)[:200]}). Restore the file, or start "
                            "in another folder.") from error
        return plan

    def check(self) -> None:
        """Raise ValueError where values that are each of their type do not belong together."""


@dataclass(frozen=True)
class Plan(Sealed):
    """All that decides what runs; JSON-able. The clock decides nothing once this is written."""

    KIND = STUDY
    UNCOUNTED = ("name", "budget", "workers", "notes")  # none of them decides a study's results
    LATER = ("history",)
    FORM = PlanForm

    name: str
    request: dict[str, Any]
    arms: list[dict[str, Any]]
    baseline: str
    rule: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    learning_rates: list[float]
    learning_rate_factor: float
    learning_rate_extensions: int
    tune_seeds: list[int]
    judge_seeds: list[int]
    match: str
    machine: dict[str, Any]
    workers: int
    budget: dict[str, Any]
    data: dict[str, Any]
    format: int = 2
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @cached_property
    def made(self) -> dict[Any, Any]:
        """The trials that were asked for so far (:func:`nonlin.study.tuning.trial`)."""
        return {}

    def check(self) -> None:
        """Raise ValueError where names come twice, or parts of the plan name different activations."""
        names = [arm["name"] for arm in self.arms]
        must_be_one(names, self.baseline)
        must_be_one([arm["name"] for arm in self.request["arms"]], *names)
        for place, request in [("request", self.request)] + [(f"history.{i}.request", stage["request"])
                                                             for i, stage in enumerate(self.history)]:
            asked = [arm["name"] for arm in request["arms"]]
            must_be_one(asked, self.baseline)
            if request["baseline"] != self.baseline or set(asked) - set(names) or "tokenizer" not in request["data"]:
                raise BadForm(f"{place} is of another study")
        if "tokenizer" not in self.data or any("parameters_relative_error" not in arm for arm in self.arms):
            raise BadForm("data.tokenizer or arms.parameters_relative_error is missing")
        must_be_one([*self.tune_seeds, *self.judge_seeds])
        must_be_one(self.learning_rates)
        if not self.tune_seeds and self.request.get("role") != "carried":
            raise BadForm("tune_seeds has none")
        self._check_training()
        for place, looks in [("rule", self.looks)] + [(f"history.{i}.rule", stage["rule"].get("looks") or [1])
                                                      for i, stage in enumerate(self.history)]:
            if any(a >= b for a, b in itertools.pairwise(looks)):
                raise BadForm(f"{place}.looks do not rise")
        if self.looks[-1] != len(self.judge_seeds):
            raise BadForm("rule.looks do not end with the number of judge_seeds")
        for name in names:
            must_be_one(self.budget["timing"]["trials"][name], "tune_seconds", "judge_seconds")

    def _check_training(self) -> None:
        """Raise ValueError for a recipe that cannot be followed, or told of, in words or in numbers."""
        training = self.training
        if "warmup_steps" not in training and "warmup_fraction" not in training:
            raise BadForm("training has no warm-up")
        for name in ("weight_decay", "clip", "evaluation_tokens"):
            if name not in training:
                raise BadForm(f"training has no {name}")
        for name, value in training.items():
            whole = name.endswith("steps") or name in _WHOLE
            if (whole and type(value) is not int) or (name in _NUMBERS and (isinstance(value, bool))):
                raise BadForm(f"training.{name} is {value!r:.80}")
        recipe.check(training)
        if "transfer" in training:
            transfer.check_model(training["transfer"], training, self.model)

    @property
    def memory_bytes(self) -> int:
        """The most memory that a run took where it was measured; 0 where it was not."""
        return self.budget.get("memory_bytes") or 0

    @property
    def predicted_minutes(self) -> float:
        """How long the study takes by the measured speeds."""
        return self.budget["timing"]["predicted_minutes"]

    def _time(self) -> str:
        """How long the study takes, in words that one can grasp."""
        minutes = self.predicted_minutes
        return f"{minutes:.1f} minutes" if minutes < _MINUTES else span(60 * minutes)

    def arm(self, name: str) -> dict[str, Any]:
        """Return the arm of that name."""
        return next(arm for arm in self.arms if arm["name"] == name)

    def config(self, name: str, purpose: str, learning_rate: float, seed: int) -> dict[str, Any]:
        """Return the configuration of one trial."""
        arm = self.arm(name)
        training = {k: v for k, v in self.training.items() if k not in ("tune_steps", "judge_steps")}
        training |= {"steps": arm[f"{purpose}_steps"], "learning_rate": learning_rate}
        if purpose == "tune":  # only its final loss counts
            training |= {"evaluations": 1, "probe_every": training["steps"]}
        spec = Arm(arm["name"], arm["kind"], arm["hidden"], arm["parameters"], arm["formula"], arm.get("stream"),
                   arm.get("activation"), arm.get("own"))
        return trial_config(spec, self.model, self.data, training, self.machine, purpose, seed, self.format)

    @property
    def looks(self) -> list[int]:
        """The numbers of judged seeds at which the study was, or will be, looked at; the last is that of its end."""
        return list(self.rule.get("looks") or [len(self.judge_seeds)])

    def trial_seconds(self, name: str, purpose: str) -> float:
        """Return how long a trial takes by the measured speeds."""
        return self.budget["timing"]["trials"][name][f"{purpose}_seconds"]

    def _transfer_text(self, tokens: int) -> list[str]:
        asked = self.training.get("transfer")
        return [transfer.describe(asked, self.model, tokens)] if asked else []

    def _first_weights(self) -> list[str]:
        """A word on a family's first weights where a width is too narrow for them; a transfer scales them."""
        return small_first_weights(self.model["own"]) if "own" in self.model and "transfer" not in self.training else []

    def _repeats(self, tokens: int) -> list[str]:
        """A word on text that is read more often than new text is worth."""
        times = tokens / self.data.get("train_tokens", math.inf)
        return [f"The text is short: a judged run reads it {times:.1f} times, and more than "
                f"{defaults.MAXIMUM_EPOCHS} says little about new text."] if times > defaults.MAXIMUM_EPOCHS else []

    def _judged_by(self) -> str:
        tokens = self.training["evaluation_tokens"]
        usual = tokens == defaults.TRAINING["evaluation_tokens"]
        return "" if usual else f", {tokens:,} tokens of held-out text per evaluation"

    def _model(self) -> str:
        if "own" not in self.model:
            return f"{counted(self.model['layers'], 'layer')}, width {self.model['dim']}"
        return headline(self.model["own"])

    @property
    def size(self) -> str:
        """The baseline's parameters, in words: 0.27 M, 135 M, 7 B."""
        parameters = self.arm(self.baseline)["parameters"]
        return f"{short(parameters / 1e6)} M" if parameters < 1e9 else f"{short(parameters / 1e9)} B"

    def tuning_rates(self, name: str) -> list[float]:
        """Return the rates that an arm is tuned at before its grid grows, around its own where that was carried."""
        own = self.arm(name).get("learning_rate")
        if own is None:
            return list(self.learning_rates)
        around = defaults.CHECKED_RATES if self.request.get("role") == "checked" else 0
        return learning_rate_grid(own, around, self.learning_rate_factor)

    def _tuning_text(self) -> str:
        role, length = self.request.get("role"), f"{self.training['tune_steps']:,} steps"
        own = ", ".join(f"{arm['name']} {arm['learning_rate']:g}" for arm in self.arms if arm.get("learning_rate"))
        if role == "carried":
            return f"Learning rates, carried from smaller models: {own}."
        if role == "checked":
            return (f"Learning rates, carried from smaller models: {own}. Checked at each of them and a neighbour on "
                    f"either side, {len(self.tune_seeds)} seeds, {length}.")
        rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
        return (f"Tune: {len(self.learning_rates)} learning rates ({rates}) each, {len(self.tune_seeds)} seeds, "
                f"{length}; more where the best lies on the edge.")

    def describe(self, whole: bool = False) -> str:
        """Return the plan in words, the rule in a sentence or, ``whole``, as plan.json has it."""
        tokens = self.training["batch"] * self.model["context"]
        lengths = [arm["judge_steps"] * tokens for arm in self.arms]
        length = f"{min(lengths):,}" + (f" to {max(lengths):,}" if max(lengths) > min(lengths) else "")
        widths = {"params": "as many parameters", "flops": "as many operations", "width": "the same hidden width",
                  "time": "as many parameters and the same training time"}[self.match]
        worst = max(abs(arm["parameters_relative_error"]) for arm in self.arms)
        return "\n".join([
            f"Compare {', '.join(arm['name'] for arm in self.arms)} with {self.baseline} as the baseline.",
            f"Data: {self.data.get('description', self.data['sha256'][:16])}.",
            f"Model: {self._model()}, context {self.model['context']}, "
            f"about {self.size} parameters; each activation gets {widths} "
            f"(they differ by at most {number(worst, '.1%')}).",
            *(own_lines(self.model["own"], self.arms) if "own" in self.model else ()),
            *self._first_weights(),
            recipe.describe(self.training, self.model, self.machine),
            *self._transfer_text(max(lengths)),
            *self.notes,
            self._tuning_text(),
            f"Judge: {len(self.judge_seeds)} fresh seeds each, {length} tokens per run{self._judged_by()}.",
            f"Rule: {self.rule['text'] if whole else rule_sentence(self.rule, self.baseline)}",
            *self._repeats(max(lengths)),
            f"Time: about {self._time()}, {counted(self.workers, 'run')} at a time."])


def learning_rate_grid(center: float, count: int, factor: float = defaults.LEARNING_RATE_FACTOR) -> list[float]:
    """Return ``count`` rates on a log grid through ``center``, one point fewer above it than below.

    >>> learning_rate_grid(0.01, 4, 2.0)
    [0.0025, 0.005, 0.01, 0.02]
    """
    return [next_rate(center, factor, i - count // 2) for i in range(count)]


def next_rate(rate: float, factor: float, places: float) -> float:
    """Return the rate that many places along the grid, as a short decimal: it is part of a trial's name."""
    return float(f"{rate * factor ** places:.6g}")


def make_plan(request: Request, speeds: Mapping[str, Mapping[str, float] | float], machine: Mapping[str, Any],
              workers: int = 1, name: str = "study") -> Plan:
    """Return the plan that fits the request's minutes at the measured speeds.

    ``speeds``: by arm {"tokens_per_second", "seconds_overhead"}, of one worker while all are busy. The judged
    runs are as long as the minutes allow. Raises UserError where that would be shorter than
    ``defaults.MINIMUM_STEPS``, with the minutes needed.
    """
    costs = {arm.name: cost(speeds[arm.name]) for arm in request.arms}
    for arm, (rate, overhead) in costs.items():
        if not (0 < rate < math.inf and 0 <= overhead < math.inf):
            raise UserError(rule("make_plan", f"speeds[{arm!r}]", "be positive and finite", (rate, overhead),
                                 "Measure again."))
    steps = request.steps or choose_steps(request, costs, workers)
    predicted = predict(request, costs, workers, steps)
    if request.minutes is not None and predicted.minutes > request.minutes:
        raise _too_small(request, predicted.minutes, steps)
    if predicted.minutes > _LONGEST:
        raise UserError(rule("compare", "runs", f"end within {_LONGEST:.0e} minutes", predicted.minutes,
                             "Take fewer --steps, or a smaller --batch or model."))
    for lengths in predicted.steps.values():
        recipe.check_length(request.training, min(lengths.values()))
    base = next(arm.parameters for arm in request.arms if arm.name == request.baseline)
    arms = [arm.as_dict() | {"parameters_relative_error": arm.parameters / base - 1} | predicted.steps[arm.name]
            for arm in request.arms]
    asked = request.as_dict()
    return Plan(
        name=name, request=asked, arms=arms, baseline=request.baseline,
        rule={"metric": "bits_per_byte", "margin": request.margin, "confidence": request.confidence,
              "correction": "holm", "method": "response", "seeds": request.seeds, "pairs": defaults.PAIRS_SHARE,
              "text": rule_text(request.margin, request.confidence, [request.seeds])},
        model=asked["model"],
        training={"tune_steps": predicted.steps[request.baseline]["tune_steps"],
                  "judge_steps": predicted.steps[request.baseline]["judge_steps"],
                  "batch": request.batch, **asked["training"]},
        learning_rates=learning_rate_grid(request.learning_rate, request.learning_rates),
        learning_rate_factor=defaults.LEARNING_RATE_FACTOR,
        learning_rate_extensions=defaults.LEARNING_RATE_EXTENSIONS,
        tune_seeds=request.tune_seeds, judge_seeds=request.judge_seeds,
        match=request.match, machine=dict(machine), workers=workers,
        notes=[f"Not used of the recipe's file, {line}." for line in request.left_out],
        budget={"minutes": request.minutes,
                "timing": {"predicted_minutes": predicted.minutes, "trials": predicted.seconds}} | memory_taken(speeds),
        data=asked["data"])


def cost(speed: Mapping[str, float] | float) -> tuple[float, float]:
    """Return (tokens per second, seconds beside the steps) of a measured speed."""
    if isinstance(speed, Mapping):
        return float(speed["tokens_per_second"]), float(speed.get("seconds_overhead", 0.0))
    return float(speed), 0.0


def memory_taken(speeds: Mapping[str, Mapping[str, float] | float], before: int = 0) -> dict[str, int]:
    """Return the most memory that a run took where speeds were measured: a study that goes on measures nothing."""
    measured = [int(one.get("peak_memory_bytes", 0)) for one in speeds.values() if isinstance(one, Mapping)]
    most = max([before, *measured])
    return {"memory_bytes": most} if most else {}


def _too_small(request: Request, minutes: float, steps: int) -> UserError:
    needed = math.ceil(1.15 * minutes)  # the next call measures the speed again
    return UserError(
        f"compare: minutes must be enough for {len(request.arms)} activations on {request.seeds} seeds; got "
        f"{request.minutes:g}, and {steps:,} steps per run need about {needed} minutes on this machine. "
        f"Use --minutes {needed}, or fewer activations, or a smaller model.")
