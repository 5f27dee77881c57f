"""The published schemas are those of the records, and real outputs are of them; what earlier code wrote still loads.

``records/format-1/`` was written by the first release: the results of a study, one of its runs, and a check.
"""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest
from tools import schemas

import nonlin
from nonlin.errors import UserError
from nonlin.records import Record

ROOT = Path(__file__).parents[1]
OLD = Path(__file__).parent / "records" / "format-1"
COMMITTED = [("health", p) for p in sorted((ROOT / "benchmarks" / "records").glob("health_*.json"))
             if "blocks" in p.read_text()] + [
    ("results", p) for p in sorted((ROOT / "benchmarks" / "records").glob("*study*.json"))] + [
    ("claims", ROOT / "benchmarks" / "records" / "claims.json"), ("health", OLD / "health.json"),
    ("results", OLD / "study" / "results.json"), ("plan", OLD / "study" / "plan.json"),
    *(("trial", p) for p in sorted(OLD.glob("unfinished/trials/*/result.json")))]


def exactly(name: str, values: object) -> None:
    """The record names everything that was written."""
    assert not list(unknown(fits(name, values).as_dict(), values))


def fits(name: str, values: object) -> Record:
    """Check values against the published schema, read them as the record, and see that no number changed."""
    published = json.loads((schemas.FOLDER / f"{name}.json").read_text())
    jsonschema.Draft202012Validator(published).validate(values)
    record = schemas.RECORDS[name][0].from_dict(values)
    same(record.as_dict(), values, name)
    return record


def same(typed, values, where):
    """Every value that the record names is the one in the file; the file may hold more, and an old one less."""
    if isinstance(values, dict) and isinstance(typed, dict):
        for key in typed.keys() & values.keys():
            same(typed[key], values[key], f"{where}.{key}")
    elif isinstance(values, list):
        assert len(typed) == len(values), where
        for i, (one, other) in enumerate(zip(typed, values, strict=True)):
            same(one, other, f"{where}[{i}]")
    else:
        assert typed == values, where


def unknown(typed, values, where=""):
    """The names in the file that no record names: add them to the record, and call ``make schema``."""
    if isinstance(values, dict) and isinstance(typed, dict):
        yield from (f"{where}.{key}" for key in values.keys() - typed.keys())
        for key in typed.keys() & values.keys():
            yield from unknown(typed[key], values[key], f"{where}.{key}")
    elif isinstance(values, list):
        for one, other in zip(typed, values, strict=True):
            yield from unknown(one, other, f"{where}[]")


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_the_published_schema_is_the_records(name):
    """``make schema`` writes them."""
    assert (schemas.FOLDER / f"{name}.json").read_text(encoding="utf-8") == schemas.text(name)


@pytest.mark.parametrize(("name", "path"), COMMITTED, ids=lambda value: getattr(value, "stem", value))
def test_what_earlier_code_wrote_loads(name, path):
    fits(name, json.loads(path.read_text()))


def test_a_study_of_the_first_release_loads():
    study = nonlin.load_study(OLD / "study")
    assert study.status == "complete" and study.verdicts["gelu"].verdict == "baseline"
    assert study.verdicts["mine"].difference is not None and study.arms["mine"].formula == "x*sigmoid(2*x)"
    assert "mine" in repr(study)
    (run,) = nonlin.load_study(OLD / "unfinished").runs()
    assert run.purpose == "tune" and run.bits_per_byte is not None


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(1500)))
    return nonlin.compare(text, ["gelu", "swiglu"], steps=10, seeds=4, learning_rates=2, layers=1, dim=16, heads=2,
                          context=16, batch=4, out=tmp_path_factory.mktemp("studies") / "one", progress=False)


def test_the_files_of_a_study_are_of_their_schemas(study):
    values = json.loads((study.directory / "results.json").read_text())
    record = fits("results", values)
    assert not list(unknown(record.as_dict(), values))
    plan = json.loads((study.directory / "plan.json").read_text())
    assert not list(unknown(fits("plan", plan).as_dict(), plan))
    for path in (study.directory / "trials").glob("*/result.json"):
        trial = json.loads(path.read_text())
        assert not list(unknown(fits("trial", trial).as_dict(), trial))


def test_a_check_and_an_advice_are_of_their_schemas(study, tmp_path):
    """As the command line prints them."""
    def printed(*arguments):
        done = subprocess.run([sys.executable, "-m", "nonlin", *arguments, "--json"], capture_output=True, text=True,
                              timeout=300, cwd=tmp_path)
        assert done.returncode in (0, 1), done.stderr
        return json.loads(done.stdout)

    values = printed("check", str(study.directory / "model"), "--tokens", "64", "--context", "16", "--gradients")
    assert not list(unknown(fits("health", values).as_dict(), values))
    values = printed("advise", "--params", "125M", "--tokens", "2.5B", "--no-measure", "--study", str(study.directory))
    assert values["choice"] in {o["name"] for o in values["options"]}
    fits("advice", values)


def test_an_advice_loses_nothing_of_what_was_found(monkeypatch):
    """Its record names everything that the rules said."""
    from nonlin.advice.records import Advice

    made = {}
    real = Advice.from_dict.__func__
    monkeypatch.setattr(Advice, "from_dict", classmethod(
        lambda cls, values, source: made.update(values) or real(cls, values, source)))
    for measure in (False, True):
        advice = nonlin.advise(params=125e6, tokens=2.5e9, measure=measure, inference="cpu")
        assert advice.as_dict() == made
    assert advice["choice"] == advice.choice == "swiglu" and "Evidence" in repr(advice)
    for values in ({"params": "many"}, {"tokens": float("nan")}, {"hardware": "tpu"}):
        with pytest.raises(UserError, match=f"{next(iter(values))} must"):
            nonlin.advise(**{"params": 125e6, "tokens": 2.5e9} | values)


def test_a_check_from_python_is_an_object(study, tmp_path, monkeypatch):
    found = nonlin.check(study.model("swiglu"), tokens=64, context=16, progress=False)
    assert found.blocks[0].activation.computed == "swiglu" and found.record.format == found.values["format"]
    assert found.serious == any(f.grade == "serious" for f in found.findings)
    assert "swiglu" in repr(found) and "<table>" in found._repr_html_() and "\x1b" not in repr(found)
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert opened == [] and found.open_page(tmp_path / "page.html").exists() and len(opened) == 1
    with pytest.raises(UserError, match="dtype must"):
        nonlin.check(study.model("swiglu"), dtype="float8")


def test_a_record_takes_what_it_does_not_know_and_says_what_it_cannot_read():
    values = json.loads((OLD / "study" / "results.json").read_text())
    record = nonlin.study.records.Results.from_dict(values | {"of_a_later_version": {"x": [1]}})
    assert "of_a_later_version" not in record and record["winner"] == record.winner == dict(record)["winner"]
    assert record.get("of_a_later_version", 3) == 3
    with pytest.raises(KeyError):
        record["of_a_later_version"]
    values["arms"][0]["hidden"] = "wide"
    with pytest.raises(UserError, match=r"results.json must be a record of nonlin.*arms\[0\].hidden"):
        nonlin.study.records.Results.from_dict(values, "results.json")
    with pytest.raises(AttributeError):
        record.winner = "mine"
    assert msgspec.json.decode(msgspec.json.encode(record))["winner"] == record.winner
