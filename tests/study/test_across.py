"""Studies together: what agrees, what turned, what differs, against an independent test and by hand."""

import io
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import nonlin
from nonlin.errors import UserError
from nonlin.report import across as page
from nonlin.study import Store, simulated
from nonlin.study.across import outcome, spread
from tests.report.headless import NEEDS_CHROMIUM, browser, opened
from tests.study import studies


def planted(folder, effects, seeds=8, number=0, noise=simulated.DEFAULT, **changes):
    """A study of arms with these true differences, as its folder: records of simulated runs."""
    from nonlin.study.results import results
    from nonlin.study.schedule import Schedule

    world = replace(noise, effects=(0, *effects))
    made = replace(simulated.plan(1 + len(effects), seeds), **changes)
    store, runs, schedule = Store(folder), simulated.Runs(world, made, number), Schedule(made)
    store.create(made)
    waiting = list(schedule.first)
    while waiting:
        trial = waiting.pop()
        record = {"status": "finished", "bits_per_byte": runs.loss(trial), "initial_bits_per_byte": 8.0,
                  "parameters": 1, "flops_per_token": 1, "layers": None, "timing": {"seconds": 0.0},
                  "config_hash": trial.key}
        _, attempt = store.begin(trial.config)
        waiting += schedule.add(trial.key, store.finish(attempt, record))
    store.write_results(results(made, schedule.records), [])
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = tmp_path_factory.mktemp("across")
    small = planted(root / "small", (-0.06, 0.05, -0.06), 6)
    plan = simulated.plan(4, 6)
    large = planted(root / "large", (-0.06, -0.05, -0.14), 6, 1, training=plan.training | {"weight_decay": 0.3})
    return small, large


def test_what_agrees_what_turned_and_what_varies(two):
    found = nonlin.compare_studies(two)
    rows = {row.name: row for row in found.activations}
    assert {name: row.outcome for name, row in rows.items()} == {
        "arm-1": "agrees", "arm-2": "turned", "arm-3": "agrees"}
    assert rows["arm-1"].spread_p_value > 0.05 > rows["arm-3"].spread_p_value
    assert "arm-1: better than arm-0 in all 2." in found.findings
    assert "arm-2 turned: better than arm-0 in large; worse than arm-0 in small." in found.findings
    assert found.findings[-1] == "The size of the difference varies by more than its errors: arm-3."
    assert found.differing == {"recipe: weight decay": ["0.1", "0.3"]}
    assert found.alike["judged seeds"] == "6" and found.notes == []


def test_the_numbers_are_the_studies_own(two):
    found = nonlin.compare_studies(two)
    for index, folder in enumerate(two):
        arms = nonlin.load_study(folder).verdicts
        for row in found.activations:
            assert row.parts[index].verdict == arms[row.name].verdict
            assert row.parts[index].difference == arms[row.name].difference


def test_another_baseline_is_judged_anew_and_said(two):
    found = nonlin.compare_studies(two, baseline="arm-1")
    rows = {row.name: row for row in found.activations}
    assert "arm-1" not in rows and [part.verdict for part in rows["arm-0"].parts] == ["worse", "worse"]
    first = nonlin.load_study(two[0]).verdicts["arm-1"].difference
    assert rows["arm-0"].parts[0].difference.mean == pytest.approx(-first.mean, abs=1e-12)
    assert any("judged anew against arm-1" in note for note in found.notes)


def test_arms_that_one_study_does_not_have_and_one_that_is_not_finished(two, tmp_path):
    Store(tmp_path / "new").create(studies.plan("arm-0", "swiglu"))
    found = nonlin.compare_studies([two[0], tmp_path / "new"])
    rows = {row.name: row for row in found.activations}
    assert rows["arm-1"].parts[1] is None and rows["arm-1"].outcome == "partly"
    assert rows["swiglu"].parts[0] is None and rows["swiglu"].outcome == "open"
    assert "new is not finished: it has no verdicts yet." in found.notes
    assert found.differing["judged seeds"] == ["6", "4"] and "model: dim" in found.differing


