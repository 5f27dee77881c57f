"""One model trained by several processes, each with a part of every batch: DDP, or FSDP2 where a model is large.

The model is made once, whole, from the seed, by every process, and only then wrapped or sharded. A run on N devices
begins with the weights of a run on one, and paired seeds stay paired. The loss and its gradient are means over all
tokens of the batch, whatever process they are on.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nonlin.errors import UserError, rule
from nonlin.subject.watching import everywhere
from nonlin.training.recipe import choice


class OneDevice:
    """A model trained by this process alone: what the training loop asks of its devices."""

    rank, size = 0, 1

    def wrap(self, model: Any) -> None:
        """Prepare a model that was made whole."""
        self.model = model

    def part(self, rows: Tensor) -> Tensor:
        """Return the rows of a batch that this process trains on."""
        return rows

    def loss(self, inputs: Tensor, targets: Tensor, watched: Any) -> Tensor:
        """Return the mean loss over this process' part, whose gradients become those of the mean over all."""
        return self.model.loss(inputs, targets, watched)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Within this context gradients add up; other processes' are wanted once no ``more`` parts come."""
        yield

    def mean(self, loss: Tensor) -> float:
        """Return the mean over all tokens of the batch."""
        return float(loss.detach())

    def whole_value(self, value: Tensor) -> float:
        """Return a number that may be spread over the processes."""
        return float(value)

    def agreed(self, so: bool) -> bool:
        """Return what the first process says: all must take as many steps."""
        return so

    def gathered(self, watched: Iterable[Any]) -> Iterable[Any]:
        """Return what was watched on all processes, after backward."""
        return watched

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within this context the blocks' weights are whole."""
        yield

    def unanimous(self, so: bool) -> bool:
        """Return whether all processes say so."""
        return so

    def whole_tensor(self, value: Tensor) -> Tensor:
        """Return a whole copy, on the CPU, of a tensor that may be spread over the processes; all must call it.

        On the first process alone: the others' is empty, since it is the first one that writes.
        """
        whole = _whole(value.detach())
        return whole.cpu().contiguous() if self.rank == 0 else whole.new_empty(0, device="cpu")

    def weights(self) -> dict[str, Tensor]:
        """Return the whole weights, on the CPU of the first process; every process must call it."""
        return {name: self.whole_tensor(value) for name, value in self.model.named_parameters()}

    def generators(self) -> Tensor:
        """Return the states of the processes' random number generators, a row each; every process must call it."""
        return _generators()[None]


