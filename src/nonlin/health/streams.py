"""Running statistics per unit over all tokens: of a projection's output, or of the hidden activation.

Sums are kept in float64 where the device has it, so that batches may come one after the other without end. Ranks are
joined by the rule each statistic names: counts and sums add, extremes take the larger. Shapes: N tokens, H units.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonlin import metrics

_SAMPLED = 128  # tokens a batch whose values are counted by power of two and whose median is taken


@dataclass(frozen=True)
class Largest:
    """The largest magnitude seen: its value, unit and token, and the median magnitude of its batch."""

    value: float = 0.0
    unit: int = 0
    token: int = 0
    median: float = 0.0


class Stream:
    """Statistics by unit (H,) of values (N, H) that come in batches.

    ``count`` tokens, ``sum``, ``sum2`` and ``sum4`` of powers, ``largest`` magnitude, ``zero`` and ``positive``
    tokens; ``powers`` counts sampled magnitudes by power of two, ``nonfinite`` values that are no numbers.
    """

    SUMS = ("count", "sum", "sum2", "sum4", "zero", "positive")

    @torch.inference_mode(False)
    def __init__(self, units: int, device: torch.device):
        wide = torch.float32 if device.type == "mps" else torch.float64
        for name in self.SUMS:
            setattr(self, name, torch.zeros(units, dtype=wide, device=device))
        self.largest = torch.zeros(units, dtype=torch.float32, device=device)
        self.powers = torch.zeros(metrics.EXPONENTS, dtype=torch.long, device=device)
        self.nonfinite = torch.zeros((), dtype=torch.long, device=device)
        self.top: list[Largest] = []
        self._tops: list[Any] = []

    count: Tensor
    sum: Tensor
    sum2: Tensor
    sum4: Tensor
    zero: Tensor
    positive: Tensor

    @torch.no_grad()
    def add(self, x_NH: Tensor, first_token: int = 0, units: slice = slice(None)) -> None:
        """Take a batch in; ``first_token`` is the number of its first row, ``units`` where its columns belong."""
        if not x_NH.shape[0]:
            return
        x = x_NH.detach().float()
        finite = torch.isfinite(x)
        self.nonfinite += (~finite).sum()
        x = torch.where(finite, x, x.new_zeros(()))
        square = x.square()
        self.count[units] += x.shape[0]
        self.sum[units] += x.sum(0)
        self.sum2[units] += square.sum(0)
        # By the largest square, so that the fourth power of a large value is still a float32.
        scale = square.amax().clamp(min=1e-30)
        self.sum4[units] += (square / scale).square().sum(0).to(self.sum4.dtype) * scale.to(self.sum4.dtype) ** 2
        self.zero[units] += (x == 0).sum(0)
        self.positive[units] += (x > 0).sum(0)
        high, token = x.abs().max(0)
        self.largest[units] = torch.maximum(self.largest[units], high)
        sample = x[:: max(1, x.shape[0] // _SAMPLED)]
        self.powers += metrics.exponents(sample)
        value, unit = high.topk(min(4, high.numel()))
        self._tops.append((value, unit + (units.start or 0), token[unit] + first_token, sample.abs().median()))

    def to_python(self) -> None:
        """Bring the largest values over to Python; done late, since a GPU would have to be waited for."""
        for value, unit, token, median in self._tops:
            middle = float(median)
            self.top += [Largest(v, u, t, middle) for v, u, t in zip(value.tolist(), unit.tolist(), token.tolist(),
                                                                    strict=True)]
        self._tops.clear()
        best: dict[int, Largest] = {}
        for one in sorted(self.top, key=lambda t: -t.value):
            best.setdefault(one.unit, one)
        self.top = list(best.values())[:8]

    def parts(self) -> list[tuple[Tensor, str]]:
        """The tensors that ranks are joined by, each with its rule."""
        return [*((getattr(self, name), "sum") for name in self.SUMS), (self.powers, "sum"), (self.nonfinite, "sum"),
                (self.largest, "max")]

    def describe(self) -> dict[str, Any]:
        """The stream in numbers that JSON holds."""
        self.to_python()
        n = self.count.clamp(min=1)
        second = self.sum2 / n
        seen = self.count > 0
        total = self.count.sum().clamp(min=1)
        mean2, mean4 = self.sum2.sum() / total, self.sum4.sum() / total
        largest = float(self.largest.max()) if self.largest.numel() else 0.0
        return {
            "rms": float(mean2.sqrt()), "mean": float(self.sum.sum() / total), "largest": largest,
            "kurtosis": float(metrics.kurtosis(mean2, mean4)), "nonfinite": int(self.nonfinite),
            "outlier_kurtosis": metrics.outlier_kurtosis(second[seen]) if bool(seen.any()) else 0.0,
            "zero_share": float(self.zero.sum() / total), "positive_share": float(self.positive.sum() / total),
            "over_float16": int((self.largest > metrics.FORMATS["float16"][0]).sum()),
            "flushed_float8": metrics.flushed_share(self.powers, largest),
            "powers": self.powers.tolist(),
        }
