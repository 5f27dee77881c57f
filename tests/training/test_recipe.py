"""The recipe: schedules, optimizers against loops written by hand, batches in parts, what a run cannot follow."""

import gc
import json
import math
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.data import batch
from nonlin.errors import UserError
from nonlin.training import Run, recipe, run_trial, trial
from nonlin.training.machine import candidates
from nonlin.training.recipe import DEFAULTS, decay_start, learning_rate, warmup_steps

FRACTIONS = st.floats(0, 1)
RECIPES = st.fixed_dictionaries(
    {"steps": st.integers(1, 400), "learning_rate": st.floats(1e-6, 1.0), "schedule": st.sampled_from(recipe.SCHEDULES),
     "final_fraction": FRACTIONS},
    optional={"decay_fraction": FRACTIONS, "decay_steps": st.integers(0, 500)},
).flatmap(lambda made: st.one_of(FRACTIONS.map(lambda f: made | {"warmup_fraction": f}),
                                 st.integers(1, 500).map(lambda n: made | {"warmup_steps": n})))


def test_the_default_rises_and_falls_in_straight_lines():
    made = {"steps": 100, "learning_rate": 0.5, "warmup_fraction": 0.1}
    rates = [learning_rate(made, s) for s in range(100)]
    assert rates[9] == rates[10] == max(rates) == 0.5 and rates[0] == 0.05
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (100 - s) / 90 for s in range(10, 100)])
    assert learning_rate(made | {"steps": 1}, 0) == 0.5


@settings(max_examples=200, deadline=None)
@given(made=RECIPES)
def test_every_schedule_rises_to_its_peak_stays_and_falls(made):
    steps, peak = made["steps"], made["learning_rate"]
    rates = [learning_rate(made, s) for s in range(steps)]
    warmup, start = warmup_steps(made, steps), decay_start(made, steps)
    assert 1 <= warmup <= start <= steps
    assert all(a <= b for a, b in pairwise(rates[:warmup]))
    assert rates[warmup - 1] == pytest.approx(peak, rel=1e-12) and max(rates) == pytest.approx(peak, rel=1e-12)
    assert all(rate == peak for rate in rates[warmup:start])
    falling = rates[start:]
    assert all(a >= b * (1 - 1e-12) for a, b in pairwise(falling))
    least = made["final_fraction"] * peak
    assert all(rate >= least * (1 - 1e-12) for rate in falling) and all(rate > 0 for rate in rates)


@settings(max_examples=100, deadline=None)
@given(made=RECIPES, longer=st.integers(1, 300))
def test_before_its_decay_a_run_of_wsd_does_not_know_its_length(made, longer):
    made = {"warmup_steps": 20} | made | {"schedule": "wsd"}
    made.pop("warmup_fraction", None)
    long = made | {"steps": made["steps"] + longer}
    common = min(decay_start(made, made["steps"]), decay_start(long, long["steps"]))
    if made["steps"] >= made["warmup_steps"]:  # a shorter one rises faster
        assert [learning_rate(made, s) for s in range(common)] == [learning_rate(long, s) for s in range(common)]


