"""A study that grows: what was run is kept, the plan remembers, the rule counts the looks."""

import json
import shutil
from dataclasses import replace

import pytest

import nonlin
from nonlin.errors import UserError
from nonlin.report import build
from nonlin.study import Arm, Plan, Store, load
from nonlin.study.extension import extended, looked_at, seeds_in
from nonlin.study.results import results
from nonlin.study.stages import level
from tests.study import studies

MISH = Arm("mish", "pointwise", 128, 100_000)
SPEED = {"mish": {"tokens_per_second": 5e4, "seconds_overhead": 1.0}}


def plan(**changes):
    return studies.plan("gelu", "swiglu", "silu", **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "study"
    studies.run(folder, plan())
    return folder


@pytest.fixture
def study(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


def grow(folder, seeds, arms=(), **options):
    store = Store(folder)
    made = extended(store.plan(), seeds, arms, SPEED, **options)
    store.extend(made)
    return made


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/result.json")}


def test_more_seeds_keep_every_run_and_judge_by_a_further_stage(study):
    before, kept = load(study).results, times(study)
    made = grow(study, 6)
    assert made.looks == [4, 6] and made.judge_seeds == [1, 2, 3, 4, 5, 6]
    found = studies.run(study, made)
    assert found["status"] == "complete" and kept.items() <= times(study).items()
    assert len(times(study)) == len(kept) + 2 * 3
    assert found["looks"] == [{"seeds": 4, "verdicts": {a["name"]: a["verdict"] for a in before["arms"]}}]
    for arm in found["arms"][1:]:
        d = arm["difference"]
        assert d["seeds"] == 6 and d["interval_confidence"] > 0.9999 - level(0.05, [4, 6]) > 0.95
    assert "Seeds were added after looks at 4" in found["rule"]["text"]
    assert json.loads((study / "plans" / "1.json").read_text())["hash"] == made.history[0]["hash"] == plan().hash
    page = build(study).read_text()
    assert "At the look with 4 seeds" in page
    again = grow(study, 8)
    assert again.looks == [4, 6, 8] and [stage["hash"] for stage in again.history] == [plan().hash, made.hash]
    assert load(study).notes == ()  # results.json is of before the extension, and was not edited


def test_an_arm_joins_the_others_in_holms_family_without_a_stage(study):
    before, kept = {a["name"]: a for a in load(study).results["arms"]}, times(study)
    made = grow(study, 4, [MISH])
    assert made.looks == [4] and "looks" not in made.rule
    found = studies.run(study, made)
    assert kept.items() <= times(study).items() and [a["name"] for a in found["arms"]][-1] == "mish"
    assert len(found["arms"][-1]["judged"]) == 4 and found["arms"][-1]["difference"] is not None
    for arm in found["arms"][1:-1]:
        assert arm["difference"]["interval_confidence"] >= before[arm["name"]]["difference"]["interval_confidence"]
    assert made.trial_seconds("mish", "judge") == pytest.approx(1 + 300 * 8 * 32 / (0.9 * 5e4))
    assert Store(study).resume(studies.request("gelu", "swiglu", "silu", "mish")).hash == made.hash
    records = {key: record for key, (_, record) in load(study).trials().items()}
    turned = results(replace(made, baseline="mish"), records)  # as compare_studies may ask: no earlier look had it
    assert turned["status"] == "complete" and turned["looks"] == []


def test_before_anybody_could_look_it_is_another_plan_and_no_stage(tmp_path):
    Store(tmp_path).create(plan())
    assert not looked_at(plan(), {})
    made = grow(tmp_path, 6, looked=False)
    assert made.looks == [6] and "looks" not in made.rule and made.history[0]["looked"] is False
    found = studies.run(tmp_path, made)
    fresh = studies.run(tmp_path / "fresh", plan(seeds=6))
    assert [a["difference"] for a in found["arms"]] == [a["difference"] for a in fresh["arms"]]
    assert found["looks"] == []


def test_the_plan_reads_back_and_plans_without_a_history_have_the_hash_that_they_had(study):
    made = grow(study, 6, [MISH])
    assert Plan.from_dict(made.as_dict()) == made and "history" not in plan().as_dict()
    edited = made.as_dict()
    edited["history"] = []
    with pytest.raises(UserError, match="damaged or changed"):
        Plan.from_dict(edited)


def test_the_command_that_began_the_study_goes_on_with_the_extended_one(study):
    made = grow(study, 6)
    assert Store(study).resume(studies.request("gelu", "swiglu", "silu")).hash == made.hash
    with pytest.raises(UserError, match="another study: its seeds and steps"):
        Store(study).resume(studies.request("gelu", "swiglu", "silu", steps=301))


def test_minutes_become_seeds_by_the_time_that_runs_took(study):
    records = {key: record for key, (_, record) in load(study).trials().items()}
    for record in records.values():
        record["timing"] = record["timing"] | {"seconds": 10.0}
    assert seeds_in(plan(), records, minutes=(45 + 65) / 60, workers=1) == 4 + 2
    assert seeds_in(plan(), records, minutes=(45 + 65) / 60, workers=2) == 4 + 4
    with pytest.raises(UserError, match="--minutes 2"):
        seeds_in(plan(), records, minutes=1, workers=1)


@pytest.mark.parametrize(("asked", "words"), [
    ({}, "seeds, activations or minutes must be given"), ({"seeds": 4}, "be more than the 4"),
    ({"seeds": 3}, "be more than the 4"), ({"seeds": 2000}, "be fewer than 1001"), ({"seeds": 6.5}, "be a number"),
    ({"seeds": 6, "minutes": 3}, "stand without seeds"), ({"minutes": -1}, "be positive"),
    ({"activations": "+silu"}, "be new to the study"), ({"activations": "swigul"}, "Did you mean swiglu"),
    ({"activations": "+mine=x**0.3"}, "value and a derivative")])
def test_what_adds_nothing_is_said_before_anything_is_written(study, asked, words):
    before = {path: path.read_bytes() for path in study.glob("*.json")}
    with pytest.raises(UserError, match=words):
        nonlin.extend_study(study, progress=False, **asked)
    assert {path: path.read_bytes() for path in study.glob("*.json")} == before


def test_a_study_that_runs_is_not_extended(study):
    with Store(study).lock(), pytest.raises(UserError, match="another one runs it"):
        grow_by_the_call(study)
    other = grow(study, 6)
    with pytest.raises(UserError, match="the one that is extended"):
        Store(study).extend(extended(plan(), 8))
    assert Store(study).plan() == other


def grow_by_the_call(folder):
    (folder / "data").mkdir(exist_ok=True)
    from unittest.mock import patch

    with patch("nonlin.calls.extension.prepare_again"):
        nonlin.extend_study(folder, seeds=6, progress=False)