@pytest.mark.parametrize("count", [2, 4])
def test_the_spread_is_welchs_test(count):
    rng = np.random.default_rng(count)
    samples = [rng.normal(0.01 * k, 0.01 * (k + 1), 6 + k) for k in range(count)]
    known = [{"mean": s.mean(), "standard_error": stats.sem(s), "seeds": len(s)} for s in samples]
    if count == 2:
        assert spread(known) == pytest.approx(stats.ttest_ind(*samples, equal_var=False).pvalue, rel=1e-9)
    else:
        assert spread(known) == pytest.approx(stats.f_oneway(*samples, equal_var=False).pvalue, rel=1e-9)


def test_equal_studies_vary_as_seldom_as_stated():
    rng = np.random.default_rng(0)
    low = 0
    for _ in range(2000):
        samples = [rng.normal(0, scale, 8) for scale in (0.01, 0.02, 0.03)]
        low += spread([{"mean": s.mean(), "standard_error": stats.sem(s), "seeds": 8} for s in samples]) <= 0.05
    assert low / 2000 < 0.075


def test_outcomes():
    assert outcome(["tie", "better"]) == "mixed" and outcome(["better", "better", "worse"]) == "turned"
    assert outcome(["undecided"]) == "open" and outcome(["better", "undecided"]) == "partly"


def test_the_page_and_the_table_hold_the_numbers(two, tmp_path):
    found = nonlin.compare_studies(two, out=tmp_path / "pages" / "studies.html")
    text = (tmp_path / "pages" / "studies.html").read_text()
    header, rows = page.differences(found)
    for row in rows:
        for cell in row:
            assert cell in text
    assert text.count("<svg") == 2 and "turned" in text and "recipe: weight decay" in text
    assert 'data-figure="across"' in text and "'sha256-" in text.partition("</head>")[0]  # its own script, and no other
    assert header[1:3] == ["small", "large"]


def test_studies_with_little_in_common_say_so(two, tmp_path):
    Store(tmp_path / "other").create(studies.plan("arm-0", "tanh"))
    found = nonlin.compare_studies([two[0], tmp_path / "other"])
    assert found.findings == ["These studies have no activation in common but arm-0.",
                              "In small alone: arm-1 (better), arm-2 (worse), arm-3 (better).",
                              "In other alone: tanh (no verdict yet)."]
    assert {row[-2] for row in page.differences(found)[1]} == {"in one study"}


@pytest.mark.parametrize(("width", "gone"), [(70, "interval in small, interval in large"), (160, "")])
def test_every_verdict_is_in_a_narrow_terminal(two, width, gone):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    page.print_across(nonlin.compare_studies(two), console)
    told = file.getvalue()
    (line,) = [line for line in told.splitlines() if line.startswith("arm-2")]
    assert "worse +0.0" in line and "better −0.0" in line and "turned" in line
    assert gone in told and ("Left out" in told) == bool(gone)


def test_a_long_name_leaves_the_figure_its_room(two, tmp_path):
    long = shutil.copytree(two[1], tmp_path / ("n" * 200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the axes have no room
        nonlin.compare_studies([two[0], long], out=tmp_path / "studies.html")
    assert "(200 letters)" in (tmp_path / "studies.html").read_text()


@NEEDS_CHROMIUM
@pytest.mark.parametrize("options", [{}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}])
def test_its_figure_is_live_in_a_browser(two, tmp_path, options):
    nonlin.compare_studies(two, out=tmp_path / "studies.html")
    assert (tmp_path / "studies.html").stat().st_size < 1_500_000
    with browser() as made, opened(made, tmp_path / "studies.html", **options) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= tab.evaluate("innerWidth")
        assert tab.locator("figure .f-live:visible").count() == tab.locator("figure").count() == 1


@pytest.mark.parametrize(("choose", "words"), [
    (lambda two: two[:1], "be two or more"), (lambda two: [two[0], two[0]], "each named once"),
    (lambda two: [two[0], two[0] / "nothing"], "must hold a study")])
def test_what_cannot_be_compared(two, choose, words):
    with pytest.raises(UserError, match=words):
        nonlin.compare_studies(choose(two))
    with pytest.raises(UserError, match="an activation of every study"):
        nonlin.compare_studies(two, baseline="gelu")
