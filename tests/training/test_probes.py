"""Measures of gradients and units, on planted cases whose answer is known."""

import math

import pytest
import torch

import nonlin
from nonlin.model import LanguageModel, ModelConfig
from nonlin.training import probes

SIZES = ModelConfig(layers=3, dim=16, heads=2, kv_heads=2, context=12, vocabulary=32, hidden=20)


def watched_of(model):
    tokens = torch.randint(0, 32, (4, 12), generator=torch.Generator().manual_seed(0))
    watched = []
    loss = model.loss(tokens, tokens, watched)
    probes.gradient_outputs(watched)
    loss.backward()
    return watched


def plant(block, units):
    """Make these units' inputs hugely negative on every token, by a part of the stream that is 5 on all of them."""
    with torch.no_grad():
        layer = block.feed_forward.gate if block.feed_forward.gate is not None else block.feed_forward.up
        block.feed_forward_norm.weight.fill_(0.0)
        block.feed_forward_norm.weight[0] = 1.0
        layer.weight[:, 0] = 0.5
        layer.weight[units, 0] = -1e6


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "swiglu", "reglu", "relu_squared"])
def test_planted_dead_units_are_counted_where_they_are(name):
    model = LanguageModel(SIZES, nonlin.get(name))
    with torch.no_grad():
        model.embedding.weight[:, 0] = 5.0  # positive on every token
        for block in model.blocks:
            block.attention.o.weight[0] = 0.0
            block.feed_forward.down.weight[0] = 0.0
    plant(model.blocks[1], [2, 3, 11])
    watched = watched_of(model)
    dead = probes.dead_units(model.blocks[1].feed_forward.activation, watched[1][0])
    assert dead.nonzero().flatten().tolist() == [2, 3, 11]
    assert probes.layer_measures(model, watched)[1]["dead_share"] == pytest.approx(3 / 20)


def test_a_unit_is_alive_if_any_token_moves_it():
    activation = nonlin.nn.Activation("relu")
    x = torch.full((5, 7, 3), -1.0)
    x[4, 6, 1] = 0.5
    assert probes.dead_units(activation, (x,)).tolist() == [True, False, True]
    leaky = nonlin.nn.Activation("leaky_relu")
    assert not probes.dead_units(leaky, (x,)).any()  # its slope lets it learn
    gate, up = torch.full((4, 2), -60.0), torch.ones(4, 2)
    gate[:, 1] = 0.0  # silu(0) is 0, but its slope times up is not
    assert probes.dead_units(nonlin.nn.Activation("swiglu"), (gate, up)).tolist() == [True, False]


def test_layer_measures_are_those_written_out():
    model = LanguageModel(SIZES, nonlin.get("relu"))
    watched = watched_of(model)
    records = probes.layer_measures(model, watched)
    tokens = torch.randint(0, 32, (4, 12), generator=torch.Generator().manual_seed(0))
    for i, block in enumerate(model.blocks):
        (inputs,), hidden, out = watched[i]
        assert torch.equal(hidden, inputs.relu())
        assert records[i]["zero_output_share"] == pytest.approx(float((inputs <= 0).float().mean()))
        assert records[i]["output_rms"] == pytest.approx(math.sqrt(float(out.detach().square().mean())), rel=1e-6)
        assert torch.equal(out, block.feed_forward.down(hidden))
    # the gradient at a block's output, by a small push along it
    direction = watched[1][2].grad / watched[1][2].grad.norm()
    shifted = []
    for sign in (1, -1):
        exact = LanguageModel(SIZES, nonlin.get("relu")).double()
        original = exact.blocks[1].forward

        def pushed(*args, forward=original, s=sign):
            return forward(*args) + s * 1e-5 * direction.double()

        exact.blocks[1].forward = pushed
        shifted.append(float(exact.loss(tokens, tokens).detach()))
    slope = (shifted[0] - shifted[1]) / 2e-5
    norm = records[1]["gradient_rms"] * math.sqrt(watched[1][2].numel())
    assert slope == pytest.approx(norm, rel=1e-4)


def brute_sparsity(hidden, down, error):
    """The largest share of units, least important first, that may go: by trying every number of them."""
    shares = []
    for h in hidden:
        order = sorted(range(len(h)), key=lambda i: abs(h[i]) * down[:, i].norm())
        full = down @ h
        gone = 0
        for count in range(1, len(h) + 1):
            kept = h.clone()
            kept[order[:count]] = 0
            if (down @ kept - full).norm() > error * full.norm():
                break
            gone = count
        shares.append(gone / len(h))
    return sum(shares) / len(shares)


def test_sparsity_is_the_share_that_can_go_at_the_stated_error():
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(16, 24, generator=draw).relu() ** 2
    down = torch.randn(10, 24, generator=draw)
    for error in (0.05, 0.2, 0.5):
        assert probes.sparsity(hidden, down, error) == pytest.approx(
            brute_sparsity(hidden.double(), down.double(), error))
    assert probes.sparsity(hidden, down, 0.05) < probes.sparsity(hidden, down, 0.5)
    half = torch.ones(3, 8)
    half[:, ::2] = 0
    assert probes.sparsity(half, torch.eye(8), 0.01) == 0.5
    assert probes.sparsity(torch.zeros(2, 8), torch.eye(8)) == 1.0


def brute_spikes(losses, window, deviations, least):
    spikes = judged = 0
    for i, loss in enumerate(losses):
        before = losses[max(0, i - window):i]
        if len(before) < least:
            continue
        judged += 1
        mean = sum(before) / len(before)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in before) / len(before))
        spikes += loss >= mean + deviations * deviation
    return spikes / judged if judged else 0.0


def test_spike_score_is_the_share_of_steps_far_above_the_rolling_mean():
    draw = torch.Generator().manual_seed(0)
    losses = (3.0 + 0.1 * torch.randn(600, generator=draw)).tolist()
    for step in (100, 300, 301):
        losses[step] = 9.0
    for window in (50, 200, 1000):
        assert probes.spike_score(losses, window=window) == pytest.approx(brute_spikes(losses, window, 7.0, 32))
    assert probes.spike_score(losses, window=50) == pytest.approx(2 / 568)  # 301 has 300 in its window
    assert probes.spike_score(losses[:100]) == 0.0 == probes.spike_score([]) == probes.spike_score([1.0] * 20)
    assert probes.spike_score([2.0] * 300) == 0.0  # no spread is no spike
