"""A description's blocks, operations and refusals, of models that a function in a file returns."""

import gc
import hashlib

import pytest

from nonlin.errors import UserError
from nonlin.subject import describe
from nonlin.subject.building import family_model
from nonlin.subject.widths import flops_per_token
from tests.subject.tiny import CONTEXT, configuration, described, request

MODELS = '''
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

class Tiny(nn.Module):
    def __init__(self, attention=False, biases=None):
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 16), nn.Linear(16, 64, bias=False)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2))
        self.attention = attention
        if biases:
            with torch.no_grad():
                for layer, bias in zip(self.layers, biases):
                    layer[0].bias.fill_(bias)
                    layer[2].bias.zero_()

    def forward(self, tokens):
        x = self.embedding(tokens)
        if self.attention:
            x = x + scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)

def plain(): return Tiny()
def attending(): return Tiny(attention=True)
def alike(): return Tiny(biases=(-1.0, -1.0))
def unlike(): return Tiny(biases=(1.0, 3.0))
def nothing(): return None
def circular():
    made = Tiny()
    made.known = [made.embedding, lambda: made]
    return made
'''


@pytest.fixture
def of(tmp_path):
    """Return the description of what a function above returns: ``of("plain")["blocks"]``."""
    path = tmp_path / "models.py"
    path.write_text(MODELS)

    def own(name):
        factory = {"file": str(path), "name": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        return describe(request({"factory": factory}, arms=("gelu", "relu")))["own"]

    return own


@pytest.mark.parametrize(("name", "groups"), [("alike", [-1.0]), ("unlike", [1.0, 3.0])])
def test_biases_begin_with_their_own_blocks_constants(of, name, groups):
    assert [group["std"]["up_bias_mean"] for group in of(name)["blocks"]] == groups


def test_attention_is_counted_whoever_writes_it(of):
    """Two products of T × T × D, however torch fuses them."""
    plain, attending = (of(name)["outside"]["forward_flops"] for name in ("plain", "attending"))
    assert attending - plain == 2 * 2 * CONTEXT * 16


@pytest.mark.parametrize(("name", "searches"), [("plain", 0), ("circular", 3)])
def test_models_are_freed_one_by_one(of, monkeypatch, name, searches):
    """The family's and two arms': by the last reference, or by a search, which is made where that is not enough."""
    collect, calls = gc.collect, []
    monkeypatch.setattr(gc, "collect", lambda: calls.append(collect()))
    of(name)
    assert len(calls) == searches


def test_trained_blocks_of_two_kinds_are_counted_as_they_are():
    groups = [{"names": ["a"], "dim": 4, "uses": 1.0, "gated": True}, {"names": ["b"], "dim": 4, "uses": 1.0,
                                                                       "gated": False}]
    own = {"outside": {"forward_flops": 100.0}, "blocks": groups}
    assert flops_per_token(own | {"checkpoint": {}}, [8, 8], True) == 3 * (100 + 2 * 3 * 4 * 8 * 2)
    trained = own | {"checkpoint": {"folder": "x"}}
    assert flops_per_token(trained, [8, 8], True) == 3 * (100 + 2 * 3 * 4 * 8 + 2 * 2 * 4 * 8)


def test_a_function_that_returns_no_module_is_named(of):
    with pytest.raises(UserError, match="be a function that returns a torch module; got 'NoneType'"):
        of("nothing")


@pytest.mark.parametrize(("name", "arms", "words"), [
    ("llama", ("relu", "solu"), "have a gate"), ("opt", ("relu", "swiglu"), "have no gate"),
    ("llama", ("silu", "relu", "swiglu"), "pointwise one becomes the gate's; got 'silu and swiglu'")])
def test_trained_blocks_keep_their_matrices(tmp_path, name, arms, words):
    family_model(described(name)["own"], 7).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        describe(request({"path": str(tmp_path), "checkpoint": True}, arms=arms))


def test_an_arm_that_is_larger_than_the_familys_model_must_fit_the_memory_too():
    """At equal width a gate is a third matrix: the number is that of the largest arm, before it is built."""
    wanted = {"config": configuration("gpt2")}
    asked = request(wanted, "width", ("gelu", "swiglu"))
    sizes = [arm["parameters"] for arm in describe(asked)["arms"]]
    logits = 8 * 2 * 16 * 64
    with pytest.raises(UserError, match=f"got '{sizes[1]:,} parameters"):
        describe(asked | {"memory_bytes": 16 * sizes[1] + logits - 1})
    assert sizes[0] < sizes[1] and describe(asked | {"memory_bytes": 16 * sizes[1] + logits})
