"""The question that a study answers."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nonlin.errors import UserError, rule, unknown_name
from nonlin.study import defaults
from nonlin.study.wellformed import BadForm, RequestForm, must_be
from nonlin.training import recipe, transfer

MATCHES = ("params", "flops", "time", "width")
ROLES = ("tuned", "checked", "carried")


@dataclass(frozen=True)
class Arm:
    """One activation with the width its blocks get; ``formula`` only for one that the user defined.

    ``stream`` names the random stream of its feed-forward weights: arms of one stream and shape begin with the same
    weights. By default it is the kind. ``activation`` is the activation's name where the arm is called otherwise.
    ``own``, in a study of a user's own model, has the "widths" of each group of its blocks and "flops_per_token".
    ``learning_rate`` is the rate of its judged runs where it was carried here from a smaller model.
    """

    name: str
    kind: str
    hidden: int
    parameters: int
    formula: str | None = None
    stream: str | None = None
    activation: str | None = None
    own: Mapping[str, Any] | None = None
    learning_rate: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the arm as JSON values; without ``own`` in a study of our model, and a rate that was not carried."""
        return {key: value for key, value in asdict(self).items()
                if key not in ("own", "learning_rate") or value is not None}


@dataclass(frozen=True)
class Request:
    """The question of a study. Two calls with the same request continue the same study.

    ``model``: layers, dim, heads, kv_heads, context, vocabulary. Or it is context, vocabulary, and as "own" the
    description of a user's own model (see :mod:`nonlin.subject`). ``data``: sha256, tokenizer, description, and what
    else is known of it (``train_tokens`` limits the length of runs). ``steps`` is the length of judged runs; without it
    they are as long as ``minutes`` allow. ``replicate`` numbers studies that differ in their seeds alone. ``training``
    is the recipe, in the words of :mod:`nonlin.training.recipe`, and ``precision`` that of its matrix products;
    ``left_out`` names what a recipe's file says that is not used. ``role`` is that of a ladder's rung: "tuned" as any
    study, "carried" at each arm's own ``learning_rate`` without tuning, or "checked". A checked one is carried, and
    tuned at that rate and a neighbour on either side to see where the best one lies. Raises UserError for values that
    make no study.
    """

    arms: Sequence[Arm]
    baseline: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    minutes: float | None = None
    match: str = "params"
    seeds: int = defaults.JUDGE_SEEDS
    learning_rate: float = defaults.LEARNING_RATE
    learning_rates: int = defaults.LEARNING_RATES
    steps: int | None = None
    margin: float = defaults.MARGIN_BITS_PER_BYTE
    confidence: float = defaults.CONFIDENCE
    batch: int = defaults.BATCH
    precision: str = defaults.PRECISION
    replicate: int = 0
    role: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    def __post_init__(self):
        object.__setattr__(self, "training", _training(self.training or {}))
        names = [arm.name for arm in self.arms]
        if len(set(names)) < max(2, len(names)):
            raise UserError(rule("compare", "activations", "be two or more, each named once", names,
                                 "Name the activations to compare."))
        runs = [trial_config(arm, self.model, {"sha256": "", "tokenizer": ""}, {}, {}, "judge", 0) for arm in self.arms]
        if twins := [name for i, name in enumerate(names) if runs[i] in runs[:i]]:
            raise UserError(rule("compare", "activations", "differ in more than their names", twins,
                                 "Give each a stream of its own."))
        if self.baseline not in names:
            raise unknown_name("baseline among the study's activations", self.baseline, names)
        if self.match not in MATCHES:
            raise unknown_name("match", self.match, MATCHES)
        least = defaults.MINIMUM_SEEDS if self.role is None else defaults.MINIMUM_RUNG_SEEDS
        self._check("seeds", self.seeds >= least, f"be {least} or more")
        if self.role not in (None, *ROLES):
            raise unknown_name("role of a rung", self.role, ROLES)
        carried = self.role in ("checked", "carried")
        self._check("arms", all((arm.learning_rate is not None) == carried for arm in self.arms),
                    "have a learning rate of their own where the rung's rates are carried, and only there")
        self._check("seeds", self.seeds < defaults.FIRST_TUNE_SEED, f"be fewer than {defaults.FIRST_TUNE_SEED}")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "be positive and finite")
        self._check("learning_rates", 2 <= self.learning_rates <= defaults.MOST_LEARNING_RATES,
                    f"be from 2 to {defaults.MOST_LEARNING_RATES}")
        reach = defaults.LEARNING_RATE_FACTOR ** (self.learning_rates // 2 + defaults.LEARNING_RATE_EXTENSIONS)
        low, high = defaults.RATES_BETWEEN
        self._check("learning_rate", low < self.learning_rate / reach and self.learning_rate * reach < high,
                    f"leave all rates that may be tried between {low:g} and {high:g}")
        self._check("minutes", self.minutes is None or defaults.MINIMUM_MINUTES <= self.minutes < math.inf,
                    f"be {defaults.MINIMUM_MINUTES:g} or more, and finite")
        self._check("minutes", self.minutes is not None or self.steps is not None, "be given unless steps is")
        self._check("steps", self.steps is None or self.steps >= 1, "be positive")
        self._check("margin", 0 <= self.margin < math.inf, "be zero or more")
        self._check("confidence", 0 < self.confidence < 1, "lie between 0 and 1")
        self._check("batch", self.batch >= 1, "be positive")
        self._check("replicate", self.replicate >= 0, "be zero or more")
        if self.precision not in recipe.PRECISIONS:
            raise unknown_name("precision", self.precision, recipe.PRECISIONS)
        recipe.check(self.training)
        if "transfer" in self.training:
            transfer.check_model(self.training["transfer"], self.training, self.model)
        parts = recipe.choice(self.training, "accumulation")
        if self.batch % parts:
            raise UserError(rule("compare", "accumulation", f"divide the batch of {self.batch} sequences", parts,
                                 f"Try --batch {parts * -(-self.batch // parts)}."))
        self._must_fit_a_plan()

    def _check(self, name: str, good: bool, must: str) -> None:
        if not good:
            raise UserError(rule("compare", name, must, getattr(self, name), "Choose another value."))

    def _must_fit_a_plan(self) -> None:
        """Raise UserError for values that a plan's reader refuses: the plan would be written, and never read."""
        unsaid = dict.fromkeys(("layers", "dim", "heads", "kv_heads"), 1)  # by what the rungs of a ladder share
        try:
            must_be(RequestForm, self.as_dict() | {"model": unsaid | dict(self.model)})
        except BadForm as error:
            why, _, place = re.sub(r"`\$\.?|`", "", str(error)).partition(" - at ")
            raise UserError(f"compare: {place or 'the request'} must fit a plan ({why}). Choose another value."
                            ) from error

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        values = asdict(self) | {"arms": [arm.as_dict() for arm in self.arms]}
        del values["left_out"]  # it decides nothing
        if self.role is None:  # as studies of their own have always been written
            del values["role"]
        return json.loads(json.dumps(values))

    @property
    def tuning_rates(self) -> int:
        """The learning rates that each arm is tuned at, before its grid grows."""
        return {"carried": 0, "checked": defaults.CHECKED_RATES}.get(self.role or "", self.learning_rates)

    def measure_configs(self, machine: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return one configuration an arm, to measure its speed with."""
        training = {"steps": 100, "batch": self.batch, "learning_rate": self.learning_rate} | dict(self.training)
        return {arm.name: trial_config(arm, self.model, self.data, training, machine, "judge",
                                       self.judge_seeds[0]) for arm in self.arms}

    @property
    def judge_seeds(self) -> list[int]:
        """The seeds of judged runs; no other replicate has any of them."""
        return [defaults.SEEDS_APART * self.replicate + defaults.FIRST_JUDGE_SEED + i for i in range(self.seeds)]

    @property
    def tune_seeds(self) -> list[int]:
        """The seeds of tuning runs; no judged run has any of them."""
        first = defaults.SEEDS_APART * self.replicate + defaults.FIRST_TUNE_SEED
        return [first + i for i in range(defaults.TUNE_SEEDS)]

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step trains on."""
        return self.batch * self.model["context"]


def _training(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whole; a length in steps takes the place of the one as a share."""
    made = recipe.without_defaults(defaults.TRAINING | dict(asked))
    return {name: value for name, value in made.items()
            if not name.endswith("_fraction") or name.replace("_fraction", "_steps") not in made}


def trial_config(arm: Arm, model: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any],
                 machine: Mapping[str, Any], purpose: str, seed: int, version: int = 2) -> dict[str, Any]:
    """Return a trial's configuration; ``purpose`` is "tune" or "judge".

    ``version`` 1 is that of studies from before random streams had names; it serves to find their records.
    """
    config = {
        "format": version, "purpose": purpose,
        "activation": {"name": arm.activation or arm.name, "formula": arm.formula},
        "model": {**model, "hidden": arm.hidden, **({"widths": list(arm.own["widths"])} if arm.own else {})},
        "data": {"sha256": data["sha256"], "tokenizer": data["tokenizer"]},
        "training": dict(training), "seed": seed, "machine": dict(machine)}
    return config if version == 1 else config | {"streams": {"feed_forward": arm.stream or arm.kind}}
