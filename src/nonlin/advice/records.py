"""The typed record of an advice."""

from typing import Literal

from nonlin.records import Record

Hardware = Literal["cpu", "gpu"]


class Question(Record, frozen=True, kw_only=True):
    """What was asked: the model's parameters, the tokens it trains on, and what trains and runs it."""

    params: int
    tokens: int
    hardware: Hardware
    inference: Hardware | None


class HuggingFace(Record, frozen=True, kw_only=True):
    """Whether transformers runs a model with an activation, and as which architecture."""

    exports: bool
    hidden_act: str | None
    architecture: str | None
    text: str


class LlamaCpp(Record, frozen=True, kw_only=True):
    """Whether llama.cpp runs the model that nonlin saves, and which other models with the activation it runs."""

    exports: bool
    architectures: str | None
    text: str


class Option(Record, frozen=True, kw_only=True):
    """One activation that was considered, at equal parameters; ``found`` says what each source found of it."""

    name: str
    gated: bool
    hidden: int
    parameters: int
    step_ms: float | None
    saved_bytes_per_token: int | None
    found: dict[str, str]
    huggingface: HuggingFace
    llama_cpp: LlamaCpp


class Source(Record, frozen=True, kw_only=True):
    """One source of evidence; ``distance`` is the factor in size and length between it and what was asked."""

    source: str
    what: str
    own: bool
    unit: str
    params: int | float
    tokens: int | float
    distance: float
    nearness: str
    favours: list[str]
    found: dict[str, str]


class Report(Record, frozen=True, kw_only=True):
    """A report that is shown and decides nothing: it has no seeds of its own, or is of whole recipes.

    None: the source, as far as it was read, does not say.
    """

    source: str
    compared: str
    found: str | None
    size: str | None
    tokens: str | None
    seeds: str | None


class ModelShape(Record, frozen=True, kw_only=True):
    """A shape with the parameters asked for."""

    layers: int
    dim: int
    heads: int
    hidden: int
    vocabulary: int
    tied: bool
    parameters: int
    multiple: int
    text: str
    why: str


class Cost(Record, frozen=True, kw_only=True):
    """What one block costs: the time of a training step, and the bytes saved for backward per token."""

    step_ms: float
    saved_bytes_per_token: int


class Costs(Record, frozen=True, kw_only=True):
    """Costs as measured on this machine, of a block of width ``dim``."""

    device: str
    threads: int
    dim: int
    tokens: int
    scaled: bool
    options: dict[str, Cost]


class Initialization(Record, frozen=True, kw_only=True):
    """Standard deviations to draw the weights with."""

    gate: float | None = None
    up: float
    down: float
    gain: float
    second_moment: float
    text: str


class Inference(Record, frozen=True, kw_only=True):
    """The inference runtimes of the trained model."""

    huggingface: HuggingFace
    llama_cpp: LlamaCpp
    text: list[str]


class Suggestion(Record, frozen=True, kw_only=True):
    """A study that would tell more."""

    command: str
    why: str


class Advice(Record, frozen=True, kw_only=True):
    """Which activation to use for a model of a size, with the reasons, and how sure that is.

    ``sureness`` is "likely", "plausible" or "guess"; ``missing`` says what is not known, ``commands`` which study
    would tell more. ``reports`` are shown and decide nothing. ``costs`` is None where they were not measured, and
    ``not_measured`` says why.
    """

    choice: str
    formula: str
    sureness: Literal["likely", "plausible", "guess"]
    reasons: list[str]
    asked: Question
    options: list[Option]
    evidence: list[Source]
    reports: list[Report] = []
    model: ModelShape
    costs: Costs | None
    not_measured: str | None
    initialization: Initialization
    inference: Inference
    missing: list[str]
    commands: list[Suggestion]

    def __repr__(self) -> str:
        from nonlin.advice.terminal import text

        return text(self)
