"""Torch's modes and defaults, in which people load and run models, change nothing that is found in one."""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nonlin
from nonlin import health


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up, self.down = nn.Linear(16, 40), nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Model(nn.Module):
    """A gated block between an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.block, self.embedding, self.head = Block(), nn.Embedding(256, 16), nn.Linear(16, 256)

    def forward(self, tokens):
        return self.head(self.block(self.embedding(tokens)))


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad,
         "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
         **{str(d): lambda d=d: default_dtype(d) for d in (torch.bfloat16, torch.float16, torch.float64)}}
# Tensors that nothing places anywhere go to another device than the model's, as with torch.set_default_device("cuda").
ELSEWHERE = MODES | {"another device": lambda: torch.device("meta")}


@pytest.mark.parametrize("mode", ELSEWHERE)
def test_a_block_is_proved_and_swapped_in_any_mode(mode):
    model, x = Block(), torch.randn(2, 5, 16)
    before = model(x)
    with ELSEWHERE[mode]():
        assert len(nonlin.accelerate(model).changed) == 1
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    nonlin.restore(model)
    with ELSEWHERE[mode](), warnings.catch_warnings(action="ignore"):
        assert len(nonlin.swap(model, "relu").changed) == 1


@pytest.mark.parametrize("mode", ELSEWHERE)
def test_a_check_finds_the_same_in_any_mode(mode):
    """In inference mode, and with a 16-bit default, every unit was dead and the finding serious."""
    model = Model()
    with ELSEWHERE[mode]():
        record = health.check(model, tokens=128)
    assert record["findings"] == [] and record["blocks"][0]["activation"]["computed"] == "swiglu"


@pytest.mark.parametrize("made", ["inside", "outside"])
@pytest.mark.parametrize("mode", MODES)
def test_a_watch_sees_the_same_in_any_mode(mode, made):
    model, tokens = Model(), torch.arange(64)[None]
    if made == "outside":
        watched = health.watch(model)
        with MODES[mode](), watched:
            model(tokens)
    else:
        with MODES[mode](), health.watch(model) as watched:
            model(tokens)
    assert watched.findings() == [] and watched.record()["tokens"] == 64


def test_a_call_that_could_not_be_read_counts_no_unit(monkeypatch):
    def fails(*_):
        raise RuntimeError("no derivative")

    monkeypatch.setattr("nonlin.metrics.response", fails)
    model = Model()
    with pytest.warns(UserWarning, match="was not observed"), health.watch(model) as watched:
        model(torch.arange(64)[None])
    monkeypatch.undo()
    with watched:
        model(torch.arange(64)[None])
    assert not any(b["dead"]["count"] for b in watched.record()["blocks"])
