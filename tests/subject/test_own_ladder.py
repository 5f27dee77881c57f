"""Ladders inside an architecture of the user's own: its shapes, a whole ladder, and what is refused."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest

import nonlin
from nonlin.calls import ladder_comparison, ladder_running, own_ladder, own_model
from nonlin.errors import UserError
from nonlin.ladder import design, folder
from nonlin.ladder.architecture import Architecture
from nonlin.ladder.rates import RULES
from nonlin.study import make_plan
from nonlin.subject import building, sizes
from nonlin.training import run_trial
from nonlin.training.worker import handle
from tests.ladder import tiny
from tests.ladder.tiny import SIZES
from tests.subject.tiny import configuration

TINY = tiny.TINY | {"activations": ["swiglu", "relu"]}


def table(config, head_width=16, largest=1e6):
    return sizes.sizes({"wanted": {"config": config}, "vocabulary": 64, "context": 16, "head_width": head_width,
                        "largest": largest})


@pytest.mark.parametrize("name, changes", [
    ("qwen3", {}), ("llama", {}), ("gpt2", {}), ("qwen3", {"head_dim": 32}),
    ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1})])
def test_a_table_counts_what_is_built(name, changes):
    import torch

    config = configuration(name, **changes)
    found = table(config)
    rows = found["rows"]
    assert len(rows) > 4 and [row["dim"] for row in rows] == sorted({row["dim"] for row in rows})
    settings = design.Settings(context=16, vocabulary=64)
    for size in (50e3, 200e3):
        one = Architecture(found["period"], lambda _: rows).rung(size, "tuned", 16, settings)
        row = next(row for row in rows if row["dim"] == one.dim)
        shape = {"layers": one.layers, "dim": one.dim, "heads": one.heads, "kv_heads": row["kv_heads"],
                 "head_width": 16}
        own = {"class": found["class"], "config": sizes.scaled(found, **shape)}
        model = building.family_model(own, 0)
        outer = sizes.embeddings_of(model)
        assert one.parameters_with_embeddings == sum(p.numel() for p in model.parameters())
        assert one.parameters == sum(p.numel() for n, p in model.named_parameters() if n not in outer)
        assert 0.6 < one.parameters / size < 1.6
        ratio = config.get("num_attention_heads", 1) // config.get("num_key_value_heads", 1)
        assert row["heads"] == ratio * row["kv_heads"] or name == "gpt2"
        with torch.no_grad():
            assert model(torch.zeros(1, 4, dtype=torch.long)).logits.isfinite().all()


def test_a_size_that_a_rung_has_gives_that_rung():
    """The page names rungs by their exact sizes, to extend a ladder with."""
    found = table(configuration("qwen3"))
    shapes, settings = Architecture(found["period"], lambda _: found["rows"]), design.Settings()
    for size in (15e3, 33e3, 90e3, 410e3):
        one = shapes.rung(size, "tuned", 16, settings)
        assert shapes.rung(one.parameters, "tuned", 16, settings) == one


def test_layers_in_a_pattern_come_whole():
    config = configuration("qwen3", num_hidden_layers=4) | {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "use_sliding_window": True, "sliding_window": 8}
    found = table(config)
    assert found["period"] == 2
    scaled = sizes.scaled(found, 6, 64, 4, 2, 16)
    assert scaled["layer_types"] == ["sliding_attention", "full_attention"] * 3
    broken = config | {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}
    with pytest.raises(UserError, match="layer_types of 4 layers without one"):
        table(broken)


@pytest.mark.parametrize("name, words", [
    ("mixtral", "be a dense one.*two sizes.*nonlin compare --model"),
    ("deepseek_v3", "dense one|width sets every width"), ("falcon_mamba", "attention heads|feed-forward")])
def test_architectures_that_cannot_be_sized_are_refused(name, words):
    import transformers

    with pytest.raises(UserError, match=words):
        table(transformers.AutoConfig.for_model(name).to_dict())


@pytest.fixture(scope="module")
def short():
    with tiny.short_runs():
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(configuration("qwen3", vocab_size=256, num_hidden_layers=1)))
    return path


@pytest.fixture(scope="module")
def finished(short, text, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("ladders") / "ladder"
    return nonlin.ladder("1M", text, model=config, out=out, **TINY)


@pytest.mark.slow
def test_a_ladder_inside_an_own_architecture(finished):
    assert finished.status == "complete" and finished.plan.transfer["name"] == "completep"
    assert finished.plan.baseline == "swiglu"  # the family's own
    assert finished.forecast["relu"].mean is not None and finished.results["narrowing"]
    assert [made["before"] for made in finished.results["forecasts"]] == [True, False]
    for (one, _), study in zip(finished.plan.ordered(), finished.rungs.values(), strict=True):
        own = study.plan.model["own"]
        assert own["class"] == "Qwen3ForCausalLM" and own["config"]["num_hidden_layers"] == one.layers
        assert {run.parameters for run in study.runs() if run.activation == "swiglu"} == {
            one.parameters_with_embeddings}
        assert {run.flops_per_token for run in study.runs() if run.activation == "swiglu"} == {one.flops / one.tokens}
    top = finished.rungs[finished.plan.rungs[-1]["name"]].folder.plan
    carried = top.config("relu", "judge", 0.01, 1)["training"]["transfer"]["base"]
    assert carried["dim"] == finished.plan.rungs[0]["dim"]
    assert carried["std"]["model.layers.*.mlp.down_proj.weight"] == pytest.approx(0.02, rel=0.2)
    assert "inside Qwen3ForCausalLM" in finished.report.read_text()


@pytest.mark.slow
def test_it_goes_on_and_is_extended(finished, text, config, tmp_path):
    out = tmp_path / "ladder"
    shutil.copytree(finished.directory, out, symlinks=True)
    shutil.rmtree(out / "rungs" / finished.plan.ordered()[-1][1])
    from nonlin.progress import Silent
    from nonlin.study.engines import EngineChoice

    again = ladder_comparison.resume(out, Silent(), EngineChoice(workers=1))
    assert [row["arms"] for row in again.results["rungs"]] == [row["arms"] for row in finished.results["rungs"]]
    more = nonlin.ladder("1M", text, model=config, out=out, **TINY | {"sizes": [*SIZES, 110e3]})
    assert len(more.plan.rungs) == 5 and len(more.plan.model["subjects"]) == 5
    other = json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}
    with pytest.raises(UserError, match="its model differs"):
        nonlin.ladder("1M", text, model=other, out=out, **TINY | {"sizes": [*SIZES, 110e3]})
    with pytest.raises(UserError, match="model differ"):
        nonlin.ladder("1M", text, out=out, **TINY | {"sizes": [*SIZES, 110e3]}, learning_rate=1e-3)
    assert folder.load_ladder(out).plan.model["sha256"] == finished.plan.model["sha256"]


# Planned in this process, without a worker and a measurement: then a run of its largest rung.

@pytest.fixture
def here(short, monkeypatch):
    """Let a ladder be planned in this process and stop before its first run."""
    @contextlib.contextmanager
    def engine(*_):
        yield SimpleNamespace(total=lambda: 1)

    for module in (own_ladder, own_model):
        monkeypatch.setattr(module, "ask", lambda engine, body: handle(body))
    machine = {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cpu"}
    environment = {"nonlin": "0", "torch": "0", "processor": {"name": "any"}}
    monkeypatch.setattr(ladder_comparison, "open_engine", engine)
    monkeypatch.setattr(ladder_comparison, "ask", lambda engine, body: environment)
    monkeypatch.setattr(ladder_comparison, "choose_machine", lambda *_: dict(machine))
    monkeypatch.setattr(ladder_comparison, "measure_and_fit", lambda engine, configs, *_: {
        key: {"tokens_per_second": 1e4, "seconds_overhead": 0.1} for key in configs})
    monkeypatch.setattr(ladder_comparison, "run", lambda there, whole, *_: (there, whole))


@pytest.mark.parametrize("name, transfer", [("qwen3", "completep"), ("gpt2", "standard")])
def test_a_planned_ladder_and_a_run_of_its_largest_rung(here, text, tmp_path, name, transfer):
    config = configuration(name, vocab_size=256)
    asked = TINY | {"activations": ["swiglu", "gelu_tanh", "relu"], "transfer": transfer}
    there, _ = nonlin.ladder("1M", text, model=config, out=tmp_path / "ladder", **asked)
    made = folder.load_ladder(there.directory).plan  # as it was written
    assert made.baseline == ("swiglu" if name == "qwen3" else "gelu_tanh")
    assert len(made.rungs) == 4 and len(made.model["subjects"]) == 4
    lines = ladder_comparison.described(made, 1).splitlines()
    assert any(line.startswith(f"Inside {made.model['class']}") for line in lines)
    assert any(line.startswith("Replaced:") for line in lines)
    top, rule = made.ordered()[-1][0], RULES[transfer]
    base = made.ordered()[0][0]
    request = ladder_running.of_rung(
        ladder_comparison._from_plan(made), top, made.steady, dict.fromkeys(made.arms, 1e-3), 1e-3,
        rule.training(top, base, 1e-3, made.subject(base)["own"]), made.subject(top))
    study = make_plan(request, dict.fromkeys(made.arms, 1e4), {"engine": "torch", "dtype": "float32", "threads": 1})
    config = study.config("relu", "judge", 1e-3, 1)
    assert ("transfer" in config["training"]) == (transfer == "completep")
    config["training"]["steps"] = 3
    found = run_trial(config, there.directory / "data", tmp_path / "run")
    assert found["status"] == "finished"
    assert abs(found["parameters"] / top.parameters_with_embeddings - 1) < 0.03
    base_flops = next(arm["flops_per_token"] for arm in made.subject(top)["arms"] if arm["name"] == made.baseline)
    assert top.flops == base_flops * top.tokens
    again, _ = nonlin.ladder("1M", text, model=json.loads(json.dumps(configuration(name, vocab_size=256))),
                             out=tmp_path / "ladder", **asked | {"sizes": [*SIZES, 110e3]})
    assert len(again.plan.rungs) == 5 and len(again.plan.model["subjects"]) == 5
    other = configuration(name, vocab_size=256) | {"initializer_range": 0.03}
    with pytest.raises(UserError, match="its model differs"):
        nonlin.ladder("1M", text, model=other, out=tmp_path / "ladder", **asked)


def test_the_longest_ladder_that_fits_is_planned_by_name(here, text, tmp_path):
    asked = {key: value for key, value in TINY.items() if key != "sizes"}
    there, _ = nonlin.ladder("300K", text, model="llama", minutes=500, out=tmp_path / "ladder", **asked)
    plain = [one for one, _ in there.plan.ordered()]
    assert len(plain) >= 4 and plain[-1].parameters == pytest.approx(300e3, rel=0.3)
    with pytest.raises(UserError, match="minutes must be enough for 4 sizes"):
        nonlin.ladder("300K", text, model="llama", minutes=0.001, out=tmp_path / "other", **asked)


GEMMA = {"model_type": "gemma2", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16,
         "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}


def module():
    raise AssertionError("never called")


@pytest.mark.parametrize("changes, words", [
    ({"model": module}, "model must be a configuration or an architecture's name.*the function module"),
    ({"model": "qwen33"}, "unknown architecture.*qwen3"), ({"model": "nowhere/config.json"}, "nowhere"),
    ({"model": GEMMA}, "transfer must be standard in this model.*--transfer standard"),
    ({"sizes": [1e3, 25e3, 40e3, 70e3]}, "sizes must lie between 12,000"),
    ({"context": 128, "tokens_per_parameter": 5}, "context must be at most the model's 64 positions")])
def test_what_makes_no_ladder_is_said_before_anything_is_written(here, text, config, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        nonlin.ladder(**{"target": "1M", "data": text, "model": config, "out": tmp_path / "new", **TINY, **changes})
    assert not (tmp_path / "new").exists()