def test_schedules_are_those_of_transformers():
    """Its lambdas, one step on: their first step learns nothing, ours is the first that rises."""
    optimization = pytest.importorskip("transformers").optimization
    parameter = torch.nn.Parameter(torch.zeros(1))

    def theirs(make, **options):
        optimizer = torch.optim.SGD([parameter], lr=0.5)
        schedule = make(optimizer, num_warmup_steps=10, **options)
        return [schedule.lr_lambdas[0](s) * 0.5 for s in range(100)]

    made = {"steps": 100, "learning_rate": 0.5, "warmup_steps": 10}
    cases = [
        ({}, theirs(optimization.get_linear_schedule_with_warmup, num_training_steps=100)),
        ({"schedule": "cosine"}, theirs(optimization.get_cosine_schedule_with_warmup, num_training_steps=100)),
        ({"schedule": "cosine", "final_fraction": 0.1}, theirs(
            optimization.get_cosine_with_min_lr_schedule_with_warmup, num_training_steps=100, min_lr_rate=0.1)),
        ({"schedule": "wsd", "decay_steps": 30, "final_fraction": 0.2}, theirs(
            optimization.get_wsd_schedule, num_training_steps=100, num_decay_steps=30, decay_type="linear",
            min_lr_ratio=0.2))]
    for options, expected in cases:
        ours = [learning_rate(made | options, s) for s in range(100)]
        assert ours[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
        assert ours[10:] == pytest.approx(expected[10:], rel=1e-9), options


def by_hand(config, dataset, steps):
    """A model trained by the recipe as written in its papers: AdamW and Muon out in full, in float32."""
    made = config["training"]
    model = Run(config, dataset).model
    names, state = dict(model.named_parameters()), {}
    beta1, beta2 = recipe.choice(made, "beta1"), recipe.choice(made, "beta2")
    for step in range(steps):
        inputs, targets = map(torch.from_numpy, batch(dataset, step, made["batch"], 16, config["seed"]))
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in names.values()))
        clip = min(1.0, made["clip"] / norm) if made["clip"] else 1.0
        rate = learning_rate(made, step)
        with torch.no_grad():
            for name, p in names.items():
                g, decays = p.grad * clip, p.ndim == 2
                if made.get("optimizer") == "muon" and decays and name.startswith("blocks."):
                    m = state.setdefault(name, torch.zeros_like(p))
                    m.mul_(0.95).add_(g, alpha=0.05)
                    update = 0.2 * math.sqrt(max(p.shape)) * orthogonal(0.05 * g + 0.95 * m)
                else:
                    m, v = state.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))
                    m.mul_(beta1).add_(g, alpha=1 - beta1)
                    v.mul_(beta2).add_(g * g, alpha=1 - beta2)
                    update = (m / (1 - beta1 ** (step + 1))) / (
                        (v / (1 - beta2 ** (step + 1))).sqrt() + recipe.choice(made, "epsilon"))
                p.mul_(1 - rate * made["weight_decay"] * decays)
                p.sub_(rate * update)
    return names


def orthogonal(matrix):
    """Newton and Schulz's iteration with the coefficients of Muon's author, five times, in bfloat16 as his."""
    x = matrix.bfloat16()
    x = x.mT if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).float()


def apart(config, dataset, other):
    """The largest distance of a run's parameters to the hand-written loop's of ``other``, in how far they moved."""
    start = {name: p.detach().clone() for name, p in Run(config, dataset).model.named_parameters()}
    run = Run(config, dataset)
    for _ in range(5):
        run.step()
    expected = by_hand(config | {"training": config["training"] | other}, dataset, 5)
    with torch.no_grad():
        return max(float((p - expected[name]).norm() / (expected[name] - start[name]).norm())
                   for name, p in run.model.named_parameters())


@pytest.mark.parametrize(("made", "tolerance"), [
    ({"optimizer": "muon", "clip": 0.05}, 0.03),  # its iteration rounds to bfloat16
    ({"schedule": "cosine", "weight_decay": 0.5, "clip": 0.0}, 1e-3),
    ({"schedule": "wsd", "decay_fraction": 0.5, "beta2": 0.99, "beta1": 0.8, "epsilon": 1e-4}, 1e-3)],
    ids=["muon", "cosine", "wsd"])
def test_steps_are_those_of_a_loop_by_hand(config, dataset, made, tolerance):
    asked = config("swiglu", steps=8, **made)
    assert apart(asked, dataset, {}) < tolerance
    # A loop by another recipe is far off: the tolerance would show it.
    for wrong in ({"weight_decay": 0.2}, {"schedule": "linear", "warmup_fraction": 0.9}, {"beta1": 0.5}):
        assert apart(asked, dataset, wrong) > 2 * tolerance, wrong


