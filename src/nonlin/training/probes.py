"""Probes of a model in training: gradients and units of every feed-forward block.

The measures are those of :mod:`nonlin.metrics`. A probe computes the activation and its derivative once more, in
torch, and the statistics. A probed step takes two to four times as long as a plain one. At a ``probe_every`` of 100 a
run takes one to three percent longer.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from nonlin.metrics import dead_units, sparsity, spike_score

__all__ = ["Watched", "dead_units", "gradient_outputs", "layer_measures", "sparsity", "spike_score"]


class Watched:
    """A collection to which a model's blocks append their (inputs, hidden, output).

    No list: FSDP2 takes lists in a module's arguments apart, and hands the module a copy.
    """

    def __init__(self):
        self.blocks: list[Any] = []
        self.of: list[Any] = []  # which block each is of, where a model says it

    def append(self, found: Any, of: Any = None) -> None:
        """Take what a block saw, and which block it was."""
        self.blocks.append(found)
        self.of.append(of)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.blocks)


def gradient_outputs(watched: Iterable[Any]) -> None:
    """Ask autograd to keep the gradient at each block's output; call between forward and backward."""
    for _, _, out in watched:
        out.retain_grad()


def joined(parts: list[Watched]) -> Watched:
    """Return what was watched on the parts of a batch as of one, after all parts' backward.

    Of stacked experts, each has the tokens of all parts that reached it.
    """
    if len(parts) == 1:
        return parts[0]
    whole = Watched()
    for *entries, of in zip(*parts, parts[0].of, strict=True):
        inputs, hidden, outs = zip(*entries, strict=True)
        out = torch.cat([one.detach() for one in outs])
        if all(one.grad is not None for one in outs):
            out.grad = torch.cat([one.grad for one in outs])
        if hidden[0] is None:
            whole.append((_by_expert([one for seen in inputs for one in seen]), None, out), of)
        else:
            whole.append((tuple(torch.cat([x.detach() for x in xs]) for xs in zip(*inputs, strict=True)),
                          torch.cat([one.detach() for one in hidden]), out), of)
    return whole


def _by_expert(seen: list[Any]) -> list[Any]:
    """Return (inputs, hidden, expert) of each expert once, the rows of its entries behind one another."""
    found: dict[int, list[Any]] = {}
    for entry in seen:
        found.setdefault(entry[2], []).append(entry)
    return [(tuple(torch.cat([x.detach() for x in xs]) for xs in zip(*(e[0] for e in entries), strict=True)),
             torch.cat([e[1].detach() for e in entries]), expert) for expert, entries in found.items()]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def layer_measures(model: torch.nn.Module, watched: Iterable[Any]) -> list[dict[str, float]]:
    """Return one record a layer; call after backward (see :func:`gradient_outputs`)."""
    records = []
    for block, (inputs, hidden, out) in zip(model.blocks, watched, strict=True):  # type: ignore[arg-type]
        dead = dead_units(block.feed_forward.activation, inputs)
        records.append({
            "gradient_rms": _rms(out.grad),
            "output_rms": _rms(out.detach()),
            "dead_share": float(dead.float().mean()),
            "zero_output_share": float((hidden.detach() == 0).float().mean()),
        })
    return records
