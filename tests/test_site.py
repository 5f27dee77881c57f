"""The site builds strictly, fetches nothing from a network, and its reference holds every public name."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
