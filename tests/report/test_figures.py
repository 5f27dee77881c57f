"""Figures: two labelled ticks on every axis, two widths, what lies on another seen, what is equal said."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nonlin import report
from nonlin.numbers import number, parts, places, typeset
from nonlin.report import figures, interactive, style
from nonlin.report.palette import paint
from nonlin.report.records import read
from nonlin.study import load

VENDOR = Path(report.__file__).parent / "templates" / "vendor"
#: Of the files in the npm package uplot 1.6.32, MIT.
FILES = {"uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
         "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
         "uPlot.LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"}


@pytest.fixture(scope="module")
def study(full):
    return read(load(full))


def labelled(axis):
    low, high = sorted(axis.get_view_interval())
    return [label.get_text() for place, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
            if low - 1e-9 * (high - low) <= place <= high + 1e-9 * (high - low) and label.get_text()]


@pytest.mark.parametrize("width", [style.WIDE, style.NARROW])
@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "recovery"])
def test_every_axis_has_two_labelled_ticks(study, name, width):
    draw, _, applies = figures.FIGURES[name]
    assert applies(study)
    with style.settings(width):
        figure = draw(study)
        style.label_axes(figure)
        figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == width
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            found = labelled(axis)
            rows = name in ("differences", "costs") and axis is axes.yaxis
            assert rows or len(found) >= 2, (name, axis, found)
            assert not any("-" in text for text in found), found


def test_a_narrow_span_of_a_log_axis_has_its_ticks():
    with style.settings():
        figure, axes = style.panels(3, 1)
        axes.plot([1, 2], [3.1e-5, 3.9e-5])
        axes.set_yscale("log")
        style.label_axes(figure)
        figure.draw_without_rendering()
    assert len(labelled(axes.yaxis)) >= 2


@pytest.mark.parametrize(("curves", "last"), [([], 1.6e6), ([{"parameters": 1}], 150e6)])
def test_a_ladders_axis_reaches_its_target_when_there_is_a_forecast(curves, last):
    from nonlin.report import ladder_figures

    rungs = [{"parameters": size, "longer": 1} for size in (56_000, 1_230_000)]
    with style.settings():
        _, axes = style.panels(3, 1)
        ladder_figures._sizes(axes, {"plan": {"rungs": rungs}, "target": 125e6, "curves": curves})
        assert 0.8 * last < axes.get_xlim()[1] < 1.25 * last and len(labelled(axes.xaxis)) >= 2


def test_the_vendored_library_is_the_packages_own(full):
    assert {name: hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() for name in FILES} == FILES
    script = (VENDOR / "uPlot.iife.min.js").read_text()
    assert "(v1.6.32)" in script and script in (full / "report.html").read_text()


def test_pages_stay_small(full, folder):
    assert len((full / "report.html").read_bytes()) < 1_500_000
    assert len((folder / "report.html").read_bytes()) < 1_500_000


def test_the_numbers_of_the_live_figures_are_those_of_the_study(full, study):
    text = (full / "report.html").read_text()
    data = json.loads(re.search(r'id="figures-data">(.*?)</script>', text, re.DOTALL)[1])
    assert list(data["figures"]) == [*(name for name in interactive.PANELS if name != "recovery"), "costs"]
    assert {arm["name"]: arm["slot"] for arm in data["arms"]} == {
        name: p.slot for name, p in paint(figures.names(study)).items()}
    (panel,) = data["figures"]["differences"]
    for line in panel["lines"]:
        arm = next(a for a in study.arms if a["name"] == line["arm"])
        assert line["diamond"][0] == pytest.approx(arm["difference"]["mean"], rel=1e-4, abs=1e-9)
        assert line["x"] == pytest.approx(sorted({v for _, v in figures.seeds_differences(study, arm)}), abs=1e-6)
    (panel,) = data["figures"]["paired"]
    for line in panel["lines"]:
        band = study.bands()[line["arm"]]
        assert line["x"][-1] == band.tokens[-1] and line["x"][0] == band.tokens[0]
        assert [line["low"][-1], line["y"][-1], line["high"][-1]] == pytest.approx(
            [band.low[-1], band.mean[-1], band.high[-1]], abs=1e-5)


def test_the_paired_band_is_students_interval_of_the_seeds(study):
    from scipy import stats

    band = study.bands()["swiglu"]
    runs = {arm: {c.seed: c for c in study.curves if c.arm == arm} for arm in ("swiglu", "gelu")}
    each = [runs["swiglu"][s].loss[20] - runs["gelu"][s].loss[20] for s in runs["gelu"]]  # constant over the run
    low, high = stats.t.interval(0.95, len(each) - 1, np.mean(each), stats.sem(each))
    at = band.tokens.index(21_000)
    assert [band.low[at], band.mean[at], band.high[at]] == pytest.approx([low, np.mean(each), high], abs=1e-9)
    assert band.tokens[0] == 10_000  # the tenth value


def test_a_line_on_another_is_dashed_and_only_that(study):
    data = json.loads(str(interactive.data(study)))
    (curves,) = data["figures"]["paired"]
    dashed = {line["arm"] for line in curves["lines"] if line.get("dash")}
    assert dashed <= {"twin", "relu_squared", "geglu"} and "swiglu" not in dashed
    (curves,) = data["figures"]["curves"]
    assert "twin" in {line["arm"] for line in curves["lines"] if line.get("dash")}


def test_costs_that_are_equal_are_a_sentence(study):
    arms = [arm | {"timing": {"tokens_per_second": 1000 * (1 + i / 1000), "peak_memory_bytes": 2**30 + i * 2**28}}
            for i, arm in enumerate(study.arms)]
    made = replace(study, arms=arms, results=study.results | {"arms": arms})
    words = figures.costs_words(made)
    assert words.startswith("All activations are equal within 1 % in time per million tokens") and "memory" not in words
    with style.settings():
        assert [axes.get_title("left") for axes in figures.costs(made).axes] == ["peak memory of the process, MB"]
    equal = [arm | {"timing": arms[0]["timing"], "parameters": 1000} for arm in study.arms]
    made = replace(study, arms=equal, results=study.results | {"arms": equal})
    assert not figures.FIGURES["costs"][2](made) and not figures.FIGURES["quality"][2](made)
    assert "parameters" in figures.costs_words(made)


def test_numbers_are_set_alike():
    assert typeset("-0.5, (-3), 5–-2; 12%; x-1; a-b; 2026-11-25; 1e-07; +1.2e+06") == (
        "−0.5, (−3), 5–−2; 12 %; x-1; a-b; 2026-11-25; 10⁻⁷; +1.2 × 10⁶")
    assert number(-0.031, ".1%") == "−3.1 %" and parts(1 / 3_057_494) == "one part in 3,100,000"
    assert places([0.0123]) == 3 and places([5.0]) == 1 and places([140.0]) == 0


def test_pages_have_no_hyphen_for_a_minus(full):
    text = (full / "report.html").read_text()
    main = re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
    words = re.sub(r"<[^>]+>", " ", main)
    assert not re.findall(r"(?<![\w.-])-\d", words) and not re.findall(r"\d%", words)
