"""The figures in a real browser: values under the pointer, activations on and off, zoom, keys, no script."""

import json

import numpy as np
import pytest

from nonlin.report import interactive
from nonlin.report.records import read
from nonlin.study import load
from tests.report.headless import NEEDS_CHROMIUM, opened

pytestmark = NEEDS_CHROMIUM
PLOT = "document.querySelector('[data-figure={}] .f-panel').uplot"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


@pytest.fixture(scope="module")
def data(full):
    return json.loads(str(interactive.data(read(load(full)))))


def figure(tab, name):
    found = tab.locator(f"figure[data-figure={name}]")
    found.scroll_into_view_if_needed()
    return found


def window(tab, name):
    return tab.evaluate(f"(() => {{ const s = {PLOT.format(name)}.scales.x; return [s.min, s.max]; }})()")


def test_the_policy_lets_our_scripts_run_and_no_other(chromium, full):
    with opened(chromium, full / "report.html", bypass_csp=False) as tab:
        every = len(interactive.PANELS)  # no recovery, but costs
        assert tab.locator(".f-live").count() == tab.locator("figure").count() == every


def test_values_are_those_under_the_pointer(chromium, full, data):
    with opened(chromium, full / "report.html") as tab:
        shown = figure(tab, "curves")
        box = shown.locator(".u-over").bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
        said = shown.locator(".f-read").inner_text()
        line = next(line for line in data["figures"]["curves"][0]["lines"] if line["arm"] == "swiglu")
        middle = sum(window(tab, "curves")) / 2
        at = min(range(len(line["x"])), key=lambda i: abs(line["x"][i] - middle))
        assert f"swiglu {line['y'][at]:.4g}" in said and "tokens: " in said
        shown = figure(tab, "differences")
        box = shown.locator(".u-over").bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 3, box["y"] + 40)
        assert "seed " in shown.locator(".f-read").inner_text()


def test_an_activation_goes_and_comes_in_every_figure(chromium, full):
    with opened(chromium, full / "report.html") as tab:
        button = figure(tab, "curves").get_by_role("button", name="relu", exact=True)
        shown = f"{PLOT.format('paired')}.series.filter((s) => s.label === 'relu').every((s) => s.show)"
        assert tab.evaluate(shown) and button.get_attribute("aria-pressed") == "true"
        button.click()
        assert not tab.evaluate(shown) and button.get_attribute("aria-pressed") == "false"
        assert "relu " not in figure(tab, "paired").locator(".f-read").inner_text()
        button.focus()
        tab.keyboard.press("Enter")
        assert tab.evaluate(shown)


def test_dragging_enlarges_and_a_double_click_shows_everything(chromium, full):
    with opened(chromium, full / "report.html") as tab:
        box = figure(tab, "curves").locator(".u-over").bounding_box()
        before = window(tab, "curves")
        y = box["y"] + 50
        tab.mouse.move(box["x"] + 100, y)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 300, y, steps=5)
        tab.mouse.up()
        low, high = window(tab, "curves")
        assert before[0] < low < high < before[1] and high - low < 0.3 * (before[1] - before[0])
        tab.mouse.dblclick(box["x"] + 200, y)
        assert window(tab, "curves") == before
        figure(tab, "curves").get_by_role("button", name="second half").click()
        assert window(tab, "curves")[0] == before[1] / 2


def test_the_first_view_begins_at_the_tenth_value(chromium, full):
    with opened(chromium, full / "report.html") as tab:
        assert window(tab, "curves")[0] == 10_000
        figure(tab, "curves").get_by_role("button", name="from the start").click()
        assert window(tab, "curves")[0] == 0


def test_the_keys_read_and_zoom(chromium, full):
    with opened(chromium, full / "report.html") as tab:
        shown = figure(tab, "paired")
        area, before = shown.locator(".f-area"), window(tab, "paired")
        area.focus()
        area.press("Home")
        first = shown.locator(".f-read").inner_text()
        area.press("ArrowRight")
        assert first != shown.locator(".f-read").inner_text() and "tokens: 10 k" in first
        area.press("+")
        assert window(tab, "paired")[1] < before[1]
        area.press("0")
        assert window(tab, "paired") == before
        tab.wait_for_function("[...document.querySelectorAll('.f-said')].some((e) => e.textContent.includes('tokens'))")


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_every_axis_keeps_two_labelled_ticks_at_any_zoom(chromium, full, options):
    with opened(chromium, full / "report.html", **options) as tab:
        for _ in range(4):
            found = tab.evaluate("""[...document.querySelectorAll('.f-panel')].map((p) => p.uplot.axes.map((a, i) => {
                const {min, max} = p.uplot.scales[i ? 'y' : 'x'];
                return a._values.filter((v, k) => v && a._splits[k] >= min && a._splits[k] <= max).length; }))""")
            layers = tab.locator("[data-figure=layers] .f-panel").count()
            assert layers and all(min(counts) >= 2 for counts in found), found
            for name in ("curves", "paired", "learning_rates", "quality"):
                figure(tab, name).get_by_role("button", name="Enlarge").first.click()


