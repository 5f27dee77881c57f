"""accelerate among what people wrap around a model: dropout, chunking, adapters, hooks, FSDP2, devices, quantized."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import nonlin
from nonlin.errors import UserError
from nonlin.patching.patch import recipe_of
from tests import two_ranks
from tests.patching.accelerated import arguments, awake, errors, exact, measured, output
from tests.patching.families import FAMILIES

pytest.importorskip("transformers", reason="transformers is not installed")


def _pair(name, **changes):
    model = awake(FAMILIES[name].build(**changes))
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin)
    return model, twin


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5_v1_1", "modernbert", "seed_oss"])
def test_dropout_in_training_draws_the_same_mask(name):
    rates = {"bert": {"hidden_dropout_prob": 0.2}, "gpt2": {"resid_pdrop": 0.2}, "t5_v1_1": {"dropout_rate": 0.2},
             "modernbert": {"mlp_dropout": 0.2}, "seed_oss": {"residual_dropout": 0.2}}[name]
    model, twin = _pair(name, **rates)
    model.train(), twin.train()
    torch.manual_seed(3)
    out, grads = measured(model, FAMILIES[name])
    torch.manual_seed(3)
    twin_out, twin_grads = measured(twin, FAMILIES[name])
    torch.testing.assert_close(twin_out, out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, measured(model, FAMILIES[name])[0], rtol=1e-2), "no dropout took place"
    for key, grad in grads.items():
        assert float((twin_grads[key] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-6, key


class _DropsByFunction(nn.Module):
    """A block that calls torch's dropout with numbers of its own, as ProphetNet's does."""

    def __init__(self, hidden=0.3, out=0.3):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(8, 32), nn.Linear(32, 8), nn.GELU()
        self.unused, self.activation_dropout, self.dropout = hidden, hidden, out

    def forward(self, x):
        x = nn.functional.dropout(self.act(self.up(x)), p=self.activation_dropout, training=self.training)
        return nn.functional.dropout(self.down(x), p=self.dropout, training=self.training)


@pytest.mark.parametrize("numbers", [(0.3, 0.3), (0.5, 0.0), (0.0, 0.4), (0.0, 0.0), (0, 1)])
def test_dropouts_of_numbers_are_placed_and_follow_their_numbers(numbers):
    torch.manual_seed(0)
    model = _DropsByFunction(*numbers).train()
    twin = copy.deepcopy(model)
    nonlin.accelerate(twin)
    recipe = recipe_of(twin)
    assert recipe is not None and (recipe.hidden_dropout, recipe.out_dropout) == ("activation_dropout", "dropout")
    assert (twin.activation_dropout, twin.dropout, twin.unused) == (*numbers, numbers[0])
    x = torch.randn(64, 8)
    for changed in (numbers, (0.7, 0.1)):
        for one in (model, twin):
            one.activation_dropout, one.dropout = changed
        for training in (True, False):
            outs = []
            for one in (model, twin):
                torch.manual_seed(5)
                outs.append(one.train(training)(x))
            torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-6)


class _Drops(nn.Module):
    """A block that drops hidden values, and its output, as two functions of the block say."""

    def __init__(self, hidden=None, out=None, **values):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(8, 32), nn.Linear(32, 8), nn.GELU()
        self.hidden, self.out = hidden or (lambda m, x: x), out or (lambda m, x: x)
        for name, value in values.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.out(self, self.down(self.hidden(self, self.act(self.up(x)))))


def _drop(m, x):
    return nn.functional.dropout(x, m.p, m.training)


@pytest.mark.parametrize("made", [
    lambda: _Drops(lambda m, x: _drop(m, _drop(m, x)), p=0.3),
    lambda: _Drops(out=lambda m, x: _drop(m, _drop(m, x)), p=0.3),
    lambda: _Drops(lambda m, x: m.b(m.a(x)), a=nn.Dropout(0.3), b=nn.Dropout(0.3)),
    lambda: _Drops(out=lambda m, x: m.a(m.a(x)), a=nn.Dropout(0.3)),
    lambda: _Drops(lambda m, x: _drop(m, m.a(x)), a=nn.Dropout(0.3), p=0.3),
    lambda: _Drops(lambda m, x: m.a(x) if m.training else x, a=nn.Dropout(0.3)),
    lambda: _Drops(out=lambda m, x: nn.functional.dropout(x, m.known["p"], m.training), known={"p": 0.3}),
    lambda: nn.Sequential(*(_Drops(out=lambda m, x: nn.functional.dropout(x, m.known["p"], m.training), known={"p": p})
                            for p in (0.0, 0.3)))[1:]])
def test_what_drops_otherwise_than_once_in_a_known_place_is_refused(made):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"dropout|drops|training mode"):
        nonlin.accelerate(made().train())


def test_a_number_that_only_a_later_block_drops_by_is_not_lost():
    torch.manual_seed(0)
    out = lambda m, x: nn.functional.dropout(x, m.known["p"], m.training)  # noqa: E731
    model = nn.Sequential(_Drops(out=out, known={"p": 0.0}), _Drops(out=out, known={"p": 0.3})).train()
    report = nonlin.accelerate(model)
    assert recipe_of(model[0]) is not None and recipe_of(model[1]) is None and len(report.changed) == 1


@pytest.mark.parametrize("others", [{"size": 0}, {"size": 0.0}])
def test_another_number_of_the_same_value_is_no_trouble(others):
    torch.manual_seed(0)
    model = _Drops(lambda m, x: _drop(m, x.reshape(*x.shape[:-1], (32, 16)[m.size * 4 > 0])), **others, p=0.0)
    assert len(nonlin.accelerate(model).changed) == 1
    recipe = recipe_of(model)
    assert recipe is not None and recipe.hidden_dropout == "p"


def test_chunked_feed_forward_of_bert():
    model, twin = _pair("bert", chunk_size_feed_forward=1)
    calls = []
    layer = twin.encoder.layer[0]
    original = layer.feed_forward_chunk
    layer.feed_forward_chunk = lambda x: (calls.append(tuple(x.shape)), original(x))[1]
    torch.testing.assert_close(output(twin, FAMILIES["bert"]), output(model, FAMILIES["bert"]), rtol=1e-5, atol=1e-5)
    assert calls == [(2, 1, 16)] * 7


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora_before_or_after(order):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=4, target_modules=["gate_proj", "down_proj"], lora_dropout=0.0)
    model = awake(FAMILIES["llama"].build())
    twin = copy.deepcopy(model)

    def adapt(m):
        adapted = peft.get_peft_model(m, config)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for name, p in adapted.named_parameters():
                if "lora_" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        return adapted

    plain = adapt(model)
    if order == "before":
        twin = adapt(twin)
        assert len(nonlin.accelerate(twin).changed) == 2
    else:
        nonlin.accelerate(twin)
        twin = adapt(twin)
    assert sum(recipe_of(m) is not None for m in twin.modules()) == 2
    _same(plain, twin, "llama")
    # Frozen weights got no gradient; the adapter's did.
    assert {n for n, p in twin.named_parameters() if p.grad is not None} == {
        n for n, p in twin.named_parameters() if "lora_" in n}
    merged, twin_merged = plain.merge_and_unload(), twin.merge_and_unload()
    torch.testing.assert_close(output(twin_merged, FAMILIES["llama"]), output(merged, FAMILIES["llama"]),
                               rtol=1e-4, atol=1e-5)


def _same(model, twin, name):
    truth = exact(model, FAMILIES[name])
    (out, _, whole), (twin_out, _, twin_whole) = (errors(measured(m, FAMILIES[name]), truth) for m in (model, twin))
    assert twin_out <= 1.5 * out and twin_whole <= 2 * whole


def test_hooks_on_projections_go_on_seeing():
    model, twin = _pair("llama")
    seen = {}

    def watch(m, key):
        mlp = m.model.layers[0].mlp
        mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.__setitem__(key, args[0].detach()))
        mlp.gate_proj.register_forward_hook(lambda _, args, out: seen.__setitem__(f"{key} gate", out.detach()))
        return output(m, FAMILIES["llama"])

    torch.testing.assert_close(watch(twin, "twin"), watch(model, "model"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["twin"], seen["model"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["twin gate"], seen["model gate"], rtol=1e-4, atol=1e-5)


def test_autocast_and_activation_checkpointing():
    model, twin = _pair("llama")
    for m in (model, twin):
        m.train()
        m.gradient_checkpointing_enable({"use_reentrant": False})

    def run(m, family):
        with torch.autocast("cpu", torch.bfloat16):
            return output(m, family).float()

    truth = exact(model, FAMILIES["llama"])
    out, _, whole = errors(measured(model, FAMILIES["llama"], run), truth)
    twin_out, _, twin_whole = errors(measured(twin, FAMILIES["llama"], run), truth)
    assert 1e-4 < twin_out <= 1.5 * out and twin_whole <= 1.5 * whole


def test_generation_gives_the_same_tokens():
    model, twin = _pair("qwen3")
    ids = arguments(FAMILIES["qwen3"])["input_ids"]
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), twin.generate(ids, **options))


def test_a_model_on_several_devices_is_refused():
    model = awake(FAMILIES["llama"].build())
    model.model.layers[1].mlp.to("meta")
    report = nonlin.accelerate(model)
    assert [c.name for c in report.changed] == ["model.layers.0.mlp"]
    assert "meta" in report.left_alone[0].reason
    nonlin.restore(model)
    model.model.layers[0].mlp.up_proj.to("meta")
    with pytest.raises(UserError, match="several devices"):
        nonlin.accelerate(model)


def test_a_model_that_hugging_face_dispatched_is_refused(tmp_path):
    hf = pytest.importorskip("accelerate", reason="accelerate (Hugging Face) is not installed")
    model = awake(FAMILIES["llama"].build())
    expected = output(model, FAMILIES["llama"])
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
              "model.layers.0": "cpu", "model.layers.1": "disk"}
    hf.dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    with pytest.raises(UserError, match=r"wrapped by something else|meta device"):
        nonlin.accelerate(model)
    assert torch.equal(output(model, FAMILIES["llama"]), expected)


class _Int4(torch.Tensor):
    """A tensor subclass, as torchao's quantized weights are."""


