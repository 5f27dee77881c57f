"""What papers measured: held-out losses of feed-forward activations, with what they can be held against.

Both trained T5-base (an encoder and a decoder, spans filled in) on C4, gated widths cut to two thirds, and report
log-perplexity in nats per token. Their parameters and tokens are here so that the distance to a question can be said.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# T5's batches: 128 texts, each 512 tokens in and 114 out.
_TOKENS_A_STEP = 128 * (512 + 114)
_SHORT, _LONG = 65_536 * _TOKENS_A_STEP, 524_288 * _TOKENS_A_STEP
_T5_BASE = 223_000_000
_WHAT = "T5-base on C4: encoder and decoder, spans filled in"


@dataclass(frozen=True)
class Loss:
    """A loss in nats per token; its standard deviation over ``runs`` of the shorter training."""

    nats: float
    std: float
    runs: int

    @property
    def standard_error(self) -> float:
        """Of the mean of the runs."""
        return self.std / math.sqrt(self.runs)


@dataclass(frozen=True)
class Table:
    """One paper's losses at one length of training."""

    paper: str
    source: str
    params: int
    tokens: int
    losses: Mapping[str, Loss]
    what: str = _WHAT
    note: str = ""

    def difference(self, name: str, to: str) -> tuple[float, float]:
        """Return (difference of losses, its standard error) in nats per token; below zero is better.

        >>> difference, error = TABLES[0].difference("swiglu", to="gelu")
        >>> round(difference, 3), round(error, 4)
        (-0.039, 0.0056)
        """
        a, b = self.losses[name], self.losses[to]
        return a.nats - b.nats, math.hypot(a.standard_error, b.standard_error)


_NAMES = ("relu", "gelu", "silu", "glu", "bilinear", "geglu", "swiglu", "reglu")
_ONE_RUN = "one run each: judged by the standard deviation of the shorter runs"


def _table(paper: str, source: str, runs: int, tokens: int, nats: tuple[float, ...], stds: tuple[float, ...]
           ) -> Table:
    counted = runs if tokens == _SHORT else 1
    losses = {name: Loss(loss, sd, counted) for name, loss, sd in zip(_NAMES, nats, stds, strict=True)}
    return Table(paper, source, _T5_BASE, tokens, losses, note="" if tokens == _SHORT else _ONE_RUN)


_SHAZEER_SD = (.005, .005, .003, .006, .005, .004, .010, .003)
_NARANG_SD = (.005, .003, .003, .003, .005, .006, .003, .004)
TABLES = (
    _table("Shazeer 2020", "arXiv:2002.05202", 4, _SHORT,
           (1.997, 1.983, 1.994, 1.982, 1.960, 1.942, 1.944, 1.953), _SHAZEER_SD),
    _table("Shazeer 2020", "arXiv:2002.05202", 4, _LONG,
           (1.677, 1.679, 1.683, 1.663, 1.648, 1.633, 1.636, 1.645), _SHAZEER_SD),
    _table("Narang et al. 2021", "arXiv:2102.11972", 5, _SHORT,
           (2.182, 2.179, 2.186, 2.174, 2.149, 2.130, 2.127, 2.145), _NARANG_SD),
    _table("Narang et al. 2021", "arXiv:2102.11972", 5, _LONG,
           (1.838, 1.838, 1.847, 1.814, 1.798, 1.792, 1.789, 1.803), _NARANG_SD),
)
"""Every table, each paper's shorter training first."""
