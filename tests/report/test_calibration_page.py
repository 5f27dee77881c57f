"""The page of A/A studies, from recorded ones: on a desk and a phone, light and dark, small, without a network."""

import json
from pathlib import Path

import pytest

from nonlin.calls.calibration import Calibration, page_values
from nonlin.report.calibration import build
from nonlin.study.records import Count, SeveralSnapshot
from tests.report.headless import NEEDS_CHROMIUM, opened
from tests.report.words import not_set

RECORD = Path(__file__).parents[2] / "benchmarks" / "records" / "aa-small.json"
PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.fixture(scope="module", params=["complete", "running"])
def page(request, tmp_path_factory):
    record = json.loads(RECORD.read_text())
    rows, share = record["rows"], record["present"]
    done = len(rows) if request.param == "complete" else 3
    found = Calibration(tmp_path_factory.mktemp("aa") / "aa-small", done, share["false"], share["low"], share["high"],
                        record["half_width"], 0.07, 0.06, rows[:done])
    found.directory.mkdir()
    now = SeveralSnapshot(name="aa-small", kind="A/A studies", state=request.param,
                          studies=Count(done=done, total=len(rows)), seconds_left=0.0)
    return build(found.directory, page_values(found), now)


def test_it_is_small_and_its_numbers_are_set_alike(page):
    assert len(page.read_bytes()) < 1_500_000 and not_set(page.read_text()) == []


@NEEDS_CHROMIUM
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [{}, PHONE], ids=["desk", "phone"])
def test_it_is_drawn_for_the_screen_and_read_by_keyboard(chromium, page, scheme, screen):
    with opened(chromium, page, color_scheme=scheme, **screen) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= tab.evaluate("innerWidth")
        assert tab.locator("figure :is(.f-live, svg):visible").count() >= tab.locator("figure").count() == 1
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement !== document.body")