def test_quantized_weights_are_refused():
    model = awake(FAMILIES["llama"].build())
    mlp = model.model.layers[0].mlp
    mlp.up_proj.weight = nn.Parameter(torch.ones(40, 16).as_subclass(_Int4))
    report = nonlin.accelerate(model)
    assert [c.name for c in report.left_alone] == ["model.layers.0.mlp"]
    assert "_Int4, not plain tensors" in report.left_alone[0].reason
    nonlin.restore(model)
    for layer in model.model.layers:
        layer.mlp.up_proj.weight = nn.Parameter(torch.ones(20, 16, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="quantized weights stay as they are"):
        nonlin.accelerate(model)
    assert not any(recipe_of(m) for m in model.modules())


def test_fsdp2_in_two_processes(tmp_path):
    two_ranks.run(Path(__file__).with_name("sharded_worker.py"), tmp_path)


@pytest.mark.parametrize("change", ["replaced", "hooked", "patched", "patched class"])
def test_an_activation_changed_after_accelerate_is_honoured(change, monkeypatch):
    """The block's own forward runs then, whatever was put where its activation was, in a copy of the model too."""
    import copy
    import pickle

    from transformers import LlamaConfig, LlamaModel

    import nonlin

    torch.manual_seed(0)
    plain = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                                   num_attention_heads=2)).eval()
    fast, ids = copy.deepcopy(plain), torch.arange(5)[None]
    nonlin.accelerate(fast)
    before = plain(ids)[0]
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        mlp = copied.layers[0].mlp
        assert all(mlp._modules[name] is value for _, name, value, forward in mlp.__dict__["_nonlin_parts"] if forward)
    for model in (plain, fast):
        mlp = model.layers[0].mlp
        if change == "replaced":
            mlp.act_fn = torch.nn.GELU()
        elif change == "hooked":
            mlp.act_fn.register_forward_hook(lambda m, i, o: 2 * o)
        elif change == "patched":
            mlp.act_fn.forward = torch.tanh
        else:
            monkeypatch.setattr(type(mlp.act_fn), "forward", lambda self, x: x.relu())
    torch.testing.assert_close(fast(ids)[0], plain(ids)[0], rtol=0, atol=0)
    assert not torch.allclose(plain(ids)[0], before, atol=1e-6)


@pytest.mark.parametrize("overridden", [torch.nn.functional.linear, torch.nn.functional.silu])
def test_a_mode_that_overrides_torchs_functions_is_heard(overridden):
    import nonlin

    class Twice(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return 2 * out if func is overridden else out

    plain, fast, ids = FAMILIES["llama"].build(), FAMILIES["llama"].build(), torch.arange(3, 9)[None]
    nonlin.accelerate(fast)
    with Twice():
        torch.testing.assert_close(fast(ids)[0], plain(ids)[0], rtol=0, atol=0)
