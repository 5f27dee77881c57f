"""Blocks as people write them by hand: found, read and replaced whatever the order and the nesting of their parts."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nonlin
from nonlin import health
from nonlin.errors import UserError
from nonlin.patching import describe_blocks
from nonlin.patching.finding import find_blocks

D, H = 16, 40


class Half(nn.Module):
    """A gated activation of one tensor's halves: act(second) * first."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        value, gate = x.chunk(2, -1)
        return value * self.act(gate)


class Ordered(nn.Module):
    """LLaMA's three matrices, in an order of one's own: its reference code has w1, w2 and w3."""

    def __init__(self, order):
        super().__init__()
        for name in order:
            sizes = (H, D) if name == "w2" else (D, H)
            self.add_module(name, nn.Linear(*sizes, bias=False))

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Projected(nn.Module):
    """The first half of a block with its activation, in a module of its own."""

    def __init__(self):
        super().__init__()
        self.proj, self.act = nn.Linear(D, 2 * H), Half(F.gelu)

    def forward(self, x):
        return self.act(self.proj(x))


def packed(act, *more):
    return nn.Sequential(nn.Linear(D, 2 * H), act, *more, nn.Linear(H, D))


FORMS = {
    **{"".join(order): (lambda order=order: Ordered(order), "swiglu", "separate")
       for order in (("w1", "w2", "w3"), ("w2", "w1", "w3"), ("w1", "w3", "w2"))},
    "packed": (lambda: packed(Half(F.silu)), "swiglu", "concatenated"),
    "packed, dropout": (lambda: packed(Half(F.gelu), nn.Dropout(0.1)), "geglu", "concatenated"),
    "nn.GLU": (lambda: packed(nn.GLU()), "glu", "concatenated"),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(D, H), nn.GELU()), nn.Dropout(0.1), nn.Linear(H, D)),
               "gelu", "plain"),
    "nested, packed": (lambda: nn.Sequential(Projected(), nn.Dropout(0.1), nn.Linear(H, D)), "geglu", "concatenated"),
}


class Tiny(nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(make() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("form", FORMS)
def test_a_block_is_found_read_and_replaced(form):
    make, activation, layout = FORMS[form]
    model, x = Tiny(make).eval(), torch.randn(2, 7, D)
    assert [(b.name, b.activation, b.dim, b.hidden) for b in describe_blocks(model)] == [
        (f"layers.{i}", activation, D, H) for i in range(2)]
    before = model(x)
    report = nonlin.accelerate(model)
    assert [(c.activation, c.layout) for c in report.changed] == [(activation, layout)] * 2 and not report.left_alone
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    with health.watch(model.train()) as watched:
        model(x)
    assert [b["activation"]["computed"] for b in watched.record()["blocks"]] == [activation] * 2
    nonlin.restore(model.eval())
    with warnings.catch_warnings(action="ignore"):
        nonlin.swap(model, "relu")
    assert not torch.allclose(model(x), before, atol=1e-3)
    nonlin.restore(model)
    assert torch.equal(model(x), before)


class Layer(nn.Module):
    """A layer that holds all its projections itself: attention's, and those of its block."""

    def __init__(self, up, down):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.add_module(up, nn.Linear(D, H))
        self.add_module(down, nn.Linear(H, D))
        self.names = up, down

    def forward(self, x):
        up, down = (getattr(self, name) for name in self.names)
        x = x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return x + down(F.gelu(up(x)))


@pytest.mark.parametrize("names", [("fc1", "fc2"), ("ff_proj", "ff_out"), ("mlp_in", "mlp_out"), ("c_fc", "c_fc_out")])
def test_a_layer_that_holds_all_its_projections(names):
    """It is read, and not replaced: its layer computes it. It was not found, though health can read it."""
    model = Tiny(lambda: Layer(*names)).train()
    with health.watch(model) as watched:
        model(torch.randn(2, 7, D))
    assert [b["activation"]["computed"] for b in watched.record()["blocks"]] == ["gelu"] * 2
    with pytest.raises(UserError, match="something stands in the block"):
        nonlin.accelerate(model)


class Holding(nn.Module):
    """Products by name, and the sizes of each: a layer, or a part of one."""

    def __init__(self, **products):
        super().__init__()
        for name, sizes in products.items():
            self.add_module(name, nn.Linear(*sizes))
        self.act = nn.ReLU()


ROWS = {"grouped attention": lambda: Holding(fc_q=(D, D), fc_k=(D, 4), fc_v=(D, 4), fc_o=(D, D)),
        "three in a row": lambda: Holding(fc1=(D, H), fc2=(H, H), fc3=(H, D)),
        "more between": lambda: nn.Sequential(nn.Linear(D, 2 * H), nn.Bilinear(1, 1, 1), nn.Linear(H, D))}


@pytest.mark.parametrize("row", ROWS)
def test_products_that_make_no_block_are_none(row):
    """Each was read as a block that nobody understands, and swap refused the model for it."""
    assert [b.name for b in find_blocks(ROWS[row]())] == []


def test_attention_beside_a_block_is_not_taken_for_one():
    layer = Holding(to_q=(D, D), to_k=(D, D), to_v=(D, D), up_proj=(D, H), down_proj=(H, D))
    assert [(b.up.name, b.down.name) for b in find_blocks(layer)] == [("up_proj", "down_proj")]


def frozen_into_buffers(model):
    """A frozen model whose weights are buffers, so that nobody sends them gradients."""
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, None if value is None else value.detach())
    return model


def test_weights_that_are_buffers():
    block = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))
    model = frozen_into_buffers(nn.Sequential(nn.Embedding(50, D), block, nn.Linear(D, 50))).eval()
    tokens = torch.randint(0, 50, (2, 5))
    before = model(tokens)
    report = nonlin.accelerate(model)
    assert len(report.changed) == 1 and "on a CPU" in str(report)
    torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-5)
    assert [b["activation"]["computed"] for b in health.check(model, tokens=64)["blocks"]] == ["gelu"]
    nonlin.restore(model)
    with warnings.catch_warnings(action="ignore"):
        assert len(nonlin.swap(model, "relu").changed) == 1
    with health.watch(model) as watched:
        model(tokens)
    assert [b["activation"]["computed"] for b in watched.record()["blocks"]] == ["relu"]


@pytest.mark.parametrize("call", [nonlin.accelerate, lambda m: nonlin.swap(m, "relu")], ids=["accelerate", "swap"])
def test_weights_of_eight_bits_are_refused(call):
    with pytest.raises(UserError, match="float8_e4m3fn: quantized weights stay as they are"):
        call(nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D)).to(torch.float8_e4m3fn))


def test_a_lazy_module_that_has_not_run_is_one_error():
    model = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D), nn.LazyLinear(3))
    with pytest.raises(UserError, match="weights must be initialized; got 'lazy modules"):
        health.watch(model)
    model(torch.randn(2, D))
    with health.watch(model) as watched:
        model(torch.randn(2, D))
    assert len(watched.record()["blocks"]) == 1
