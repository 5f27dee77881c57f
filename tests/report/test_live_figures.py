"""The figures in a real browser: values under the pointer, activations on and off, zoom, keys, no script."""

import json

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
