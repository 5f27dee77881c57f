"""The site builds strictly, fetches nothing from a network, and its reference holds every public name."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.headless import NEEDS_CHROMIUM, browser, opened

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs")
pytest.importorskip("material")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def public():
    nonlin = importlib.import_module("nonlin")
    for package in ["nonlin", *(f"nonlin.{name}" for name in nonlin._MODULES)]:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not name.startswith("__") and not hasattr(value, "__path__") and not hasattr(value, "__file__"):
                yield package, name, value


def test_every_public_name_is_in_the_reference(site):
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    anchors = set(re.findall(r'id="([\w.]+)"', text))
    names = list(public())
    assert len(names) > 40
    missing = [f"{package}.{name}" for package, name, value in names
               if f"{value.__module__}.{value.__qualname__}" not in anchors]
    assert missing == []


def test_every_page_of_the_contents_is_there_and_opens_without_a_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//', text), page
    for name in ("tutorials/verdict", "tutorials/patch", "tutorials/diagnose", "how-to/activation", "reference/health",
                 "reference/command-line", "design", "glossary", "decisions", "decisions/0003-the-rule"):
        assert (site / f"{name}.html").exists(), name


PHONE = {"viewport": {"width": 390, "height": 844}}


@NEEDS_CHROMIUM
def test_pages_are_read_on_a_desk_and_a_phone_light_and_dark_by_keyboard(site):
    """No error, no request, no sideways scrolling; commands of the first pages fit their boxes on a desk."""
    with browser() as made:
        for name in ("index", "tutorials/verdict", "tutorials/diagnose", "reference/command-line", "claims", "log"):
            for options in ({}, PHONE | {"color_scheme": "dark"}):
                with opened(made, site / f"{name}.html", **options) as tab:
                    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
                    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
                    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == bool(options), (name, paper)
                    cut = tab.evaluate("[...document.querySelectorAll('pre > code')].filter("
                                       "(e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.innerText)")
                    assert options or name in ("claims", "log") or cut == [], name
                    tab.keyboard.press("Tab")
                    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline != "none" and tab.evaluate("document.activeElement.innerText") == "Skip to content"


@NEEDS_CHROMIUM
def test_search_answers_without_a_server(site):
    with browser() as made, opened(made, site / "index.html") as tab:
        tab.keyboard.press("/")
        tab.keyboard.type("kurtosis")
        tab.wait_for_selector(".md-search-result__link")
        assert "kurtosis" in tab.locator(".md-search-result__item").first.inner_text().lower()


def test_the_contents_fit_a_glance():
    """Four kinds and the glossary; no part lists more than a dozen pages (the modules apart)."""
    lines = (ROOT / "mkdocs.yml").read_text().split("nav:\n")[1].splitlines()
    parts = [line for line in lines if line.startswith("  - ")]
    assert len(parts) <= 7
    assert [re.match(r"  - ([\w-]+)", part).group(1) for part in parts][1:5] == [
        "Tutorials", "How-to", "Reference", "Explanation"]
    sizes, above = {}, {}
    for line in lines:
        depth = len(line) - len(line.lstrip())
        above[depth] = line
        sizes[above.get(depth - 4)] = sizes.get(above.get(depth - 4), 0) + 1
    assert max(sizes.values()) <= 12, sizes
