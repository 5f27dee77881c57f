"""An arm's blocks in a user's model: what they compute, what they draw, and that all else is as the family makes it."""

import math

import pytest
import torch
from torch import nn

import nonlin
from nonlin import functional
from nonlin.patching import describe_blocks
from nonlin.subject import build, entering
from nonlin.subject.building import family_model
from nonlin.subject.widths import flops_per_token, matched_width
from tests.subject.tiny import ARMS, CONTEXT, VOCABULARY, described, run_config

FAMILIES = ("llama", "gpt2", "opt", "qwen3_moe", "gpt_oss", "phi3")


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, CONTEXT), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FAMILIES)
def test_arms_are_equal_outside_their_blocks_and_train(name):
    found = described(name)
    assert len({arm["outside"] for arm in found["arms"]}) == 1
    plain = dict(family_model(found["own"], 1).named_parameters())
    for arm in ARMS:
        model = build(run_config(found, arm), nonlin.get(arm))
        owned = {n for block in model.replaced for n in block.owned}
        others = {n: p for n, p in model.inner.named_parameters() if n not in owned}
        assert others and all(torch.equal(p, plain[n]) for n, p in others.items())
        model.loss(tokens(), tokens()).backward()
        reached = {n for n, p in model.inner.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert owned <= reached, owned - reached
        assert sum(p.numel() for p in model.parameters()) == next(
            a["parameters"] for a in found["arms"] if a["name"] == arm)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("arm", ["swiglu", "relu", "prelu"])
def test_a_block_computes_the_arms_activation_of_its_products(name, arm):
    """What reaches the down projection is the activation of what the projections returned, by torch in float64."""
    found = described(name)
    model = build(run_config(found, arm), nonlin.get(arm)).eval()
    definition, seen = nonlin.get(arm), []

    class Watch:
        def append(self, entry, block):
            seen.append((entry, block))

    with torch.no_grad():
        model(tokens(), Watch())
    assert len(seen) == len(model.replaced)
    for (inputs, hidden, _), block in seen:
        rows = [(given, made) for given, made, _ in inputs] if block.stacked else [(inputs, hidden)]
        learned = {q.name: torch.tensor([q.initial], dtype=torch.float64) for q in definition.parameters}
        for given, made in rows:
            expected = functional.activation(definition)(*(x.double() for x in given), **learned)
            assert torch.allclose(made.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "opt"])
def test_the_familys_own_activation_gives_the_familys_own_model(name):
    """With the family's weights in an arm of its own activation, the logits are the family's."""
    found = described(name)
    own = found["own"]["blocks"][0]["computes"]
    family = family_model(found["own"], 5).eval()
    config = {**run_config(found, "relu", 5), "model": {
        "own": found["own"], "widths": [g["hidden"] for g in found["own"]["blocks"]], "context": CONTEXT}}
    model = build(config, nonlin.get(own)).eval()
    ours, theirs = dict(model.inner.named_parameters()), dict(family.named_parameters())
    with torch.no_grad():
        for path, value in theirs.items():
            inner = path if path in ours else path.replace(".weight", ".up.weight").replace(".bias", ".up.bias")
            ours[inner].copy_(value)
        assert torch.allclose(model(tokens()), family(tokens()).logits, atol=1e-5)


def test_experts_compute_what_a_loop_over_them_computes():
    """The routed sum of each expert's block, written out, is what the layer's experts return."""
    found = described("qwen3_moe")
    for arm in ("swiglu", "relu"):
        model = build(run_config(found, arm), nonlin.get(arm)).eval()
        experts = model.inner.model.layers[0].mlp.experts
        x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
        index = torch.tensor([[0, 1], [2, 3], [1, 2], [0, 3], [3, 1], [2, 0]])
        weights = torch.softmax(torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), -1)
        expected = torch.zeros(6, 16)
        for row in range(6):
            for place in range(2):
                e = int(index[row, place])
                if arm == "relu":
                    hidden = torch.relu(experts.up_proj[e] @ x[row])
                else:
                    gate, up = (experts.gate_up_proj[e] @ x[row]).chunk(2)
                    hidden = nn.functional.silu(gate) * up
                expected[row] += weights[row, place] * (experts.down_proj[e] @ hidden)
        assert torch.allclose(experts(x, index, weights), expected, atol=1e-6)


def test_weights_are_drawn_by_the_familys_std_from_a_stream_of_their_own():
    found = described("gpt2")
    std = found["own"]["blocks"][0]["std"]
    assert std["up"] == 0.02 and math.isclose(std["down"], 0.01, rel_tol=0.1)  # GPT-2: smaller by the depth
    one, same, other = (build(run_config(found, "relu", seed), nonlin.get("relu")) for seed in (1, 1, 2))
    up = [m.inner.transformer.h[0].mlp.c_fc.weight for m in (one, same, other)]
    assert torch.equal(up[0], up[1]) and not torch.equal(up[0], up[2])
    assert math.isclose(float(up[0].detach().std()), 0.02, rel_tol=0.1)
    gelu = build(run_config(found, "gelu"), nonlin.get("gelu"))
    assert torch.equal(gelu.inner.transformer.h[0].mlp.c_fc.weight, up[0])  # one stream a kind


