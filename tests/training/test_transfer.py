"""Transfer: CompleteP against the paper's own form with multipliers, coordinate checks, and planted wrong rules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from nonlin.data import batch
from nonlin.errors import UserError
from nonlin.training import Run, run_trial, transfer
from nonlin.training.recipe import learning_rate

BASE = {"layers": 2, "dim": 16, "heads": 2, "kv_heads": 1}


@pytest.fixture
def sized(config):
    """Return a run's configuration at another size: ``sized(dim=64, layers=8, transfer=True, **training)``."""

    def make(dim=16, layers=2, heads=None, activation="gelu", tied=False, rate=0.01, reference=None, tokens=None,
             carried=True, **training):
        made = config(activation, steps=20, learning_rate=rate, **training)
        heads = heads or dim // 8
        made["model"] |= {"dim": dim, "layers": layers, "heads": heads, "kv_heads": heads // 2, "hidden": 4 * dim,
                          "tied": tied}
        if carried:
            base = BASE | ({"tokens": tokens} if tokens else {})
            made["training"]["transfer"] = transfer.transfer_of("completep", base, reference or rate)
        return made

    return make


def test_at_its_base_a_transfer_changes_nothing(sized, dataset, tmp_path):
    for tied in (False, True):
        for activation in ("gelu", "xielu"):
            records = [run_trial(sized(activation=activation, tied=tied, carried=carried), dataset.directory,
                                 tmp_path / f"{activation}-{tied}-{carried}") for carried in (False, True)]
            assert records[1]["bits_per_byte"] == pytest.approx(records[0]["bits_per_byte"], rel=1e-6)


#: The table of arXiv:2505.01618 at α = 1, queries' and keys' gains as in arXiv:2512.22382, typed from there:
#: multiplier, initial standard deviation, rate and epsilon, in powers of (m_N, m_L).
PAPER = {
    "embedding": ((0, 0), (0, 0), (0, 0), (-1, 0)), "head": ((-1, 0), (0, 0), (0, 0), (-1, 0)),
    "hidden": ((0, 0), (-0.5, 0), (-1, 0), (-1, -1)), "residual": ((0, -1), (-0.5, 0), (-1, 0), (-1, -1)),
    "norm": ((0, 0), (0, 0), (0, 0), (-1, -1)), "query norm": ((0, 0), (0, 0), (0, 0), (0, -1)),
    "key norm": ((0, 0), (0, 0), (0, 0), (0, -1)), "last norm": ((0, 0), (0, 0), (0, 0), (-1, 0))}


def paper_run(config, dataset, steps):
    """Train as the paper writes it: multipliers in the forward pass, AdamW out in full; return multiplied weights."""
    made, shape = config["training"], config["model"]
    sizes = shape["dim"] / 16, shape["layers"] / 2

    def power(role, which):
        return math.prod(size**p for size, p in zip(sizes, PAPER[role][which], strict=True))

    model = Run(config, dataset).model
    roles = {name: transfer.role_of(name) for name, _ in model.named_parameters()}
    factors = {name: power(role, 0) for name, role in roles.items()}
    weights = {name: (p.detach() / factors[name]).requires_grad_() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in weights.items()}
    deviations = {name: float(p.detach().std()) for name, p in weights.items()}
    for step in range(steps):
        inputs, targets = map(torch.from_numpy, batch(dataset, step, made["batch"], 16, config["seed"]))
        multiplied = {name: factors[name] * p for name, p in weights.items()}
        logits = functional_call(model, multiplied, (inputs,))
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()),
                                        list(weights.values()))
        with torch.no_grad():
            for (name, p), g in zip(weights.items(), gradients, strict=True):
                m, v = moments[name]
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.95).add_(g * g, alpha=0.05)
                rate = learning_rate(made, step)
                if p.ndim == 2:  # independent of the rate of its group
                    p.mul_(1 - rate * made["weight_decay"])
                epsilon = made["epsilon"] * power(roles[name], 3)
                p.sub_(rate * power(roles[name], 2) * (m / (1 - 0.9 ** (step + 1))) / (
                    (v / (1 - 0.95 ** (step + 1))).sqrt() + epsilon))
    return {name: factors[name] * p.detach() for name, p in weights.items()}, deviations, power, roles


