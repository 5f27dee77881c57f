"""Two processes whose tokens reach different experts train them, by DDP and by FSDP2, as one process does."""

import torch
from torch import nn

from nonlin.training.devices import SeveralDevices
from tests.two_ranks import joined


class Block(nn.Module):
    """Two experts, each a module, of which one process' tokens may reach one alone."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(2)])

    def forward(self, reached):
        return sum(expert(torch.full((3,), float(i + 1))).sum() for i, expert in enumerate(self.experts)
                   if i in reached)


class Experts(nn.Module):
    """A user's model."""

    own = {}

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block()])

    def forward(self, reached):
        return self.blocks[0](reached)


def gradients(model):
    return [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()]


if __name__ == "__main__":
    with joined() as rank:
        reaches = [{0}, {0, 1}]
        torch.manual_seed(0)
        alone = Experts()
        sum(alone(reached) / 2 for reached in reaches).backward()
        for strategy in ("ddp", "fsdp"):
            torch.manual_seed(0)
            model, devices = Experts(), SeveralDevices(strategy, 2)
            devices.wrap(model)
            devices.wrapped(reaches[rank]).backward()
            for ours, theirs in zip(gradients(model), gradients(alone), strict=True):
                torch.testing.assert_close(ours, theirs)
