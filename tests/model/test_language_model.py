"""The model against an independent float64 forward, its counts, its weights, and its two engines."""

import math

import pytest
import torch

import nonlin
from nonlin.errors import UserError
from nonlin.kernels.transformer import native
from nonlin.kernels.transformer.engine import engine
from nonlin.model import LanguageModel, ModelConfig, flops_per_token, parameter_count

SIZES = ModelConfig(layers=2, dim=24, heads=4, kv_heads=2, context=20, vocabulary=50, hidden=40)


def tokens_of(config, batch=3, time=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocabulary, (batch, time or config.context), generator=draw)


def written_out(model, tokens):
    """The logits by a loop over positions and heads, in float64: nothing of the model's code but its weights."""
    w, c = {name: p.detach().double() for name, p in model.named_parameters()}, model.config

    def norm(x, scale):
        return x / (x.square().mean() + 1e-6).sqrt() * scale

    def rotate(x, position):
        half = len(x) // 2
        angle = torch.tensor([position * 10_000.0 ** (-2 * i / len(x)) for i in range(half)], dtype=torch.float64)
        a, b = x[:half], x[half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])

    stream = [w["embedding.weight"][t] for t in tokens]
    width, activation = c.dim // c.heads, nonlin.nn.Activation(model.definition.name).double()
    for name, value in model.blocks[0].feed_forward.activation.named_parameters():
        getattr(activation, name).data.copy_(value)
    for layer in range(c.layers):
        p = f"blocks.{layer}."
        normed = [norm(x, w[p + "attention_norm.weight"]) for x in stream]
        q, k, v = ([w[f"{p}attention.{n}.weight"] @ x for x in normed] for n in "qkv")
        for t in range(len(stream)):
            heads = []
            for h in range(c.heads):
                shared = h // (c.heads // c.kv_heads)
                mine = slice(h * width, (h + 1) * width)
                its = slice(shared * width, (shared + 1) * width)
                query = rotate(norm(q[t][mine], w[p + "attention.q_norm.weight"]), t)
                keys = [rotate(norm(k[s][its], w[p + "attention.k_norm.weight"]), s) for s in range(t + 1)]
                share = torch.stack([query @ key / math.sqrt(width) for key in keys]).softmax(0)
                heads.append(sum(a * v[s][its] for s, a in enumerate(share)))
            stream[t] = stream[t] + w[p + "attention.o.weight"] @ torch.cat(heads)
        for t, x in enumerate(stream):
            x = norm(x, w[p + "feed_forward_norm.weight"])
            inputs = [w[f"{p}feed_forward.up.weight"] @ x]
            if model.definition.gated:
                inputs.insert(0, w[f"{p}feed_forward.gate.weight"] @ x)
            stream[t] = stream[t] + w[p + "feed_forward.down.weight"] @ activation(*inputs).detach()
    head = w["embedding.weight" if c.tied else "head.weight"]
    return torch.stack([head @ norm(x, w["norm.weight"]) for x in stream])


@pytest.mark.parametrize(("name", "changes"), [
    ("swiglu", {}), ("gelu", {"kv_heads": 4}), ("relu_squared", {"kv_heads": 1, "tied": True}), ("prelu", {})])
def test_the_model_is_what_its_description_says(name, changes):
    config = ModelConfig(**vars(SIZES) | changes)
    model = LanguageModel(config, nonlin.get(name), seed=3)
    with torch.no_grad():  # scales of 1 would hide that one is forgotten
        for parameter in model.parameters():
            parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens = tokens_of(config, 1)
    want = written_out(model, tokens[0])
    got = model(tokens)[0].detach()
    # float32, about 8 products of up to 40 terms one after another
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    targets = tokens_of(config, 1, seed=1)
    nats = -want.log_softmax(-1)[range(config.context), targets[0]].mean()
    assert float(model.loss(tokens, targets).detach()) == pytest.approx(float(nats), rel=1e-5)


def test_no_position_sees_a_later_one():
    model, tokens = LanguageModel(SIZES, nonlin.get("swiglu")), tokens_of(SIZES)
    changed = tokens.clone()
    changed[:, 11:] = 49 - changed[:, 11:]
    a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :11], b[:, :11]) and not torch.equal(a[:, 11], b[:, 11])
    with pytest.raises(UserError, match="fit the context of 20"):
        model(torch.zeros(1, 21, dtype=torch.long))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", ["gelu", "swiglu", "prelu", "xielu"])