WINDOWS = r"""async ([windows]) => {
  const {figures} = JSON.parse(document.getElementById("figures-data").textContent), wrong = [];
  const hosts = [...document.querySelectorAll("figure")].flatMap((figure) =>
    [...figure.querySelectorAll(".f-panel")].map((host, i) => [figure, host, i]));
  for (const [figure, host, i] of hosts) {
    const u = host.uplot, panel = figures[figure.dataset.figure][i], log = (key) => u.scales[key].distr === 3;
    const to = (key, v) => (log(key) ? Math.log(v) : v), from = (key, v) => (log(key) ? Math.exp(v) : v);
    const whole = Object.fromEntries(["x", "y"].map((key) => [key, [u.scales[key].min, u.scales[key].max]]));
    const show = (key, low, high) => u.setScale(key, {min: low, max: high});
    for (const [start, wide] of windows) {
      for (const key of ["x", "y"]) {
        const [low, high] = whole[key].map((v) => to(key, v)), first = low + start * (high - low);
        show(key, from(key, first), from(key, first + wide * (high - low)));
      }
      await Promise.resolve(); // it draws in a microtask
      for (const [axis, key] of u.axes.map((axis, k) => [axis, k ? "y" : "x"])) {
        if (panel[key].names || panel[key].rows || panel[key].format === "whole") continue; // chosen places
        const {min, max} = u.scales[key], inside = (place) => place >= min && place <= max;
        const seen = axis._values.filter((v, k) => v && inside(axis._splits[k]));
        const plain = seen.filter((v) => /^[+−]?\d+(\.\d+)?$/.test(v) && v !== "0");
        const decimals = new Set(plain.map((v) => (v.split(".")[1] ?? "").length));
        if (seen.length < 2 || new Set(seen).size < seen.length || (decimals.size > 1 && !log(key)))
          wrong.push([figure.dataset.figure, key, min, max, seen.join("; ")]);
      }
    }
    for (const key of ["x", "y"]) show(key, ...whole[key]);
    await Promise.resolve();
  }
  return wrong;
}"""


def test_any_window_has_two_ticks_that_differ_with_as_many_decimals(chromium, full):
    random = np.random.default_rng(0)
    windows = [(float(a), float(w)) for a, w in zip(random.uniform(0, 0.9, 60), 10 ** random.uniform(-5, 0, 60),
                                                     strict=True)]
    with opened(chromium, full / "report.html") as tab:
        assert tab.evaluate(WINDOWS, [windows]) == []


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_a_hint_stands_above_the_tables_that_are_wider_than_the_screen_and_no_other(chromium, full, options):
    with opened(chromium, full / "report.html", **options) as tab:
        tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        tab.wait_for_function("[...document.querySelectorAll('.scroll')].every((e) => e.matches('.wide, .fits'))")
        tab.wait_for_timeout(200)  # an opened table is looked at in the next frame
        found = tab.evaluate("""[...document.querySelectorAll('.scroll')].filter((e) => e.clientWidth).map((e) => [
            e.scrollWidth > e.clientWidth + 1, getComputedStyle(e, '::before').content.includes('sideways')
              && getComputedStyle(e, '::before').display !== 'none', e.tabIndex,
            e.innerText.slice(0, 60)])""")
    assert [one for one in found if one[0] != one[1] or (one[0] and one[2] != 0)] == []
    assert len(found) > 8 and (not options or any(wide for wide, *_ in found))


def test_on_a_phone_it_is_drawn_anew_and_fits(chromium, full):
    with opened(chromium, full / "report.html", **PHONE) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        widths = tab.evaluate("[...document.querySelectorAll('.f-panel')].map((p) => p.uplot.width)")
        assert all(300 < width <= 390 for width in widths)
        assert tab.locator("svg.wide:visible").count() == 0


@pytest.mark.parametrize(("options", "kind"), [({}, "wide"), (PHONE, "narrow")], ids=["desk", "phone"])
def test_without_a_script_the_still_figures_stand(chromium, full, options, kind):
    with opened(chromium, full / "report.html", java_script_enabled=False, **options) as tab:
        assert tab.locator(f"figure svg.{kind}:visible").count() == tab.locator("figure").count()
        assert tab.locator(".f-live").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_the_palettes(chromium, full, scheme):
    from nonlin.report.palette import OWN, SLOTS

    with opened(chromium, full / "report.html", color_scheme=scheme) as tab:
        for name in ("gelu", "swiglu"):
            want = SLOTS[OWN[name]][scheme == "dark"]
            stroke = tab.evaluate(f"{PLOT.format('paired')}.series.find((s) => s.label === 'swiglu').stroke()")
            assert name != "swiglu" or stroke == want
            button = tab.locator(f"[data-figure=curves] [data-arm={name}] i")
            assert button.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb({}, {}, {})".format(
                *(int(want[i:i + 2], 16) for i in (1, 3, 5)))
