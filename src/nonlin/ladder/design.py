"""The rungs of a ladder: their sizes, shapes, tokens, runs and costs. A ladder that cannot say anything is refused.

Sizes are parameters without embeddings: in small models embeddings are a large part of all parameters, and one that
large models do not have.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from nonlin.errors import UserError, rule
from nonlin.model.config import ModelConfig, flops_per_token, parameter_count
from nonlin.nn.widths import matched_hidden
from nonlin.numbers import number
from nonlin.study import defaults
from nonlin.study.budget import makespan
from nonlin.training.recipe import DEFAULTS

FEWEST_SIZES, LEAST_SPAN = 4, 30.0  # of the compute, from the smallest rung to the largest
TOKENS_PER_PARAMETER, SEEDS, LONGER = 20.0, 3, 4.0  # LONGER: the horizon of two rungs, as a multiple of the others'
#: Where nobody says which: the usual ones, and the bounded gates of current models.
ACTIVATIONS = ("gelu", "swiglu", "geglu", "relu", "relu_squared", "swiglu_clamped", "situ_glu")
SIZES, SPAN, SMALLEST, LARGEST = 5, 100.0, 12_000, 2_000_000_000
_MOST = 1_000_000  # tokens per parameter, and times that a rung is longer
_STEP = 1.1  # between two largest sizes that are tried
_ASPECT = (24.0, 64.0, 50e3, 125e6)  # width over depth: from 24 at 50 thousand parameters to 64 at 125 million
_STARTING_SECONDS, _RESERVE_MINUTES = 5.0, 1.0  # of a rung's workers and its page; of measuring and the ladder's page
_HEADS = ((300_000, 16), (5_000_000, 32), (math.inf, 64))  # head widths, by the smallest rung's size


@dataclass(frozen=True)
class Rung:
    """One size with its runs. ``parameters`` are without embeddings; tokens, steps and FLOPs are those of one run.

    ``role``: "tuned", "checked" or "carried" (see :class:`nonlin.study.Request`). ``longer`` is the horizon, as a
    multiple of the ladder's tokens per parameter: above 1 the rung is not part of the fit. With ``branches`` its runs
    go on from those of the shorter rung, from where their decay began.
    """

    name: str
    role: str
    layers: int
    dim: int
    heads: int
    parameters: int
    parameters_with_embeddings: int
    tokens: int
    steps: int
    flops: float
    longer: float = 1.0
    branches: bool = False

    @property
    def trained(self) -> float:
        """The share of a run that is trained anew: a branch has its beginning already."""
        return 1 - (1 - DEFAULTS["decay_fraction"]) / self.longer if self.branches else 1.0

    def runs(self, seeds: int) -> int:
        """Return the runs of each arm, those of grids that grow not counted."""
        rates = {"tuned": defaults.LEARNING_RATES, "checked": defaults.CHECKED_RATES}.get(self.role, 0)
        return seeds + rates * defaults.TUNE_SEEDS

    def as_dict(self) -> dict[str, Any]:
        """Return the rung as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Settings:
    """The quantities that all rungs share."""

    tokens_per_parameter: float = TOKENS_PER_PARAMETER
    seeds: int = SEEDS
    batch: int = defaults.BATCH
    context: int = defaults.CONTEXT
    vocabulary: int = 256
    longer: float = LONGER

    def __post_init__(self):
        for name, good, must in (
                ("tokens_per_parameter", 0 < self.tokens_per_parameter <= _MOST, f"be above 0 and at most {_MOST:,}"),
                ("seeds", self.seeds >= defaults.MINIMUM_RUNG_SEEDS, f"be {defaults.MINIMUM_RUNG_SEEDS} or more"),
                ("batch", self.batch >= 1, "be positive"), ("context", self.context >= 1, "be positive"),
                ("longer", self.longer == 0 or 1 < self.longer <= _MOST,
                 f"be above 1 and at most {_MOST:,}, or 0 for none")):
            if not good:
                raise UserError(rule("ladder", name, must, getattr(self, name), "Choose another value."))


