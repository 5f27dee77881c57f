"""The page of a check, from a recorded one: on a desk and a phone, light and dark, small, with its numbers set."""

import json
from pathlib import Path

import pytest

from nonlin.report.health import write
from tests.report.headless import NEEDS_CHROMIUM, opened
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
