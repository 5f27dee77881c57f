"""Blocks are found in every family, and what they compute is found by computing it."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nonlin
from nonlin import functional
from nonlin.patching.blocks import fed_forward
from nonlin.patching.configuration import claimed
from nonlin.patching.finding import find_blocks
from nonlin.patching.identification import identify, identify_all
from tests.patching.families import FAMILIES

pytest.importorskip("transformers", reason="transformers is not installed")
warnings.filterwarnings("ignore", module="transformers")


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_found_identified_and_reproduced(name):
    family = FAMILIES[name]
    model = family.build()
    before = copy.deepcopy(model.state_dict())
    stream = torch.get_rng_state()
    found = identify_all(model, find_blocks(model))
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for b in find_blocks(model)
                   for m in (b.up.module, b.down.module))
    assert len(found) == family.blocks
    for answer in found:
        assert (answer.status, answer.block.layout) == ("found", family.layout)
        assert answer.definition is not None and answer.definition.name == family.activation
        claim = claimed(model, answer.block)
        assert claim is not None and claim.name == family.activation
        assert answer.block.projections.keys() == ({"gate", "up", "down"} if answer.block.gated else {"up", "down"})


CALLABLE = [name for name in FAMILIES if name not in ("bert", "opt", "gpt_oss", "qwen3_moe")]


@pytest.mark.parametrize("name", CALLABLE)
def test_projections_and_activation_are_the_whole_block(name):
    """The weight views, the layout and the definition compute the block's own output; so nothing was overlooked."""
    model = FAMILIES[name].build()
    answer = identify_all(model, find_blocks(model))[0]
    block, match = answer.block, answer.matches[0]
    parameters = {k: torch.tensor([v]) for k, v in match.parameters.items()}
    x = 3 * torch.randn(2, 5, block.dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = block.module(x)
        ours = fed_forward(block, x, lambda *i: functional.activation(match.definition)(*i, **parameters))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe"])
def test_experts_are_reproduced(name):
    model = FAMILIES[name].build()
    answer = identify_all(model, find_blocks(model))[0]
    x = 2 * torch.randn(7, answer.block.dim, generator=torch.Generator().manual_seed(1))
    index = torch.full((7, 1), 3)
    with torch.no_grad():
        expected = answer.block.module(x, index, torch.ones(7, 1))
        ours = fed_forward(answer.block, x, functional.activation(answer.matches[0].definition), expert=3)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


class Mlp(nn.Module):
    """A block that hides its activation in a functional call."""

    def __init__(self, act, packed=False, swap=False):
        super().__init__()
        self.act, self.packed, self.swap = act, packed, swap
        self.a = nn.Linear(8, 64 if packed else 32)
        if not packed:
            self.b = nn.Linear(8, 32)
        self.c = nn.Linear(32, 8)

    def forward(self, x):
        first, second = self.a(x).chunk(2, -1) if self.packed else (self.a(x), self.b(x))
        return self.c(self.act(second, first) if self.swap else self.act(first, second))


GATED = {d: functional.activation(d) for d in nonlin.names() if nonlin.get(d).kind == "gated"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", GATED)
def test_every_gated_activation_in_every_order(name, packed, swap):
    answer = identify(find_blocks(Mlp(GATED[name], packed, swap))[0])
    assert answer.status == "found" and answer.definition is nonlin.get(name)
    symmetric = name in ("bilinear", "drelu")
    if packed and not symmetric:
        assert answer.block.gate.part == ("second" if swap else "first")
    if not packed and not symmetric:
        assert answer.block.gate.name == ("b" if swap else "a")


PLAIN = [d for d in nonlin.names() if nonlin.get(d).kind != "gated"]
# With its parameters at their start, a member of a family is its simpler sibling.
SIBLINGS = {"swish_beta": "silu", "xgelu": "gelu", "xsilu": "silu"}


@pytest.mark.parametrize("name", PLAIN)
def test_every_plain_activation(name):
    class Act(nn.Module):
        def forward(self, x):
            return functional.activation(name)(x)

    answer = identify(find_blocks(nn.Sequential(nn.Linear(8, 32), Act(), nn.Linear(32, 8)))[0])
    assert answer.status == "found", answer
    assert answer.definition.name == SIBLINGS.get(name, name)


@pytest.mark.parametrize("act, name, parameters", [
    (lambda x: F.leaky_relu(x, 0.2), "prelu", {"slope": 0.2}),
    (lambda x: x * torch.sigmoid(2.5 * x), "swish_beta", {"beta": 2.5}),
    (lambda x: F.gelu(x) * 1.6 - 0.3 * x, "xgelu", {"alpha": 0.3}),
])
def test_parameters_are_found(act, name, parameters):
    class Act(nn.Module):
        def forward(self, x):
            return act(x)

    answer = identify(find_blocks(nn.Sequential(nn.Linear(8, 32), Act(), nn.Linear(32, 8)))[0])
    assert answer.definition.name == name
    assert answer.matches[0].parameters == pytest.approx(parameters, rel=1e-5)


def test_forgotten_clamp_is_a_partial_match():
    answer = identify(find_blocks(Mlp(lambda g, u: g * torch.sigmoid(1.702 * g) * (u + 1)))[0])
    assert answer.status == "partial" and answer.matches[0].definition.name == "swiglu_oai"
    assert 7 < answer.within < 7.2


def test_unknown_says_what_is_closest():
    answer = identify(find_blocks(Mlp(lambda g, u: torch.sin(3 * g) * u))[0])
    assert answer.status == "unknown" and answer.definition is None and "closest is" in answer.reason


def test_sixteen_bits_that_cannot_tell_are_ambiguous():
    answer = identify(find_blocks(Mlp(lambda g, u: (F.gelu(g) * u).bfloat16()))[0])
    assert answer.status == "ambiguous"
    assert {m.definition.name for m in answer.matches} == {"geglu", "geglu_tanh"}


def test_what_a_block_raises_is_told_on_one_line():
    def asleep(gate, up):
        raise RuntimeError("this block\n    is asleep")

    answer = identify(find_blocks(Mlp(asleep))[0])
    assert answer.status == "unknown" and "RuntimeError: this block is asleep" in answer.reason


def test_block_that_cannot_be_called_alone_is_reached_through_the_model():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, x):
            return self.layer.fc2(F.silu(self.layer.fc1(x)))

    model = Net()
    block = find_blocks(model)[0]
    alone = identify(block)
    assert alone.status == "unknown" and "cannot be called alone" in alone.reason
    assert identify(block, lambda: model(torch.zeros(1, 300, 8))).label == "silu"


def test_dropout_and_modes_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 8)).train()
    model[1].eval()
    assert identify(find_blocks(model)[0]).label == "gelu"
    assert [m.training for m in model] == [True, False, True, True]


def test_adapters_are_seen_through():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = FAMILIES["llama"].build()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["gate_proj", "down_proj"], r=2))
    found = identify_all(wrapped, find_blocks(wrapped))
    assert [a.label for a in found] == ["swiglu", "swiglu"]
    assert found[0].block.down.weight.shape == (16, 40)


def test_torch_transformer_layer_and_no_attention():
    layer = nn.TransformerEncoderLayer(16, 2, 48, activation="gelu", batch_first=True).eval()
    found = find_blocks(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    assert [(b.up.name, b.down.name) for b in found] == [(f"layers.{i}.linear1", f"layers.{i}.linear2") for i in (0, 1)]
    assert identify(found[0]).label == "gelu"
