"""A headless browser for the tests of pages; they are skipped, and say why, where there is none."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages are not tested")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: make chromium installs it")


#: A script that notes the words that are drawn, with the places where they begin and end, in screen widths.
NOTES_WORDS = """window.words = []; const draw = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const wide = this.measureText(text).width;
  const from = x - {left: 0, start: 0, center: wide / 2, right: wide, end: wide}[this.textAlign];
  window.words.push([text, from / this.canvas.width, (from + wide) / this.canvas.width]);
  return draw.apply(this, arguments); };"""


@contextlib.contextmanager
def browser():
    """Debian's chromium, without a network."""
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield made
        made.close()


@contextlib.contextmanager
def opened(made, page: Path, address: str = "", first: str = "", **options):
    """A page of a file: no network, and any error, warning or request of it fails the test.

    ``first`` is a script that runs before those of the page. The page's policy is off, which forbids the driver's own
    scripts too; that it lets the page's run is tested elsewhere.
    """
    context = made.new_context(**({"viewport": {"width": 1280, "height": 900}, "bypass_csp": True} | options))
    context.set_offline(True)
    context.set_default_timeout(60_000)  # a busy machine is slow, and not wrong
    if first:
        context.add_init_script(first)
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    tab.goto(f"{page.as_uri()}{address}")
    yield tab
    assert not wrong, wrong
    context.close()
