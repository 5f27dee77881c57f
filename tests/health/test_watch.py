"""Watching a model that trains: when it looks, what it leaves alone, and with what it works."""

import json
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import nonlin
from nonlin import health
from nonlin.errors import UserError
from nonlin.model import LanguageModel, ModelConfig
from tests import two_ranks
from tests.health import ranks
from tests.patching.families import FAMILIES

warnings.filterwarnings("ignore", module="transformers")


class Block(nn.Module):
    """Gated, its activation a functional call."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Model(nn.Module):
    """Two layers; ``checkpointed`` recomputes them in the backward pass."""

    def __init__(self, checkpointed=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.checkpointed = checkpointed

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if self.checkpointed is None else checkpoint(layer, x, use_reentrant=self.checkpointed)
        return x


def batch(seed=0):
    return torch.randn(4, 32, 8, generator=torch.Generator().manual_seed(seed))


def train(model, steps, before=lambda i: None):
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for i in range(steps):
        before(i)
        loss = model(batch(i).requires_grad_()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_it_looks_one_step_in_so_many_and_changes_nothing():
    alone = train(Model(), 7)
    model, seen = Model(), []
    with health.watch(model, every=3, gradients=True) as watched:
        trained = train(model, 7, lambda i: seen.append(hooks(model) > 0))
        assert watched.observed_step == 7
    assert seen == [True, False, False, True, False, False, True]
    assert hooks(model) == 0
    assert all(torch.equal(a, b) for a, b in zip(alone, trained, strict=True))
    record = watched.record()
    assert record["tokens"] == 128 and [b["activation"]["computed"] for b in record["blocks"]] == ["swiglu", "swiglu"]


def test_several_steps_in_a_row_are_one_observation():
    model = Model()
    with health.watch(model, every=4, steps=2) as watched:
        train(model, 3)
        assert watched.record()["tokens"] == 256 and watched.observed_step == 2


def test_what_is_watched_is_the_last_observation():
    model = Model()
    with health.watch(model, every=2) as watched:
        train(model, 2)
        assert watched.findings() == []
        with torch.no_grad():
            model.layers[1].gate.bias[:6] = -50
        train(model, 1)
        found = [f for f in watched.findings() if f["grade"] != "info"]
    assert [(f["measure"], f["layer"], f["units"]) for f in found] == [("dead", "layers.1", list(range(6)))]


def test_evaluation_between_steps_is_not_a_step():
    model = Model().train()
    with health.watch(model) as watched:
        model.eval()
        model(batch())
        model.train()
        train(model, 1)
    assert watched.record()["tokens"] == 128


def test_training_that_begins_after_the_watch():
    model = Model().eval()
    with health.watch(model) as watched:
        model(batch())
        model.train()
        train(model, 1)
    assert watched.record()["tokens"] == 128


def test_other_optimizers_do_not_count():
    model, other = Model(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    with health.watch(model, every=2) as watched:
        for _ in range(3):
            other(torch.ones(2)).sum().backward()
            optimizer.step()
        assert watched.index == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_seen_once(reentrant):
    records = []
    for model in (Model(), Model(reentrant)):
        with health.watch(model, gradients=True) as watched:
            train(model, 1)
        records.append(watched.record())
    plain, recomputed = (r["blocks"] for r in records)
    assert [b["tokens"] for b in recomputed] == [128, 128]
    for a, b in zip(plain, recomputed, strict=True):
        assert a["streams"]["hidden"]["rms"] == b["streams"]["hidden"]["rms"]
        assert a["gradients"]["rms"] == pytest.approx(b["gradients"]["rms"], rel=1e-6)


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_code_is_made_once_and_never_sees_a_hook(in_place):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter, model = CompileCounter(), Model()
    if in_place:
        model.compile(backend=counter)
        compiled = model
    else:
        compiled = torch.compile(model, backend=counter)
    with health.watch(compiled, every=3, gradients=True) as watched:
        train(compiled, 7)
    assert counter.frame_count == 1
    assert watched.observed_step == 7 and watched.record()["tokens"] == 128
    assert watched.record()["blocks"][0]["gradients"]["rms"] > 0
    train(compiled, 1)
    assert counter.frame_count == 1


def test_two_ranks_are_joined(tmp_path):
    outputs = [json.loads(said.splitlines()[-1]) for said in two_ranks.run(ranks.__file__, tmp_path)]
    assert outputs[0] == outputs[1]
    with health.watch(ranks.model(), tokens=3000) as watched:
        watched.model(torch.cat([ranks.data(0), ranks.data(1)]))
    block = watched.record()["blocks"][0]
    assert outputs[0]["ranks"] == 2 and outputs[0]["tokens"] == 3000
    assert outputs[0]["dead"] == block["dead"]["units"] == [0]
    assert outputs[0]["rms"] == pytest.approx(block["streams"]["hidden"]["rms"], rel=1e-5)
    assert outputs[0]["largest"] == pytest.approx(block["streams"]["up"]["largest"])


def test_nonlins_own_model_is_seen_though_it_calls_no_projection():
    config = ModelConfig(layers=2, dim=16, heads=2, kv_heads=1, context=32, hidden=24, vocabulary=64)
    model = LanguageModel(config, nonlin.get("geglu"))
    with health.watch(model, gradients=True) as watched:
        tokens = torch.randint(0, 64, (4, 32))
        model.loss(tokens, tokens).backward()
    blocks = watched.record()["blocks"]
    assert [(b["activation"]["computed"], b["tokens"]) for b in blocks] == [("geglu", 128)] * 2
    assert all(b["gradients"]["rms"] > 0 for b in blocks)
    record = health.check(model, tokens=512)
    assert record["tokens"] == 512 and record["blocks"][0]["activation"]["claimed"] == "geglu"


def test_fused_block_is_computed_again_from_its_weights():
    class Fused(Block):
        def forward(self, x):
            gate, up = (F.linear(x, p.weight, p.bias) for p in (self.gate, self.up))
            return x + F.linear(F.silu(gate) * up, self.down.weight, self.down.bias)

    plain, fused = Block(), Fused()
    fused.load_state_dict(plain.state_dict())
    with health.watch(plain) as expected:
        plain(batch())
    answers = expected.answers
    with health.watch(fused) as watched:
        watched._end()
        watched.answers = [a.__class__(watched.answers[0].block, a.status, a.matches) for a in answers]
        watched._begin()
        fused(batch())
    a, b = (w.record()["blocks"][0]["streams"]["hidden"]["rms"] for w in (expected, watched))
    assert a == pytest.approx(b, rel=1e-6)


def test_scalars_go_to_tensorboard(tmp_path):
    board = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer, model = board.SummaryWriter(str(tmp_path)), Model()
    with health.watch(model, every=2, gradients=True, writer=writer):
        train(model, 4)
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.step for e in events.Scalars("health/layers.1/dead_share")] == [1, 3]
    assert events.Scalars("health/layers.0/gradient_rms")[0].value > 0


def test_trainer_callback(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = FAMILIES["llama"].build(mlp_bias=True)
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.bias[:8] = -60
    rows = [{"input_ids": torch.arange(16), "labels": torch.arange(16)} for _ in range(24)]
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=3, per_device_train_batch_size=8,
                                               report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no")
    callback = health.trainer_callback(every=2)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
    with pytest.warns(UserWarning, match="put out nothing"):
        trainer.train()
    logged = [line for line in trainer.state.log_history if "health/serious" in line]
    assert [line["step"] for line in logged] == [1, 3] and logged[0]["health/model.layers.1.mlp/dead_share"] == 0.2
    assert callback.health.findings()[0]["layer"] == "model.layers.1.mlp"


def test_a_trainer_that_fails_can_be_left_behind(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=3, report_to=[], use_cpu=True,
                                               disable_tqdm=True, save_strategy="no")
    model, callback = FAMILIES["llama"].build(), health.trainer_callback()
    rows = [{"input_ids": torch.arange(16), "labels": torch.full((16,), 10 ** 6)} for _ in range(8)]
    with pytest.raises((IndexError, RuntimeError)):
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    assert hooks(model) > 0, "the Trainer tells no callback"
    callback.stop()
    assert hooks(model) == 0 and torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("first", [0, 1])
def test_watches_that_overlap_end_in_any_order(first):
    import torch._dynamo

    models = [Model(), Model()]
    watches = [health.watch(m, every=2) for m in models]
    for watched, model in zip(watches, models, strict=True):
        watched.__enter__()
        model(batch())
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    watches[first].__exit__()
    assert torch._dynamo.eval_frame._stance.stance == "force_eager", "the other one still observes"
    watches[1 - first].__exit__()
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("options, word", [({"every": 0}, "every"), ({"steps": 0}, "steps"), ({"tokens": 0}, "tokens")])
def test_wrong_options(options, word):
    with pytest.raises(UserError, match=f"watch: {word} must"):
        health.watch(Model(), **options)


def test_model_without_blocks_and_findings_before_a_step():
    with pytest.raises(UserError, match="feed-forward block"):
        health.watch(nn.Embedding(3, 4))
    with health.watch(Model()) as watched, pytest.raises(UserError, match="has not run yet"):
        watched.findings()


def jagged():
    return torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.jagged)


def functional_gradient(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    torch.func.grad(lambda p: torch.func.functional_call(model, p, (batch(),)).sum())(parameters)


@pytest.mark.parametrize("run", [
    lambda model: model(jagged()), lambda model: torch.vmap(model)(batch()), functional_gradient,
    lambda model: torch.func.jvp(model, (batch(),), (batch(1),))], ids=["jagged", "vmap", "grad", "jvp"])
def test_a_call_that_cannot_be_read_goes_on_and_is_told_of(run):
    model = Model().layers[0]
    run(model)
    with pytest.warns(UserWarning, match="was not observed"), health.watch(model, gradients=True) as watched:
        run(model)
    with pytest.raises(UserError, match="was not observed"):
        watched.findings()
    with pytest.warns(UserWarning, match="was not observed"), health.watch(model, gradients=True) as watched:
        run(model)
        model(batch()).sum().backward()
    assert watched.record()["tokens"] == 128


def test_one_token_alone_and_a_block_without_units():
    model = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8))
    with health.watch(model) as watched:
        model(torch.randn(8))
    assert watched.record()["tokens"] == 1
    with pytest.raises(UserError, match="feed-forward block"), warnings.catch_warnings(action="ignore"):
        health.watch(nn.Sequential(nn.Linear(8, 0), nn.GELU(), nn.Linear(0, 8)))


def test_experts_called_by_keyword_are_observed_as_any_others():
    model = FAMILIES["qwen3_moe"].build()
    experts = model.model.layers[0].mlp.experts
    given = {"hidden_states": torch.randn(20, 16), "top_k_index": torch.randint(4, (20, 16)),
             "top_k_weights": torch.rand(20, 16)}
    seen = []
    for call in (lambda: experts(*given.values()), lambda: experts(**dict(reversed(given.items())))):
        with health.watch(model) as watched:
            call()
        seen.append(watched.record()["blocks"][0])
    assert seen[0] == seen[1] and seen[0]["tokens"] == 20
