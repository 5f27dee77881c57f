"""Whole ladders of models so small that they train in moments: run, stopped, resumed, extended."""

import json
import shutil

import pytest

import nonlin
from nonlin.calls import ladder_comparison
from nonlin.calls.ladder_comparison import Wanted, _rungs
from nonlin.errors import UserError
from nonlin.ladder import design, folder
from nonlin.report import style
from nonlin.study import defaults
from tests.test_schemas import exactly

SIZES = [12e3, 25e3, 40e3, 70e3]
TINY = {"activations": ["gelu", "swiglu"], "sizes": SIZES, "tokens_per_parameter": 0.05, "context": 16, "batch": 4,
        "longer": 0, "learning_rates": 2, "progress": False, "workers": 1}


@pytest.fixture(scope="module")
def short():
    """Let runs be as short as tests need, and growing grids stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MINIMUM_STEPS", 1)
        patch.setattr(defaults, "LEARNING_RATE_EXTENSIONS", 0)
        patch.setattr(defaults, "TRAINING", defaults.TRAINING | {"evaluation_tokens": 256})
        patch.setattr(ladder_comparison, "_SECONDS", 0.01)
        patch.setattr(style, "write_files", lambda *_: None)  # drawing takes longer than training
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"line {i}: {i * i} squares\n" for i in range(6000)))
    return path


@pytest.fixture(scope="module")
def finished(short, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("ladders") / "ladder"
    return nonlin.ladder("1M", text, out=out, **TINY)


def test_a_ladder_runs_forecasts_and_compares(finished):
    results = finished.results
    assert finished.status == "complete" and list(finished.rungs) == [row["name"] for row in finished.plan.rungs]
    roles = [row["role"] for row in finished.plan.rungs]
    assert roles == ["tuned", "tuned", "checked", "carried"]
    assert set(finished.forecast) == {"swiglu"} and finished.forecast["swiglu"].mean is not None
    assert [made["before"] for made in results["forecasts"]] == [True, False]
    assert results["comparisons"][0]["parameters"] == finished.plan.rungs[-1]["parameters"]
    assert len(results["leave_one_out"]) == 4 and results["narrowing"] and results["curves"]
    top = finished.rungs[finished.plan.rungs[-1]["name"]]
    assert all(arm.learning_rate == results["rates"][i]["carried"][finished.plan.rungs[-1]["name"]]
               for i, arm in enumerate(top.arms.values()))
    config = top.folder.plan.config("gelu", "judge", 0.01, 1)
    assert config["training"]["transfer"]["base"]["dim"] == finished.plan.rungs[0]["dim"]
    assert "1,000,000 parameters" in repr(finished) or "1 M parameters" in repr(finished)


def test_the_forecast_was_written_before_the_top_rung_ran(finished):
    path = finished.directory / "forecasts" / "0001.json"
    top = finished.plan.ordered()[-1][1]
    trials = finished.directory / "rungs" / top / "trials"
    assert path.stat().st_mtime_ns < min(p.stat().st_mtime_ns for p in trials.iterdir())
    made = json.loads(path.read_text())
    assert top not in made["rungs"] and [at["what"] for at in made["at"]] == ["held-out rung", "target"]


def test_every_rung_is_a_study_with_its_page(finished):
    for name, study in finished.rungs.items():
        assert study.status == "complete", name
        assert (study.directory / "report.html").exists() and (study.directory / "data" / "dataset.json").exists()
    page = finished.report.read_text()
    assert "Was it right?" in page and "To know more" in page and page.count("<svg") == 4
    assert all(f"rungs/{row['folder']}/report.html" in page for row in finished.plan.rungs)


def test_its_files_are_of_their_schemas(finished):
    exactly("ladder", json.loads((finished.directory / "results.json").read_text()))
    for path in (finished.directory / "forecasts").iterdir():
        exactly("forecast", json.loads(path.read_text()))


def copy(finished, tmp_path):
    out = tmp_path / "ladder"
    shutil.copytree(finished.directory, out, symlinks=True)
    return out


def without_timing(value):
    if isinstance(value, dict):
        return {k: without_timing(v) for k, v in value.items() if k not in ("timing", "workers")}
    return [without_timing(v) for v in value] if isinstance(value, list) else value


def test_the_same_call_again_runs_nothing_and_says_the_same(finished, text, tmp_path):
    out = copy(finished, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (out / "rungs").rglob("result.json")}
    again = nonlin.ladder("1M", text, out=out, **TINY)
    assert {p: p.stat().st_mtime_ns for p in (out / "rungs").rglob("result.json")} == before
    assert without_timing(again.results) == without_timing(finished.results) | {"name": again.results["name"]}
    assert len(list((out / "forecasts").iterdir())) == 2


def test_a_stopped_ladder_goes_on_to_the_same_results(finished, tmp_path):
    out = copy(finished, tmp_path)
    for name in (finished.plan.ordered()[-1][1], finished.plan.ordered()[2][1]):
        shutil.rmtree(out / "rungs" / name)
    shutil.rmtree(out / "forecasts")
    (out / "results.json").unlink()
    assert nonlin.load_ladder(out).status == "partial"
    from nonlin.progress import Silent
    from nonlin.study.engines import EngineChoice

    again = ladder_comparison.resume(out, Silent(), EngineChoice(workers=1))
    same = [(without_timing(a), without_timing(b)) for a, b in
            zip(again.results["rungs"], finished.results["rungs"], strict=True)]
    assert all(a == b for a, b in same)
    assert [made["before"] for made in again.results["forecasts"]] == [True, False]


def test_seeds_and_a_rung_extend_it_and_old_forecasts_stay(finished, text, tmp_path):
    out = copy(finished, tmp_path)
    old = (out / "forecasts" / "0001.json").read_text()
    tuned = {p.name for p in (out / "rungs" / finished.plan.ordered()[0][1] / "trials").iterdir()}
    wanted = TINY | {"sizes": [*SIZES, 110e3], "seeds": 4}
    more = nonlin.ladder("1M", text, out=out, **wanted)
    assert all(len(arm.judged) == 4 for study in more.rungs.values() for arm in study.arms.values())
    assert tuned < {p.name for p in (out / "rungs" / more.plan.ordered()[0][1] / "trials").iterdir()}
    assert [row["role"] for row in more.plan.rungs] == ["tuned", "tuned", "checked", "carried", "carried"]
    assert (out / "forecasts" / "0001.json").read_text() == old and len(more.results["forecasts"]) == 4
    third = more.results["forecasts"][2]  # of the new top rung, from the others, the former top among them
    assert third["before"] and len(third["rungs"]) == 4
    assert third["at"][0]["parameters"] == more.plan.rungs[-1]["parameters"]
    assert len({row["parameters"] for row in more.results["comparisons"]}) == 2
    assert len(list((out / "plans").iterdir())) == 1
    again = nonlin.ladder("1M", text, out=out, **wanted | {"seeds": 5})  # the top rung ran with four: nothing is before
    assert [made["before"] for made in again.results["forecasts"]] == [True, False, True, False, False, False]
    with pytest.raises(UserError, match="seeds must be 5 or more"):
        nonlin.ladder("1M", text, out=out, **wanted | {"seeds": 3})
    with pytest.raises(UserError, match="Sizes can be added, not taken away"):
        nonlin.ladder("1M", text, out=out, **wanted | {"seeds": 5, "sizes": SIZES})


def test_another_target_is_forecast_without_a_run(finished, text, tmp_path):
    out = copy(finished, tmp_path)
    inside = nonlin.ladder(50e3, text, out=out, **TINY)
    assert any("lies inside the ladder" in note for note in inside.results["notes"])
    assert inside.forecast["swiglu"].reason is None or "compute" not in inside.forecast["swiglu"].reason


def test_another_ladders_folder_is_refused(finished, text, tmp_path):
    out = copy(finished, tmp_path)
    with pytest.raises(UserError, match="its arms differs"):
        nonlin.ladder("1M", text, out=out, **TINY | {"activations": ["gelu", "silu"]})
    with pytest.raises(UserError, match="tokens_per_parameter"):
        nonlin.ladder("1M", text, out=out, **TINY | {"tokens_per_parameter": 0.06})
    with pytest.raises(UserError, match="transfer must be completep"):
        nonlin.ladder("1M", text, out=out, **TINY, transfer="standard")
    with pytest.raises(UserError, match="must hold a ladder; it holds a study"):
        folder.load_ladder(out / "rungs" / finished.plan.ordered()[0][1])


@pytest.mark.parametrize("changes, words", [
    ({"target": "much"}, "--target must be a number"), ({"target": -1.0}, "target must be positive"),
    ({"sizes": [12e3, 25e3, 40e3]}, "sizes must be 4 or more"), ({"seeds": 2}, "seeds must be 3 or more"),
    ({"minutes": 1.0, "budget": 1e12}, "must not both"), ({"transfer": "luck"}, "transfer must be one of"),
    ({"minutes": 0.001}, "minutes must be enough for 4 sizes.*they need about .* minutes")])
def test_ladders_that_cannot_be_are_refused_with_what_they_need(short, text, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        nonlin.ladder(**{"target": "1M", "data": text, "out": tmp_path / "new", **TINY, **changes})


def test_the_longest_ladder_that_fits_the_minutes_is_planned(short, text, tmp_path):
    """Without sizes, more minutes make a larger ladder; nothing needs to run to see it."""
    speeds = [{"parameters": 1e4, "tokens_per_second": 1e5}, {"parameters": 1e6, "tokens_per_second": 1e4}]
    timing = {"speeds": speeds, "seconds_overhead": 1.0, "over_baseline": {"gelu": 1.0}, "mean_over_baseline": 1.0}
    settings = design.Settings(tokens_per_parameter=20, batch=8, context=64)
    tops = [_rungs(Wanted(125e6, settings, None, minutes, None), settings, timing, 3, 2)[-1].parameters
            for minutes in (60.0, 600.0)]
    assert tops[1] > 1.5 * tops[0]
    with pytest.raises(UserError, match=r"FLOPs must be enough for 4 sizes.*they need about"):
        _rungs(Wanted(125e6, settings, None, None, 1e6), settings, timing, 3, 2)
