"""A/A studies of a person's own set-up: run, continued, kept apart from other set-ups, summed up."""

import json
import shutil

import pytest

import nonlin
from nonlin.calls.calibration import calibrate, summary, twins
from nonlin.calls.study import load_study
from nonlin.cli import program
from nonlin.errors import UserError
from nonlin.functions import define, get
from nonlin.functions.reference import evaluate
from nonlin.report import calibration as page
from nonlin.study import Arm, Request
from tests.report.pages import recorded_pages
from tests.report.words import not_set

TINY = ["--activations", "gelu,relu", "--layers", "1", "--dim", "16", "--heads", "2", "--context", "16",
        "--steps", "10", "--seeds", "4", "--learning-rates", "2"]


def _run(out, studies, *more):
    program.main(["compare", *TINY, *more, "--aa", str(studies), "--out", str(out), "--json"], standalone_mode=False)


def test_a_set_up_is_run_as_studies_of_identical_arms_and_goes_on(tmp_path, capsys, monkeypatch):
    out, seen = tmp_path / "aa", recorded_pages(monkeypatch, page)
    monkeypatch.setattr("nonlin.report.style.write_files", lambda *_: None)
    _run(out, 1)
    running = [text for now, text in seen if now.state == "running"]
    assert running and all('http-equiv="refresh"' in text and "0 of 1 " in text for text in running)
    assert "aa-0001, judging on fresh seeds" in running[-1] and "No A/A study is complete yet" in running[0]
    assert seen[-1][0].state == "complete" and "refresh" not in seen[-1][1] and "of 1 A/A study has" in seen[-1][1]
    assert not_set(seen[-1][1]) == []
    first = json.loads(capsys.readouterr().out)
    assert first["studies"] == 1 and set(first["results"][0]["verdicts"]) == {"gelu-2"}
    trials = {p.name for p in (out / "studies" / "aa-0001" / "trials").iterdir()}
    configs = [json.loads((out / "studies" / "aa-0001" / "trials" / key / "config.json").read_text()) for key in trials]
    assert {c["activation"]["name"] for c in configs} == {"gelu"}
    assert {c["streams"]["feed_forward"] for c in configs} == {"gelu-1", "gelu-2"}

    program.main(["watch", str(out), "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["state"], told["studies"]) == ("A/A studies", "complete", {"done": 1, "total": 1})

    _run(out, 2)
    second = json.loads(capsys.readouterr().out)
    assert second["studies"] == 2 and second["results"][0] == first["results"][0]
    assert {p.name for p in (out / "studies" / "aa-0001" / "trials").iterdir()} == trials
    seeds = [set(), set()]
    for number in (1, 2):
        for trial in (out / "studies" / f"aa-000{number}" / "trials").iterdir():
            seeds[number - 1].add(json.loads((trial / "config.json").read_text())["seed"])
    assert not seeds[0] & seeds[1]

    with pytest.raises(UserError, match="another set-up: its batch differs"):
        _run(out, 2, "--batch", "4")

    study = load_study(out / "studies" / "aa-0001")  # its arms share an activation
    assert {run.config_hash for run in study.runs()} == trials
    assert {run.activation for run in study.runs()} == {"gelu-1", "gelu-2"}

    shutil.rmtree(study.directory / "trials" / min(trials))  # as if stopped on the way
    (study.directory / "results.json").unlink()
    assert [(now.state, now.studies.done, now.current.name) for now in nonlin.watch(out)] == [
        ("stopped", 1, "aa-0001")]
    assert "This is not finished" in nonlin.build_report(out).read_text()
    _run(out, 2)
    assert {run.config_hash for run in load_study(study.directory).runs()} == trials

    edited = json.loads((study.directory / "results.json").read_text())
    edited["arms"][1]["verdict"] = "better"  # the runs decide, not the file
    (study.directory / "results.json").write_text(json.dumps(edited))
    capsys.readouterr()
    _run(out, 2)
    assert json.loads(capsys.readouterr().out)["results"] == second["results"]
    for text in ("[]", "{}", json.dumps(json.loads((out / "machine.json").read_text()) | {"steps": "ten"})):
        (out / "machine.json").write_text(text)
        with pytest.raises(UserError, match=r"machine\.json must be as it was written; .* Delete it"):
            _run(out, 2)


def test_twins_that_share_their_streams_are_scaled_a_little(tmp_path, capsys):
    out = tmp_path / "aa"
    _run(out, 1, "--aa-streams", "shared")
    assert json.loads(capsys.readouterr().out)["studies"] == 1
    trials = (out / "studies" / "aa-0001" / "trials").iterdir()
    configs = [json.loads((trial / "config.json").read_text()) for trial in trials]
    assert {c["streams"]["feed_forward"] for c in configs} == {"pointwise"}
    formulas = {c["activation"]["formula"] for c in configs}
    assert formulas == {"x*Phi(x)", "1.0001*(x*Phi(1.0001*x))"}
    with pytest.raises(UserError, match="another set-up: its streams differ"):
        _run(out, 1)


@pytest.mark.parametrize("baseline", ["gelu", "swiglu", "swiglu_oai(alpha=1,limit=5)", "mine"])
def test_a_near_twin_differs_from_its_activation_by_less_than_two_parts_in_a_thousand(baseline):
    """Numbers by the reference, at 50 digits."""
    formula = "x*sigmoid(2*x)" if baseline == "mine" else None
    known = define(baseline, formula) if formula else get(baseline)
    arms = [Arm(name, known.kind, 64, 1000, formula if name == baseline else None)
            for name in (baseline, "relu", "silu")]
    request = Request(arms, baseline, {"layers": 1, "dim": 16, "heads": 2, "kv_heads": 2, "context": 16,
                                       "vocabulary": 256}, {"sha256": "", "tokenizer": "bytes"}, steps=10)
    made = twins(request, "shared")
    assert len(made) == 3 and len({arm.formula for arm in made}) == 3 and {arm.stream for arm in made} == {known.kind}
    for arm in made:
        twin = define(arm.activation, arm.formula)
        for point in (-3.0, -0.5, 0.7, 2.0):
            values = (point, 0.3) if known.gated else (point,)
            assert float(evaluate(twin, *values)) == pytest.approx(float(evaluate(known, *values)), rel=2e-3)


def test_an_activation_with_learned_parameters_has_no_near_twin():
    arms = [Arm("prelu", "pointwise", 64, 1000), Arm("relu", "pointwise", 64, 1000)]
    request = Request(arms, "prelu", {"layers": 1, "dim": 16, "heads": 2, "kv_heads": 2, "context": 16,
                                      "vocabulary": 256}, {"sha256": "", "tokenizer": "bytes"}, steps=10)
    with pytest.raises(UserError, match="baseline must be a formula without learned parameters"):
        twins(request, "shared")
    with pytest.raises(UserError, match="kind of streams"):
        calibrate(None, 1, streams="other")


def test_no_studies_are_refused():
    with pytest.raises(UserError, match="aa must be 1 or more"):
        calibrate(None, 0)


def _results(name, *verdicts, confidence=0.95):
    arms = [{"name": "gelu-1", "verdict": "baseline", "difference": None, "learning_rate": 0.01}]
    difference = {"mean": 0.01, "p_value": 0.2, "low": -0.01, "high": 0.03, "standard_error": 0.005, "seeds": 8}
    arms += [{"name": f"gelu-{i}", "verdict": v, "difference": difference, "learning_rate": 0.01}
             for i, v in enumerate(verdicts, 2)]
    return {"name": name, "baseline": "gelu-1", "arms": arms,
            "plan": {"rule": {"confidence": confidence, "seeds": 8, "margin": 0.005}}}


def test_a_study_counts_once_however_many_of_its_verdicts_are_false(tmp_path):
    found = summary(tmp_path, [_results("a", "better", "worse"), _results("b", "tie", "undecided"),
                               _results("c", "undecided", "tie")])
    assert (found.studies, found.false) == (3, 1) and found.low < 1 / 3 < found.high
    assert found.half_width == pytest.approx(0.02) and 0.01 < found.detectable < 0.03
    assert "1 of 3 A/A studies have a false verdict: 33 %" in str(found)
    assert "the rule states at most 5 %." in str(found)
    assert "at most 0.5 %." in str(summary(tmp_path, [_results("a", "tie", confidence=0.995)]))