@pytest.mark.parametrize("activation", ["xielu", "swiglu", "gelu"])
@pytest.mark.parametrize("tied", [False, True])
def test_muon_takes_the_matrices_inside_the_layers_and_no_other(config, dataset, activation, tied):
    asked = config(activation, optimizer="muon")
    asked["model"]["tied"] = tied
    run = Run(asked, dataset)
    muon, adamw = run.optimizer.parts
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    names = {id(p): n for n, p in run.model.named_parameters()}
    inside = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert inside == {n for n, p in run.model.named_parameters() if p.ndim == 2 and n.startswith("blocks.")}
    rest = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted([*inside, *rest]) == sorted(names.values())  # each parameter once
    assert "embedding.weight" in rest and not any("norm" in n or "alpha" in n for n in inside)


def test_a_torch_without_muon_says_so(config, dataset, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"optimizer muon must come with torch 2.9 or later.*--optimizer adamw"):
        Run(config(optimizer="muon"), dataset)


@pytest.mark.parametrize("made", [{"optimizer": "muon", "schedule": "wsd"}, {"schedule": "cosine"}],
                         ids=["muon", "cosine"])
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(config, dataset, tmp_path, made, engine):
    from nonlin.training.checkpoint import Checkpoints, Stopped

    class At:
        """Asked to stop at every seventh look, and once more: it is looked at before and after the writing."""

        looks = 0

        def __call__(self):
            self.looks += 1
            return self.looks % 8 in (7, 0)

    asked = config("swiglu", engine=engine, steps=24, evaluations=2, **made)
    whole = run_trial(asked, dataset.directory, tmp_path / "whole")
    at, stops = At(), 0
    while True:
        try:
            record = run_trial(asked, dataset.directory, tmp_path / "parts",
                               checkpoints=Checkpoints(tmp_path / "parts", None, at))
            break
        except Stopped:
            stops += 1
    assert stops >= 2
    assert record | {"timing": None} == whole | {"timing": None}
    assert (tmp_path / "parts/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_batch_in_parts_is_the_batch(config, dataset, tmp_path, engine):
    """Losses, gradients and the probes of layers; they differ in the order of sums alone."""
    found = []
    for parts in (1, 2, 4):
        asked = config("xielu", engine=engine, steps=10, clip=0.3, accumulation=parts)
        record = run_trial(asked, dataset.directory, tmp_path / str(parts))
        found.append((record, [json.loads(line) for line in (tmp_path / str(parts) / "metrics.jsonl").open()]))
    (whole, lines), *others = found
    for record, ours in others:
        assert record["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=2e-5)
        for layer, other in zip(record["layers"], whole["layers"], strict=True):
            assert layer == pytest.approx(other, rel=2e-3, abs=1e-6)
        for a, b in zip(ours, lines, strict=True):
            if a["kind"] == "train":
                assert a["loss_nats"] == pytest.approx(b["loss_nats"], rel=2e-5)
                assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=2e-4)


def test_every_recipe_trains_in_every_precision(config, dataset):
    for engine in ("torch", "native"):
        for dtype in ("float32", "bfloat16"):
            asked = config("swiglu", engine=engine, steps=6, optimizer="muon", schedule="wsd", accumulation=2)
            asked["machine"]["dtype"] = dtype
            run = Run(asked, dataset)
            losses = [run.step()[0] for _ in range(6)]
            assert losses[-1] < losses[0] < 6, (engine, dtype)


@pytest.mark.parametrize(("made", "words"), [
    ({"optimizer": "sgd"}, "unknown optimizer 'sgd'"), ({"schedule": "cosin"}, "Did you mean cosine"),
    ({"weight_decay": -1}, "weight_decay must be 0 or more"), ({"warmup_fraction": 1.5}, "warmup must lie between"),
    ({"beta2": 1}, "beta2 must be below 1"), ({"accumulation": 0}, "accumulation must be a whole number"),
    ({"clip": math.inf}, "clip must be 0 or more and finite"), ({"epsilon": math.nan}, "epsilon must")])
def test_a_recipe_that_no_run_can_follow(made, words):
    with pytest.raises(UserError, match=words):
        recipe.check(made)


def test_the_machine_offers_what_the_precision_and_the_heads_allow(monkeypatch):
    import nonlin.training.machine as machine

    model = {"dim": 96, "heads": 3}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.native, "library", lambda: object())
    for kinds in (["avx512_bf16"], []):
        monkeypatch.setattr(machine, "processor", lambda kinds=kinds: {"instructions": kinds})
        assert {one["dtype"] for one in candidates("auto", model)} == {"float32", *(["bfloat16"] if kinds else [])}
        for precision in ("float32", "bfloat16"):
            assert {one["dtype"] for one in candidates(precision, model)} == {precision}
    assert {one["engine"] for one in candidates("auto", model)} == {"native", "torch"}
    wide = {"dim": 1040, "heads": 2}
    assert {one["engine"] for one in candidates("auto", wide)} == {"torch"}
    assert "heads of up to 512" in recipe.native_cannot(wide)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [candidates(p, model)[0]["dtype"] for p in recipe.PRECISIONS] == ["float32", "bfloat16", "bfloat16"]
    for optimizer, graphs in (("adamw", [True, False]), ("muon", [False])):
        offered = candidates("auto", model, {"optimizer": optimizer})
        assert [one.get("graphs", False) for one in offered] == graphs


