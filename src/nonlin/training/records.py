"""The typed record of one run."""

from typing import Literal

from nonlin.records import Record


class RunTiming(Record, frozen=True, kw_only=True):
    """The run's time and memory, on the machine that ran it; all other values are the same on any machine."""

    seconds: float | None = None
    tokens_per_second: float | None = None
    tokens_per_processor_second: float | None = None
    peak_memory_bytes: float | None = None


class LayerMeasures(Record, frozen=True, kw_only=True):
    """One layer at the end of training: root mean squares of its gradient and output, and shares of its units."""

    gradient_rms: float | None = None
    output_rms: float | None = None
    dead_share: float | None = None
    zero_output_share: float | None = None


class TrialRecord(Record, frozen=True, kw_only=True):
    """result.json of a run: its losses in bits per byte on held-out text, and its measures.

    ``bits_per_byte`` is None where the run diverged. ``config_hash`` is the hash of config.json beside it. ``files``
    has the SHA-256 of every file that the run wrote, ``checksum`` that of this record. ``attempt`` says which try made
    it, ``processor`` on which machine. ``outside_sha256``, in a study of a user's own model, is the hash of all tensors
    outside the feed-forward blocks at the start. Arms of one seed have the same. From trained weights,
    ``before_bits_per_byte`` is the loss before the swap, ``evaluations`` the [tokens, bits per byte] after it.
    """

    format: int
    config_hash: str
    status: Literal["finished", "diverged"]
    bits_per_byte: float | None
    initial_bits_per_byte: float | None
    best_bits_per_byte: float | None
    parameters: int
    hidden: int
    timing: RunTiming
    flops_per_token: float | None = None
    spike_score: float | None = None
    dead_share: float | None = None
    sparsity: float | None = None
    layers: list[LayerMeasures] | None = None
    weights_sha256: str | None = None
    outside_sha256: str | None = None
    before_bits_per_byte: float | None = None
    evaluations: list[list[float | None]] | None = None
    attempt: int | None = None
    processor: str | None = None
    files: dict[str, str] = {}
    checksum: str | None = None
