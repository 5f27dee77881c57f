"""A headless browser for the tests of pages; they are skipped, and say why, where there is none."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages are not tested")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: make chromium installs it")


@contextlib.contextmanager
def browser():
    """Debian's chromium, without a network."""
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield made
        made.close()


@contextlib.contextmanager
def opened(made, page: Path, address: str = "", **options):
    """A page of a file: no network, and any error, warning or request of it fails the test.

    Without its policy, which forbids the driver's own scripts too; that it lets the page's run is tested elsewhere.
    """
    context = made.new_context(**({"viewport": {"width": 1280, "height": 900}, "bypass_csp": True} | options))
    context.set_offline(True)
    context.set_default_timeout(60_000)  # a busy machine is slow, and not wrong
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    tab.goto(f"{page.as_uri()}{address}")
    yield tab
    assert not wrong, wrong
    context.close()
