"""A drawing's marks as numbers: places, colours, words, and what of a drawing is none of its marks."""

import json
from pathlib import Path

import pytest

from nonlin.report import figures, marks, style
from nonlin.report.palette import OWN, SLOTS, paint, variables
from nonlin.report.records import Study
from nonlin.report.style import INK, MUTED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def figure():
    with style.settings():
        drawn = style.new_figure(3)
        left, right = drawn.subplots(1, 2)
        left.plot([1, 2, 4], [3.0, float("nan"), 5.0], marker="s", color=SLOTS[1][0], label="relu")
        left.plot([1, 4], [2, 2], "--", color=SLOTS[1][0], alpha=0.5, label="a trend")
        left.fill_between([1, 4], [1, 1], [2, 3], color=MUTED, alpha=0.2)
        left.axhline(2.5, color=INK, ls="--")
        left.set_xscale("log")
        left.set_xticks([1, 2, 4], ["1", "2", "4"])
        left.set_xlabel("layers")
        left.set_title("errors")
        right.barh(["one", "two"], [7, 9], color="#7f7f7f", height=0.5)
        right.axvspan(-1, 1, color=MUTED, alpha=0.2, label="counts as equal")
        right.annotate("seven", (7, 0), xytext=(4, -3), textcoords="offset points")
        right.invert_yaxis()
        style._svg(drawn, "both", "none")  # laid out
        yield drawn


def test_lines_areas_and_rules(figure):
    panel, _ = marks.panels(figure, marks.names_of({}))
    area, line, trend = panel["marks"]
    assert (line["x"], line["y"]) == ([1, 2, 4], [3, None, 5]) and line["marker"] == "s" and line["label"] == "relu"
    assert line["slot"] == OWN["relu"] and line["arm"] == "relu" and "alpha" not in line
    assert trend["dash"] and trend["alpha"] == 0.5 and not line["dash"]
    assert area["role"] == "--muted" and area["alpha"] == 0.2 and max(area["y"]) == 3
    (rule,) = panel["rules"]
    assert rule["at"] == "y" and rule["y"] == [2.5, 2.5] and rule["role"] == "--ink"
    assert panel["x"]["names"] == [[1, "1"], [2, "2"], [4, "4"]]
    assert panel["x"]["log"] and panel["x"]["label"] == "layers"
    assert panel["title"] == "errors" and [key["label"] for key in panel["keys"]] == ["a trend"]


def test_bars_names_and_words(figure):
    _, panel = marks.panels(figure, marks.names_of({}))
    assert [mark["x"] for mark in panel["marks"]] == [[0, 7], [0, 9]]
    assert [mark["y"] for mark in panel["marks"]] == [[-0.25, 0.25], [0.75, 1.25]]
    assert panel["marks"][0]["colour"] == "#7f7f7f" and "arm" not in panel["marks"][0]
    assert panel["y"]["names"] == [[0, "one"], [1, "two"]] and panel["y"]["down"] and not panel["x"]["down"]
    assert panel["rules"][0]["at"] == "x" and panel["rules"][0]["x"] == [-1, 1]
    assert panel["texts"] == [{"x": 7, "y": 0, "text": "seven", "by": [4, -3], "above": False, "align": "left"}]


def test_a_slot_of_its_own_gives_its_name(figure):
    panel, _ = marks.panels(figure, marks.names_of({"mine": OWN["relu"]}))
    assert panel["marks"][1]["arm"] == "mine"
    made = json.loads(str(marks.data({"f": [panel], "g": []}, {"mine": OWN["relu"], "other": 3})))
    assert made["arms"] == [{"name": "mine", "slot": OWN["relu"]}] and list(made["figures"]) == ["f"]
    assert marks.data({"g": []}, {}) is None


def test_twenty_activations_have_colours_and_switches_of_their_own():
    record = json.loads((ROOT / "benchmarks" / "records" / "default-study.json").read_text())
    names = ["gelu", *(f"mine_{i}" for i in range(19))]
    arms = [record["arms"][0] | {"name": name, "timing": {"tokens_per_second": 9e3 + 500 * i, "peak_memory_bytes": 0}}
            for i, name in enumerate(names)]
    study = Study(record | {"arms": arms}, arms, [])
    slots = {name: made.slot for name, made in paint(figures.names(study)).items()}
    assert list(slots) == names and len(set(slots.values())) == 20
    with style.settings():
        drawn = figures.costs(study)
        style._svg(drawn, "costs", "none")
    (panel,) = marks.panels(drawn, marks.names_of(slots))
    rows = dict(panel["y"]["names"])
    assert {rows[sum(mark["y"]) / 2]: mark["arm"] for mark in panel["marks"]} == {name: name for name in names}
    assert all(slots[mark["arm"]] == mark["slot"] for mark in panel["marks"])
    svg = style.inline_svg(drawn, "costs", "Speed")
    assert all(f"var(--c{slot})" in svg and f"--c{slot}:#" in variables(slots) for slot in slots.values())
