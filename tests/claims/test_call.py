"""``nonlin.claims(...)``: the package that can be called, and what it returns."""

import inspect
import json
import shutil
import subprocess
import sys

import pytest

import nonlin
from nonlin.claims import all_claims
from nonlin.claims.plan import ClaimsPlan, make
from nonlin.claims.runner import run_claims
from nonlin.data import load_corpus
from nonlin.errors import Interrupted, UserError
from nonlin.study import ProcessEngine, Store
from tests.claims import planted


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs\n" for i in range(1500)))
    return path


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    """A folder whose plan is the one that a call on this text asks for, made without measuring; claim 1 has run."""
    request = {"minutes": 20.0, "seed": 0, "data": load_corpus(text).sha256,
               "rules": {str(claim.number): claim.rule for claim in all_claims()}}
    speeds = {f"{size} {arm}": {"tokens_per_second": 50_000.0, "seconds_overhead": 0.1}
              for size in planted.SIZES for arm in ("gelu", "swiglu")}
    plan = make(request, speeds, planted.MACHINE, planted.DATA | {"paths": [str(text)]}, 2)
    folder = tmp_path_factory.mktemp("claims")
    with ProcessEngine("nowhere", 2, [sys.executable, "-m", "nonlin.claims.worker"]) as engine:
        run_claims(plan, all_claims()[:1], all_claims(), Store(folder, ClaimsPlan), engine)
    return folder


@pytest.fixture(scope="module")
def found(folder, text):
    return nonlin.claims([1], data=str(text), out=folder, progress=False)


def test_it_returns_the_verdicts_asked_for(found, folder):
    written = json.loads((folder / "results.json").read_text())
    assert list(found.verdicts) == [1] and found.status == "partial"
    claim = found.verdicts[1]
    assert claim.verdict == written["claims"][0]["verdict"] == "depends"
    assert claim.measures == written["claims"][0]["measures"] and claim.parts == written["claims"][0]["parts"]
    assert len(found.results.claims) == 13 and found.results.claims[12].verdict is None


def test_it_shows_itself_as_a_table(found, monkeypatch):
    assert "depends" in repr(found) and str(found.directory) in repr(found) and "\x1b" not in repr(found)
    html = found._repr_html_()
    assert html.count("<tr>") == 2 and "<td>depends</td>" in html
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert found.open_report().read_text().startswith("<!doctype html>") or opened
    assert opened == [found.report.resolve().as_uri()]


def test_the_command_line_takes_the_same_folder(found, folder):
    times = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}
    done = subprocess.run([sys.executable, "-m", "nonlin", "claims", "1", "--resume", "--out", str(folder), "--json"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["claims"] == json.loads(json.dumps(found.values["claims"]))
    assert times == {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}


def test_ctrl_c_raises_with_what_is_known(folder, text, tmp_path, monkeypatch):
    from nonlin.progress import Silent

    class Impatient(Silent):
        def __call__(self, event):
            raise KeyboardInterrupt

    shutil.copy(folder / "plan.json", tmp_path)
    monkeypatch.setattr("nonlin.progress.listener", lambda shown: Impatient())
    monkeypatch.setattr("nonlin.claims.runner._PROGRESS_SECONDS", 0.0)
    with pytest.raises(Interrupted) as stopped:
        nonlin.claims([1], data=text, out=tmp_path)
    assert stopped.value.found.status == "interrupted" and stopped.value.found.verdicts[1].verdict is None


def test_modules_in_the_package_are_imported_as_from_any_other():
    """In a fresh process: whichever comes first, the call or the import of a module."""
    program = ("import nonlin; assert callable(nonlin.claims); import nonlin.claims.plan; "
               "assert callable(nonlin.claims) and nonlin.claims.plan.MINUTES; "
               "from nonlin.claims import all_claims; assert len(all_claims()) == 13; "
               "import nonlin.claims as same; assert same is nonlin.claims")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert "seed" in inspect.signature(nonlin.claims).parameters
    assert "statements of articles" in nonlin.claims.__call__.__doc__


@pytest.mark.parametrize(("arguments", "words"), [
    (([14],), "1 to 13"), (("1",), "list of numbers"), ((6,), "list of numbers"), ((["one"],), "1 to 13")])
def test_wrong_numbers_are_told(arguments, words, tmp_path):
    with pytest.raises(UserError, match=words):
        nonlin.claims(*arguments, out=tmp_path / "out")
    with pytest.raises(UserError, match="minutes must"):
        nonlin.claims([1], minutes="ten", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
