"""Faults planted in models are found, named by layer and unit; the healthy twin has none."""

import json
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nonlin
from nonlin import health
from nonlin.errors import UserError
from nonlin.model import LanguageModel, ModelConfig, export_model
from tests.patching import real
from tests.patching.families import FAMILIES

pytest.importorskip("transformers", reason="transformers is not installed")
warnings.filterwarnings("ignore", module="transformers")


def check(model, **options):
    return health.check(model, **({"tokens": 2560, "context": 64} | options))


def grave(record):
    return [(f["grade"], f["measure"], f["layer"], f["units"]) for f in record["findings"] if f["grade"] != "info"]


@pytest.mark.parametrize("name, first, layer", [("gpt2", "transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp"),
                                                ("opt", "model.decoder.layers.{}.fc1", "model.decoder.layers.{}"),
                                                ("bert", "encoder.layer.{}.intermediate.dense", "encoder.layer.{}")])
def test_units_killed_by_a_bias(name, first, layer):
    model = FAMILIES[name].build()
    assert grave(check(model)) == []
    dead = [1, 4, 9, 16, 20, 25, 33, 39]
    with torch.no_grad():
        model.get_submodule(first.format(1)).bias[dead] = -30
    assert grave(check(model)) == [("serious", "dead", layer.format(1), dead)]


def test_closed_gates_of_a_gated_block_are_dead_units():
    model = FAMILIES["llama"].build(mlp_bias=True)
    assert grave(check(model)) == []
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.bias[7:15] = -30
    assert grave(check(model)) == [("serious", "dead", "model.layers.0.mlp", list(range(7, 15)))]


def test_saturated_gates():
    model = FAMILIES["llama"].build(hidden_act="sigmoid", mlp_bias=True)
    assert grave(check(model)) == []
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.bias[:8] = 20
    assert grave(check(model)) == [("serious", "saturated", "model.layers.1.mlp", list(range(8)))]


def test_dead_units_of_packed_and_expert_blocks():
    model = FAMILIES["gpt_oss"].build()
    assert grave(check(model)) == []
    with torch.no_grad():  # expert 2's units 3 and 5 to 14: every second output is a gate
        model.model.layers[1].mlp.experts.gate_up_proj_bias[2, [6, *range(10, 30, 2)]] = -40
    (found,) = grave(check(model))
    assert found == ("warning", "dead", "model.layers.1.mlp.experts", [83, *range(85, 95)])


def test_outlier_channel():
    model = FAMILIES["llama"].build()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[5] *= 30_000
    record = check(model)
    assert grave(record) == [("warning", "outlier", "model.layers.1.mlp", [5])]
    assert record["blocks"][0]["outliers"]["channels"][0]["ratio"] < 5


def test_massive_activation_names_unit_and_token():
    model = FAMILIES["llama"].build()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = 0
        model.model.embed_tokens.weight[7, 3] = 500.0
    ids = [5, 6] * 40
    ids[61] = 7
    record = _with_ids(model, ids)
    found = next(f for f in record["findings"] if f["measure"] == "massive")
    seen = found["evidence"]["largest"]
    assert (seen["stream"], seen["unit"], seen["token"], seen["id"]) == ("residual", 3, 61, 7)


def _with_ids(model, ids):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.json"
        file.write_text(json.dumps(ids))
        return check(model, text=file, tokens=len(ids), context=len(ids))


def test_module_that_computes_another_activation_than_its_configuration_names():
    model = FAMILIES["qwen2"].build()
    assert grave(check(model)) == []
    model.model.layers[1].mlp.act_fn = nn.ReLU()
    (found,) = [f for f in check(model)["findings"] if f["grade"] == "serious"]
    assert (found["measure"], found["layer"]) == ("activation", "model.layers.1.mlp")
    assert "computes reglu" in found["text"] and "says swiglu" in found["text"]


