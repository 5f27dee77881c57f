"""Plans: what fits the minutes, what a study is named by, how the grid of learning rates grows."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.errors import UserError
from nonlin.study import Arm, Plan, make_plan
from nonlin.study.budget import makespan
from nonlin.study.plan import learning_rate_grid
from nonlin.study.tuning import trials_of, tuning
from nonlin.training import config_hash
from tests.study import studies


def test_the_plan_survives_json_and_notices_a_changed_rule():
    plan = studies.plan()
    values = json.loads(json.dumps(plan.as_dict()))
    assert Plan.from_dict(values) == plan
    values["rule"]["margin"] = 0.1
    with pytest.raises(UserError, match="changed after the study began"):
        Plan.from_dict(values)


def test_the_hash_is_of_what_decides_the_results():
    plan = studies.plan()
    assert replace(plan, name="other", budget={"timing": {"predicted_minutes": 1}}, workers=1).hash == plan.hash
    assert studies.plan(seeds=5).hash != plan.hash
    assert studies.plan(margin=0.01).hash != plan.hash
    assert studies.plan(baseline="silu").hash != plan.hash


def test_the_time_is_told_in_units_that_one_can_grasp():
    plan = studies.plan()
    told = ((8.04, "8.0 minutes"), (600.0, "10 h 00 min"), (271074.7, "188 days"), (1e300, "7e+296 days"))
    for minutes, words in told:
        timing = plan.budget["timing"] | {"predicted_minutes": minutes}
        assert f"Time: about {words}," in replace(plan, budget=plan.budget | {"timing": timing}).describe()


def test_a_budget_too_small_is_refused_with_the_minutes_it_would_take():
    asked = studies.request(steps=None, minutes=1.0)
    with pytest.raises(UserError, match=r"need about (\d+) minutes.*--minutes") as caught:
        make_plan(asked, {arm.name: 5000.0 for arm in asked.arms}, studies.MACHINE)
    needed = int(str(caught.value).split("--minutes ")[1].split(",")[0])
    again = studies.request(steps=None, minutes=needed)
    plan = make_plan(again, {arm.name: 5000.0 for arm in again.arms}, studies.MACHINE)
    assert plan.predicted_minutes <= needed


@settings(max_examples=40, deadline=None)
@given(minutes=st.floats(2, 60), rate=st.floats(2e4, 1e6), match=st.sampled_from(["params", "time", "width"]))
def test_the_plan_uses_its_minutes_and_no_more(minutes, rate, match):
    asked = studies.request(steps=None, minutes=minutes, match=match)
    speeds = {arm.name: rate * (0.7 if arm.name == "swiglu" else 1.0) for arm in asked.arms}
    try:
        plan = make_plan(asked, speeds, studies.MACHINE)
    except UserError:
        return
    assert plan.predicted_minutes <= minutes
    longer = replace(asked, steps=int(plan.training["judge_steps"] * 1.2) + 20)
    with pytest.raises(UserError):
        make_plan(longer, speeds, studies.MACHINE)
    if match == "time":
        steps = {arm["name"]: arm["judge_steps"] for arm in plan.arms}
        assert steps["swiglu"] / steps["gelu"] == pytest.approx(0.7, rel=0.01)


def test_text_is_repeated_only_a_few_times():
    asked = studies.request(steps=None, minutes=1000, data=studies.DATA | {"train_tokens": 1_000_000})
    plan = make_plan(asked, {arm.name: 1e6 for arm in asked.arms}, studies.MACHINE)
    assert plan.training["judge_steps"] * asked.tokens_per_step <= 4_000_000


def test_fewer_seeds_than_four_are_refused():
    with pytest.raises(UserError, match="seeds must be 4 or more"):
        studies.request(seeds=3)


@pytest.mark.parametrize("changes, words", [
    ({"baseline": "mish"}, "baseline"), ({"match": "depth"}, "match"), ({"learning_rate": -1.0}, "learning_rate"),
    ({"minutes": math.inf}, "minutes"), ({"margin": -1}, "margin"), ({"confidence": 1.0}, "confidence")])
def test_bad_requests_are_explained(changes, words):
    with pytest.raises(UserError, match=words):
        studies.request(**changes)


@pytest.mark.parametrize("changes", [
    {"minutes": 1e300}, {"steps": 10**20}, {"margin": 1e308}, {"batch": 10**20}, {"learning_rates": 130},
    {"learning_rates": 3000}, {"learning_rate": 1e16}, {"learning_rate": 1e-320}, {"replicate": 1 << 80},
    {"training": {"evaluation_tokens": 10**30}}, {"training": {"probe_every": 10**30}}])
def test_what_a_plan_could_not_be_read_with_is_refused_before_one_is_made(changes):
    """A plan that was written and then called damaged is nobody's to restore."""
    with pytest.raises(UserError, match=rf"\b{next(iter(changes.get('training') or changes))}\b") as error:
        studies.request(**changes)
    assert "damaged" not in str(error.value)


