"""What a subject's blocks compute on a step, and the measures of it: the same as of our own model's.

Shapes: N tokens, H hidden width, D model width, E experts.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlin import metrics
from nonlin.patching.blocks import in_order, split
from nonlin.subject.blocks import Replaced, stored
from nonlin.subject.naming import layer_of


class Watching:
    """Hands on what blocks compute, to ``watch.append``, until it is closed: a backward pass may recompute it."""

    def __init__(self, watch: Any):
        self.append, self.closed = watch.append, False


def hooks(block: Replaced, watch: Watching) -> list[Any]:
    """Hook a block, so that what it computes goes to ``watch``; return the handles."""
    return _hook_experts(block, watch) if block.stacked else _hook(block, watch)


def _hook(block: Replaced, watch: Watching) -> list[Any]:
    """Return the handles of hooks on a block's products, which hand what they saw to ``watch``."""
    products: list[Tensor] = []
    hidden: list[Tensor] = []

    def came_in(module: nn.Module, args: Any, out: Tensor) -> None:
        if not watch.closed:
            products.append(out)

    def goes_out(module: nn.Module, args: Any) -> None:
        if not watch.closed:
            hidden.append(args[0])

    def came_out(module: nn.Module, args: Any, out: Tensor) -> None:
        if watch.closed:
            return
        watch.append((block.inputs(list(products)), hidden[-1], out), block)
        products.clear()
        hidden.clear()

    into = [m for m in (block.gate, block.up) if m is not None]
    return [*(m.register_forward_hook(came_in) for m in into), block.down.register_forward_pre_hook(goes_out),
            block.down.register_forward_hook(came_out)]


