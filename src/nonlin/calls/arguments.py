"""The arguments of :func:`nonlin.compare`, checked and of the right types."""

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nonlin.calls import own_model
from nonlin.data import Sources
from nonlin.errors import UserError, not_empty, rule
from nonlin.functions import Definition
from nonlin.model import ModelConfig
from nonlin.study import defaults
from nonlin.study.recipe import WORDS, recipe_values

Data = str | Path | Sequence[str | Path] | None
Activations = str | Sequence[str | Definition]

_SIZES = ("layers", "dim", "heads", "context")


@dataclass(frozen=True)
class Asked:
    """What a person asks for, as :func:`compare` takes it; UserError for values of a wrong type."""

    data: Data
    activations: Activations
    model: Any
    from_checkpoint: bool
    baseline: str | None
    minutes: float | None
    match: str
    tokenizer: str | int | Path | None
    weights: Sequence[float] | None
    validation: Data
    layers: int | None
    dim: int | None
    heads: int | None
    kv_heads: int | None
    context: int | None
    batch: int | str | None
    steps: int | None
    seeds: int
    learning_rate: float | None
    learning_rates: int
    margin: float
    confidence: float
    optimizer: str | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    decay: float | None = None
    clip: float | None = None
    precision: str | None = None
    accumulation: int | None = None
    evaluation_tokens: int | None = None
    recipe: str | Path | None = None
    activation_checkpointing: bool = False
    packing: str | None = None
    compile: str | None = None
    transfer: str | None = None

    def __post_init__(self):
        not_empty("compare", **{one.name: getattr(self, one.name) for one in fields(self)})
        for one in fields(self):
            if one.type in _TYPES:
                object.__setattr__(self, one.name, _checked(one.name, one.type, getattr(self, one.name)))
        if not (isinstance(self.activations, str) or _all(self.activations, str | Definition)):
            raise _wrong("activations", "be a list of names, formulas and definitions", self.activations)
        for name, data in (("data", self.data), ("validation", self.validation)):
            if not (data is None or isinstance(data, str | Path) or _all(data, str | Path)):
                raise _wrong(name, "be a path, or a list of paths", data)
        recipe: Any = self.recipe
        if not (recipe is None or isinstance(recipe, str | Path)):
            raise _wrong("recipe", "be the path of a file", recipe)
        if not (self.weights is None or _all(self.weights, numbers.Real)):
            raise _wrong("weights", "be a list of numbers", self.weights)
        if self.from_checkpoint and self.model is None:
            raise _wrong("from_checkpoint", "come with the folder of a trained model as model", True)
        if self.model is None and (self.activation_checkpointing or self.packing or self.compile not in (None, "auto")):
            raise _wrong("activation_checkpointing, packing and compile", "come with a model of your own", True)
        unsaid = _UNSAID if self.model is None else own_model.defaults_of(self)
        for name, value in unsaid.items():
            if name != "learning_rate" and getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def sources(self) -> Sources:
        """The sources of the text."""
        weights = None if self.weights is None else [float(weight) for weight in self.weights]
        return Sources(_paths(self.data), weights, _paths(self.validation), tokenizer_of(self.tokenizer or "bytes"))

    def recipe_values(self, context: int | None) -> dict[str, Any]:
        """Return the request's fields that the recipe decides; UserError where it is none."""
        unsaid = _UNSAID if self.model is None else own_model.defaults_of(self)
        return recipe_values({word: getattr(self, word) for word in WORDS}, self.recipe, context,
                             unsaid["learning_rate"])

    def sizes(self) -> dict[str, Any]:
        """Return the model's sizes, but for its vocabulary; UserError where they make no model."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _SIZES}
        found["kv_heads"] = self.heads if self.kv_heads is None else self.kv_heads
        ModelConfig(**found)
        return found


#: Values of arguments that are left out, for our own small model.
_UNSAID: dict[str, Any] = {
    "layers": defaults.LAYERS, "dim": defaults.DIM, "heads": defaults.HEADS, "context": defaults.CONTEXT,
    "tokenizer": "bytes", "learning_rate": defaults.LEARNING_RATE}

#: By the type of a field: the numbers it takes, what it must be, and None where that is a value.
_TYPES: dict[Any, tuple[Any, Callable[[Any], Any], str]] = {
    int: (numbers.Integral, int, "be a whole number"), float: (numbers.Real, float, "be a number"),
    str: (str, str, "be a text"), int | None: (numbers.Integral, int, "be a whole number"),
    float | None: (numbers.Real, float, "be a number"), str | None: (str, str, "be a text"),
    int | str | None: (numbers.Integral | str, lambda value: value if isinstance(value, str) else int(value),
                       "be a whole number, or a text")}


def _checked(name: str, wanted: Any, value: Any) -> Any:
    """Return a value of the wanted type; numbers of numpy become Python's."""
    taken, convert, must = _TYPES[wanted]
    if value is None and wanted not in (int, float, str):
        return None
    if not isinstance(value, taken) or isinstance(value, bool):
        raise _wrong(name, must, value)
    return convert(value)


def _paths(data: Data) -> list[str]:
    """Return files, folders and names; none for the text of the standard library."""
    given = [data] if isinstance(data, str | Path) else data or ()
    return [str(path) for path in given]


def _all(values: Any, kind: Any) -> bool:
    given: list[Any] | None = list(values) if isinstance(values, Sequence) else None  # pyright: ignore[reportUnknownArgumentType]
    return given is not None and all(isinstance(one, kind) for one in given)


def _wrong(name: str, must: str, value: Any) -> UserError:
    return UserError(rule("compare", name, must, value, "Choose another value."))


def tokenizer_of(given: str | int | Path) -> str | int:
    """Return a tokenizer as sources take it: "bytes", a size, or a file; UserError for what is none."""
    if isinstance(given, int):
        return given
    if given == "bytes" or Path(given).is_file():
        return str(given)
    if str(given).isdecimal():
        return int(str(given))
    raise UserError("compare: tokenizer must be bytes, a vocabulary's size or the path of a tokenizer.json; got "
                    f"{str(given)!r}. Try --tokenizer 4096.")
