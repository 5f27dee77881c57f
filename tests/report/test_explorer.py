"""The explorer in a real browser: what is clicked, moved and typed, and the numbers that it then shows."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from nonlin.cli.show import show
from nonlin.functions import define, get, names
from nonlin.functions.numeric import numeric
from nonlin.report import explorer
from tests.report.headless import NEEDS_CHROMIUM, opened
from tests.report.words import value

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return explorer.write([get(n) for n in names()], tmp_path_factory.mktemp("page") / "all.html", "silu")


def cells(tab):
    """{activation: [value, derivative, second derivative]} of the readout."""
    rows = tab.locator(".x-readout tbody tr").all()
    text = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]
    return {row[0]: [value(t) for t in row[1:]] for row in text}


def curve(tab, name, order="value"):
    """The points of a drawn curve in the plot's numbers, by the two outermost ticks."""
    d = tab.locator(f'path[data-curve="{name}/{order}"]').get_attribute("d")
    return np.array([[float(v) for v in pair] for pair in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", d)])


def near(got, definition, x, digits=4):
    want = [float(numeric(definition, order)(x)) for order in range(3)]
    assert got == pytest.approx(want, rel=10.0**-digits, abs=1e-9)


def test_the_file_is_small_whole_and_asks_no_network(page):
    text = page.read_text()
    assert len(text.encode()) < 1_000_000
    assert not re.findall(r"""(?:src|href)\s*=\s*["']https?:|@import|url\(\s*["']?https?:""", text)


def test_it_opens_with_the_chosen_one_and_shows_its_numbers(chromium, page):
    with opened(chromium, page) as tab:
        assert tab.locator("#x-name").inner_text().startswith("silu")
        assert tab.locator(".x-pick[aria-current=true]").inner_text() == "silu"
        near(cells(tab)["silu"], get("silu"), 1.0)
        assert "−0.278465 at −1.27846" in tab.locator(".x-facts").inner_text()
        assert tab.locator(".x-formula math").count() == 1
        assert tab.locator(".x-plot path").count() == 2  # the second derivative is not for the first look
        tab.locator("[data-order=curvature]").check()
        assert tab.locator(".x-plot path").count() == 3


def test_every_activation_can_be_clicked_and_read(chromium, page):
    with opened(chromium, page) as tab:
        for definition in (get(n) for n in names() if get(n).expr is not None):
            tab.locator(f'li[data-name="{definition.name}"] .x-pick').click()
            near(cells(tab)[definition.name], definition, 1.0)
            assert tab.locator(".x-surface").is_visible() == definition.gated
            assert definition.formula in tab.locator(".x-facts").inner_text()


@pytest.mark.parametrize(("name", "said"), [
    ("fatrelu", "it jumps"), ("silu", "every derivative exists"),
    ("relu", "C0: its first derivative is not continuous"),
    ("relu_squared", "C1: its second derivative is not continuous")])
def test_smoothness_is_said_in_words(chromium, page, name, said):
    with opened(chromium, page, f"#{name}") as tab:
        assert said in tab.locator(".x-facts").inner_text()


def test_what_is_not_pointwise_says_so(chromium, page):
    with opened(chromium, page) as tab:
        tab.locator('li[data-name="polynorm"] .x-pick').click()
        assert tab.locator(".x-absent").is_visible() and not tab.locator(".x-plot").is_visible()


def test_ticks_lay_others_over_it_and_take_them_away(chromium, page):
    with opened(chromium, page) as tab:
        for name in ("relu", "gelu"):
            tab.locator(f'li[data-name="{name}"] .x-tick').check()
        found = cells(tab)
        assert list(found) == ["silu", "relu", "gelu"]
        near(found["gelu"], get("gelu"), 1.0)
        assert tab.locator(".x-legend span").all_inner_texts() == ["silu", "relu", "gelu"]
        assert tab.url.endswith("#silu,relu,gelu")
        tab.locator('li[data-name="relu"] .x-tick').uncheck()
        assert list(cells(tab)) == ["silu", "gelu"]
    with opened(chromium, page, "#mish,tanh") as tab:
        assert list(cells(tab)) == ["mish", "tanh"]


def test_the_drawn_curve_is_the_function(chromium, page):
    with opened(chromium, page, "#gelu") as tab:
        points = curve(tab, "gelu")
        x = np.linspace(-5, 5, len(points))
        y = numeric(get("gelu"))(x)
        # Pixels are a straight-line function of the values.
        slope, offset = np.polyfit(y, points[:, 1], 1)
        assert slope < 0
        assert np.abs(slope * y + offset - points[:, 1]).max() < 0.02


def test_a_jump_is_not_joined_by_a_line(chromium, page):
    with opened(chromium, page, "#relu") as tab:
        parts = {order: tab.locator(f'path[data-curve="relu/{order}"]').get_attribute("d").count("M")
                 for order in ("value", "slope")}
    assert parts == {"value": 1, "slope": 2}


def test_the_pointer_and_the_keys_move_along_x_and_it_is_said(chromium, page):
    with opened(chromium, page) as tab:
        plot = tab.locator(".x-plot")
        box = plot.bounding_box()
        tab.mouse.move(box["x"] + 44 + (box["width"] - 56) / 2, box["y"] + 50)
        assert cells(tab)["silu"] == pytest.approx([0, 0.5, 0.5], abs=0.02)
        plot.focus()
        for key, x in (("Home", -5), ("ArrowRight", -4.9), ("PageUp", -3.9), ("End", 5), ("ArrowLeft", 4.9)):
            plot.press(key)
            assert float(plot.get_attribute("aria-valuenow")) == pytest.approx(x)
            near(cells(tab)["silu"], get("silu"), x)
        said = tab.locator("[aria-live]")
        tab.wait_for_function("document.querySelector('[aria-live]').textContent.startsWith('x 4.9')")
        assert said.inner_text().startswith("x 4.9: silu 4.8")


def test_sliders_move_learned_parameters(chromium, page):
    with opened(chromium, page, "#swish_beta") as tab:
        slider = tab.get_by_label("swish_beta: beta").first
        slider.fill("2.5")
        assert cells(tab)["swish_beta"][0] == pytest.approx(1 / (1 + np.exp(-2.5)), rel=1e-4)
        slider.focus()
        slider.press("ArrowRight")
        assert cells(tab)["swish_beta"][0] == pytest.approx(1 / (1 + np.exp(-2.51)), rel=1e-4)
        tab.get_by_role("button", name="swish_beta: beta to its start").click()
        near(cells(tab)["swish_beta"], get("silu"), 1.0)


def test_the_reach_and_the_orders(chromium, page):
    with opened(chromium, page, "#tanh") as tab:
        tab.locator(".x-reach").fill("2")
        assert tab.locator(".x-reach + output").inner_text() == "±2"
        tab.locator("[data-order=slope]").uncheck()
        assert tab.locator(".x-plot path").count() == 1
        tab.locator(".x-data summary").click()
        rows = tab.locator(".x-data tbody tr").all_inner_texts()
        assert len(rows) == 21
        first = [float(t.replace("−", "-")) for t in rows[0].split("\t")]
        assert first == pytest.approx([-2, np.tanh(-2)], rel=1e-4)


def test_the_gate_surface_is_drawn_and_moved(chromium, page):
    with opened(chromium, page, "#swiglu") as tab:
        pixels = np.array(tab.evaluate(
            "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 121, 121).data]"))
        red, blue = pixels.reshape(121, 121, 4)[[1, 119], 119].tolist()
        assert red[0] > red[2] + 60 and blue[2] > blue[0] + 60  # +25 at gate 5, up 5; −25 at up −5
        tab.locator(".x-map").scroll_into_view_if_needed()
        box = tab.locator(".x-map").bounding_box()
        tab.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + 0.2 * box["height"])  # gate 2, up 3
        gate, up, value = (2.0, 3.0, 3 * 2 / (1 + np.exp(-2)))
        said = [float(v) for v in re.findall(r"-?\d+\.?\d*", tab.locator(".x-at").inner_text())]
        assert said == pytest.approx([gate, up, value, 3 * 1.0908, value / 3], abs=0.05)
        tab.locator(".x-map").press("ArrowUp")
        assert "up 3.2" in tab.locator(".x-at").inner_text()
        assert cells(tab)["swiglu"][0] == pytest.approx(3.2 * value / 3, rel=0.02)


def test_the_keyboard_alone_reaches_everything(chromium, page):
    with opened(chromium, page, "#swiglu") as tab:
        reached = set()
        for _ in range(160):
            tab.keyboard.press("Tab")
            reached.add(tab.evaluate("document.activeElement.className || document.activeElement.dataset.order || "
                                     "document.activeElement.tagName"))
        assert {"x-find", "x-pick", "x-tick", "x-plot", "x-map", "x-reach", "x-own", "value", "SUMMARY"} <= reached


def test_everything_that_takes_input_has_a_name(chromium, page):
    with opened(chromium, page, "#swish_beta,swiglu") as tab:
        nameless = tab.evaluate("""[...document.querySelectorAll('input, button, [tabindex]')].filter((e) =>
            !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.outerHTML)""")
    assert nameless == []


def test_find_narrows_the_list_by_name_formula_and_model(chromium, page):
    with opened(chromium, page) as tab:
        tab.locator(".x-find").fill("nemotron")
        assert tab.locator(".x-list li:visible").count() == 1
        assert "relu_squared" in tab.locator(".x-list li:visible").inner_text()


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark_have_contrast(chromium, page, scheme, dark):
    with opened(chromium, page, "#swiglu", color_scheme=scheme) as tab:
        paper, ink = tab.evaluate("""['backgroundColor', 'color'].map((k) => getComputedStyle(document.body)[k])""")
        paper, ink = ([int(v) / 255 for v in re.findall(r"\d+", c)[:3]] for c in (paper, ink))

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((luminance(paper), luminance(ink)))
    assert (luminance(paper) < 0.2) == dark
    assert (high + 0.05) / (low + 0.05) > 7  # WCAG AAA


def test_a_phone_needs_no_sideways_scrolling(chromium, page):
    for name in ("gelu", "xielu", "swiglu_oai"):
        phone = {"viewport": {"width": 360, "height": 780}, "has_touch": True}
        with opened(chromium, page, f"#{name},silu,relu", **phone) as tab:
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360
            tab.locator(".x-plot").scroll_into_view_if_needed()
            box = tab.locator(".x-plot").bounding_box()
            tab.touchscreen.tap(box["x"] + 44 + (box["width"] - 56) / 2, box["y"] + 60)
            assert cells(tab)["silu"][0] == pytest.approx(0, abs=0.05)


def test_the_command_writes_it_with_ones_own_formula_selected(chromium, tmp_path):
    target = str(tmp_path / "a" / "mine.html")
    made = CliRunner().invoke(show, ["mine=x*sigmoid(3*x)", "--html", "--out", target, "--json"])
    assert made.exit_code == 0, made.output
    answer = json.loads(made.stdout)
    assert answer["page"] == target and answer["selected"] == "mine"
    with opened(chromium, tmp_path / "a" / "mine.html") as tab:
        near(cells(tab)["mine"], define("mine", "x*sigmoid(3*x)"), 1.0)


@pytest.mark.parametrize("formula", [
    "x*sigmoid(2*x)", "max(x, 0)^2 - x/2", "clip(x, -1, 2)*tanh(x)", "gelu(x) + 0.1*abs(x)", "softplus(x)*erf(x/2)",
    "square(relu(x))/(1 + exp(-x))", "x*Phi(x)*cauchy(x)", "sqrt(1 + x**2) - log1p(square(x))", "-x*atan(-x)**3",
    "expm1(min(x, 0))"])
def test_a_formula_of_ones_own_is_the_grammars(chromium, page, formula):
    mark = str(abs(hash(formula)))
    mine = define(f"yours_{mark}", formula)
    with opened(chromium, page, "#gelu") as tab:
        tab.locator(".x-own").fill(formula)
        assert tab.locator(".x-wrong").inner_text() == "" and "derivative: " in tab.locator(".x-formula").inner_text()
        for key, x in (("Home", -5), ("End", 5)):
            tab.locator(".x-plot").press(key)
            near(cells(tab)["yours"], mine, x, 3)
        # the derivative that is shown is a formula of the grammar, and the derivative
        shown = tab.locator(".x-slope").inner_text().removeprefix("derivative: ")
        derivative = numeric(define(f"slope_{mark}", shown), 0)
        for x in (-2.3, 0.7, 3.1):
            want = float(numeric(mine, 1)(x))
            assert float(derivative(x)) == pytest.approx(want, rel=1e-4, abs=1e-6)
        assert {"gelu", "yours"} <= set(cells(tab))


def test_a_gated_formula_has_its_surface_and_a_wrong_one_its_word(chromium, page):
    with opened(chromium, page) as tab:
        box = tab.locator(".x-own")
        box.fill("tanh(gate)*up")
        assert tab.locator(".x-surface").is_visible()
        said = tab.locator(".x-wrong")
        for wrong, word in (("x*", "ends too early"), ("foo(x)", '"foo" is no function'), ("x**x", "exponent"),
                            ("3", "no variable"), ("x+gate", "beside"), ("max(x)", "2 arguments"),
                            ("x'", "cannot read"), ("(" * 80 + "x", "deeply")):
            box.fill(wrong)
            assert word in said.inner_text(), wrong
        assert tab.locator("#x-name").inner_text().startswith("yours")  # the last whole one stays


def test_the_story_leads_from_sigmoid_to_swiglu(chromium, page):
    with opened(chromium, page) as tab:
        buttons, told = tab.locator(".x-story button"), set()
        for i, shown in enumerate(("sigmoid tanh", "relu tanh", "gelu relu", "silu gelu", "swiglu silu")):
            buttons.nth(i).click()
            assert list(cells(tab)) == shown.split()
            told.add(tab.locator(".x-told").inner_text())
        assert len(told) == 5 and tab.locator(".intro").inner_text()
        silu = tab.locator('path[data-curve="silu/value"]')
        assert "stroke-width: 8" in silu.get_attribute("style")  # it lies under swiglu's, and is seen


def test_the_surface_has_numbers_on_its_axes(chromium, page):
    with opened(chromium, page, "#swiglu") as tab:
        for axis in tab.locator(".x-numbers").all():
            assert axis.locator("span").all_inner_texts() == ["−5", "−2.5", "0", "2.5", "5"]


def test_there_is_something_to_play_with(chromium, page):
    with opened(chromium, page) as tab:
        ratio = "Number(document.querySelector('.play').dataset.ratio)"
        tab.locator("#p-depth").fill("40")
        assert tab.evaluate(ratio) < 1e-10 and "vanished" in tab.locator("#p-depth-said").inner_text()
        tab.locator("#p-depth-of").select_option("identity")
        assert 0.01 < tab.evaluate(ratio) < 100
        tab.locator("#p-rate").fill("2")
        for _ in range(12):
            tab.locator("#p-step").click()
        assert "It is dead" in tab.locator("#p-die-said").inner_text()
        tab.locator("#p-die-of").select_option("leaky_relu")
        for _ in range(12):
            tab.locator("#p-step").click()
        assert "dead" not in tab.locator("#p-die-said").inner_text()
        shares = tab.evaluate("['without', 'with'].map((k) => Number(document.querySelector('.play').dataset[k]))")
        assert shares[0] < 0.75 and shares[1] > 0.95
        tab.locator("#p-gate").fill("-6")
        assert abs(tab.evaluate("Number(document.querySelector('.play').dataset.out)")) < 0.1
        tab.locator("#p-gate").fill("6")
        out = tab.evaluate("Number(document.querySelector('.play').dataset.out)")
        assert out == pytest.approx(3 * 6 / (1 + np.exp(-6)), rel=1e-6)


def test_markup_in_a_definition_stays_text(chromium, tmp_path):
    from nonlin.functions.definition import X, pointwise

    bad = pointwise("bad", X, note="</script><img src=x onerror=\"document.title='broken'\">", used_by=("<b>a</b>",))
    path = explorer.write([bad], tmp_path / "bad.html")
    with opened(chromium, path) as tab:
        assert "<b>a</b>" in tab.locator(".x-facts").inner_text()
        assert tab.locator(".x-facts img").count() == 0 and tab.title() != "broken"


def test_a_studys_page_shows_its_own_activations_and_stays_one_file(chromium, tmp_path):
    from nonlin.report import build
    from tests.study import studies

    studies.run(tmp_path / "study", studies.plan("gelu", "swiglu", "silu"))
    path = build(tmp_path / "study")
    assert len(path.read_bytes()) < 2_000_000
    with opened(chromium, path) as tab:
        assert tab.evaluate("scrollY") == 0  # it opens at the verdict
        assert sorted(item.get_attribute("data-name") for item in tab.locator(".x-list li").all()) == [
            "gelu", "silu", "swiglu"]
        found = cells(tab)
        assert sorted(found) == ["gelu", "silu", "swiglu"]
        near(found["gelu"], get("gelu"), 1.0)
        tab.locator('li[data-name="silu"] .x-pick').click()
        assert tab.locator("#x-name").inner_text().startswith("silu")
        assert "#silu" not in tab.url  # the page's own address is not the explorer's to change
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