def _hook_experts(block: Replaced, watch: Watching) -> list[Any]:
    """Return the handle of a hook on stacked experts, which recomputes what each expert saw."""

    def came_out(module: nn.Module, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        given = in_order(module, args, kwargs)
        if watch.closed or not isinstance(out, Tensor):
            return
        x, count, seen = given[0].detach().reshape(-1, given[0].shape[-1]), len(expert_down(block)), []
        # Without the experts' numbers the rows are those of all experts, one after the other.
        index = given[1].reshape(x.shape[0], -1) if len(given) > 1 else torch.arange(
            count, device=x.device).repeat_interleave(x.shape[0] // count)[:, None]
        with torch.no_grad():
            for expert in index.unique().tolist():
                if 0 <= expert < count:
                    rows = x[(index == expert).any(-1)]
                    inputs = expert_inputs(block, expert, rows)
                    seen.append((inputs, block.activation(*inputs), expert))
        watch.append((seen, None, out), block)

    return [block.module.register_forward_hook(came_out, with_kwargs=True)]


def expert_down(block: Replaced) -> Tensor:
    """Return the experts' down projections (E, D, H)."""
    down: Any = block.module.down_proj
    return down.transpose(-1, -2) if block.transposed else down


def expert_inputs(block: Replaced, expert: int, rows: Tensor) -> tuple[Tensor, ...]:
    """Return (gate, up), or (x,), that an expert computes of rows (N, D)."""
    module: Any = block.module
    key = "gate_up_proj" if block.definition.gated else "up_proj"
    weight, bias = getattr(module, key)[expert], getattr(module, f"{key}_bias", None)
    product = nn.functional.linear(rows, (weight.t() if block.transposed else weight).to(rows.dtype),
                                   None if bias is None else bias[expert].to(rows.dtype))
    if not block.definition.gated:
        return (product,)
    first, second = ("first", "second") if block.layout == "concatenated" else ("even", "odd")
    return split(product, first), split(product, second)  # type: ignore[arg-type]


def _experts_seen(entry: Any, block: Replaced) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
    """Yield (inputs, hidden, down) of one entry, or of each expert that took part."""
    inputs, hidden, _ = entry
    if not block.stacked:
        yield inputs, hidden, stored(block.down)
        return
    for given, made, expert in inputs:
        yield given, made, expert_down(block)[expert]


def _by_layer(watched: Any) -> Iterator[list[tuple[Any, Replaced]]]:
    found: dict[str, list[tuple[Any, Replaced]]] = defaultdict(list)
    for entry, block in zip(watched, watched.of, strict=True):
        found[layer_of(block.name)].append((entry, block))
    yield from found.values()


def layer_measures(watched: Any) -> list[dict[str, float]]:
    """Return one record a layer, over all its blocks and experts that took part; call after backward."""
    records = []
    for entries in _by_layer(watched):
        dead, zero, units, values = 0.0, 0.0, 0, 0
        for entry, block in entries:
            for inputs, hidden, _ in _experts_seen(entry, block):
                wide = tuple(x.detach().float() for x in inputs)
                dead += float(metrics.dead_units(block.activation, wide).sum())
                zero += float((hidden.detach() == 0).sum())
                units, values = units + hidden.shape[-1], values + hidden.numel()
        outs = [entry[2] for entry, _ in entries]
        records.append({
            "gradient_rms": _rms([o.grad for o in outs if o.grad is not None]),
            "output_rms": _rms([o.detach() for o in outs]),
            "dead_share": dead / max(1, units), "zero_output_share": zero / max(1, values)})
    return records


def sparsity(watched: Any) -> float:
    """Return the mean over layers of the share of units that a token can do without (see :mod:`nonlin.metrics`)."""
    layers = []
    for entries in _by_layer(watched):
        shares = [metrics.sparsity(hidden.float(), down.float(), exact=False) for entry, block in entries
                  for _, hidden, down in _experts_seen(entry, block)]
        layers.append(sum(shares) / max(1, len(shares)))
    return sum(layers) / max(1, len(layers))


def everywhere(watched: Any, blocks: Sequence[Replaced], rows: Callable[[Tensor], Tensor], size: int) -> Any:
    """Return what was watched on all of ``size`` processes, after backward.

    ``rows`` puts the rows (N, width) of all processes behind one another; all call it in the same order. A block that
    no token of this process reached counts with no rows.
    """
    mine: dict[int, list[Any]] = defaultdict(list)
    for entry, block in zip(watched, watched.of, strict=True):
        mine[id(block)].append(entry)
    counts = rows(torch.tensor([[len(mine[id(block)]) for block in blocks]], device=_device(blocks)))
    whole = type(watched)()
    for block, count in zip(blocks, counts.amax(0).tolist(), strict=True):
        for number in range(count):
            entries = mine[id(block)]
            inputs, hidden, out = entries[number] if number < len(entries) else _nothing(block)
            made = rows(_flat(out))
            grad = out.grad if out.grad is not None else torch.zeros_like(out)
            made.grad = rows(_flat(grad)) / size  # by the loss of all tokens
            if hidden is None:
                whole.append((_experts_everywhere(inputs, rows), None, made), block)
            else:
                whole.append((tuple(rows(_flat(x)) for x in inputs), rows(_flat(hidden)), made), block)
    return whole


def _device(blocks: Sequence[Replaced]) -> torch.device:
    return next(blocks[0].module.parameters()).device


def _flat(x: Tensor) -> Tensor:
    # In float32: a process that no token reached does not know the others' type. The measures are taken in it anyway.
    return x.detach().float().reshape(-1, x.shape[-1])


def _nothing(block: Replaced) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return what a block saw of no tokens."""
    dim, width = stored(block.down).shape
    hidden = torch.zeros(0, width, device=_device([block]))
    return (hidden,) * (2 if block.definition.gated else 1), hidden, hidden.new_zeros(0, dim)


def _experts_everywhere(seen: Sequence[Any], rows: Callable[[Tensor], Tensor]) -> list[Any]:
    """Return (inputs, hidden, expert) of each expert that a token of any process reached."""
    numbers = torch.cat([torch.full((len(made), 1), expert, device=made.device) for _, made, expert in seen])
    experts = rows(numbers)[:, 0]
    inputs = [rows(torch.cat([x.detach().float() for x in one])) for one in
              zip(*(given for given, _, _ in seen), strict=True)]
    hidden = rows(torch.cat([made.detach().float() for _, made, _ in seen]))
    return [(tuple(x[experts == one] for x in inputs), hidden[experts == one], one)
            for one in experts.unique().tolist()]


def _rms(parts: list[Tensor]) -> float:
    count = sum(p.numel() for p in parts)
    return (sum(float(p.float().square().sum()) for p in parts) / max(1, count)) ** 0.5
