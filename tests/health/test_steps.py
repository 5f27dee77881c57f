"""One definition of a training step, whatever the optimizers: those that share a backward pass end it together."""

import json
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nonlin
from tests import two_ranks
from tests.health import sharded_steps


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


# Between two optimizers of one backward pass anything may happen that makes no gradient of theirs.

def nothing(net, part):
    pass


def clip(net, part):
    nn.utils.clip_grad_norm_(part.parameters(), 0.1)


def clip_all(net, part):
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)


def clip_by_hand(net, part):
    for p in part.parameters():
        p.grad = p.grad.clamp(-0.1, 0.1)


def another_network(net, part):
    critic = nn.Linear(8, 1)
    critic(net(torch.randn(4, 8)).detach()).sum().backward()


def penalty(net, part):
    torch.autograd.grad(net(torch.randn(4, 8)).sum(), list(net.parameters()))


def another_step(net, part):
    critic = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    critic(net(torch.randn(4, 8)).detach()).sum().backward()
    optimizer.step()


BETWEEN = [(nothing,), (clip,), (clip_all,), (clip_by_hand,), (another_network,), (penalty, clip),
           (another_network, clip), (clip, another_step), (another_network, clip_by_hand), (another_step, clip_all)]


@pytest.mark.parametrize("between", BETWEEN, ids=lambda them: "-".join(one.__name__ for one in them))
@pytest.mark.parametrize("zero", ["before", "after", "each"])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("passes", ["one", "accumulated", "one each"])
def test_optimizers_of_one_backward_pass_end_one_step(between, zero, to_none, passes):
    net = model()
    parts = [net[0], net[2]]
    optimizers = [torch.optim.SGD(part.parameters(), 0.01) for part in parts]
    ended = []

    def clear(optimizer):
        optimizer.zero_grad(set_to_none=to_none)

    with nonlin.health.watch(net) as health:
        for _ in range(4):
            if zero == "before":
                for optimizer in optimizers:
                    clear(optimizer)
            for _ in range(2 if passes == "accumulated" else 1):
                backward(net)
            for part, optimizer in zip(parts, optimizers, strict=True):
                if passes == "one each" and part is parts[1]:
                    backward(net)
                for one in between:
                    one(net, part)
                optimizer.step()
                if zero == "each":
                    clear(optimizer)
            if zero == "after":
                for optimizer in optimizers:
                    clear(optimizer)
            ended.append(health.index)
    assert ended == ([2, 4, 6, 8] if passes == "one each" else [1, 2, 3, 4])


def test_a_step_that_a_gradient_scaler_leaves_out_is_none():
    net = model()
    parts = [net[0], net[2]]
    optimizers = [torch.optim.SGD(part.parameters(), 0.01) for part in parts]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    ended = []
    with nonlin.health.watch(net) as health:
        for overflows in ((), (0,), (1,), (0, 1), ()):
            scaler.scale(net(torch.randn(16, 8)).square().mean()).backward()
            for i, (part, optimizer) in enumerate(zip(parts, optimizers, strict=True)):
                if i in overflows:
                    part.weight.grad[0, 0] = float("inf")
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(part.parameters(), 0.1)
                scaler.step(optimizer)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()
            ended.append(health.index)
    assert ended == [1, 2, 3, 3, 4]


def test_one_optimizer_after_another_ends_steps_alike():
    net = model()
    warm, then = torch.optim.SGD(net.parameters(), 0.01), torch.optim.AdamW(net.parameters())

    def once(i):
        backward(net)
        (warm if i < 3 else then).step()

    assert steps(net, (), 6, once) == 6  # gradients add up
    assert steps(net, (warm, then), 6, once) == 6


@pytest.mark.parametrize("freeze", [False, True])
def test_networks_that_take_turns_in_one_model_each_end_a_step(freeze):
    both = nn.ModuleList([model(), model()])
    optimizers = [torch.optim.AdamW(net.parameters()) for net in both]

    def once(i):
        for turn, optimizer in enumerate(optimizers):
            both[1 - turn].requires_grad_(not freeze)
            optimizer.zero_grad()
            both[1](both[0](torch.randn(16, 8))).square().mean().backward()
            optimizer.step()
            both.requires_grad_(True)

    assert steps(both, (), 4, once) == 8


@pytest.mark.parametrize("optimizers", [1, 2])
def test_two_watched_models_with_one_loss(optimizers):
    nets = [model(), model()]
    each = [torch.optim.AdamW(net.parameters()) for net in nets]
    them = each if optimizers == 2 else [torch.optim.AdamW(nn.ModuleList(nets).parameters())]
    with nonlin.health.watch(nets[0]) as first, nonlin.health.watch(nets[1]) as second:
        for _ in range(4):
            nets[1](nets[0](torch.randn(16, 8))).square().mean().backward()
            for optimizer in them:
                optimizer.step()
                optimizer.zero_grad()
    assert first.index == second.index == 4


def test_an_optimizer_around_another_ends_one_step_with_it():
    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            self.inner.step()
            self.inner.zero_grad()

    net = model()
    optimizer = Around(torch.optim.SGD(net.parameters(), 0.01))

    def once(i):
        backward(net)
        optimizer.step()

    assert steps(net, (), 4, once) == 4


def test_no_hook_is_left_and_none_is_on_the_model():
    net = model()
    optimizers = [torch.optim.SGD([p], 0.01) for p in net.parameters()]
    with nonlin.health.watch(net, every=10):
        for _ in range(3):
            backward(net)
            for optimizer in optimizers:
                optimizer.step()
        assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    backward(net)


def test_a_sharded_model_has_steps(tmp_path):
    """Its parameters are others while it runs, and what gives them gradients is no node of autograd's graph."""
    for counted in two_ranks.run(sharded_steps.__file__, tmp_path):
        assert json.loads(counted.splitlines()[-1]) == {"one": 5, "joint": 5, "clipped": 5, "alternating": 10}


def test_many_optimizers_do_not_walk_the_model_each(monkeypatch):
    net, walks = model(), []
    optimizers, walk = [torch.optim.SGD([p], 0.01) for p in net.parameters()], net.parameters
    with nonlin.health.watch(net, every=1000) as health:
        for i in range(3):
            if i == 2:
                monkeypatch.setattr(net, "parameters", lambda: walks.append(1) or walk())
            backward(net)
            for optimizer in optimizers:
                optimizer.step()
    assert health.index == 3 and len(walks) == 1


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


def test_a_model_of_inference_tensors_can_be_watched():
    with torch.inference_mode():
        net = model()
    with nonlin.health.watch(net) as health, torch.no_grad():
        net(torch.randn(16, 8))
    assert health.record()["blocks"]


@pytest.mark.parametrize("whole", [False, True], ids=["the optimizer's step", "the whole training step"])
def test_a_compiled_step_of_an_optimizer_ends_a_step(whole):
    net = model()
    optimizer = torch.optim.Adam(net.parameters())

    def train():
        optimizer.zero_grad()
        backward(net)
        optimizer.step() if whole else compiled()

    compiled = torch.compile(train if whole else lambda: optimizer.step(), backend="eager")
    with nonlin.health.watch(net, every=3) as health:
        for _ in range(7):
            compiled() if whole else train()
    assert health.index == 7 and health.observed_step == 7 and health.record()["tokens"] == 16
