"""Whole ladders of models so small that they train in moments: run, stopped, resumed, extended."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

import nonlin
from nonlin.calls import ladder_comparison, ladder_running
from nonlin.calls.ladder_comparison import Wanted, _rungs
from nonlin.cli import program
from nonlin.errors import UserError
from nonlin.ladder import design, folder, plan, results, simulated
from nonlin.ladder.rates import RULES
from nonlin.report import ladder as page
from nonlin.study import make_plan
from nonlin.training.trunks import Trunks
from tests.ladder import tiny
from tests.ladder.tiny import SIZES
from tests.report.headless import NEEDS_CHROMIUM, browser, opened
from tests.report.pages import recorded_pages
from tests.report.words import not_set
from tests.test_schemas import exactly

TINY = tiny.TINY | {"activations": ["gelu", "swiglu"]}


@pytest.fixture(scope="module")
def short():
    with tiny.short_runs():
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny.write_text(tmp_path_factory.mktemp("text"))


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


def test_a_page_is_made_from_the_rungs_and_not_from_an_edited_file(finished):
    path = finished.directory / "results.json"
    written = path.read_text()
    edited = json.loads(written) | {"advice": "Use what I sell."}
    path.write_text(json.dumps(edited))
    finished.report.unlink()
    again = nonlin.load_ladder(finished.directory)
    assert "what I sell" not in again.report.read_text() and again.results["advice"] == json.loads(written)["advice"]
    path.write_text(written)


@NEEDS_CHROMIUM
@pytest.mark.parametrize("options", [{}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}])
def test_its_figures_are_live_in_a_browser(finished, options):
    with browser() as made, opened(made, finished.report, **options) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= tab.evaluate("innerWidth")
        assert tab.locator("figure .f-live:visible").count() == tab.locator("figure").count() == 2


def test_every_rung_is_a_study_with_its_page(finished):
    for name, study in finished.rungs.items():
        assert study.status == "complete", name
        assert (study.directory / "report.html").exists() and (study.directory / "data" / "dataset.json").exists()
    page = finished.report.read_text()
    assert not_set(page) == [] and len(page.encode()) < 1_500_000
    assert "Was it right?" in page and "To know more" in page and page.count("<svg") == 4
    assert all(f"rungs/{row['folder']}/report.html" in page for row in finished.plan.rungs)


def test_claim_11_is_answered_from_a_ladder(finished, capsys):
    from nonlin.cli import program

    program.main(["claims", "11", "--ladder", str(finished.directory)], standalone_mode=False)
    told = capsys.readouterr().out
    assert "SwiGLU less GELU" in told and "Forecast for 1,000,000 parameters: SwiGLU" in told
    program.main(["claims", "11", "--ladder", str(finished.directory), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert len(found["sizes"]) == 4 and found["forecast"]["target"] == 1e6


def test_its_files_are_of_their_schemas(finished):
    exactly("ladder", json.loads((finished.directory / "results.json").read_text()))
    written = list((finished.directory / "forecasts").iterdir())
    assert written
    for path in written:
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


def test_a_stopped_ladder_goes_on_to_the_same_results(finished, tmp_path, monkeypatch, capsys):
    """Its page is there all the while, and says how far it is."""
    out = copy(finished, tmp_path)
    for name in (finished.plan.ordered()[-1][1], finished.plan.ordered()[2][1]):
        shutil.rmtree(out / "rungs" / name)
    shutil.rmtree(out / "forecasts")
    (out / "results.json").unlink()
    assert nonlin.load_ladder(out).status == "partial"
    text = nonlin.build_report(out).read_text()
    assert "This is not finished" in text and f"nonlin ladder --resume --out {out}" in text and not_set(text) == []
    program.main(["watch", str(out), "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["state"], told["studies"]) == ("a ladder", "stopped", {"done": 2, "total": 4})
    assert told["seconds_left"] > 0
    program.main(["report", str(out)], standalone_mode=False)
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    with pytest.raises(UserError, match="--latex must be given for a study"):
        program.main(["report", str(out), "--latex"], standalone_mode=False)
    seen = recorded_pages(monkeypatch, page)
    from nonlin.progress import Silent
    from nonlin.study.engines import EngineChoice

    again = ladder_comparison.resume(out, Silent(), EngineChoice(workers=1))
    same = [(without_timing(a), without_timing(b)) for a, b in
            zip(again.results["rungs"], finished.results["rungs"], strict=True)]
    assert all(a == b for a, b in same)
    assert [made["before"] for made in again.results["forecasts"]] == [True, False]
    running = [text for now, text in seen if now.state == "running"]
    assert running and all('http-equiv="refresh"' in text for text in running) and "2 of 4 " in running[0]
    assert any(now.current for now, _ in seen) and all(now.kind == "a ladder" for now, _ in seen)
    assert seen[-1][0].state == "complete" and "refresh" not in seen[-1][1] and "not finished" not in seen[-1][1]
    shutil.rmtree(out / "rungs")  # before the first rung is complete, too
    text = nonlin.build_report(out).read_text()
    assert "0 of 4 " in text and "figure data-" not in text and not_set(text) == []


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


def test_a_forecast_that_is_gone_leaves_the_others_as_they_are(tmp_path):
    there = folder.LadderFolder(tmp_path, None)
    paths = [there.add_forecast({"number": number}) for number in range(3)]
    assert [path.name for path in paths] == ["0001.json", "0002.json", "0003.json"]
    paths[0].unlink()
    assert there.add_forecast({"number": 3}).name == "0004.json"
    assert json.loads(paths[2].read_text()) == {"number": 2}


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


# Longer runs as branches of the shorter ones.

def branching(finished, text="wsd"):
    """Return the plan of a ladder with longer runs, the request behind it, and its rule."""
    whole = ladder_comparison._from_plan(finished.plan)
    whole = replace(whole, training={**whole.training, "schedule": text})
    settings = replace(finished.plan.steady, longer=4.0, tokens_per_parameter=1)
    rungs = [replace(one, branches=text == "wsd" and one.longer != 1) for one in design.design(SIZES, settings)]
    return replace(finished.plan, rungs=plan.rows(rungs), settings=plan.settings_dict(settings)), whole


@pytest.mark.parametrize("schedule, shares", [("wsd", True), ("linear", False)])
def test_a_longer_run_begins_where_the_shorter_ones_decay_did(short, finished, tmp_path, schedule, shares):
    made, whole = branching(finished, schedule)
    rule, base = RULES["completep"], made.ordered()[0][0]
    trunks = {}
    for one in (made.ordered()[0][0], made.ordered()[2][0]):
        training = rule.training(one, base, 0.01) | ladder_running._warmup(made, whole, one)
        rates = {"gelu": 0.01, "swiglu": 0.02} if one.longer != 1 else None
        request = ladder_running.of_rung(whole, one, made.steady, rates, 0.01, training)
        study = make_plan(request, {"gelu": 1e5, "swiglu": 1e5}, {"engine": "torch"})
        trunks[one.longer] = Trunks(tmp_path, study.config("swiglu", "judge", 0.02, 1))
    assert (trunks[1.0].key == trunks[4.0].key and trunks[4.0].shared) is shares
    assert not shares or trunks[1.0].at < trunks[4.0].at


def test_a_branch_runs_at_the_rate_of_its_trunk_and_costs_less(short, finished):
    made, _ = branching(finished)
    ran = [(one, row) for one, row in zip([r for r, _ in made.ordered()][:2], finished.results["rungs"], strict=False)]
    ran = [(one, {"arms": [{"name": name, **arm} for name, arm in row["arms"].items()]}) for one, row in ran]
    branch = made.ordered()[2][0]
    rates = results.rates_at(made, branch, ran, RULES["completep"])
    assert rates == {arm["name"]: arm["learning_rate"] for arm in ran[0][1]["arms"]}
    assert branch.trained == pytest.approx(1 - 0.8 / 4)
    apart = replace(branch, branches=False)
    assert design.flops([branch], made.steady, 2) == pytest.approx(0.8 * design.flops([apart], made.steady, 2))
    lines = design.describe([one for one, _ in made.ordered()], made.steady, None, 2, 1, {})
    assert [line.split()[0] for line in lines if line.endswith("branched")] == [branch.name, made.ordered()[3][0].name]


@pytest.mark.slow
def test_a_ladder_of_branches_is_that_of_runs_from_the_start(short, text, tmp_path, monkeypatch):
    wanted = TINY | {"longer": 2, "schedule": "wsd", "tokens_per_parameter": 0.1}
    kept = []
    real = ladder_running._forecast_target

    def looking(there, *others):
        kept.append([path.stem for path in (there.directory / folder.TRUNKS).iterdir()])
        return real(there, *others)

    monkeypatch.setattr(ladder_running, "_forecast_target", looking)
    branched = nonlin.ladder("1M", text, out=tmp_path / "branches", **wanted)
    keys = [stem.rpartition("-")[0] for stem in kept[0]]
    assert sum(keys.count(key) == 2 for key in set(keys)) == 12  # two sizes of two arms of three seeds
    assert not (tmp_path / "branches" / folder.TRUNKS).exists()
    monkeypatch.setattr(ladder_running, "_forecast_target", real)
    monkeypatch.setattr(ladder_running, "_trunks", lambda *_: None)
    alone = nonlin.ladder("1M", text, out=tmp_path / "alone", **wanted)
    assert without_timing(alone.results["rungs"]) == without_timing(branched.results["rungs"])
    assert {row["arm"] for row in branched.results["horizon"]} == {"swiglu"}


# Faults.

@pytest.fixture
def diverging(monkeypatch):
    """Return a function that lets a judged run of SwiGLU diverge in the study of a rung, as its results say it."""
    def at(rung):
        def study(self, name):
            there = real(self, name)
            if name != rung:
                return there
            arms = [arm | {"diverged_runs": 1} if arm["name"] == "swiglu" else arm for arm in there.results["arms"]]
            return replace(there, results=there.results | {"arms": arms})

        real = folder.LadderFolder.study
        monkeypatch.setattr(folder.LadderFolder, "study", study)

    return at


@pytest.mark.parametrize(("rates", "words"), [
    ({"gelu": 0.01}, r"beside gelu, the baseline, must train .*; swiglu diverged at every one.*--learning-rate below"),
    ({"swiglu": 0.01}, "gelu diverged at every rate of the tuned rungs, and it is the baseline")])
def test_rates_that_leave_nothing_to_compare_are_said_so(finished, text, tmp_path, monkeypatch, rates, words):
    out = copy(finished, tmp_path)
    shutil.rmtree(out / "rungs" / finished.plan.rungs[-1]["folder"])
    monkeypatch.setattr(results, "rates_at", lambda *_: rates)
    with pytest.raises(UserError, match=words):
        nonlin.ladder("1M", text, out=out, **TINY)


@pytest.mark.parametrize("activations", ["gelu", ["gelu"]])
def test_one_activation_makes_no_ladder(activations, tmp_path):
    with pytest.raises(UserError, match=r"ladder: activations must be two or more.*got 'gelu"):
        nonlin.ladder("1M", out=tmp_path / "no", **TINY | {"activations": activations})
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("rung, word", [(1, "diverged at"), (3, "the largest rung")])
def test_an_arm_that_diverges_at_one_rung_costs_that_rung_alone(finished, text, tmp_path, diverging, rung, word):
    lost, out = finished.plan.rungs[rung], copy(finished, tmp_path)
    shutil.rmtree(out / "forecasts")
    diverging(lost["folder"])
    found = nonlin.ladder("1M", text, out=out, **TINY)
    assert any(f"swiglu diverged at {lost['name']}" in note for note in found.results["notes"])
    assert found.status == "complete" and lost["parameters"] not in [
        row["parameters"] for row in found.results["leave_one_out"]]
    made = found.forecast["swiglu"]
    assert made.mean is not None and (rung == 1 or (made.verdict == "undecided" and word in str(made.reason)))
    assert "diverged" in found.report.read_text()


def test_text_that_is_too_short_is_counted_and_said(finished, text, tmp_path, capsys):
    out = copy(finished, tmp_path)
    made = json.loads((out / "plan.json").read_text())
    made["data"]["train_tokens"] = made["rungs"][-1]["tokens"] // 9
    for key in ("hash",):
        made.pop(key, None)
    there = replace(finished.plan, data=made["data"])
    top = finished.plan.rungs[-1]["name"]
    said = [note for note in results.notes(there, [], None) if "too short" in note or "text is short" in note]
    assert any(note.startswith(f"The text is short for {top}: a run reads it 9.") for note in said)
    assert f"The text is short for {top}" in ladder_comparison.described(there, 1)


def test_longer_training_that_changes_a_difference_is_said():
    """The same seeds at both horizons: what changes is paired."""
    made = simulated.Ladder(replace(simulated.QUIET, truths=(simulated.Truth(-0.02), simulated.Truth(0.01))), 0)
    made.run()
    one, found = made.finished[0]
    longer = replace(one, name="x4", longer=4.0, role="carried")
    change = {"arm-1": 0.03, "arm-2": 0.0}
    arms = [arm | {"judged": [run | {"bits_per_byte": run["bits_per_byte"] + change.get(arm["name"], 0.0)}
                              for run in arm["judged"]]} for arm in found["arms"]]
    there = SimpleNamespace(baseline="arm-0", arms=["arm-0", "arm-1", "arm-2"], steady=design.Settings(),
                            rule={"margin": 0.005, "confidence": 0.95})
    ran = [*made.finished, (longer, found | {"arms": arms})]
    rows = {row["arm"]: row for row in results.horizon(there, ran)}
    assert rows["arm-1"]["mean"] == pytest.approx(0.03) and rows["arm-2"]["mean"] == pytest.approx(0.0)
    assert rows["arm-1"]["low"] > 0 and rows["arm-1"]["sizes"] == [one.parameters]
    (said,) = results._changes(there, list(rows.values()))
    assert "arm-1 +0.030" in said and "arm-2" not in said
    assert results.horizon(there, made.finished) == []
