"""Functions that return a module: what their blocks may share, and what makes no study."""

import pytest
import torch

import nonlin
from nonlin.errors import UserError
from nonlin.subject import build, describe, wanted
from nonlin.subject.saving import save
from tests.subject.test_study import module_of
from tests.subject.tiny import request, run_config

FUNCTIONS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)

    def forward(self, x):
        return self.down(self.act(self.up(x)))

class Tiny(nn.Module):
    def __init__(self, *blocks, vocabulary=256):
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocabulary, 16), nn.Linear(16, vocabulary)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)

def shared_block():
    block = Block()
    return Tiny(block, block)

def shared_weight():
    one, two = Block(), Block()
    two.up.weight = one.up.weight
    return Tiny(one, two)

def shared_with_another_part():
    made = Tiny(Block())
    made.other = nn.Linear(16, 32)
    made.other.weight = made.blocks[0].up.weight
    return made

def computed_weight():
    made = Tiny(Block())
    nn.utils.parametrizations.weight_norm(made.blocks[0].up)
    return made

_kept = []

def kept():
    _kept or _kept.append(Tiny(Block()))
    return _kept[0]

def compiled():
    return torch.compile(Tiny(Block()))

def few_tokens():
    return Tiny(Block(), vocabulary=100)

class Dropping(Block):
    def forward(self, x):
        return nn.functional.dropout(self.down(nn.functional.gelu(self.up(x))), 0.1, self.training)

def dropping():
    return Tiny(Dropping())

class Named(Tiny):
    def forward(self, tokens):
        return {"logits": super().forward(tokens)}

def named():
    return Named(Block())

class Turned(Tiny):
    def forward(self, tokens):
        return super().forward(tokens).transpose(1, 2)

def turned():
    return Turned(Block())
"""


def function(name, tmp_path, monkeypatch):
    (tmp_path / "functions_of_a_user.py").write_text(FUNCTIONS)
    return getattr(module_of(tmp_path / "functions_of_a_user.py", monkeypatch), name)


def described(name, tmp_path, monkeypatch):
    values = dict(wanted(function(name, tmp_path, monkeypatch)).values)
    return describe(request(values, arms=("gelu", "swiglu"), vocabulary=256))


def test_a_block_that_layers_share_is_one_block(tmp_path, monkeypatch):
    """It has two names, and is replaced once: both layers compute the arm's, before and after it is saved."""
    found = described("shared_block", tmp_path, monkeypatch)
    assert [(group["names"], group["uses"]) for group in found["own"]["blocks"]] == [(["blocks.0"], 2.0)]
    assert found["arms"][0]["outside"] == found["arms"][1]["outside"]
    model = build(run_config(found, "swiglu"), nonlin.get("swiglu"))
    assert model.inner.blocks[0] is model.inner.blocks[1]
    assert found["arms"][1]["parameters"] == sum(p.numel() for p in model.parameters())
    tokens = torch.arange(16)[None]
    save(model, tmp_path / "saved")
    assert torch.equal(nonlin.load(tmp_path / "saved")(tokens), model.eval()(tokens))


@pytest.mark.parametrize(("name", "words"), [
    ("shared_weight", r"those of another part, too: blocks.0.up.weight is blocks.1.up.weight"),
    ("shared_with_another_part", r"those of another part, too: blocks.0.up.weight is other.weight"),
    ("computed_weight", "the weights of blocks.0.up are computed from others"),
    ("kept", "makes a new module at each call; got 'kept, which returned the same one again'"),
    ("compiled", "as it was before torch.compile; got 'compiled'"),
    ("dropping", "probability of 0.1 that no part keeps as a number; and no part that it calls is its activation"),
    ("few_tokens", "tokenizer must have at most the model's 100 tokens; got 256"), ("named", "it returned dict"),
    ("turned", r"it returned torch.Size\(\[1, 256, 16\]\)")])
def test_what_makes_no_study_is_one_error(name, words, tmp_path, monkeypatch):
    """Weights that a block shares would silently be two in every arm, and the arms not the user's model."""
    with pytest.raises(UserError, match=words):
        described(name, tmp_path, monkeypatch)
