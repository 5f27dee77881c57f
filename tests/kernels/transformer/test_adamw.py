"""Our AdamW takes the steps of torch's, and its states are torch's."""

import copy
import math

import pytest
import torch
from torch import nn

from nonlin.kernels.transformer import adamw, native
from nonlin.training.optimizer import Optimizers, make_optimizer

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.unavailable() or "no compiler")
RECIPE = {"learning_rate": 0.02, "weight_decay": 0.3, "optimizer": "adamw"}


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(13, 17), nn.Linear(17, 33), nn.Tanh(), nn.Linear(33, 5), nn.PReLU())


def put_gradients(model: nn.Module, seed: int, size: float = 1.0, skip: int | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for number, p in enumerate(model.parameters()):
        drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64) * size
        p.grad = None if number == skip else drawn.to(p.dtype)


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_steps_are_those_of_torch_in_float64(clip):
    ours, exact = model(), model().double()
    optimizers = [make_optimizer(ours, RECIPE, native=True), make_optimizer(exact, RECIPE)]
    assert isinstance(optimizers[0].parts[0], adamw.AdamW) and not isinstance(optimizers[1].parts[0], adamw.AdamW)
    for step in range(30):
        # a parameter without a gradient is left alone, and counts its own steps
        norms = []
        for one, optimizer in zip((ours, exact), optimizers, strict=True):
            put_gradients(one, step, 10.0 ** (step % 5 - 3), skip=step % 7)
            norms.append(float(optimizer.step(clip)))
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    for p, q in zip(ours.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=2e-5, atol=2e-6)


def test_gradients_are_not_written():
    one = model()
    optimizer = make_optimizer(one, RECIPE, native=True)
    put_gradients(one, 1)
    before = [p.grad.clone() for p in one.parameters()]
    optimizer.step(0.1)
    assert all(torch.equal(p.grad, g) for p, g in zip(one.parameters(), before, strict=True))


def test_states_go_from_one_to_the_other_and_back():
    torchs = model()
    others = make_optimizer(torchs, RECIPE)
    for step in range(3):
        put_gradients(torchs, step)
        others.step()
    ours = copy.deepcopy(torchs)
    optimizer = make_optimizer(ours, RECIPE, native=True)
    optimizer.put_moments(copy.deepcopy(others.moments()))
    for step in range(3, 6):
        for one, taken in ((torchs, others), (ours, optimizer)):
            put_gradients(one, step)
            taken.step()
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    found, wanted = optimizer.moments(), others.moments()
    for number, state in wanted.items():
        assert found[number].keys() == state.keys() and float(found[number]["step"]) == 6
        torch.testing.assert_close(found[number]["exp_avg_sq"], state["exp_avg_sq"], rtol=1e-5, atol=1e-8)


def test_a_gradient_that_is_a_view_is_read_by_its_strides():
    weight = nn.Parameter(torch.zeros(3, 4))
    optimizer = Optimizers(adamw.AdamW([weight], lr=1.0, weight_decay=0.0, eps=1.0))
    weight.grad = torch.arange(12.0).view(4, 3).t()
    assert float(optimizer.step()) == pytest.approx(float(torch.arange(12.0).norm()))
    g = weight.grad
    torch.testing.assert_close(weight.detach(), -g / (g + 1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_no_number_is_told(value):
    one = model()
    optimizer = make_optimizer(one, RECIPE, native=True)
    put_gradients(one, 1)
    next(one.parameters()).grad[0, 0] = value
    assert not math.isfinite(float(optimizer.step(1.0)))


def test_torch_serves_what_ours_does_not():
    two_bytes = nn.Linear(3, 3).to(torch.bfloat16)
    assert not isinstance(make_optimizer(two_bytes, RECIPE, native=True).parts[0], adamw.AdamW)
    assert not adamw.serves([nn.Parameter(torch.zeros(4, 3).t())])
    muon = make_optimizer(model(), RECIPE | {"optimizer": "muon", "momentum": 0.95}, native=True)
    assert not any(isinstance(part, adamw.AdamW) for part in muon.parts)


def test_a_step_is_seen_by_graphs_and_copies_of_weights():
    one = model()
    optimizer = make_optimizer(one, RECIPE, native=True)
    loss = one(torch.tensor([1, 2])).sum()
    loss.backward(retain_graph=True)
    before = [p._version for p in one.parameters()]
    optimizer.step()
    assert all(p._version > version for p, version in zip(one.parameters(), before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_steps_are_counted_in_float32_whatever_the_default_dtype():
    one = model()
    optimizer = make_optimizer(one, RECIPE, native=True)
    torch.set_default_dtype(torch.float64)
    try:
        for step in range(3):
            put_gradients(one, step)
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert [float(state["step"]) for state in optimizer.moments().values()] == [3.0] * 6


def test_steps_after_a_saved_state_are_those_of_an_uninterrupted_run():
    whole, again = model(), model()
    optimizer, kept = make_optimizer(whole, RECIPE, native=True), {}
    for step in range(6):
        if step == 3:
            kept, weights = copy.deepcopy(optimizer.moments()), copy.deepcopy(whole.state_dict())
        put_gradients(whole, step, skip=step % 7)
        optimizer.step(0.5)
    again.load_state_dict(weights)
    resumed = make_optimizer(again, RECIPE, native=True)
    resumed.put_moments(kept)
    for step in range(3, 6):
        put_gradients(again, step, skip=step % 7)
        resumed.step(0.5)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
