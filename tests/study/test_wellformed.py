"""A study's files whose hashes fit but whose values are not of their kind: one error or a note, never a traceback."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nonlin.calls.study import compare_studies, load_study
from nonlin.data import Sources
from nonlin.errors import NonlinError, UserError
from nonlin.files import Unreadable, read_json
from nonlin.study import Arm, Plan
from nonlin.study.extension import extended
from nonlin.study.records import InFlight
from nonlin.study.results import results
from nonlin.study.snapshot import Watcher, snapshot
from nonlin.study.store import _checksum
from tests.changed_values import GONE, changed, places
from tests.study import studies

WRONG = [GONE, None, 3, -1, 0, 1e308, 10**18, "x", "", [], {}, True, [[]], [{}], {"a": 1}, "\ud800", [None, None], 0.5]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "study"
    studies.run(folder, studies.plan("gelu", "swiglu"))
    return folder


def sealed(name, values):
    """The values under a hash of their own: whoever writes a file can write it too."""
    if name == "plan.json":
        made = Plan.__new__(Plan)
        for field in Plan.__dataclass_fields__:
            object.__setattr__(made, field, values.get(field, [] if field in ("notes", "history") else None))
        values["hash"] = made.hash
    elif name == "result.json":
        values["checksum"] = _checksum(values)
    return values


def look_at(folder, other):
    for call in (lambda: repr(load_study(folder)), lambda: load_study(folder).runs(), lambda: Watcher(folder).look(),
                 lambda: compare_studies([folder, other])):
        try:
            call()
        except NonlinError as error:
            assert "\n" not in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_value_in_any_place_is_one_error_or_a_note(whole, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["plan.json", "results.json", "result.json", "copied"]))
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("changed") / "study"))
    name = kind
    if kind == "copied":
        shutil.rmtree(folder / "trials")
        name = data.draw(st.sampled_from(["plan.json", "results.json"]))
    path = folder / name
    if name == "result.json":
        path = data.draw(st.sampled_from(sorted((folder / "trials").glob("*/result.json"))))
    values = json.loads(path.read_text())
    at = data.draw(st.sampled_from(list(places(values))[1:]))
    path.write_text(json.dumps(sealed(name, changed(values, at, data.draw(st.sampled_from(WRONG))))))
    look_at(folder, whole)
    shutil.rmtree(folder)


@pytest.mark.parametrize(("at", "new"), [
    (("rule", "confidence"), "x"), (("rule", "margin"), 1e308), (("arms", 0, "name"), "swiglu"),
    (("baseline",), "mish"), (("judge_seeds",), [1, 1, 2, 3]), (("learning_rates",), []),
    (("data", "train_bytes"), [1]), (("data", "train_bytes"), 0),
    (("budget", "timing", "trials"), {}), (("tune_seeds",), ""), (("arms",), []), (("workers",), 0)])
def test_a_plan_of_wrong_values_is_no_plan_though_its_hash_fits(whole, tmp_path, at, new):
    folder = Path(shutil.copytree(whole, tmp_path / "study"))
    values = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(sealed("plan.json", changed(values, at, new))))
    with pytest.raises(UserError, match=r"plan\.json was damaged or changed"):
        load_study(folder)


@pytest.mark.parametrize(("at", "new"), [
    (("timing",), 0), (("bits_per_byte",), None), (("bits_per_byte",), [{}]), (("layers",), [3]),
    (("timing", "seconds"), GONE), (("status",), "done"), (("initial_bits_per_byte",), GONE)])
def test_a_record_of_wrong_values_is_left_out_and_said_though_its_checksum_fits(whole, tmp_path, at, new):
    folder = Path(shutil.copytree(whole, tmp_path / "study"))
    path = random.Random(0).choice(sorted((folder / "trials").glob("*/result.json")))
    path.write_text(json.dumps(sealed("result.json", changed(json.loads(path.read_text()), at, new))))
    assert any(path.parent.name in note and "left out" in note for note in load_study(folder).folder.notes)


@pytest.fixture(scope="module")
def planned():
    """A plan that was extended twice."""
    return json.loads(json.dumps(extended(extended(studies.plan("gelu", "swiglu"), 6), 8).as_dict()))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_passes_the_door_of_a_plan_can_be_told_run_judged_and_extended(planned, data):
    at = data.draw(st.sampled_from(list(places(planned))[1:]))
    new = data.draw(st.sampled_from([*WRONG, "gelu", [1], [0.5], ["x"], [[1, 2]], -5, 1e-300, [3, 1], [2, 2], "1"]))
    try:
        plan = Plan.from_dict(sealed("plan.json", changed(planned, at, new)))
    except UserError as error:
        assert str(error).isprintable()
        return
    except (ValueError, TypeError):  # the hash of such values cannot be made
        return
    plan.describe()
    snapshot(plan, {}, False, InFlight())
    results(plan, {})
    for arm in plan.arms:
        for purpose, seeds in (("tune", plan.tune_seeds), ("judge", plan.judge_seeds)):
            plan.config(arm["name"], purpose, plan.learning_rates[0], seeds[0])
    speeds = {name: {"tokens_per_second": 1e5, "seconds_overhead": 0.0} for name in ("mish", plan.baseline)}
    count, mish = len(plan.judge_seeds), Arm("mish", "pointwise", 128, 10**5)
    for seeds, arms in ((count + 2, []), (count, [mish])):
        with contextlib.suppress(UserError):
            extended(plan, seeds, arms, speeds)
    with contextlib.suppress(UserError):
        Sources.of_plan({"paths": []} | plan.request["data"])


@pytest.mark.parametrize(("at", "new", "why"), [
    (("history", 0, "request"), 3, r"history\[0\]\.request"),
    (("history", 0, "request", "arms", 0, "name"), "1", "gelu"),
    (("training", "clip"), [1], "clip"), (("training", "weight_decay"), "x", "weight_decay"),
    (("training", "schedule"), ["linear"], "schedule"), (("training", "warmup_fraction"), GONE, "warm-up"),
    (("request", "seeds"), "4", r"request\.seeds"), (("request", "data", "paths"), 3, r"request\.data\.paths"),
    (("tune_seeds",), [], "tune_seeds"), (("rule", "looks"), [6, 4, 8], "looks do not rise"),
    (("rule", "looks"), [4, 6], "looks do not end"), (("arms", 1), GONE, "another study|swiglu"),
    (("machine", "engine"), [], "engine"), (("judge_seeds", 0), "x", "judge_seeds")])
def test_the_error_of_a_plan_names_what_is_wrong(planned, at, new, why):
    with pytest.raises(UserError, match=rf"plan\.json was damaged or changed .*{why}"):
        Plan.from_dict(sealed("plan.json", changed(planned, at, new)))


def test_results_copied_from_the_first_release_are_shown(tmp_path):
    old = Path(__file__).parents[1] / "records" / "format-1" / "study"
    study = load_study(shutil.copytree(old, tmp_path / "study"))
    assert study.verdicts and study.winner in repr(study)


@pytest.mark.parametrize("text", [
    '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1' + "0" * 40 + "}", '{"a": 1' + "0" * 5000 + "}",
    '{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', '"\xff', '{"a": 1}x', "[" * 65 + "]" * 65])
def test_json_that_no_file_of_ours_has_is_unreadable(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Unreadable, match=r"^a\.json "):
        read_json(path)


def test_a_run_of_an_activation_with_huge_outputs_is_whole(whole, tmp_path):
    """As of a user's own 1e17*x, whose block a normalization makes small again."""
    folder = Path(shutil.copytree(whole, tmp_path / "study"))
    path = sorted((folder / "trials").glob("*/result.json"))[0]
    layers = [{"gradient_rms": 0.0, "output_rms": 4e38, "dead_share": 0.0, "zero_output_share": 0.0}]
    path.write_text(json.dumps(sealed("result.json", json.loads(path.read_text()) | {"layers": layers})))
    study = load_study(folder).folder
    assert study.results["status"] == "complete" and path.parent.name in study.trials()
