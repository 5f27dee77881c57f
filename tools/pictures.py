"""Take the README's pictures, docs/images/: ``python -m tools.pictures STUDY``.

STUDY is the folder of the recorded default study, with its runs. Needs playwright and a chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from nonlin.functions import get, names
from nonlin.report import build, explorer

FOLDER = Path(__file__).parents[1] / "docs" / "images"
_WIDTH = 1200
_HEIGHTS = {"report": 1540, "explorer": 1000}
_STEP = "4 silu"  # of the explorer's story


def main(arguments: list[str]) -> int:
    """Take both pictures; return the exit status."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        copy = Path(made) / "study"
        shutil.copytree(arguments[0], copy, ignore=shutil.ignore_patterns("data", "model"))
        pages = {"report": build(copy),
                 "explorer": explorer.write([get(name) for name in names()], Path(made) / "explorer.html")}
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(bypass_csp=True)
        for name, page in pages.items():
            tab.set_viewport_size({"width": _WIDTH, "height": _HEIGHTS[name]})
            tab.goto(page.as_uri())
            if name == "explorer":
                tab.get_by_role("button", name=_STEP).click()
            tab.wait_for_timeout(1500)  # figures are drawn as they come into view
            tab.screenshot(path=FOLDER / f"{name}.png")
            print(FOLDER / f"{name}.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
