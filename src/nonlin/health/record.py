"""What was collected, as one record of plain values: what the table, the page and ``--json`` show."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nonlin import metrics
from nonlin.health.collect import Collector, Observed
from nonlin.patching.anew import Anew
from nonlin.patching.blocks import some_tensor
from nonlin.patching.configuration import claimed

FORMAT = 1
_LISTED = 64  # units named a list; the count is always whole


def join_ranks(collector: Collector) -> int:
    """Join what all ranks collected, in place, and return their number: sums and counts add, extremes take the larger.

    The largest values' tokens stay this rank's own.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    for one in collector.observed:
        for tensor, how in one.parts():
            dist.all_reduce(tensor, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    tokens = torch.tensor([one.tokens for one in collector.observed],
                          device=collector.observed[0].response.device)
    dist.all_reduce(tokens)
    for one, count in zip(collector.observed, tokens.tolist(), strict=True):
        one.tokens = count
    return dist.get_world_size()


def make(collector: Collector, model: nn.Module, source: str) -> dict[str, Any]:
    """Return the record of a collector, without findings; joins the ranks where there are several."""
    ranks = join_ranks(collector)
    anew = Anew(model)
    blocks = [_block(one, model, i, anew) for i, one in enumerate(collector.observed)]
    return {
        "format": FORMAT, "source": source, "ranks": ranks, "dtype": str(some_tensor(model).dtype)[6:],
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": max((one.tokens for one in collector.observed), default=0), "text": None, "notes": [],
        "blocks": blocks, "attention": None, "alternatives": None, "loss_nats": None,
        "nonfinite_outputs": 0,
    }


def _units(which: Tensor, seen: Tensor) -> dict[str, Any]:
    which = which & seen
    total = int(seen.sum())
    return {"count": int(which.sum()), "share": int(which.sum()) / total if total else 0.0,
            "units": which.nonzero().flatten()[:_LISTED].tolist()}


def _claim(one: Observed, model: nn.Module, anew: Anew) -> dict[str, Any]:
    """The activation that the configuration names for a block, and whether the block computes it.

    Some classes read a field their own way. The model that the configuration builds says what is meant, where the
    block differs from what the field names.
    """
    claim, answer = claimed(model, one.block), one.answer
    if claim is None or not answer.matches or answer.status == "partial":
        return {"claimed": claim.name if claim else None, "agrees": None}
    if any(m.definition is claim or m.definition.expr == claim.expr for m in answer.matches):
        return {"claimed": claim.name, "agrees": True}
    built = anew.identify(one.block.name)
    if built is None or not built.matches:
        return {"claimed": claim.name, "agrees": None}  # nothing says how its class reads the field
    if {m.definition.name for m in built.matches} & {m.definition.name for m in answer.matches}:
        return {"claimed": answer.matches[0].definition.name, "agrees": True}
    return {"claimed": claim.name, "agrees": False}


def _block(one: Observed, model: nn.Module, index: int, anew: Anew) -> dict[str, Any]:
    first = next(iter(one.streams.values()))
    seen = first.count > 0
    dead = (one.response < metrics.DEAD) & seen
    definition = one.definition
    properties = None if definition is None or definition.expr is None else definition.properties
    saturated = (one.slope < metrics.SATURATED) & seen & ~dead if properties else torch.zeros_like(dead)
    streams = dict(one.streams) | ({"residual": one.residual} if one.residual is not None else {})
    return {
        "index": index, "name": one.block.name, "kind": "gated" if one.block.gated else "plain",
        "layout": one.block.layout, "dim": one.block.dim, "hidden": one.block.hidden, "experts": one.block.experts,
        "tokens": one.tokens,
        "activation": {
            "computed": one.answer.label, "status": one.answer.status, "reason": one.answer.reason,
            **_claim(one, model, anew),
            "flat": bool(properties and properties.zero_gradient)},
        "dead": _units(dead, seen), "saturated": _units(saturated, seen),
        "always_on": _units((first.positive == first.count) & ~dead, seen),
        "unseen": int((~seen).sum()),
        "positive": _histogram(first),
        "sparsity": float(one.sparse[0] / one.sparse[1]) if float(one.sparse[1]) else None,
        "streams": {name: stream.describe() for name, stream in streams.items()},
        "massive": [m for name, stream in streams.items() if name in ("hidden", "residual")
                    for m in _massive(name, stream)],
        "outliers": _outliers(one), "gradients": _gradients(one),
    }


def _histogram(stream: Any) -> list[int]:
    """How many units have a positive pre-activation on 0–5 %, … 95–100 % of the tokens."""
    share = (stream.positive / stream.count.clamp(min=1))[stream.count > 0]
    return torch.histc(share.float().cpu(), 20, 0, 1).int().tolist()


def _massive(name: str, stream: Any) -> list[dict[str, Any]]:
    return [{"stream": name, "unit": t.unit, "token": t.token, "value": t.value, "median": t.median}
            for t in stream.top if t.value > metrics.MASSIVE and t.value > metrics.MASSIVE_RATIO * t.median]


def _outliers(one: Observed) -> dict[str, Any] | None:
    """The channels of the layer's output that stand out, by root mean square over tokens."""
    if one.residual is None:
        return None
    rms = (one.residual.sum2 / one.residual.count.clamp(min=1)).sqrt()
    middle = float(rms.median())
    values, units = rms.topk(min(4, rms.numel()))
    return {"kurtosis": metrics.outlier_kurtosis(rms.square()), "median_rms": middle,
            "channels": [{"unit": int(u), "rms": float(v), "ratio": float(v) / middle if middle else 0.0}
                         for v, u in zip(values, units, strict=True)]}


def _gradients(one: Observed) -> dict[str, Any] | None:
    squares, count, zero, total = one.gradients.tolist()
    if not count:
        return None
    return {"rms": (squares / count) ** 0.5, "zero_share": zero / total if total else None}
