"""The page of a check, from a recorded one: on a desk and a phone, light and dark, small, with its numbers set."""

import json
from pathlib import Path

import pytest

from nonlin.report import style
from nonlin.report.health import write
from nonlin.report.health_figures import gradient_words, gradients
from tests.report.headless import NEEDS_CHROMIUM, NOTES_WORDS, opened
from tests.report.words import not_set

RECORD = Path(__file__).parents[2] / "benchmarks" / "records" / "health_smollm2.json"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(json.loads(RECORD.read_text()), tmp_path_factory.mktemp("health") / "health.html")


def test_it_is_small_and_its_numbers_are_set_alike(page):
    assert len(page.read_bytes()) < 1_500_000 and not_set(page.read_text()) == []


@NEEDS_CHROMIUM
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_drawn_for_the_screen(chromium, page, scheme):
    phone = {"viewport": {"width": 390, "height": 844}}
    for options, kind, other in (({}, "wide", "narrow"), (phone, "narrow", "wide")):
        with opened(chromium, page, color_scheme=scheme, **options) as tab:
            width = tab.evaluate("innerWidth")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator("figure .f-live:visible").count() == tab.locator("figure").count() > 3
            heat, whole = (tab.locator(f"figure {part}").first.bounding_box()["width"]
                           for part in (".u-over", ".f-live"))
            assert heat > 0.35 * whole  # the words leave the drawing its room
        with opened(chromium, page, color_scheme=scheme, java_script_enabled=False, **options) as tab:
            assert tab.locator(f"figure svg.{kind}:visible").count() == tab.locator("figure").count() > 3
            assert tab.locator(f"figure svg.{other}:visible").count() == 0
            first = tab.locator(f"figure svg.{kind}").first
            heat = first.locator("image").first.bounding_box()["width"]
            assert heat > 0.35 * first.bounding_box()["width"]


@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [390, 1280])
def test_every_bar_has_its_number_and_every_row_its_range(chromium, page, width):
    record = json.loads(RECORD.read_text())
    with opened(chromium, page, first=NOTES_WORDS, viewport={"width": width, "height": 844}) as tab:
        tab.wait_for_function("document.querySelectorAll('.f-panel').length && window.words.length > 0")
        drawn = {text: (start, end) for text, start, end in tab.evaluate("window.words")}
    for one in record["alternatives"]["others"]:
        start, end = drawn[f"+{one['difference_nats']:.3f}"]
        assert 0 <= start < end <= 1
    for text in ("60.8 % … 94.8 %", "0.313 … 1.84"):  # below a row's name, or at its right
        assert drawn[text][1] <= 1


def with_zeros(*shares):
    record = json.loads(RECORD.read_text())
    blocks = [b | {"gradients": b["gradients"] | {"zero_share": share}}
              for b, share in zip(record["blocks"], shares, strict=False)]
    return record | {"blocks": blocks}


@pytest.mark.parametrize(("shares", "said", "panels"), [
    ([0.0, 0.0, 0.0], "No gradient is zero before the activation, in any block.", 1),
    ([0.5, 0.501, 0.5], "Before the activation 50.0 % of the gradients are zero, in every block.", 1),
    ([0.1, 0.9, 0.5], "", 2), ([None, None, None], "", 1), ([None, 0.0, 0.9], "", 2)])
def test_what_is_equal_in_every_block_is_a_sentence(shares, said, panels, tmp_path):
    record = with_zeros(*shares)
    assert gradient_words(record) == said
    with style.settings():
        assert len(gradients(record).axes) == panels
    assert said in write(record, tmp_path / "page.html").read_text()
