"""The page in Debian's chromium, headless: light, dark, on a phone. Nothing is loaded, nothing overflows."""

import html
import json
import os
import re
import subprocess

import pytest

from nonlin.report.figures import FIGURES
from nonlin.report.records import read
from nonlin.study import load
from tests.report.headless import CHROMIUM, NEEDS_CHROMIUM

pytestmark = NEEDS_CHROMIUM

# The page stands in a frame of the width of a phone and of a desk; the frame's owner measures it.
DRIVER = """<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="found"></pre><script>
const found = {};
async function look(name, width) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0;color-scheme:light dark`;
  const loaded = new Promise(done => frame.onload = done);
  frame.srcdoc = PAGE;
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, view = frame.contentWindow;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const box = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const style = view.getComputedStyle(page.body);
  const ink = e => view.getComputedStyle(e).fill;
  found[name] = {
    viewport: view.innerWidth, scroll: page.documentElement.scrollWidth, background: style.backgroundColor,
    color: style.color, figures: [...page.querySelectorAll("figure > *")].map(box).filter(size => size[0]),
    drawn: [...page.querySelectorAll("figure")].map(f => f.querySelectorAll("canvas").length
      || [...f.querySelectorAll("svg path, svg use")].filter(p => p.getBBox().width + p.getBBox().height > 0).length),
    labels: ink(page.querySelector("figure svg [id*=ytick] text")),
    loaded: view.performance.getEntriesByType("resource").map(e => e.name),
    wide: [...page.querySelectorAll("main > *")].filter(
      e => e.getBoundingClientRect().right > view.innerWidth + 1).map(e => e.outerHTML.slice(0, 120)),
  };
}
look("phone", 390).then(() => look("desk", 1280)).then(() => {
  document.getElementById("found").textContent = JSON.stringify(found); document.title = "measured"; });
</script>"""


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request, folder, tmp_path_factory):
    where = tmp_path_factory.mktemp(request.param)
    # "</" would end the driver's own script
    text = json.dumps((folder / "report.html").read_text()).replace("</", "<\\/")
    (where / "driver.html").write_text(DRIVER.replace("PAGE", text))
    dark = ["--blink-settings=preferredColorScheme=0"] if request.param == "dark" else []
    command = [CHROMIUM, "--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0",
               f"--user-data-dir={where / 'profile'}", f"--log-net-log={where / 'net.json'}",
               "--virtual-time-budget=20000", "--dump-dom", *dark, (where / "driver.html").as_uri()]
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # chromium refuses to sandbox root
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    measured = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert measured and measured[1], done.stderr[-2000:]
    return (request.param, json.loads(html.unescape(measured[1])), done.stderr,
            (where / "net.json").read_text(errors="replace"))


def test_it_is_drawn_in_the_readers_colours(seen):
    scheme, found, _, _ = seen
    for view in found.values():
        ground, ink, labels = (
            sum(map(int, re.findall(r"\d+", view[key])[:3])) for key in ("background", "color", "labels"))
        assert (ground > 700 and ink < 200 and labels < 350) if scheme == "light" else (
            ground < 100 and ink > 600 and labels > 400), view


def test_every_figure_is_drawn(seen, folder):
    _, found, _, _ = seen
    shown = sum(applies(read(load(folder))) for _, _, applies in FIGURES.values())
    for view in found.values():
        assert len(view["figures"]) == len(view["drawn"]) == shown  # of the script's and the still ones, one is seen
        assert all(width > 0.85 * min(view["viewport"], 990) and height > 90 for width, height in view["figures"])
        assert min(view["drawn"]) > 0


def test_nothing_is_wider_than_the_screen(seen):
    _, found, _, _ = seen
    assert found["phone"]["viewport"] == 390
    for view in found.values():
        assert view["scroll"] <= view["viewport"] and view["wide"] == []


def test_the_console_is_silent_and_the_network_unused(seen):
    _, found, errors, net = seen
    assert "CONSOLE" not in errors, [line for line in errors.splitlines() if "CONSOLE" in line]
    for view in found.values():
        assert view["loaded"] == []
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', net))
    assert not {url for url in asked if "localhost" not in url and "google" not in url}, asked
