"""Copies and pickles of a model that is watched: they are the user's, and know nothing of the watch."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from nonlin import health
from nonlin.functions import get
from nonlin.model import LanguageModel, ModelConfig
from tests.health.test_watch import Model, batch, hooks
from tests.patching.families import FAMILIES

warnings.filterwarnings("ignore", module="transformers")


def own():
    return LanguageModel(ModelConfig(layers=2, dim=16, heads=2, kv_heads=1, context=32, hidden=24, vocabulary=64),
                         get("geglu"))


MODELS = {
    "projections": (Model, batch()), "own": (own, torch.arange(64)[None, :32]),
    "experts": (lambda: FAMILIES["qwen3_moe"].build(), torch.arange(32)[None])}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": saved}


def traces(model):
    """What a watch may have left in the modules' dictionaries of hooks."""
    kept = [d for m in model.modules() for name, d in vars(m).items() if name.startswith("_forward_")]
    return [(len(d), vars(d)) for d in kept if d or getattr(d, "__dict__", None)]


def users(module, args):
    return None


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_of_a_watched_model_has_no_hook_of_the_watch(name, way):
    if name == "experts":
        pytest.importorskip("transformers", reason="transformers is not installed")
    build, x = MODELS[name]
    model = build()
    with health.watch(model, gradients=True) as watched:
        assert hooks(model)
        twin = COPIES[way](model)
        assert not traces(twin)
        model(x)
        twin(x)
    assert watched.record()["tokens"] == x.numel() // (x.shape[-1] if x.is_floating_point() else 1)
    assert not traces(model)


def test_what_a_copy_computes_is_not_in_the_models_record():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    with health.watch(model) as watched:
        model(batch())
        copy.deepcopy(model)(batch() * 1e6)
        copy.copy(model[2])(torch.full((4, 32), 1e6))  # shares the original's dictionary of hooks
    with health.watch(model) as alone:
        model(batch())
    a, b = (w.record()["blocks"][0]["streams"]["hidden"]["largest"] for w in (watched, alone))
    assert a == b


def test_other_peoples_hooks_are_copied_and_removed_as_ever():
    model = Model()
    first = model.register_forward_pre_hook(users)
    with health.watch(model):
        second = model.register_forward_pre_hook(users)
        twin = saved(model)
        assert list(twin._forward_pre_hooks.values()) == [users] * 2 and hooks(twin) == 2
        first.remove()
    second.remove()
    assert not traces(model)


@pytest.mark.parametrize("order", [1, -1])
def test_watches_that_overlap_leave_each_others_hooks_out(order):
    model = Model()
    watches = [health.watch(model), health.watch(model)]
    for one in watches:
        one.__enter__()
    for one in watches[::order]:
        assert not traces(copy.deepcopy(model))
        one.__exit__()
    assert not traces(model) and not hooks(model)


def test_an_average_of_the_weights_and_checkpoints_of_observed_steps():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with health.watch(model, every=2) as watched:
        average = torch.optim.swa_utils.AveragedModel(model)
        for i in range(4):
            model(batch(i)).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
            average(batch(i) * 1e6)
            assert not traces(saved(model))
    assert watched.index == 4 and not traces(average)