def test_parameters_are_counted_as_the_module_has_them(name, kv_heads, tied):
    config = ModelConfig(**vars(SIZES) | {"kv_heads": kv_heads, "tied": tied})
    definition = nonlin.get(name)
    model = LanguageModel(config, definition)
    assert parameter_count(config, definition.gated, len(definition.parameters)) == sum(
        p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_flops_are_counted_as_torch_counts_them(name):
    from torch.utils.flop_counter import FlopCounterMode

    model = LanguageModel(SIZES, nonlin.get(name))
    tokens = tokens_of(SIZES, 4)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).backward()
    # torch counts attention by the kernel that ran, two products forward and five backward on the flash path
    attention = {op: n for op, n in counter.get_flop_counts()["Global"].items() if "attention" in str(op)}
    linear = counter.get_total_flops() - sum(attention.values())
    ours = flops_per_token(SIZES, model.definition.gated) - 12 * SIZES.layers * SIZES.dim * SIZES.context
    assert linear == ours * tokens.numel()


def test_models_that_differ_in_the_activation_alone_start_equal_elsewhere():
    def weights(name, hidden, seed=5):
        model = LanguageModel(ModelConfig(**vars(SIZES) | {"hidden": hidden}), nonlin.get(name), seed=seed)
        return {n: p for n, p in model.named_parameters() if ".feed_forward." not in n}

    base = weights("gelu", 96)
    for name, hidden in (("swiglu", 64), ("prelu", 96), ("relu_squared", 8)):
        other = weights(name, hidden)
        assert other.keys() == base.keys() and all(torch.equal(other[n], base[n]) for n in base)
    assert not torch.equal(weights("gelu", 96, seed=6)["head.weight"], base["head.weight"])
    one, two = (LanguageModel(SIZES, nonlin.get(n), seed=5) for n in ("gelu", "silu"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_weights_have_the_spread_that_is_said():
    config = ModelConfig(layers=3, dim=128, heads=4, kv_heads=4, hidden=512)
    model = LanguageModel(config, nonlin.get("gelu"))
    for name, p in model.named_parameters():
        if p.ndim < 2:
            assert (p == 1).all()
            continue
        wanted = {"embedding.weight": 1.0, "head.weight": 0.02}.get(name, p.shape[1] ** -0.5)
        if name.endswith(("o.weight", "down.weight")):
            wanted /= math.sqrt(6)
        spread = 5 / math.sqrt(2 * p.numel())  # five standard errors of a deviation
        assert float(p.std()) == pytest.approx(wanted, rel=spread) and abs(float(p.mean())) < 5 * wanted * (
            p.numel() ** -0.5), name


@pytest.mark.parametrize("values", [{"dim": 30, "heads": 4}, {"dim": 12, "heads": 4}, {"kv_heads": 3}, {"layers": 0},
                                    {"vocabulary": -1}])
def test_sizes_that_make_no_model(values):
    with pytest.raises(UserError, match="must"):
        ModelConfig(**values)


@pytest.mark.skipif(native.library() is None, reason=f"no native engine: {native.unavailable()}")
@pytest.mark.parametrize("name", nonlin.names())
def test_the_native_engine_trains_what_torch_trains(name):
    """Loss and every gradient, at equal weights, against torch in float64."""
    definition, tokens = nonlin.get(name), tokens_of(SIZES)
    targets = tokens_of(SIZES, seed=1)
    ours = LanguageModel(SIZES, definition, engine("native"), seed=1)
    exact = LanguageModel(SIZES, definition, engine("torch"), seed=1).double()
    loss, want = ours.loss(tokens, targets), exact.loss(tokens, targets)
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    loss.backward(), want.backward()
    gradients = dict(exact.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in gradients.values())
    for n, p in ours.named_parameters():
        exact_grad = gradients[n].grad
        scale = max(float(exact_grad.abs().max()), 1e-3 * largest)
        assert float((p.grad - exact_grad).abs().max()) < 3e-5 * scale, n