def apart(ours, expected, start):
    return max(float((p.detach() - expected[n]).norm() / (expected[n] - start[n]).norm()) for n, p in ours.items())


def test_it_is_the_papers_rule(sized, dataset):
    """At three times the width and four times the depth; epsilon is large, so that its rule counts."""
    asked = sized(dim=48, layers=8, clip=0.0, epsilon=1e-3)
    run = Run(asked, dataset)
    start = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    for _ in range(4):
        run.step()
    expected, deviations, power, roles = paper_run(asked, dataset, 4)
    assert apart(dict(run.model.named_parameters()), expected, start) < 2e-3
    at_base = Run(sized(), dataset).model
    known = {transfer.role_of(n): float(p.detach().std()) for n, p in at_base.named_parameters() if p.ndim == 2
             and "down" not in n}
    for name, role in roles.items():
        if role in known and "down" not in name:
            assert deviations[name] == pytest.approx(known[role] * power(role, 1), rel=0.15), name


@pytest.mark.parametrize("role", ["embedding", "head", "hidden", "residual", "norm", "last norm"])
@pytest.mark.parametrize("part", ["rate", "epsilon"])
def test_a_wrong_power_is_seen(sized, dataset, monkeypatch, role, part):
    from dataclasses import replace

    asked, whole = sized(dim=48, layers=8, clip=0.0, epsilon=1e-3), transfer.groups

    def wrong(*arguments):
        found = whole(*arguments)
        return found | {role: replace(found[role], **{part: 2 * getattr(found[role], part)})}

    expected = paper_run(asked, dataset, 2)[0]
    monkeypatch.setattr(transfer, "groups", wrong)
    run = Run(asked, dataset)
    start = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    for _ in range(2):
        run.step()
    assert apart(dict(run.model.named_parameters()), expected, start) > 0.01


def changes(config, dataset, steps=5):
    """Return how much a few steps change (the stream that the head reads, the logits), root mean squares."""
    run = Run(config, dataset)
    tokens = torch.from_numpy(batch(dataset, 1000, 8, 16, 1)[0])

    def look():
        with torch.no_grad():
            stream = run.model.embedding(tokens)
            for block in run.model.blocks:
                stream = block(stream, run.model.cos, run.model.sin, run.model.engine, None)
            return stream, run.model(tokens)

    before = look()
    for _ in range(steps):
        run.step()
    return [float((a - b).square().mean().sqrt()) for a, b in zip(look(), before, strict=True)]


def trend(values, sizes):
    """Return the exponent of a power law through the values."""
    x, y = (torch.tensor(v).log() for v in (sizes, values))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def trends(make, sizes, dataset):
    measured = [changes(make(size), dataset) for size in sizes]
    return [trend([m[i] for m in measured], [float(s) for s in sizes]) for i in (0, 1)]


WIDTHS, DEPTHS = (16, 32, 64, 128, 256), (2, 4, 8, 16)


@pytest.mark.parametrize("activation", ["gelu", "relu_squared"])
def test_activations_change_alike_at_every_width_and_depth(sized, dataset, activation):
    wide = trends(lambda dim: sized(dim=dim, activation=activation, clip=0.0), WIDTHS, dataset)
    deep = trends(lambda layers: sized(layers=layers, activation=activation, clip=0.0), DEPTHS, dataset)
    assert all(abs(one) < 0.25 for one in (*wide, *deep)), (wide, deep)


def test_a_coordinate_check_sees_wrong_rules(sized, dataset, monkeypatch):
    """One rate for all groups; and the rule with the depth forgotten in the rate of what goes into the residual."""
    from dataclasses import replace

    wide = trends(lambda dim: sized(dim=dim, carried=False, clip=0.0), WIDTHS, dataset)
    deep = trends(lambda layers: sized(layers=layers, carried=False, clip=0.0), DEPTHS, dataset)
    whole = transfer.groups

    def forgetful(asked, model):
        found = whole(asked, model)
        return found | {"residual": replace(found["residual"], rate=found["residual"].rate * model["layers"] / 2)}

    monkeypatch.setattr(transfer, "groups", forgetful)
    forgotten = trends(lambda layers: sized(layers=layers, clip=0.0), DEPTHS, dataset)
    assert max(wide) > 0.4 and max(deep) > 0.4 and max(forgotten) > 0.3, (wide, deep, forgotten)