@pytest.mark.parametrize("match", ["params", "flops", "time", "width"])
def test_widths_are_matched(match):
    found = described("llama", match)
    sizes = {arm["name"]: arm["parameters"] for arm in found["arms"]}
    widths = {arm["name"]: arm["widths"] for arm in found["arms"]}
    if match == "width":
        assert widths["relu"] == widths["swiglu"] == [40] and sizes["relu"] < sizes["swiglu"]
    else:
        assert widths["relu"] == [60] and sizes["relu"] == sizes["swiglu"]
        assert len({arm["flops_per_token"] for arm in found["arms"]}) == 1
    assert matched_width(8, True, False, "params") == 12


def test_operations_are_those_that_a_counter_sees():
    """Three times the forward pass of the family's own model, as torch counts it with attention written out."""
    from torch.utils.flop_counter import FlopCounterMode

    found = described("llama")
    model = family_model(found["own"], 1).eval()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(1))
    widths = [g["hidden"] for g in found["own"]["blocks"]]
    assert flops_per_token(found["own"], widths, True) == round(3 * counter.get_total_flops() / CONTEXT)


def test_operations_of_a_long_context_follow_from_shorter_ones(monkeypatch):
    from nonlin.subject import describe, looking
    from tests.subject.tiny import configuration, request

    asked = request({"config": configuration("llama")}, arms=("swiglu", "relu"), context=64)
    counted = describe(asked)["own"]["outside"]["forward_flops"]
    monkeypatch.setattr(looking, "_LONGEST", 16)
    assert describe(asked)["own"]["outside"]["forward_flops"] == counted


def test_what_is_replaced_is_found_again_as_what_it_computes():
    """The blocks of an arm's model are blocks to whoever looks: the check of a model reads them."""
    for name, arm in (("llama", "relu"), ("llama", "geglu"), ("gpt2", "swiglu")):
        model = build(run_config(described(name), arm), nonlin.get(arm)).eval()
        assert [b.activation for b in describe_blocks(model.inner)] == [arm, arm]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_activation_checkpointing_changes_no_gradient(name):
    found = described(name)
    again = {**found, "own": {**found["own"], "checkpointing": True}}
    grads = []
    for one in (found, again):
        model = build(run_config(one, "swiglu"), nonlin.get("swiglu"))
        assert model.inner.is_gradient_checkpointing is (one is again)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.loss(tokens(), tokens()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_autocast_computes_products_in_bfloat16_and_keeps_weights_in_float32():
    found = described("llama")
    wide, narrow = (build(run_config(found, "relu", dtype=d), nonlin.get("relu")) for d in ("float32", "bfloat16"))
    assert all(p.dtype is torch.float32 for p in narrow.parameters())
    off = float((wide(tokens()) - narrow(tokens()).float()).detach().norm() / wide(tokens()).detach().norm())
    assert 1e-4 < off < 0.05
    narrow.loss(tokens(), tokens()).backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in narrow.parameters())


def test_steps_are_compiled_and_what_is_watched_is_not(monkeypatch):
    """The compiler gets the model itself once; a backend that only counts its graphs stands for it."""
    calls = []

    def counted(model, **options):
        def run(*args, **kwargs):
            calls.append(kwargs)
            return model(*args, **kwargs)
        return run

    monkeypatch.setattr(torch, "compile", counted)
    model = build(run_config(described("llama"), "relu"), nonlin.get("relu"))
    plain = model.loss(tokens(), tokens())
    model.compile_steps()
    assert torch.equal(model.loss(tokens(), tokens()), plain) and len(calls) == 1
    with torch.no_grad():
        model.loss(tokens(), tokens())
    model.eval()(tokens())
    assert len(calls) == 1


@pytest.mark.slow
def test_a_compiled_step_gives_the_plain_ones_gradients():
    grads = []
    for compiled in (False, True):
        model = build(run_config(described("llama"), "swiglu"), nonlin.get("swiglu"))
        if compiled:
            model.compile_steps()
        model.loss(tokens(), tokens()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-3, atol=1e-6) for n in grads[0])


def test_an_activation_that_writes_into_its_input_lies_between():
    parts = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))
    (made, reached), _ = entering._between(parts[0], parts[2], lambda: parts(torch.randn(3, 4)))
    assert (made < 0).any() and torch.equal(made.relu(), reached)
