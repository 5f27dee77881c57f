"""The numbers in the README and in the documents' tables are those of the recorded runs."""

import json
import re
from pathlib import Path

import pytest

from nonlin import numbers

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"


def _rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, formatting taken off."""
    part = text[text.index(heading):]
    lines = re.search(r"(?:^\|.*\n)+", part, re.MULTILINE).group().splitlines()[2:]
    return [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in lines]


def _number(text: str) -> float:
    return float(text.replace("−", "-").replace("–", "nan"))


@pytest.mark.parametrize(("document", "heading", "record"), [
    ("README.md", "## What it finds on the default text", "default-study.json"),
    ("docs/verdicts.md", "## The default study", "default-study.json"),
    ("docs/verdicts.md", "## Does it find what is there", "control-study.json")])
def test_a_result_table_is_its_record(document, heading, record):
    arms = {arm["name"]: arm for arm in json.loads((RECORDS / record).read_text())["arms"]}
    rows = _rows((ROOT / document).read_text(), heading)
    assert {row[0] for row in rows} == set(arms)
    for name, bits, difference, interval, verdict, rate, dead in rows:
        arm = arms[name]
        assert verdict == arm["verdict"] and bits == f"{arm['bits_per_byte']:.3f}"
        assert (rate, dead) == (numbers.number(arm["learning_rate"], ".3g"), numbers.number(arm["dead_share"], ".1%"))
        if arm["difference"]:
            low, high = (_number(part) for part in interval.split("…"))
            found = arm["difference"]
            assert [_number(difference), low, high] == pytest.approx(
                [found["mean"], found["low"], found["high"]], abs=5.1e-4)


@pytest.mark.parametrize(("document", "heading", "shown"), [
    ("docs/claims.md", "## One run", range(1, 14)), ("README.md", "**Doubt.**", (1, 3, 10))])
def test_a_table_of_claims_is_the_record(document, heading, shown):
    claims = {c["number"]: c for c in json.loads((RECORDS / "claims.json").read_text())["claims"]}
    rows = _rows((ROOT / document).read_text(), heading)
    assert [int(number) for number, *_ in rows] == list(shown) and list(claims) == list(range(1, 14))
    for number, statement, verdict, found, *minutes in rows:
        claim = claims[int(number)]
        if minutes:  # what is open names an estimate or a ladder, what is not was decided in the run's minutes
            assert (minutes[0] == "at most 20") == (claim["verdict"] != "not settled")
        said = claim["verdict"] + (f" on {claim['on']}" if claim["on"] else "")
        assert statement == claim["statement"] and verdict.replace("**", "") == said and found == claim["summary"]


def test_the_longer_run_of_the_claims_page_is_the_record():
    record = json.loads((RECORDS / "claims-longer.json").read_text())
    text = (ROOT / "docs/claims.md").read_text()
    part = text[text.index("## With more seeds"):]
    claims = {claim["number"]: claim for claim in record["claims"]}
    for number, claim in claims.items():
        assert f"* **{number}: {claim['verdict']}.**" in part
    for match in ("width", "params"):
        found = claims[8]["measures"]["matches"][match]["difference"]
        assert "{mean:.4f} ({low:.4f} to {high:.4f})".format(**found).replace("-", "−") in part
    bounds = {}
    for name, one in claims[12]["measures"]["contrasts"].items():
        pair = name.partition(":")[0]
        bounds[pair] = max(bounds.get(pair, 0), abs(one["low"]), abs(one["high"]))
    assert set(map("{:.3f}".format, bounds.values())) <= set(part.split())


@pytest.mark.parametrize(("name", "begins", "activations"), [
    ("python", "## A recorded ladder", 6), ("english", "### The same on English prose", 1)])
def test_the_recorded_ladders_of_the_docs_are_the_records(name, begins, activations):
    record = json.loads((RECORDS / f"ladder-{name}.json").read_text())
    text = (ROOT / "docs/how-to/ladder.md").read_text()
    part = text[text.index(begins):]
    assert record["command"] in re.sub(r"\s+\\\n\s+", " ", part)
    rungs = [rung for rung in record["rungs"] if rung["longer"] == 1]
    for rung in rungs:
        line = next(line for line in part.splitlines() if line.startswith(f"| {rung['parameters']:,} |"))
        _, tokens, base, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        arms = {name: arm for name, arm in rung["arms"].items() if name != "gelu"}
        assert tokens == f"{rung['tokens']:,}"
        assert float(base) == pytest.approx(rung["arms"]["gelu"]["bits_per_byte"], abs=5.1e-4)
        for cell, arm in zip(cells, arms.values(), strict=True):
            difference, _, verdict = cell.partition(" ")
            assert _number(difference) == pytest.approx(arm["difference"]["mean"], abs=5.1e-4)
            assert verdict == (arm["verdict"] if arm["verdict"] in ("better", "worse") else "")
    compared = record["comparisons"]
    assert all(row["covered"] and row["before"] for row in compared) and len(compared) == activations
    for row in compared:
        assert f"| {row['arm']} | {row['mean']:+.4f} (".replace("-", "−") in part
    for row in record["rates"]:
        assert f"| {row['arm']} | {row['rate']:.4f} | {row['low']:.4f} to {row['high']:.4f} |" in part


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.replace("|", " ").split()) <= 900
    assert len(re.findall(r"!\[", text)) == 2
