"""Two processes that shard a model by FSDP2 and watch it; each prints the steps that it counted as JSON."""

import json

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nonlin import health
from tests import two_ranks


def counted(mesh, joint, clipped=False, alternating=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    fully_shard(net, mesh=mesh)
    parts = [net[0], net[2]] if joint else [net]
    optimizers = [torch.optim.SGD(part.parameters(), 0.01) for part in parts]
    with health.watch(net, every=2) as watched:
        for _ in range(5):
            for part, optimizer in zip(parts, optimizers, strict=True):
                if part is parts[0] or alternating:
                    net.zero_grad()
                    net(torch.randn(16, 8)).square().mean().backward()
                if clipped:
                    nn.utils.clip_grad_norm_(part.parameters(), 0.1)
                    nn.Linear(8, 1)(torch.randn(4, 8)).sum().backward()
                optimizer.step()
    return watched.index


if __name__ == "__main__":
    with two_ranks.joined():
        mesh = init_device_mesh("cpu", (2,))
        print(json.dumps({"one": counted(mesh, False), "joint": counted(mesh, True),
                          "clipped": counted(mesh, True, clipped=True),
                          "alternating": counted(mesh, True, alternating=True)}))