class Shapes(Protocol):
    """What gives the rungs of a ladder their shapes: nonlin's small model, or an architecture of the user's own."""

    @property
    def smallest(self) -> float:
        """The parameters that the smallest rung must have."""
        ...

    def head_width(self, smallest: float) -> int:
        """Return the width of a head in all rungs of a ladder that begins at this size."""
        ...

    def rung(self, size: float, role: str, head_width: int, settings: Settings, longer: float = 1.0) -> Rung:
        """Return the rung of about so many parameters."""
        ...


class SmallModel:
    """The shapes of nonlin's small model."""

    smallest: float = SMALLEST

    def head_width(self, smallest: float) -> int:
        """Return the width of a head in all rungs of a ladder that begins at this size."""
        return next(width for most, width in _HEADS if smallest < most)

    def rung(self, size: float, role: str, head_width: int, settings: Settings, longer: float = 1.0) -> Rung:
        """Return the rung of about so many parameters."""
        return rung(size, role, head_width, settings, longer)


#: The shapes of a ladder without a model of the user's own.
SMALL = SmallModel()


def aspect(size: float) -> float:
    """Return the customary width over depth of a model of so many parameters without embeddings."""
    low, high, small, large = _ASPECT
    share = min(1.0, max(0.0, math.log(size / small) / math.log(large / small)))
    return low * (high / low) ** share


def unlike(layers: int, dim: int, parameters: float, size: float) -> float:
    """Return how far a shape is from the customary one of a size: its parameters count most."""
    return abs(math.log(dim / layers / aspect(size))) + 8 * abs(math.log(parameters / size))


def shape(size: float, head_width: int) -> tuple[int, int]:
    """Return (layers, dim) of about so many parameters without embeddings, at a customary width over depth.

    >>> shape(50_000, 16), shape(1_000_000, 16)
    ((2, 48), (4, 144))
    """
    found = []
    for layers in range(1, 81):
        dim = max(head_width, round(math.sqrt(size / (12 * layers)) / head_width) * head_width)
        found.append((unlike(layers, dim, 12 * layers * dim**2, size), layers, dim))
    return min(found)[1:]


