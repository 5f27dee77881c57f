"""One of two processes: an accelerated model under FSDP2, against the untouched one sharded alike."""

import copy

import torch
from torch.distributed.fsdp import fully_shard

import nonlin
from nonlin.errors import UserError
from nonlin.patching.patch import recipe_of
from tests import two_ranks
from tests.patching.accelerated import awake, output
from tests.patching.families import FAMILIES


def _shard(model, blocks):
    for layer in model.model.layers:
        if blocks:
            fully_shard(layer.mlp)
        fully_shard(layer)
    return fully_shard(model)


def _step(model, family):
    out = output(model, family)
    (out.float() ** 2).mean().backward()
    return out.detach(), {n: p.grad.full_tensor() for n, p in model.named_parameters()}


def _refused(model):
    try:
        nonlin.accelerate(model)
    except UserError as error:
        assert "accelerate before fully_shard" in str(error), error
    else:
        raise AssertionError("accelerated a sharded model")


def compare():
    family = FAMILIES["llama"]
    model = awake(family.build())
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin)
    for blocks in (False, True):
        a, b = _shard(copy.deepcopy(model), blocks), _shard(copy.deepcopy(twin), blocks)
        assert sum(recipe_of(m) is not None for m in b.modules()) == 2
        (out, grads), (twin_out, twin_grads) = _step(a, family), _step(b, family)
        torch.testing.assert_close(twin_out, out, rtol=1e-4, atol=1e-5)
        for name, grad in grads.items():
            assert float((twin_grads[name] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-7, name
        if blocks:
            assert "before fully_shard" in nonlin.restore(b).left_alone[0].reason
        _refused(a)


if __name__ == "__main__":
    with two_ranks.joined():
        compare()
