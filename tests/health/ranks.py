"""Two processes that watch the same model on different data; each prints what it found as JSON."""

import json

import torch
from torch import nn

from nonlin import health
from tests import two_ranks


def model():
    """A block whose unit 0 is dead, whose unit 1 lives on rank 0's data alone."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        made[0].bias[0] = -1e4
        made[0].weight[1] = torch.tensor([1.0, 0, 0, 0])
        made[0].bias[1] = 0
    return made


def data(rank):
    x = torch.randn(1500, 4, generator=torch.Generator().manual_seed(rank))
    x[:, 0] = x[:, 0].abs() * (1 if rank == 0 else -1)
    return x


if __name__ == "__main__":
    with two_ranks.joined() as rank:
        with health.watch(model()) as seen:
            seen.model(data(rank))
        record = seen.record()
        block = record["blocks"][0]
        print(json.dumps({"ranks": record["ranks"], "tokens": record["tokens"], "dead": block["dead"]["units"],
                          "rms": block["streams"]["hidden"]["rms"], "largest": block["streams"]["up"]["largest"]}))
