"""One run: a pure function of its configuration, by the recipe it states, with the measures it states."""

import hashlib
import json
import math

import pytest
import torch

from nonlin.data import Dataset
from nonlin.errors import UserError
from nonlin.kernels.transformer import native
from nonlin.training import Run, config_hash, export_winner, load_trained, measure, recipe, run_trial, sample
from nonlin.training.evaluation import evaluate

ENGINES = ["torch", pytest.param("native", marks=pytest.mark.skipif(
    native.library() is None, reason=f"no native engine: {native.unavailable()}"))]


def run(config, dataset, folder, progress=None):
    record = run_trial(config, dataset.directory, folder, progress)
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return record, lines


def without_timing(record):
    return {key: value for key, value in record.items() if key != "timing"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("activation", ["gelu", "swiglu", "prelu"])
def test_a_trial_is_a_pure_function_of_its_configuration(config, dataset, tmp_path, engine, activation):
    made = config(activation, engine=engine)
    one, _ = run(made, dataset, tmp_path / "one")
    torch.manual_seed(123), torch.rand(7)  # nothing of this process may matter
    two, _ = run(made, dataset, tmp_path / "two")
    assert without_timing(one) == without_timing(two)
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert one["config_hash"] == config_hash(made)
    weights = (tmp_path / "one" / "weights.safetensors").read_bytes()
    assert one["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    other, _ = run(config(activation, engine=engine, seed=2), dataset, tmp_path / "other")
    assert other["bits_per_byte"] != one["bits_per_byte"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engines_train_to_the_same_loss(config, dataset, tmp_path, engine):
    record, _ = run(config("swiglu", engine=engine, steps=60), dataset, tmp_path / "a")
    reference, _ = run(config("swiglu", steps=60), dataset, tmp_path / "b")
    # Sixty steps let rounding errors grow; a wrong gradient moves the loss by far more.
    assert record["bits_per_byte"] == pytest.approx(reference["bits_per_byte"], abs=2e-3)
    assert record["bits_per_byte"] < 4.5 < record["initial_bits_per_byte"]


def test_metrics_are_a_line_each(config, dataset, tmp_path):
    seen = []
    made = config()
    record, lines = run(made, dataset, tmp_path, seen.append)
    assert [p["step"] for p in seen] == [1, 21] and all(p["steps"] == 40 for p in seen)
    by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "evaluation", "probe")}
    assert sum(map(len, by_kind.values())) == len(lines)
    assert [line["step"] for line in by_kind["evaluation"]] == [0, 20, 40]
    assert [line["step"] for line in by_kind["probe"]] == [10, 20, 30, 40]
    assert [line["step"] for line in by_kind["train"]] == [1, 6, 11, 16, 21, 26, 31, 36, 40]
    for line in by_kind["train"]:
        assert line["tokens"] == line["step"] * 64
        assert line["learning_rate"] == recipe.learning_rate(made["training"], line["step"] - 1)
    assert by_kind["evaluation"][-1]["bits_per_byte"] == record["bits_per_byte"]
    assert by_kind["probe"][-1]["layers"] == record["layers"]
    assert record["best_bits_per_byte"] == min(line["bits_per_byte"] for line in by_kind["evaluation"])
    assert record["dead_share"] == sum(layer["dead_share"] for layer in record["layers"]) / 2
    assert record["timing"]["seconds"] > 0 and record["timing"]["peak_memory_bytes"] > 10_000_000


def test_probes_change_nothing(config, dataset, tmp_path):
    often, _ = run(config("swiglu", probe_every=1), dataset, tmp_path / "often")
    seldom, _ = run(config("swiglu", probe_every=1000), dataset, tmp_path / "seldom")
    assert often["bits_per_byte"] == seldom["bits_per_byte"] and often["layers"] == seldom["layers"]
    assert often["weights_sha256"] == seldom["weights_sha256"]


def test_tuning_runs_keep_no_weights(config, dataset, tmp_path):
    record, _ = run(config(purpose="tune"), dataset, tmp_path)
    assert record["weights_sha256"] is None and not (tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize(("name", "changes"), [
    ("identity", {"formula": None, "learning_rate": 1e4, "clip": 1e9}),
    ("explosive", {"formula": "exp(x*x*100)"})])
def test_divergence_is_a_result(config, dataset, tmp_path, name, changes):
    record, lines = run(config(name, **changes), dataset, tmp_path)
    assert record["status"] == "diverged" and record["bits_per_byte"] is None
    assert record["weights_sha256"] is None and record["sparsity"] is None
    assert lines[-1]["step"] < 40  # it stopped
    json.loads(json.dumps(record, allow_nan=False))


def test_metrics_hold_no_number_that_json_has_not(config, dataset, tmp_path):
    run(config("explosive", formula="exp(x*x*100)", probe_every=1), dataset, tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and "null" in text
    from nonlin.training.trial import _Log

    log = _Log(tmp_path / "log.jsonl")
    log.write(kind="probe", layers=[{"output_rms": math.inf, "dead_share": math.nan, "gradient_rms": 1.0}])
    assert json.loads((tmp_path / "log.jsonl").read_text())["layers"] == [
        {"output_rms": None, "dead_share": None, "gradient_rms": 1.0}]
    log.file.close()


def test_data_that_is_not_the_plans_is_refused(config, dataset, tmp_path):
    made = config()
    made["data"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="its hash differs"):
        run(made, dataset, tmp_path)


def test_bits_per_byte_is_what_a_computation_by_hand_gives(config, dataset):
    made = Run(config("swiglu"), dataset)
    for _ in range(5):
        made.step()
    got = made.evaluate()
    validation = dataset.validation
    count = -(-1000 // 16)
    offsets = [int(i * (len(validation) - 16 - 1) / (count - 1)) for i in range(count)]
    exact = made.model.double()
    nats = 0.0
    for offset in offsets:
        tokens = torch.from_numpy(validation[offset:offset + 17].astype("int64"))
        nats -= float(exact(tokens[None, :-1])[0].log_softmax(-1)[range(16), tokens[1:]].detach().sum())
    assert got == pytest.approx(nats / math.log(2) / (16 * count), rel=1e-6)


def test_bits_per_byte_divides_by_bytes_not_by_tokens():
    class Known:
        """A model that always pays 3 nats."""

        def parameters(self):
            return iter([torch.zeros(1)])

        def loss(self, inputs, targets):
            return torch.tensor(3.0)

    import numpy as np

    batches = [(np.zeros((4, 8)), np.zeros((4, 8))), (np.zeros((1, 8)), np.zeros((1, 8)))]
    assert evaluate(Known(), batches, 2.5) == pytest.approx(3 / math.log(2) / 2.5, rel=1e-12)


def test_one_step_of_a_run_is_one_step_of_the_recipe(config, dataset):
    """Against the loop written out with torch's plain AdamW, weight decay by hand on what should decay."""
    from nonlin.data import batch

    made = config("prelu", steps=10, clip=0.05)
    ours, theirs = Run(made, dataset), Run(made, dataset).model
    decayed = {n for n, p in theirs.named_parameters() if p.ndim == 2}
    assert {n.split(".")[-2] for n in decayed} == {"embedding", "head", "q", "k", "v", "o", "up", "down"}
    plain = torch.optim.AdamW(theirs.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(4):
        ours.step(probe=step == 2)
        rate = 0.01 * (1.0 if step == 0 else (10 - step) / 9)
        plain.param_groups[0]["lr"] = rate
        inputs, targets = map(torch.from_numpy, batch(dataset, step, 4, 16, 1))
        loss = torch.nn.functional.cross_entropy(theirs(inputs).flatten(0, 1), targets.flatten())
        plain.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in theirs.parameters()))
        with torch.no_grad():
            for n, p in theirs.named_parameters():
                p.grad.mul_(min(1.0, 0.05 / norm))
                if n in decayed:
                    p.mul_(1 - rate * 0.1)
        plain.step()
    for (n, a), b in zip(ours.model.named_parameters(), theirs.parameters(), strict=True):
        assert float((a - b).abs().max()) < 2e-5, n  # of steps of up to 0.01 each


def test_norms_and_activation_parameters_do_not_decay(config, dataset):
    made = Run(config("xielu"), dataset)
    decayed, others = made.optimizer.param_groups
    names = {id(p): n for n, p in made.model.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    assert {names[id(p)].split(".")[-1] for p in others["params"]} == {"weight", "alpha_p", "alpha_n"}
    assert all("norm" in names[id(p)] or "alpha" in names[id(p)] for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_measure_says_how_fast_the_median_step_is(config, dataset, monkeypatch):
    from nonlin.training import measuring

    clock, steps = [0.0], iter([1.0, 0.25, 0.5, 0.75] + [0.25] * 50)  # the third and fourth are captured

    def step(self, probe=False):
        clock[0] += 1.25 if probe else next(steps)

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Run, "step", step)
    whole = [2.0]
    monkeypatch.setattr(Run, "evaluate", lambda self, share=1.0: clock.__setitem__(0, clock[0] + share * whole[0]))
    found = measure(config(probe_every=4), dataset.directory, 5.0)
    assert found["tokens_per_second"] == 64 / (0.25 + 1.0 / 4)
    assert found["seconds_overhead"] == 1.0 + 0.25 + 0.5 + 2.0 * (2 + 0.125)
    whole[0], began = 3200.0, clock[0]  # of a large model a part is measured
    found = measure(config(), dataset.directory, 5.0)
    assert found["seconds_overhead"] == 0.25 + 3200.0 * (2 + 0.125) and clock[0] - began < 300


def test_sampling_and_export_of_a_trained_model(config, dataset, tmp_path, monkeypatch):
    made = config("swiglu", steps=60)
    run(made, dataset, tmp_path / "run")
    model = load_trained(tmp_path / "run")
    greedy = sample(tmp_path / "run", dataset.directory, "7: the", 20, temperature=0.0)
    tokens = list(b"7: the")
    for _ in range(20):
        tokens.append(int(model(torch.tensor([tokens[-16:]]))[0, -1].argmax()))
    assert greedy == bytes(tokens).decode(errors="replace")
    for small in (5e-324, 1e-320, 1e-40):  # as 0 is, and nothing is divided by it
        assert sample(tmp_path / "run", dataset.directory, "7: the", 20, temperature=small) == greedy
    assert sample(tmp_path / "run", dataset.directory, "7: the", 20, temperature=1e308) != greedy
    warm = [sample(tmp_path / "run", dataset.directory, "", 30, 1.0, seed) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2] and len(warm[0]) >= 20
    # Where a token opens each document, it opens the prompt, and the next one that the model opens ends the text.
    opened, tokens = Dataset(dataset.directory), [10, *b"7: the"]
    opened.info["end"] = 10
    monkeypatch.setattr("nonlin.training.trained.Dataset", lambda _: opened)
    for _ in range(200):
        if (token := int(model(torch.tensor([tokens[-16:]]))[0, -1].argmax())) == 10:
            break
        tokens.append(token)
    text = sample(tmp_path / "run", dataset.directory, "7: the", 200, temperature=0.0)
    assert text == bytes(tokens[1:]).decode(errors="replace")
    assert "\n" not in sample(tmp_path / "run", dataset.directory, "", 200, 1.0)
    opened.info["vocabulary"] = 100  # a model may have more rows than the text has tokens
    assert max(sample(tmp_path / "run", dataset.directory, "7", 100, 5.0).encode()) < 100
    told = export_winner(tmp_path / "run", dataset.directory, tmp_path / "model")
    assert told["architecture"] == "Qwen3ForCausalLM"


@pytest.mark.parametrize("damage", ["cut", "gone", "of another", "no configuration"])
def test_a_damaged_trial_is_no_model(config, dataset, tmp_path, damage):
    run(config(), dataset, tmp_path / "run")
    weights = tmp_path / "run" / "weights.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "gone":
        weights.unlink()
    elif damage == "of another":
        run(config("swiglu"), dataset, tmp_path / "other")
        (tmp_path / "run" / "config.json").write_text((tmp_path / "other" / "config.json").read_text())
    else:
        (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match="Continue the study to finish it"):
        load_trained(tmp_path / "run")
