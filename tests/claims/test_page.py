"""The page of the claims: a sentence for learners first, words explained, fit for a phone, and small."""

import json
import re
from pathlib import Path

import pytest

from nonlin.claims import all_claims
from nonlin.claims.definition import VERDICTS, YES
from nonlin.claims.lessons import lesson
from nonlin.claims.page import build
from nonlin.report.glossary import TERMS, Glossary
from tests.claims import planted
from tests.report.headless import NEEDS_CHROMIUM, browser, opened
from tests.report.words import not_set

RECORD = Path(__file__).parents[2] / "benchmarks" / "records" / "claims.json"
SHOWN = (1, 4, 8, 13)
PLOT = "document.querySelectorAll('figure')[{}].querySelectorAll('.f-panel')[{}].uplot"
NOT_RUN = {"verdict": None, "summary": "Not run yet.", "on": None, "parts": {}, "measures": None}


@pytest.fixture(scope="module")
def recorded():
    """The values of results.json from the record, with four of its claims and a plan of today."""
    values = json.loads(RECORD.read_text())
    rows = [row if row["number"] in SHOWN else row | NOT_RUN for row in values["claims"]]
    return values | {"claims": rows, "plan": planted.plan().as_dict(), "timing": {"seconds": 1.0, "run_seconds": 60.0}}


@pytest.fixture(scope="module")
def page(recorded, tmp_path_factory):
    return build(tmp_path_factory.mktemp("a folder"), recorded)


@pytest.mark.parametrize("claim", all_claims(), ids=lambda claim: claim.slug)
def test_every_verdict_has_a_sentence(claim):
    for verdict in VERDICTS:
        parts = {"essential to a": YES, "b": "no"}
        row = {"number": claim.number, "verdict": verdict, "parts": parts, "measures": None}
        said = lesson(row)
        assert said.endswith(".") and 5 <= len(said.split()) <= 40 and not re.search(r"\d", said), said
    assert lesson({"number": claim.number, "verdict": None, "parts": {}, "measures": None}) == ""


def test_the_record_says_what_the_rules_of_today_say_of_it():
    for row in json.loads(RECORD.read_text())["claims"]:
        claim = next(c for c in all_claims() if c.number == row["number"])
        verdict = claim.decide(row["measures"])
        assert (verdict.verdict, dict(verdict.parts)) == (row["verdict"], row["parts"]), row["number"]
        assert not re.search(r"\d%|(?<![\w.-])-\d|\d,\d{3},[1-9]", row["summary"]), row["summary"]


def test_words_are_explained_where_they_stand(page):
    text = page.read_text()
    for target in re.findall(r'popovertarget="([^"]+)"', text):
        assert text.count(f'<div popover class="note" id="{target}">') == 1
    assert 'popovertarget="term-gate"' in text
    marked = Glossary()
    assert [str(t) for t in marked.mark("a <b> nat", "nats")] == [
        'a &lt;b&gt; <button type="button" class="term" popovertarget="term-nats">nat</button>', "nats"]
    assert all(word.endswith(".") for word in TERMS.values())


@NEEDS_CHROMIUM
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_read_on_a_phone_and_by_keyboard(page, scheme):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": scheme}
    with browser() as chromium, opened(chromium, page, **phone) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.locator("figure .f-live:visible").count() == tab.locator("figure").count() == len(SHOWN)
        assert tab.locator("figure svg:visible").count() == 0  # without a script they stand there
        term = tab.locator("button.term").first
        term.focus()
        tab.keyboard.press("Enter")
        note = tab.locator(f"#{term.get_attribute('popovertarget')}")
        assert note.is_visible() and note.bounding_box()["x"] >= 0
        tab.keyboard.press("Escape")
        assert not note.is_visible()


@NEEDS_CHROMIUM
def test_its_figures_can_be_questioned(page, recorded):
    measures = {row["number"]: row["measures"] for row in recorded["claims"]}
    with browser() as chromium, opened(chromium, page, bypass_csp=False) as tab:  # the policy lets our script run
        figures = tab.locator("figure")
        bars = figures.nth(0).locator(".f-panel").nth(1)
        bars.scroll_into_view_if_needed()
        area = bars.locator(".u-over").bounding_box()
        tab.mouse.move(area["x"] + 5, area["y"] + 25)
        said = bars.locator(".f-read").inner_text()
        assert said == f"nothing else: {measures[1]['language_model']['additive']['nothing else']:.4g}"
        curves = figures.nth(1)
        curves.scroll_into_view_if_needed()
        curves.locator(".f-area").first.press("End")
        said = curves.locator(".f-read").first.inner_text()
        assert said.startswith("hidden layers: 64") and "sigmoid" in said and "silu" in said
        button = curves.get_by_role("button", name="silu", exact=True)
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert "silu" not in curves.locator(".f-read").first.inner_text()
        rows = figures.nth(2)
        rows.scroll_into_view_if_needed()
        rows.locator(".f-area").press("Home")
        assert rows.locator(".f-read").inner_text().startswith("equal ")
        before = tab.evaluate(PLOT.format(2, 0) + ".scales.x.max")
        rows.get_by_role("button", name="Enlarge").click()
        assert tab.evaluate(PLOT.format(2, 0) + ".scales.x.max") < before
        assert rows.locator(".f-keys").inner_text().startswith("counts as equal")


@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_every_axis_has_two_labelled_ticks(page, width):
    with browser() as chromium, opened(chromium, page, viewport={"width": width, "height": 844}) as tab:
        found = tab.evaluate("""[...document.querySelectorAll('.f-panel')].map((p) => p.uplot.axes.map((a, i) => {
            const {min, max} = p.uplot.scales[i ? 'y' : 'x'];
            return a._values.filter((v, k) => v && a._splits[k] >= min && a._splits[k] <= max).length; }))""")
        assert len(found) == 6 and all(min(counts) >= 2 for counts in found), found


def test_it_is_small_and_its_numbers_are_set_alike(page):
    assert len(page.read_bytes()) < 1_500_000 and not_set(page.read_text()) == []
