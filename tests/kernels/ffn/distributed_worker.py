"""One of two processes: the block under DDP and FSDP2, against the whole batch on one process in float64."""

import copy

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from nonlin.nn import FeedForward
from tests import two_ranks


def _check(got, want, what):
    error = float((got - want).abs().max() / want.abs().max())
    assert error < 1e-12, f"{what}: {error:.3g}"


def _whole(parameter):
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _shard_all(model):
    for block in model[:2]:
        fully_shard(block)
    fully_shard(model)
    return model


def _shard_layers(model):
    """Also each linear layer by itself: the block must call them, for their hooks gather the weights."""
    for block in model[:2]:
        for layer in (block.gate, block.up, block.down):
            if layer is not None:
                fully_shard(layer)
    fully_shard(model)
    return model


def compare(rank):
    torch.manual_seed(0)
    batch = torch.randn(2, 6, 8, dtype=torch.float64)
    wraps = {"ddp": DistributedDataParallel, "fsdp2": _shard_all, "fsdp2 of layers": _shard_layers}
    for memory in ("lean", "minimal", "fast"):
        plain = torch.nn.Sequential(FeedForward(8, 16, "swiglu", bias=True, memory=memory),
                                    FeedForward(8, 16, "xielu", memory=memory)).double()
        wanted = copy.deepcopy(plain)
        wanted(batch.flatten(0, 1)).square().sum().div(2).backward()  # both average over the two processes
        for name, wrap in wraps.items():
            model = wrap(copy.deepcopy(plain))
            blocks = [m for m in model.modules() if isinstance(m, FeedForward)]
            # Asked inside the forward: between steps FSDP2's parameters are shards.
            said = []
            for block in blocks:
                block.register_forward_pre_hook(lambda b, _, said=said: said.append(b.explain().backend))
            for _ in range(2):  # the second step meets gathered weights again
                model.zero_grad()
                model(batch[rank]).square().sum().backward()
            one = [backend.startswith("one operation") for backend in said]
            assert len(one) == 4 and (not any(one) if name == "fsdp2 of layers" else all(one)), (name, said)
            for (key, parameter), want in zip(model.named_parameters(), wanted.parameters(), strict=True):
                _check(_whole(parameter.grad), want.grad, f"{name}, {memory}, {key}")


if __name__ == "__main__":
    with two_ranks.joined() as rank:
        compare(rank)
