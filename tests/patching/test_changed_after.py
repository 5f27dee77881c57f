"""What a block's own forward reads, writes and takes beside its input: honoured after accelerate, or refused before."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import nonlin
from nonlin import health
from nonlin.errors import UserError
from nonlin.patching.patch import _changed


class Block(nn.Module):
    """A block with numbers, functions and arguments of its own."""

    def __init__(self, act=None):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.act = nn.Linear(8, 32), nn.Linear(32, 8), act or nn.LeakyReLU()
        self.scale, self.limit, self.mode, self._after = 1.0, None, "plain", torch.clone

    def forward(self, x, **options):
        hidden = self.act(self.up(x))
        if self.limit is not None:
            hidden = hidden.clamp(max=self.limit)
        out = self.down(hidden) * self.scale * options.get("gain", 1.0)
        return self._after(out if self.mode == "plain" else out.tanh())


def doubled(x):
    return 2 * x


CHANGES = {"a number": lambda m: setattr(m, "scale", 3.0), "a word": lambda m: setattr(m, "mode", "bounded"),
           "a number that was none": lambda m: setattr(m, "limit", 0.1),
           "a private function": lambda m: setattr(m, "_after", doubled),
           "the activation's number": lambda m: setattr(m.act, "negative_slope", 0.9)}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["itself", "copied", "pickled"])
def test_what_a_block_keeps_is_honoured_when_it_changes(change, way):
    plain, x = Block(), torch.randn(3, 8)
    fast = copy.deepcopy(plain)
    assert len(nonlin.accelerate(fast).changed) == 1
    fast = way(fast)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)
    before = plain(x)
    for model in (plain, fast):
        CHANGES[change](model)
    assert torch.equal(fast(x), plain(x)) and not torch.allclose(plain(x), before, atol=1e-4)


def test_a_part_inside_the_activation_is_honoured_when_it_changes():
    model, x = Block(nn.Sequential(nn.Identity(), nn.GELU())), torch.randn(3, 8)
    nonlin.accelerate(model)
    model.act[1] = nn.ReLU()
    assert torch.equal(model(x), model.down(model.up(x).relu()))


def test_a_forward_patched_on_the_class_is_honoured(monkeypatch):
    model, x = Block(), torch.randn(3, 8)
    nonlin.accelerate(model)
    monkeypatch.setattr(Block, "forward", lambda self, x: self.down(self.up(x).tanh()))
    assert torch.equal(model(x), model.down(model.up(x).tanh()))


def unnamed(function):
    def wrapper(self, x):
        return function(self, x)
    return wrapper


class Wrapped(Block):
    @unnamed
    def forward(self, x):
        return super().forward(x)


class Partial(Block):
    forward = functools.partialmethod(lambda self, gain, x: Block.forward(self, x) * gain, 1.0)


@pytest.mark.parametrize("make", [Wrapped, Partial])
def test_a_forward_that_has_no_name_of_its_own(make):
    """A block of it stays accelerated, and can be pickled."""
    model, x = make(), torch.randn(3, 8)
    assert len(nonlin.accelerate(model).changed) == 1
    for made in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not _changed(made) and torch.equal(made(x), model(x))


def test_a_forward_patched_on_the_class_is_honoured_in_copies(monkeypatch):
    model, x = Wrapped(), torch.randn(3, 8)
    nonlin.accelerate(model)
    monkeypatch.setattr(Wrapped, "forward", lambda self, x: self.down(self.up(x).tanh()))
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(made(x), model.down(model.up(x).tanh()))


class Numbered(Block):
    """A block that knows its layer, and does not compute with it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.down(self.act(self.up(x)))


def test_a_number_that_a_block_does_not_read_makes_no_program_of_its_own():
    layers = nn.ModuleList(Numbered(i) for i in range(3))
    nonlin.accelerate(layers)
    layers[0].layer = 7
    layers[0].scale = 3.0
    assert not _changed(layers[0])
    torch._dynamo.reset()
    counted = CompileCounter()
    call = torch.compile(lambda block, x: block(x), backend=counted, fullgraph=True)
    for layer in layers:
        call(layer, torch.randn(3, 8))
    assert counted.frame_count == 1


class Starred(Block):
    def forward(self, *given):
        return super().forward(given[0], gain=given[1] if len(given) > 1 else 1.0)