@settings(max_examples=60, deadline=None)
@given(wide=st.sampled_from([1, 2, 3, 8]), deep=st.sampled_from([1, 2, 5]), tokens=st.integers(1, 10**9),
       rate=st.floats(1e-5, 1.0))
def test_decay_is_independent_of_the_rate_and_rates_fall_with_the_horizon(wide, deep, tokens, rate):
    from nonlin.functions import get
    from nonlin.model import LanguageModel, ModelConfig
    from nonlin.training.optimizer import make_optimizer, set_rate

    shape = {"layers": 2 * deep, "dim": 16 * wide, "heads": 2 * wide, "kv_heads": wide, "context": 8,
             "vocabulary": 16, "hidden": 8}
    made = {"learning_rate": rate, "weight_decay": 0.1, "steps": 10, "batch": 4,
            "transfer": transfer.transfer_of("completep", BASE | {"tokens": tokens}, 0.01)}
    optimizer = make_optimizer(LanguageModel(ModelConfig(**shape), get("gelu")), made, shape)
    set_rate(optimizer, rate / 2)
    share = {group["lr"] * group["weight_decay"] for group in optimizer.param_groups if group["weight_decay"]}
    assert all(one == pytest.approx(0.5 * 0.01 * 0.1, rel=1e-9) for one in share) and share
    fall = (tokens / (10 * 4 * 8)) ** 0.3
    assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(fall * rate / 2, rel=1e-9)


def test_heads_of_another_width_keep_the_size_of_their_logits(sized, dataset):
    """Queries and keys are normalized: logits are at most √W, which grows with the width W of a head."""
    alike, wider = sized(dim=64, heads=8), sized(dim=64, heads=2)
    for asked, gain in ((alike, 1.0), (wider, 0.5)):
        model = Run(asked, dataset).model
        assert float(model.blocks[0].attention.q_norm.weight.detach().mean()) == pytest.approx(gain)
        assert float(model.blocks[0].attention.k_norm.weight.detach().mean()) == 1.0


@pytest.mark.parametrize(("model", "training", "words"), [
    ({"kv_heads": 2}, {}, "kv_heads must be to heads as the base's, 1 to 2"),
    ({"norm": "layer"}, {}, "nonlin's small model"),
    ({"attention": False}, {}, "nonlin's small model"), ({"own": {}}, {}, "nonlin's small model"),
    ({}, {"optimizer": "muon"}, "optimizer must be adamw")])
def test_models_and_recipes_without_a_rule(model, training, words):
    asked = transfer.transfer_of("completep", BASE, 0.01)
    with pytest.raises(UserError, match=words):
        transfer.check_model(asked, training, {"heads": 2, "kv_heads": 1} | model)


@pytest.mark.parametrize(("change", "words"), [
    ({"rule": "mup"}, "unknown rule of transfer 'mup'"), ({"base": {"layers": 2}}, "base must have layers, dim"),
    ({"base": BASE | {"tokens": 0}}, "whole numbers"), ({"learning_rate": 0}, "learning_rate must be positive")])
def test_what_is_no_transfer(change, words):
    with pytest.raises(UserError, match=words):
        transfer.check(transfer.transfer_of("completep", BASE, 0.01) | change)


def test_a_transfer_is_in_a_study_where_it_is_asked_for():
    from nonlin.study import defaults
    from nonlin.study.recipe import WORDS, recipe_values
    from tests.study import studies

    asked = recipe_values(dict.fromkeys(WORDS) | {"transfer": "completep", "learning_rate": 0.02}, None, 64)
    found = asked["training"]["transfer"]
    assert found["base"]["dim"] == defaults.DIM and found["learning_rate"] == 0.02
    plan = studies.plan(training=asked["training"])
    assert "Transfer: CompleteP from" in plan.describe() and plan.hash != studies.plan().hash
    assert plan.config("swiglu", "judge", 0.01, 1)["training"]["transfer"] == found
    assert "transfer" not in studies.plan().training
    with pytest.raises(UserError, match="optimizer must be adamw"):
        studies.plan(training=asked["training"] | {"optimizer": "muon"})
