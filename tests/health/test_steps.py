"""One definition of a training step, whatever the optimizers: those that share a backward pass end it together."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nonlin


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


def backward(net, head=None):
    out = net(torch.randn(16, 8))
    (out if head is None else head(out)).square().mean().backward()


def steps(net, optimizers, count, once):
    with nonlin.health.watch(net, every=10) as health:
        for i in range(count):
            once(i)
            for optimizer in optimizers:
                optimizer.zero_grad()
    return health.index


def test_another_modules_parameter_may_come_first():
    net, head = model(), nn.Linear(8, 1)
    optimizer = torch.optim.AdamW([*head.parameters(), *net.parameters()])
    with nonlin.health.watch(net, every=2) as health:
        for _ in range(5):
            backward(net, head)
            optimizer.step()
            optimizer.zero_grad()
    assert health.index == 5 and health.observed_step == 5


@pytest.mark.parametrize("keep", [True, False])
def test_joint_optimizers_end_one_step_together(keep):
    net = model()
    pairs = [torch.optim.SGD(net[0].parameters(), 0.01), torch.optim.AdamW(net[2].parameters())]
    each = [torch.optim.SGD([p], 0.01) for p in net.parameters()]
    for optimizers in (pairs, each):
        with nonlin.health.watch(net) as health:
            for _ in range(6):
                backward(net)
                for optimizer in optimizers:
                    optimizer.step()
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=not keep)
        assert health.index == 6


def test_alternating_optimizers_each_end_a_step():
    net = model()
    first, second = torch.optim.SGD(net[0].parameters(), 0.01), torch.optim.SGD(net[2].parameters(), 0.01)

    def once(i):
        backward(net)
        (first, second)[i % 2].step()

    assert steps(net, (first, second), 8, once) == 8


def test_an_optimizer_that_steps_twice_as_often_counts_each_of_its_steps():
    net = model()
    first, second = torch.optim.SGD(net[0].parameters(), 0.01), torch.optim.SGD(net[2].parameters(), 0.01)

    def once(i):
        backward(net)
        first.step()
        if i % 2:
            second.step()

    assert steps(net, (first, second), 8, once) == 8


def test_accumulated_gradients_are_one_step():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)

    def once(i):
        for _ in range(3):
            backward(net)
        optimizer.step()

    assert steps(net, (optimizer,), 4, once) == 4


def test_lbfgs_ends_one_step_however_often_it_calls_the_closure():
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(16, 8)).square().mean()
        loss.backward()
        return loss

    assert steps(net, (), 3, lambda i: optimizer.step(closure)) == 3


def test_an_optimizer_without_the_models_parameters_ends_nothing():
    net, head = model(), nn.Linear(8, 1)
    optimizer = torch.optim.SGD(head.parameters(), 0.1)

    def once(i):
        backward(net, head)
        optimizer.step()

    assert steps(net, (optimizer,), 3, once) == 0


def test_gradients_clipped_between_joint_steps_are_those_of_one_backward_pass():
    net = model()
    parts = [net[0], net[2]]
    optimizers = [torch.optim.SGD(part.parameters(), 0.01) for part in parts]

    def once(i):
        backward(net)
        for part, optimizer in zip(parts, optimizers, strict=True):
            nn.utils.clip_grad_norm_(part.parameters(), 0.1)
            optimizer.step()

    assert steps(net, optimizers, 5, once) == 5


@pytest.mark.parametrize("others", [False, True])
def test_optimizers_that_step_inside_the_backward_pass_end_a_step_with_it(others):
    net = model()
    inside = net[0] if others else net
    optimizers = {p: torch.optim.SGD([p], 0.01) for p in inside.parameters()}
    after = [torch.optim.AdamW(net[2].parameters())] if others else []

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for p in inside.parameters():
        p.register_post_accumulate_grad_hook(step)

    def once(i):
        backward(net)
        for optimizer in after:
            optimizer.step()

    with nonlin.health.watch(net, gradients=True) as health:
        backward(net)
        backward(net)
    assert health.index == 2 and health.record()["blocks"][0]["gradients"]["rms"] > 0
    assert steps(net, after, 5, once) == 5


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_optimizers_that_step_inside_reentrant_checkpointing_end_one_step_a_pass(others, nested):
    """Each checkpointed part has a backward pass of its own, inside the one that the loss began."""
    parts = nn.ModuleList(model() for _ in range(3))
    optimizers = {p: torch.optim.SGD([p], 0.01) for p in parts[:2].parameters()}
    after = [torch.optim.AdamW(parts[2].parameters())] if others else []

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)

    def kept(part, x):
        return checkpoint(part, x, use_reentrant=True)

    def whole(x):
        for part in parts[:2]:
            x = kept(part, x)
        return x

    def once(i):
        x = torch.randn(3, 8, requires_grad=True)
        x = checkpoint(whole, x, use_reentrant=True) if nested else whole(x)
        kept(parts[2], x).square().sum().backward()
        for optimizer in after:
            nn.utils.clip_grad_norm_(parts[2].parameters(), 0.1)
            optimizer.step()

    assert steps(parts, after, 5, once) == 5


def test_steps_that_no_hook_sees_are_told_of():
    net = model()

    def by_hand(_):
        backward(net)
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.01 * p.grad
                p.grad = None

    with pytest.warns(UserWarning, match=r"health\.step\(\)"):
        assert steps(net, (), 15, by_hand) == 0
    optimizer = torch.optim.SGD(net.parameters(), 0.01)

    def ordinary(_):
        backward(net)
        optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(net, (optimizer,), 15, ordinary)
