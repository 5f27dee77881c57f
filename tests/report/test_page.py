"""The page: whole in one file, the verdict first, every number in a table, nothing hostile alive."""

import base64
import hashlib
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import nonlin
from nonlin import claims, report
from nonlin.errors import UserError
from nonlin.numbers import typeset
from nonlin.report import build
from nonlin.report.figures import FIGURES
from nonlin.report.records import read
from nonlin.report.tables import TABLES
from nonlin.study import load
from tests.report.words import not_set
from tests.study import studies

VOID = {"meta", "link", "br", "img", "path", "use"}


class Page(HTMLParser):
    """Elements in order, each (tag, attributes, text inside it)."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_starttag(self, tag, attrs):
        self.handle_data(" " if tag in ("td", "th") else "")
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        return [e for e in self.elements if e[0] == tag and all(e[1].get(k) == v for k, v in wanted.items())]


#: The figures as the page has them.
ORDER = ("differences", "curves", "paired", "recovery", "learning_rates", "layers", "costs", "quality")


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_nothing_is_loaded_from_anywhere(page, text):
    allowed = {("link", "href"): ("data:",), ("a", "href"): ("#",), ("use", "xlink:href"): ("#",)}
    for tag, attributes, _ in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form"), tag
        for name, value in attributes.items():
            if name.split(":")[-1] in ("href", "src", "srcset", "action", "poster", "data"):
                assert value.startswith(allowed[tag, name]), (tag, name, value)
            assert not name.startswith("on")
    assert "@import" not in text and "url(http" not in text.lower() and "url(//" not in text
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    # Two scripts of ours and their data: the policy lets those run, by their hashes, and no other.
    data, scripts = ([e for e in page.all("script") if bool(e[1]) == named] for named in (True, False))
    assert [e[1] for e in data] == [
        {"type": "application/json", "id": f"{name}-data"} for name in ("explorer", "figures")]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(e[2].encode()).digest()).decode()}'" for e in scripts)
    assert policy[1]["content"].startswith(f"default-src 'none'; script-src {hashes};") and len(scripts) == 2


def test_every_page_has_the_policy_of_their_base():
    pages = [path for package in (report, claims) for path in Path(package.__file__).parent.glob("templates/*.html")]
    whole = [path.name for path in pages if "<html" in path.read_text()]
    assert whole == ["base.html"] and len(pages) > 6
    (base,) = (path.read_text() for path in pages if path.name == "base.html")
    assert "default-src 'none'; script-src 'none'" in base


def test_the_verdict_comes_first(page, folder):
    results = load(folder).results
    texts = [(tag, attributes, text) for tag, attributes, text in page.elements if tag in ("p", "h2", "table")]
    assert texts[0][1].get("class") == "advice" and texts[0][2].replace("\u00a0", " ") == typeset(results["headline"])
    assert texts[1][2].replace("\u00a0", " ") == typeset(results["advice"])
    first = next(e for e in texts if e[0] == "table")
    for arm in results["arms"]:
        assert arm["name"] in first[2] and arm["verdict"] in first[2]
    assert texts.index(first) < [e[0] for e in texts].index("h2")


def test_every_figure_has_its_table_with_the_same_numbers(page, folder):
    study, svgs = read(load(folder)), page.all("svg", role="img")
    shown = [name for name in ORDER if FIGURES[name][2](study)]
    assert set(ORDER) == set(FIGURES)
    assert [svg[1]["aria-label"] for svg in svgs] == [FIGURES[name][1] for name in shown for _ in range(2)]
    tables = {name: TABLES[name](study) for name in shown}
    after = {}
    for i, element in enumerate(page.elements):
        if element[0] == "svg" and element[1].get("role") == "img":
            table = next(e for e in page.elements[i:] if e[0] == "table")
            after[element[1]["aria-label"]] = table[2].split()
    for name, (header, rows) in tables.items():
        assert after[FIGURES[name][1]] == " ".join([*header, *(cell for row in rows for cell in row)]).split()
        assert rows and all(len(row) == len(header) for row in rows)
    everything = json.dumps(tables)
    for arm in study.arms:
        if arm["bits_per_byte"] is not None:
            assert f"{arm['bits_per_byte']:.4f}" in everything
        for rate in {run["learning_rate"] for run in arm["tuning"]}:
            losses = [run["bits_per_byte"] for run in arm["tuning"] if run["learning_rate"] == rate]
            assert None in losses or f"{sum(losses) / len(losses):.4f}" in everything


def test_hostile_text_is_shown_and_not_run(page, text, hostile):
    assert "alert('gotcha')</script>" not in text and "<img" not in text and text.count("<script") == 4
    shown = [pre[2] for pre in page.all("pre")]
    assert hostile in shown and any(f"Data: {hostile}" in pre for pre in shown)
    assert page.all("h1")[0][2] == "Which activation? Study “study”"
    assert len(page.all("b")) == 0


def test_a_formula_and_a_hash_for_every_arm(page, folder):
    everything = page.all("main")[0][2]
    assert "max(x, 0)*min(x, 1)" in everything and "x*exp(x)" in everything
    results = load(folder).results
    assert results["plan"]["hash"] in everything
    for arm in results["arms"]:
        for run in arm["judged"]:
            assert run["config_hash"] in everything


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [e[1].get("href") or e[1].get("xlink:href") for e in page.elements if e[0] in ("a", "use")]
    assert links and {link[1:] for link in links} <= set(ids)


def test_built_again_it_is_equal_and_so_are_its_figures(folder):
    files = [folder / "report.html", *sorted((folder / "figures").iterdir())]
    assert {f.name for f in files[1:]} == {
        f"{name}.{kind}" for name in FIGURES if FIGURES[name][2](read(load(folder))) for kind in ("svg", "png")}
    before = [f.read_bytes() for f in files]
    build(folder)
    assert [f.read_bytes() for f in files] == before


def test_figures_for_papers_have_no_colour_of_the_page(folder):
    for file in (folder / "figures").glob("*.svg"):
        text = file.read_text()
        assert "var(--" not in text and not any(role in text for role in ("#010101", "#020202", "#030303", "#fefefe"))
    for file in (folder / "figures").glob("*.png"):
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and file.stat().st_size > 5000


def test_an_unfinished_study_says_so(tmp_path):
    def stop(event):
        if event["stage"] == "judge" and event["done"] >= 2:
            raise KeyboardInterrupt

    studies.run(tmp_path / "judged", studies.plan("gelu", "swiglu"), stop)
    text = build(tmp_path / "judged").read_text()
    assert "This study is not finished: it was stopped" in text and "No samples" in text

    def stop_early(event):
        if event["done"] >= 1:
            raise KeyboardInterrupt

    studies.run(tmp_path / "tuned", studies.plan("gelu", "swiglu"), stop_early)
    assert "not finished" in build(tmp_path / "tuned").read_text()


def test_results_copied_without_their_runs_are_a_finished_study(folder, tmp_path):
    for name in ("plan.json", "results.json"):
        shutil.copy(folder / name, tmp_path)
    text, results = build(tmp_path).read_text(), load(folder).results
    assert "This study is not finished" not in text and "not yet" not in text and 'id="curves"' not in text
    assert Page(text).all("p")[0][2].replace("\u00a0", " ") == typeset(results["headline"])
    assert "There are no runs&#39; records here" in text and 'data-figure="learning_rates"' in text
    now = next(nonlin.watch(tmp_path))
    assert (now.state, now.judging) == ("complete", next(nonlin.watch(folder)).judging)
    assert [row.name for row in now.ranking] == results["ranking"]


def test_what_cannot_be_built_is_said(tmp_path, folder):
    with pytest.raises(UserError):
        build(tmp_path)
    with pytest.raises(UserError):
        build(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "samples.json").write_text('{"texts": 3}')
    assert "No samples" in build(copy).read_text()
    record = next(copy.glob("trials/*/metrics.jsonl"))
    record.unlink()
    (copy / "results.json").write_text('{"arms": [')
    with pytest.raises(UserError, match=r"results\.json"):
        build(copy)


def test_numbers_are_set_alike(folder, full):
    assert len(not_set("<p>-1</p>\n<p>5%</p>\n<p>1e-05</p><code>-2</code>\n<p>a - b, −3, 5 %, 10⁻⁵, SHA-256</p>")) == 4
    for study in (folder, full):
        assert not_set((study / "report.html").read_text()) == []


def test_every_way_to_match_has_its_words():
    from nonlin.report import explorer
    from nonlin.study.request import MATCHES

    source = explorer.environment().loader.get_source(explorer.environment(), "report.html")[0]
    words = source[source.index('{"params"'):source.index("[results.plan.match]")]
    assert all(f'"{match}": ' in words for match in MATCHES)