def test_forgotten_clamp():
    model = FAMILIES["gpt_oss"].build()
    assert grave(check(model)) == []
    model.model.layers[1].mlp.experts.limit = 1e30
    (found,) = [f for f in check(model)["findings"] if f["grade"] == "serious"]
    assert (found["measure"], found["layer"]) == ("activation", "model.layers.1.mlp.experts")
    assert "below 7" in found["text"] and "clamp" in found["action"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small SwiGLU model trained on bytes of text for some seconds, as a Hugging Face folder."""
    from nonlin.data import load_corpus
    from nonlin.kernels.transformer import native
    from nonlin.kernels.transformer.engine import engine

    raw = b"".join(text for _, text in load_corpus().documents)[:400_000]
    data = torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()
    model = LanguageModel(ModelConfig(layers=2, dim=64, heads=2, kv_heads=2, context=64, hidden=176),
                          nonlin.get("swiglu"), engine("native" if native.library() else "torch"))
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        starts = torch.randint(0, len(data) - 65, (16,), generator=generator)
        rows = torch.stack([data[s:s + 65] for s in starts])
        loss = model.loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained")
    export_model(model, folder)
    return folder


def test_configuration_that_names_another_activation_than_the_weights_were_trained_with(trained, tmp_path):
    record = check(trained)
    assert grave(record) == [] and "the text's bytes" in record["notes"][-1]
    # A model so young can like a close relative a hair better; that is no finding, and must not become one.
    assert min(o["difference_nats"] for o in record["alternatives"]["others"]) > -0.02
    liar = shutil.copytree(trained, tmp_path / "liar")
    config = json.loads((liar / "config.json").read_text())
    (liar / "config.json").write_text(json.dumps(config | {"hidden_act": "sigmoid"}))
    found = next(f for f in check(liar)["findings"] if f["grade"] == "serious")
    assert (found["measure"], found["layer"]) == ("trained_with", "model.layers.0.mlp")
    assert "in place of glu" in found["text"]
    assert found["evidence"]["difference_nats"] < -0.2  # far beyond what is asked for: not found by luck


def test_real_weights_tell_what_they_were_trained_with():
    loaded = real.loaded_smollm2()
    model, options = loaded.model, {"tokenizer": loaded.tokenizer, "tokens": 256, "context": 256}
    honest = check(model, **options)
    assert [f for f in honest["findings"] if f["grade"] == "serious"] == []
    blocks = [layer.mlp for layer in model.model.layers]
    before = model.config.hidden_act, [b.act_fn for b in blocks]
    try:  # what from_pretrained would build from a configuration that says gelu
        model.config.hidden_act = "gelu"
        for block in blocks:
            block.act_fn = nn.GELU()
        found = [f for f in check(model, **options)["findings"] if f["grade"] == "serious"]
    finally:
        model.config.hidden_act = before[0]
        for block, act in zip(blocks, before[1], strict=True):
            block.act_fn = act
    assert [f["measure"] for f in found] == ["trained_with"]
    assert found[0]["evidence"]["activation"] == "swiglu" and found[0]["evidence"]["difference_nats"] < -0.3


class Deep(nn.Module):
    """Ten plain blocks one after the other: no norm and no residual connection to hide a bad initialization."""

    def __init__(self, gain, act=lambda x: F.leaky_relu(x, 0.1)):
        super().__init__()
        torch.manual_seed(0)
        self.act = act
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(32, 128), "down": nn.Linear(128, 32)})
                                    for _ in range(10))
        for layer in self.layers:
            nn.init.normal_(layer["up"].weight, std=gain * (2 / 32) ** 0.5)
            nn.init.normal_(layer["down"].weight, std=(1 / 128) ** 0.5)

    def forward(self, x):
        for layer in self.layers:
            x = layer["down"](self.act(layer["up"](x)))
        return x


def gradients_of(model):
    model.train()
    with health.watch(model, gradients=True) as seen:
        model(torch.randn(64, 32, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    return seen


@pytest.mark.parametrize("gain, measure", [(0.3, "vanishing"), (3.0, "exploding")])
def test_gradients_by_initialization(gain, measure):
    found = [f for f in gradients_of(Deep(gain)).findings() if f["grade"] == "serious"]
    assert [(f["measure"], f["layer"]) for f in found] == [(measure, "layers.0")]
    assert found[0]["evidence"]["factor_a_block"] == pytest.approx(gain, rel=0.25)
    healthy = gradients_of(Deep(1.0)).findings()
    assert not [f for f in healthy if f["grade"] != "info"]


def test_gradients_are_those_of_autograd():
    model = Deep(1.0)
    record = gradients_of(model).record()
    outs = []
    handles = [layer["down"].register_forward_hook(lambda m, a, out: outs.append(out)) for layer in model.layers]
    loss = model(torch.randn(64, 32, generator=torch.Generator().manual_seed(1))).square().mean()
    expected = [g.square().mean().sqrt().item() for g in torch.autograd.grad(loss, outs)]
    for handle in handles:
        handle.remove()
    assert [b["gradients"]["rms"] for b in record["blocks"]] == pytest.approx(expected, rel=1e-5)
    assert all(b["gradients"]["zero_share"] == 0 for b in record["blocks"])
    relu = gradients_of(Deep(1.0, F.relu)).record()
    assert all(0.3 < b["gradients"]["zero_share"] < 0.7 for b in relu["blocks"])


def test_overflow_and_values_that_are_no_numbers():
    model = FAMILIES["nemotron"].build()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] *= 30_000
    found = grave(check(model))
    assert ("warning", "float16", "model.layers.0.mlp", []) in found
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] *= float("nan")
    assert check(model)["findings"][0]["measure"] == "nonfinite"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("place", ["lm_head", "model.norm"])
def test_what_breaks_behind_the_last_block(place, gradients, number):
    model = FAMILIES["llama"].build()
    with torch.no_grad():
        model.get_submodule(place).weight[3] = number
    found = check(model, tokens=256, gradients=gradients)
    assert ("serious", "nonfinite", "the model", []) in grave(found) and found["nonfinite_outputs"] > 0


def test_a_token_that_cannot_be_is_no_fault():
    model = FAMILIES["llama"].build()
    model.lm_head.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor([7]), -float("inf")))
    assert grave(check(model, tokens=256)) == [] and check(model, tokens=256)["nonfinite_outputs"] == 0


def test_a_block_of_which_no_unit_fires_is_dead_on_few_tokens_too():
    model = FAMILIES["opt"].build()
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.bias[:] = -30
    (found,) = grave(check(model, tokens=256))
    assert found[:2] == ("serious", "dead")


def test_few_tokens_do_not_condemn_a_relu():
    model = FAMILIES["opt"].build()
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.bias[:8] = -30
    (found,) = grave(check(model, tokens=256))
    assert found[0] == "warning"


def test_a_compiled_model_is_checked_as_the_one_inside():
    from torch._dynamo.testing import CompileCounter

    counter, inside = CompileCounter(), FAMILIES["llama"].build()
    inside.compile(backend=counter)
    want = check(FAMILIES["llama"].build(), tokens=256)
    for model in (torch.compile(FAMILIES["llama"].build(), backend=counter), inside):
        assert check(model, tokens=256) == want
    assert counter.frame_count == 0


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no way\nback")


def test_a_model_that_cannot_run_backward_is_one_error_and_stays_as_it_was():
    model = FAMILIES["llama"].build().requires_grad_(False)
    model.model.norm.register_forward_hook(lambda module, args, out: NoWayBack.apply(out))
    assert check(model, tokens=256)["blocks"]
    with pytest.raises(UserError, match=r"must run backward.*no way back") as refused:
        check(model, tokens=256, gradients=True)
    assert "\n" not in str(refused.value) and not any(p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        model = FAMILIES["llama"].build()
    assert check(model, tokens=256)["blocks"]
    with pytest.raises(UserError, match="must run backward"):
        check(model, tokens=256, gradients=True)
