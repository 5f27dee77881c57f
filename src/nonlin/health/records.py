"""The typed record of a check: what is in a model, block by block, and what is found wrong."""

from typing import Any, Literal

from nonlin.records import Record


class Finding(Record, frozen=True, kw_only=True):
    """One thing that is wrong or worth knowing, with what to do about it; ``evidence`` holds its numbers."""

    grade: Literal["serious", "warning", "info"]
    measure: str
    layer: str
    index: int | None
    units: list[int]
    text: str
    action: str
    evidence: dict[str, Any] = {}


class Units(Record, frozen=True, kw_only=True):
    """Units of a block that share a property: how many, their share of all that were seen, and the first of them."""

    count: int
    share: float
    units: list[int]


class BlockActivation(Record, frozen=True, kw_only=True):
    """The activation that a block computes, found by computing, and the one that its configuration claims."""

    computed: str
    status: str
    reason: str | None = None
    claimed: str | None = None
    agrees: bool | None = None
    flat: bool = False


class StreamMeasures(Record, frozen=True, kw_only=True):
    """The values of one stream over all tokens; None where a number is infinite or none."""

    rms: float | None = None
    mean: float | None = None
    largest: float | None = None
    kurtosis: float | None = None
    outlier_kurtosis: float | None = None
    nonfinite: int = 0
    zero_share: float | None = None
    positive_share: float | None = None
    over_float16: int = 0
    flushed_float8: float | None = None
    powers: list[int] = []


class Massive(Record, frozen=True, kw_only=True):
    """One value far beyond its stream's median: its unit, and the token that it was seen at."""

    stream: str
    unit: int
    token: int
    value: float | None
    median: float | None
    place: int | None = None
    id: int | None = None
    text: str | None = None


class Channel(Record, frozen=True, kw_only=True):
    """One channel of a layer's output, and how far it stands out of the median."""

    unit: int
    rms: float | None
    ratio: float | None


class Outliers(Record, frozen=True, kw_only=True):
    """The channels of a layer's output that stand out, by root mean square over tokens."""

    kurtosis: float | None
    median_rms: float | None
    channels: list[Channel]


class BlockGradients(Record, frozen=True, kw_only=True):
    """The gradient at a block's hidden values."""

    rms: float | None
    zero_share: float | None


class BlockRecord(Record, frozen=True, kw_only=True):
    """One feed-forward block. ``streams`` has gate, up, hidden and the residual, as far as the block has them."""

    index: int
    name: str
    kind: str
    layout: str
    dim: int
    hidden: int
    experts: int
    tokens: int
    activation: BlockActivation
    dead: Units
    saturated: Units
    always_on: Units
    streams: dict[str, StreamMeasures]
    unseen: int = 0
    positive: list[int] = []
    sparsity: float | None = None
    massive: list[Massive] = []
    outliers: Outliers | None = None
    gradients: BlockGradients | None = None


class AttentionRecord(Record, frozen=True, kw_only=True):
    """The largest attention logit of each layer."""

    largest_logits: list[float | None]


class OtherActivation(Record, frozen=True, kw_only=True):
    """The loss that the model has with another activation in all its blocks, paired token by token."""

    activation: str
    loss_nats: float
    difference_nats: float
    standard_error: float | None


class Alternatives(Record, frozen=True, kw_only=True):
    """The loss per token with the model's activation and with others, the best first.

    ``frequencies_nats`` is the loss of guessing by token frequency: a model near it does not know the text.
    """

    activation: str
    loss_nats: float
    tokens: int
    others: list[OtherActivation]
    frequencies_nats: float | None = None


class HealthRecord(Record, frozen=True, kw_only=True):
    """The record of ``nonlin check``; ``loss_nats`` is per token, None if there is no loss to measure.

    ``nonfinite_outputs`` counts values of the model's output that are +inf or not numbers.
    """

    format: int
    source: str
    dtype: str
    parameters: int
    tokens: int
    blocks: list[BlockRecord]
    findings: list[Finding] = []
    text: str | None = None
    notes: list[str] = []
    ranks: int = 1
    attention: AttentionRecord | None = None
    alternatives: Alternatives | None = None
    loss_nats: float | None = None
    nonfinite_outputs: int = 0