@pytest.mark.parametrize(("make", "given"), [(Block, {"gain": 3.0}), (Starred, 3.0)], ids=["by name", "by place"])
def test_what_a_call_gives_beside_the_input_is_not_lost(make, given):
    model, x = make(), torch.randn(3, 8)

    def run():
        return model(x, **given) if isinstance(given, dict) else model(x, given)

    before = run()
    assert len(nonlin.accelerate(model).changed) == 1
    assert torch.equal(run(), before)


class Penalized(Block):
    """Keeps a penalty on its hidden values, which a training loop adds to the loss."""

    def forward(self, x):
        hidden = self.act(self.up(x))
        self.penalty = hidden.abs().mean()
        return self.down(hidden)


class Counting(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Recording(Block):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.shape)
        return super().forward(x)


class Noting(Block):
    """Keeps its last statistics, always under the same name."""

    def __init__(self):
        super().__init__()
        self.notes = {"mean": None}

    def forward(self, x):
        hidden = self.act(self.up(x))
        self.notes["mean"] = hidden.mean()
        return self.down(hidden)


class Masked(Block):
    """Prunes units by a mask, which is all ones at first."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.register_buffer("mask", torch.ones(32, dtype=dtype))

    def forward(self, x):
        return self.down(self.act(self.up(x)) * self.mask)


class Unsaved(Masked):
    """Its mask is expanded from one number, and no buffer."""

    def __init__(self):
        super().__init__()
        del self.mask
        self.mask = torch.ones(1).expand(32)


BESIDE = {"a penalty": (Penalized, "writes penalty"), "a counter": (Counting, "writes calls"),
          "a list": (Recording, "writes seen"), "a dictionary": (Noting, "writes notes"),
          "a mask": (Masked, "depends on the tensor mask"),
          "a mask of bits": (lambda: Masked(torch.bool), "depends on the tensor mask"),
          "a mask that is no buffer": (Unsaved, "depends on the tensor mask")}


@pytest.mark.parametrize("name", BESIDE)
def test_a_block_that_does_more_is_left_alone_and_as_it_was(name):
    make, words = BESIDE[name]
    model = make()
    state, names = copy.deepcopy(model.state_dict()), set(vars(model))
    with pytest.raises(UserError, match=words):
        nonlin.accelerate(model)
    health.watch(model)
    assert set(vars(model)) == names and not getattr(model, "seen", [])
    assert getattr(model, "notes", {"mean": None}) == {"mean": None}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Observing(nn.Linear):
    """Keeps the largest input that it saw, as a layer does that is to be quantized."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x):
        self.largest.copy_(torch.maximum(self.largest, x.abs().amax()))
        return super().forward(x)


def observing():
    return nn.Sequential(Observing(8, 32), nn.GELU(), nn.Linear(32, 8))


def hooked():
    block = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    block[0].register_forward_hook(lambda module, given, out: setattr(module, "last", out))
    return block


@pytest.mark.parametrize(("make", "name"), [(observing, "largest"), (hooked, "last")])
def test_a_projection_that_is_called_as_ever_may_write(make, name):
    plain, x = make(), torch.randn(3, 8)
    fast = copy.deepcopy(plain)
    assert len(nonlin.accelerate(fast).changed) == 1
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(getattr(fast[0], name), x.abs().amax() if name == "largest" else fast[0](x))


class Keeping(Block):
    """Keeps what it has seen, in a list, a dictionary and a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.shapes, self.named, self.calls = [], {}, torch.zeros(())

    def forward(self, x):
        self.shapes.append(x.shape)
        self.named[len(self.named)] = x.shape
        self.calls += 1
        return super().forward(x)


def test_what_a_block_kept_before_it_was_looked_at_is_as_it_was():
    model, x = Keeping(), torch.randn(3, 8)
    model(x)
    with pytest.raises(UserError, match="writes"):
        nonlin.accelerate(model)
    health.watch(model)
    assert model.shapes == [x.shape] and model.named == {0: x.shape} and model.calls == 1


class Lazily(Block):
    """Makes something at its first call, and keeps it."""

    def forward(self, x):
        if not hasattr(self, "made"):
            self.made = torch.ones(())
        return super().forward(x) * self.made


def test_what_only_the_first_call_makes_is_no_reason():
    model = Lazily()
    assert len(nonlin.accelerate(model).changed) == 1 and not hasattr(model, "made")


def test_functions_of_torch_as_activations_are_replaced_as_before():
    for act in (F.gelu, torch.tanh, nn.GELU(approximate="tanh")):
        assert len(nonlin.accelerate(Block(act)).changed) == 1