@given(st.floats(0, 1e308, exclude_min=True), st.integers(2, 200))
def test_every_request_that_is_taken_has_a_plan_that_reads_back(rate, rates):
    try:
        plan = studies.plan(learning_rate=rate, learning_rates=rates, minutes=None, steps=10)
    except UserError:
        return
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


def test_a_study_without_end_is_refused():
    with pytest.raises(UserError, match="runs must end within"):
        studies.plan(minutes=None, steps=10**15, batch=10**6)


def test_arms_that_train_the_same_runs_under_two_names_are_refused():
    twins = [Arm(name, "pointwise", 128, 100_000, activation="gelu") for name in ("one", "other")]
    with pytest.raises(UserError, match=r"differ in more than their names.*other"):
        studies.request(arms=twins, baseline="one")
    assert studies.request(arms=[replace(arm, stream=arm.name) for arm in twins], baseline="one").arms


def test_the_plan_in_words_names_the_rule_the_arms_and_the_time():
    words, whole = studies.plan().describe(), studies.plan().describe(whole=True)
    assert studies.plan().rule["text"] in whole and studies.plan().rule["text"] not in words
    for part in ("gelu, swiglu, silu, twin", "0.005", "95", "Holm", "4 fresh seeds", "minutes", "learning rates"):
        assert part in words


@pytest.mark.parametrize(("parameters", "said"), [
    (128_345, "0.13 M"), (134_515_008, "135 M"), (999_400_000, "999 M"), (7_240_000_000, "7.2 B")])
def test_the_plan_says_the_models_size_as_the_headline_does(parameters, said):
    arms = [Arm(name, "pointwise", 128, parameters) for name in ("gelu", "silu")]
    words = studies.plan(arms=arms, baseline="gelu").describe()
    assert f"about {said} parameters;" in words and "e+" not in words


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=7), st.integers(1, 4))
def test_makespan_lies_between_its_bounds(seconds, workers):
    found = makespan(seconds, workers)
    share, longest = sum(seconds) / workers, max(seconds)
    assert max(share, longest) - 1e-9 <= found <= share + (1 - 1 / workers) * longest + 1e-9  # Graham (1966)


def _records(plan, best_rate, arm="gelu", diverges=lambda rate: False):
    """Finish everything the plan asks for, an arm's loss least at best_rate; return the rates asked for."""
    records = {}
    while asked := [t for t in trials_of(plan, "tune", records) if t.arm == arm]:
        for t in asked:
            bad = diverges(t.learning_rate)
            loss = None if bad else 2 + abs(math.log(t.learning_rate / best_rate))
            records[t.key] = {"bits_per_byte": loss, "status": "diverged" if bad else "finished"}
    return tuning(plan, arm, records)


def test_a_best_inside_the_grid_needs_no_more_rates():
    state = _records(studies.plan(), 0.005)
    assert state.rates == learning_rate_grid(0.01, 4) and state.best == 0.005 and not state.at_edge


@pytest.mark.parametrize("best, rates", [(0.001, [0.00125, 0.0025]), (0.03, [0.04, 0.02])])
def test_the_grid_grows_at_the_edge_that_holds_the_best(best, rates):
    state = _records(studies.plan(), best)
    assert set(rates) <= set(state.rates) and 5 <= len(state.rates) <= 6


def test_growth_is_bounded_and_said():
    plan = studies.plan()
    state = _records(plan, 1e-6)
    assert len(state.rates) == len(plan.learning_rates) + plan.learning_rate_extensions
    assert state.at_edge and state.best == state.rates[0]


def test_rates_that_diverge_are_never_chosen_and_lower_ones_are_tried():
    state = _records(studies.plan(), 0.02, diverges=lambda rate: rate > 0.002)
    assert state.best == 0.00125 and min(state.rates) < 0.0025
    assert _records(studies.plan(), 0.02, diverges=lambda rate: True).best is None