def rung(size: float, role: str, head_width: int, settings: Settings, longer: float = 1.0) -> Rung:
    """Return the rung of about so many parameters."""
    layers, dim = shape(size, head_width)
    config = ModelConfig(layers=layers, dim=dim, heads=dim // head_width, kv_heads=dim // head_width,
                         context=settings.context, vocabulary=settings.vocabulary,
                         hidden=matched_hidden(dim, "pointwise"))
    whole = parameter_count(config, gated=False)
    inside = whole - 2 * settings.vocabulary * dim
    return rung_of(role, (layers, dim, dim // head_width), (inside, whole), flops_per_token(config, gated=False),
                   settings, longer)


def rung_of(role: str, shaped: tuple[int, int, int], parameters: tuple[int, int], flops_a_token: float,
            settings: Settings, longer: float) -> Rung:
    """Return the rung of a shape (layers, dim, heads), with its parameters (without embeddings, with them)."""
    inside, whole = parameters
    steps = max(1, round(longer * settings.tokens_per_parameter * inside / (settings.batch * settings.context)))
    tokens = steps * settings.batch * settings.context
    name = size_name(inside) + (f"-x{longer:g}" if longer != 1 else "")
    return Rung(name, role, *shaped, inside, whole, tokens, steps, float(flops_a_token) * tokens, longer)


def size_name(parameters: float) -> str:
    """Return a size as a name of a folder.

    >>> size_name(55_000), size_name(1_204_000)
    ('55k', '1204k')
    """
    return f"{parameters / 1e3:.0f}k"


def design(sizes: Sequence[float], settings: Settings, shapes: Shapes = SMALL) -> list[Rung]:
    """Return the rungs of these sizes in their order, two of longer horizon after those that they are a longer run of.

    The two smallest are tuned, a middle one is checked, the largest is held out. Raises UserError for fewer than four
    sizes, or less than 30 times the compute between the first and the last. Those cannot tell a forecast from luck.
    """
    wanted = sorted(sizes)
    if len(wanted) < FEWEST_SIZES:
        raise UserError(rule("ladder", "sizes", f"be {FEWEST_SIZES} or more, the largest of them held out",
                             [size_name(s) for s in wanted], "Add sizes between them, or leave --sizes out."))
    for size in (wanted[0], wanted[-1]):
        if not shapes.smallest <= size <= LARGEST:
            raise UserError(rule("ladder", "sizes", f"lie between {math.ceil(shapes.smallest):,} and {LARGEST:,} "
                                 "parameters", size, "Choose others."))
    head = shapes.head_width(wanted[0])
    middle = max(2, len(wanted) // 2)
    roles = ["tuned" if i < 2 else "checked" if i == middle else "carried" for i in range(len(wanted))]
    rungs = [shapes.rung(size, role, head, settings) for size, role in zip(wanted, roles, strict=True)]
    if len({r.parameters for r in rungs}) < len(rungs):
        raise UserError(rule("ladder", "sizes", "differ, as models of whole layers and heads do",
                             [size_name(s) for s in wanted], "Choose sizes further apart."))
    check_span(rungs)
    if settings.longer:
        rungs[2:2] = [shapes.rung(size, "carried", head, settings, settings.longer) for size in wanted[:2]]
    return rungs


def check_span(rungs: Sequence[Rung]) -> None:
    """Raise UserError for rungs too near to each other, or of runs too short."""
    plain = [r for r in rungs if r.longer == 1]
    span = plain[-1].flops / plain[0].flops
    if span < LEAST_SPAN:
        raise UserError(f"ladder: sizes must span at least {LEAST_SPAN:g} times the compute of the smallest; got "
                        f"{plain[0].name} to {plain[-1].name}, {span:.0f} times. "
                        f"Take {size_name(plain[0].parameters * math.sqrt(1.1 * LEAST_SPAN))} as the largest.")
    short = min(plain, key=lambda r: r.steps)
    if short.steps < defaults.MINIMUM_STEPS:
        raise UserError(f"ladder: tokens must make at least {defaults.MINIMUM_STEPS} steps in the smallest model; "
                        f"{short.name} has {short.steps}. Take more --tokens-per-parameter, a smaller --batch, or "
                        "larger sizes.")


def series(largest: float, least: float = SMALLEST) -> list[float]:
    """Return the sizes of a ladder that ends at ``largest``: evenly spaced, over 100 times the compute.

    The smallest models are cheap; where they would be below ``least`` parameters the ladder is shorter.

    >>> [round(size / 1000) for size in series(1_000_000)]
    [100, 178, 316, 562, 1000]
    """
    smallest = max(largest / math.sqrt(SPAN), least)
    count = SIZES if largest / smallest > math.sqrt(SPAN) * 0.9 else FEWEST_SIZES
    return [smallest * (largest / smallest) ** (i / (count - 1)) for i in range(count)]


#: Seconds that one run of a rung takes.
Seconds = Callable[[Rung], float]


def minutes(rungs: Sequence[Rung], seconds: Seconds, settings: Settings, arms: int, workers: int) -> float:
    """Return how long the rungs take one after another, the runs of each sharing the workers."""
    return math.fsum(rung_minutes(one, seconds, settings, arms, workers) for one in rungs) + _RESERVE_MINUTES


def rung_minutes(one: Rung, seconds: Seconds, settings: Settings, arms: int, workers: int) -> float:
    """Return how long a rung takes, its runs sharing the workers."""
    runs = one.runs(settings.seeds)
    whole = seconds(one) * one.trained
    if one.role == "tuned":  # grids grow
        runs += math.ceil(defaults.EXTENSION_ALLOWANCE * defaults.LEARNING_RATES * defaults.TUNE_SEEDS)
    return (makespan([whole] * (runs * arms), workers) + _STARTING_SECONDS) / 60


def flops(rungs: Sequence[Rung], settings: Settings, arms: int) -> float:
    """Return the floating-point operations of all runs together."""
    return math.fsum(one.flops * one.trained * one.runs(settings.seeds) * arms for one in rungs)


def largest_that_fits(target: float, settings: Settings, fits: Callable[[list[Rung]], bool],
                      shapes: Shapes = SMALL) -> list[Rung] | None:
    """Return the longest ladder up to the target that fits; None where not even the smallest does."""
    size = min(float(target), LARGEST)
    while size >= _smallest_top(shapes):
        try:
            rungs = design(series(size, shapes.smallest), settings, shapes)
        except UserError:
            rungs = None
        if rungs is not None and fits(rungs):
            return rungs
        size /= _STEP
    return None


def smallest(settings: Settings, shapes: Shapes = SMALL) -> list[Rung]:
    """Return the smallest ladder that says something; UserError where there is none of these settings."""
    size, problem = _smallest_top(shapes), None
    while size < LARGEST:
        try:
            return design(series(size, shapes.smallest), settings, shapes)
        except UserError as error:
            problem, size = error, size * _STEP
    assert problem is not None
    raise problem


def _smallest_top(shapes: Shapes) -> float:
    return shapes.smallest * math.sqrt(LEAST_SPAN)


def too_little(rungs: Sequence[Rung], needed: float, given: float, unit: str) -> UserError:
    """Return the error that says what a ladder needs; ``unit`` is "minutes" or "FLOPs"."""
    plain = [r for r in rungs if r.longer == 1]
    option, told = (("--minutes", f"{math.ceil(needed)} minutes") if unit == "minutes" else
                    ("--budget", f"{needed:.1e} FLOPs"))
    value = f"{math.ceil(1.1 * needed)}" if unit == "minutes" else f"{1.1 * needed:.1e}"
    return UserError(f"ladder: {unit} must be enough for {len(plain)} sizes from {plain[0].name} to {plain[-1].name}; "
                     f"got {given:g}, and they need about {told}. Use {option} {value}, fewer "
                     "--activations, or fewer --tokens-per-parameter.")


def describe(rungs: Sequence[Rung], settings: Settings, seconds: Seconds | None, arms: int, workers: int,
             data: Mapping[str, Any]) -> list[str]:
    """Return the rungs in words, a line each, and how often the text is read where that is more often than is usual."""
    rows = [("rung", "parameters", "embeddings", "tokens", "FLOPs", "runs", "minutes", "rates")]
    rows += [(one.name, f"{one.parameters:,}", f"{one.parameters_with_embeddings - one.parameters:,}",
              f"{one.tokens:,}", number(one.flops, ".1e"), f"{one.runs(settings.seeds) * arms}",
              "–" if seconds is None else f"{rung_minutes(one, seconds, settings, arms, workers):.1f}",
              "branched" if one.branches else one.role) for one in rungs]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:-1]), "{}"])
    lines = [form.format(*row) for row in rows]
    return [*lines, *_legend(rungs), *repeats(rungs, data)]


def _legend(rungs: Sequence[Rung]) -> list[str]:
    """Return what the words of the last column mean, and which rung is held out."""
    told = {"tuned": "tuned: by a grid at the rung itself", "carried": "carried: from the tuned rungs",
            "checked": "checked: carried, and tried beside two others"}
    roles = {one.role for one in rungs if not one.branches}
    there = [words for role, words in told.items() if role in roles]
    if any(one.branches for one in rungs):
        there.append("branched: those of the shorter runs, from which the longer ones go on")
    top = [one for one in rungs if one.longer == 1][-1]
    return [f"Rates: {'; '.join(there)}.", f"{top.name} is held out: its forecast is written down before it runs."]


def repeats(rungs: Sequence[Rung], data: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each rung whose runs read the text more often than new text is worth."""
    found = []
    for one in rungs:
        times = one.tokens / data.get("train_tokens", math.inf)
        if times > defaults.MAXIMUM_EPOCHS:
            found.append(f"The text is short for {one.name}: a run reads it {times:.1f} times, and more than "
                         f"{defaults.MAXIMUM_EPOCHS} says little about new text. Add --data, or take fewer "
                         "--tokens-per-parameter.")
    return found