class SeveralDevices(OneDevice):
    """This process as one of a group that is joined already; ``strategy`` is "ddp" or "fsdp".

    ``batch`` is the sequences of a step, which each process takes in ``accumulation`` parts.
    """

    def __init__(self, strategy: str, batch: int, accumulation: int = 1):
        self.rank, self.size, self.strategy = dist.get_rank(), dist.get_world_size(), strategy
        if batch % self.size:
            raise UserError(rule("engine", "devices-per-trial", f"divide the batch of {batch} sequences", self.size,
                                 f"Try --batch {self.size * -(-batch // self.size)}."))
        if batch // self.size % accumulation:
            raise UserError(rule("recipe", "accumulation", f"divide the {batch // self.size} sequences of a device",
                                 accumulation, f"Try --batch {self.size * accumulation}."))

    def wrap(self, model: Any) -> None:
        """Prepare a model that was made whole, by every process alike; UserError for one whose loss is not its own."""
        if getattr(model, "own", {}).get("router_loss"):
            raise UserError(rule("engine", "devices-per-trial", "be 1 for a model whose router's loss counts",
                                 self.size, "Set output_router_logits to false in its configuration, or take one."))
        self.model = self.wrapped = model
        if self.strategy == "ddp":
            # No device ids: the batch is on its device already, and what is watched is not to be copied.
            # A user's own model may have parameters that no token of a process reaches, such as an expert's.
            self.wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False,
                                                               find_unused_parameters=hasattr(model, "own"))
        else:
            from torch.distributed.fsdp import fully_shard

            for block in model.blocks:
                fully_shard(block)
            fully_shard(model)
            if hasattr(model, "own"):  # as above: else processes reduce the gradients of different parameters together
                if not hasattr(model, "set_reduce_scatter_unused_params"):
                    raise UserError(rule("engine", "parallel", "be ddp for a model of your own, with this torch",
                                         "fsdp", "Use --parallel ddp, or install a newer torch."))
                model.set_reduce_scatter_unused_params(True)

    def part(self, rows: Tensor) -> Tensor:
        """Return every ``size``-th row."""
        return rows[self.rank::self.size].contiguous()

    def loss(self, inputs: Tensor, targets: Tensor, watched: Any) -> Tensor:
        """Return the mean over this process' tokens: parts are of equal size, and gradients are averaged."""
        return self.model.cross_entropy(self.wrapped(inputs, watched), targets)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Within this context the processes exchange gradients, unless ``more`` parts of the batch come."""
        if self.strategy == "fsdp":
            self.model.set_requires_gradient_sync(not more)
        with self.wrapped.no_sync() if more and self.strategy == "ddp" else contextlib.nullcontext():
            yield

    def mean(self, loss: Tensor) -> float:
        """Return the mean over all processes' parts, which are of equal size."""
        total = loss.detach().double()
        dist.all_reduce(total)
        return float(total) / self.size

    def whole_value(self, value: Tensor) -> float:
        """Return a number that may be spread over the processes."""
        return float(_whole(value))

    def agreed(self, so: bool) -> bool:
        """Return what the first process says."""
        said = torch.tensor([so], dtype=torch.int32, device=next(self.model.parameters()).device)
        dist.broadcast(said, 0)
        return bool(said)

    def gathered(self, watched: Iterable[Any]) -> Iterable[Any]:
        """Return what was watched, the parts of all processes behind one another."""
        if hasattr(self.model, "own"):
            return everywhere(watched, self.model.replaced, self._rows, self.size)
        found = []
        for inputs, hidden, out in watched:
            whole = self._all(out.detach())
            whole.grad = self._all(out.grad) / self.size  # by the loss of all tokens
            found.append((tuple(self._all(x.detach()) for x in inputs), self._all(hidden.detach()), whole))
        return found

    def _rows(self, part: Tensor) -> Tensor:
        """Return the rows (N, width) of all processes, of which each may have another number."""
        counts = self._all(torch.tensor([len(part)], device=part.device)).tolist()
        parts = self._all(nn.functional.pad(part, (0, 0, 0, max(counts) - len(part)))).split(max(1, *counts))
        return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=False)])

    def _all(self, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Within this context the blocks' weights are whole on every process."""
        blocks = self.model.blocks if self.strategy == "fsdp" else ()
        for block in blocks:
            block.unshard()
        yield
        for block in blocks:
            block.reshard()

    def unanimous(self, so: bool) -> bool:
        """Return whether all processes say so."""
        said = torch.tensor([so], dtype=torch.int32, device=next(self.model.parameters()).device)
        dist.all_reduce(said, dist.ReduceOp.MIN)
        return bool(said)

    def generators(self) -> Tensor:
        """Return the states of the processes' random number generators, a row each."""
        rows: list[Any] = [None] * self.size
        dist.all_gather_object(rows, _generators())
        return torch.stack(rows)


def _whole(value: Tensor) -> Tensor:
    """Return a tensor whose parts FSDP2 has spread; every process must call it."""
    return value.full_tensor() if _is_spread(value) else value  # type: ignore[attr-defined]


def _is_spread(value: Tensor) -> bool:
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process' part of a tensor that every process has whole, if ``like`` is spread and of its shape."""
    if not _is_spread(like) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(like.device), mesh, placements, src_data_rank=None)


def _generators() -> Tensor:
    """Return the states of this process' generators: the processor's, and its GPU's where it trains on one."""
    found = torch.get_rng_state()
    return torch.cat([found, torch.cuda.get_rng_state()]) if _on_gpu() else found


def set_generators(state: Tensor) -> None:
    """Put back the states of :meth:`OneDevice.generators`, one row."""
    length = torch.get_rng_state().numel()
    torch.set_rng_state(state[:length].clone())
    if state.numel() > length and _on_gpu():
        torch.cuda.set_rng_state(state[length:].clone())


def _on_gpu() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def devices_of(config: dict[str, Any]) -> OneDevice:
    """Return the devices that a configuration asks for; several only in a process that has joined a group."""
    settings = config["machine"]
    if settings.get("devices", 1) == 1:
        return OneDevice()
    return SeveralDevices(settings.get("parallel", "ddp"), config["training"]["batch"],
                          choice(config["training"], "accumulation"))