def test_the_default_recipe_keeps_the_names_of_runs_from_before_there_was_a_choice():
    plan = studies.plan()
    assert {purpose: config_hash(plan.config("swiglu", purpose, 0.01, 1)) for purpose in ("tune", "judge")} == {
        "tune": "cffd4ceed5fd5ddc", "judge": "c4b81637cb65419e"}
    same = studies.plan(training={"optimizer": "adamw", "schedule": "linear", "beta2": 0.95, "accumulation": 1})
    assert same.hash == plan.hash and same.request == plan.request
    values = plan.as_dict()
    del values["notes"]  # a plan from before recipes had files
    assert Plan.from_dict(values) == plan


@pytest.mark.parametrize("recipe", [
    {"optimizer": "muon"}, {"schedule": "cosine"}, {"schedule": "wsd", "decay_fraction": 0.4}, {"weight_decay": 0.2},
    {"warmup_steps": 10}, {"clip": 0.0}, {"accumulation": 2}, {"beta1": 0.8}, {"epsilon": 1e-6},
    {"final_fraction": 0.1, "schedule": "cosine"}, {"momentum": 0.9, "optimizer": "muon"}], ids=str)
def test_a_recipe_is_in_the_hash_the_runs_and_the_words(recipe):
    plan, plain = studies.plan(training=recipe), studies.plan()
    assert plan.hash != plain.hash and plan.describe() != plain.describe()
    config = plan.config("swiglu", "judge", 0.01, 1)
    assert config["training"].items() >= recipe.items()
    assert config_hash(config) != config_hash(plain.config("swiglu", "judge", 0.01, 1))
    assert Plan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    assert ("warmup_fraction" in config["training"]) != ("warmup_steps" in recipe)


def test_what_a_file_says_that_is_not_used_is_in_the_plan_and_decides_nothing():
    plan = studies.plan(left_out=["a study has its own seeds: seed = 3"])
    assert "Not used of the recipe's file, a study has its own seeds: seed = 3." in plan.describe()
    assert plan.hash == studies.plan().hash and plan.request == studies.plan().request


def test_the_plan_says_which_engine_computes_the_recipe_and_why():
    wide = dict(studies.MODEL, dim=1040, heads=2)
    made = make_plan(studies.request(model=wide), {arm.name: 1e5 for arm in studies.request().arms},
                     {"engine": "torch", "dtype": "bfloat16", "threads": 1, "device": "cpu"})
    assert "in bfloat16 by torch, since the transformer kernels take heads of up to 512" in made.describe()
    assert "in float32 by the transformer kernels." in studies.plan().describe()


def test_recipes_that_no_study_can_follow():
    for changes, words in [({"training": {"accumulation": 3}}, r"accumulation must divide the batch of 8.*--batch 9"),
                           ({"training": {"optimizer": "lion"}}, "unknown optimizer 'lion'"),
                           ({"precision": "float16"}, "unknown precision 'float16'")]:
        with pytest.raises(UserError, match=words):
            studies.request(**changes)
    for training in ({"warmup_steps": 300}, {"warmup_steps": 200, "decay_steps": 100, "schedule": "wsd"}):
        with pytest.raises(UserError, match=r"must leave steps of a run between them; they take 300 steps of 300"):
            studies.plan(training=training)
    assert studies.plan(training={"warmup_steps": 200, "decay_steps": 100}).hash  # linear has no decay of its own


@pytest.mark.parametrize(("training", "fits"), [
    ({"warmup_fraction": 0.9, "decay_fraction": 0.9}, False), ({"warmup_fraction": 0.7, "decay_fraction": 0.3}, True),
    ({"warmup_steps": 200, "decay_fraction": 0.5}, False), ({"warmup_fraction": 0.4, "decay_steps": 200}, False),
    ({"warmup_steps": 200, "decay_fraction": 0.3}, True), ({"warmup_fraction": 0.9}, False)])
def test_a_warm_up_and_a_decay_take_no_more_than_all_steps(training, fits):
    """The page says how long both are: a decay that has no room for its share would not be as long."""
    made = {"schedule": "wsd", **training}
    if fits:
        assert studies.plan(training=made).hash
    else:
        with pytest.raises(UserError, match="must leave steps of a run between them"):
            studies.plan(training=made)