class _Launched:
    """What captures no step, on a machine without a GPU: a fake of StepGraph."""

    def __call__(self, step, *rows):
        return step(*rows)


def test_steps_that_a_graph_takes_are_the_steps(config, dataset, tmp_path, monkeypatch):
    """Rates of groups that differ, parts of a batch, probes, no clipping, a checkpoint: each rate is a tensor."""
    monkeypatch.setattr(trial, "StepGraph", _Launched)
    made = config("prelu", steps=8, probe_every=3, accumulation=2, clip=0)
    captured = made | {"machine": made["machine"] | {"graphs": True}}
    runs = [Run(one, dataset) for one in (made, captured)]
    for group in runs[1].optimizer.param_groups:  # as a transfer has them
        group["rate_factor"] = 0.5 if group["weight_decay"] else 2.0
    for group in runs[0].optimizer.param_groups:
        group["rate_factor"] = 0.5 if group["weight_decay"] else 2.0
    for index in range(6):
        if index == 4:  # its state, put into it, is no other
            runs[1].optimizer.put_moments(runs[1].optimizer.moments())
        one, other = (run.step(index % 3 == 2)[:3] for run in runs)
        assert one == pytest.approx(other, rel=1e-5)
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    rates = [group["lr"] for group in runs[1].optimizer.param_groups]
    assert all(isinstance(rate, torch.Tensor) for rate in rates) and len({id(rate) for rate in rates}) == len(rates)
    gc.disable()
    try:  # the graph of the last run would hold the GPU's memory beside the next one's
        seen = weakref.ref(runs[1])
        del runs
        assert seen() is None
    finally:
        gc.enable()


def test_a_graph_takes_no_step_of_a_recipe_that_it_cannot(config, dataset):
    made = config(optimizer="muon", steps=4)
    made["machine"] |= {"graphs": True}
    run = Run(made, dataset)
    assert run.graph is None and all(isinstance(g["lr"], float) for g in run.optimizer.param_groups)
    run.step()


def test_what_a_recipe_leaves_out_is_no_part_of_a_hash():
    assert recipe.without_defaults(DEFAULTS) == {}
    assert recipe.without_defaults({"optimizer": "muon", "schedule": "linear", "clip": 1.0}) == {
        "optimizer": "muon", "clip": 1.0}
