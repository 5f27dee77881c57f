"""A study's folder that was edited, is damaged, full or read-only: one error or a note, and finished runs stay."""

import contextlib
import ctypes
import hashlib
import html
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nonlin.calls.comparison import compare, resume_study
from nonlin.errors import UserError
from nonlin.files import DEEPEST
from nonlin.kinds import LADDER, must_be
from nonlin.report import build
from nonlin.study import Store, load
from nonlin.study.store import _checksum
from tests.study import studies


def plan(**changes):
    return studies.plan("gelu", "swiglu", "silu", "relu", **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study with its page."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    studies.run(folder, plan())
    build(folder)
    return folder


@pytest.fixture
def study(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "study"))


def judged(folder, arm="swiglu"):
    results = json.loads((folder / "results.json").read_text())
    return next(a for a in results["arms"] if a["name"] == arm)["judged"][0]["config_hash"]


def trials(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "trials").glob("*/*")}


def nonlin(*arguments, **options):
    """Call the program: (status, standard output, standard error), neither with a traceback."""
    done = subprocess.run([sys.executable, "-m", "nonlin", *arguments], capture_output=True, text=True,
                          errors="surrogateescape", timeout=300, **options)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


# Edited by hand.

def test_the_report_of_edited_results_shows_the_records_and_names_the_file(study):
    page = (study / "report.html").read_text()
    results = json.loads((study / "results.json").read_text())
    arm = next(a for a in results["arms"] if a["name"] == "silu")
    assert arm["verdict"] == "tie" and "1.2345" not in page
    arm["bits_per_byte"], arm["verdict"], results["winner"] = 1.2345, "better", "silu"
    results["advice"] = "Use silu, whatever was found."
    (study / "results.json").write_text(json.dumps(results))
    status, _, err = nonlin("report", study)
    published = (study / "report.html").read_text()
    assert status == 0 and "results.json does not say what the runs' records say" in err
    assert "arms.silu.verdict" in err and "results.json does not say" in published
    assert "1.2345" not in published and "whatever was found" not in published
    (study / "results.json").unlink()
    studies.run(study, plan())
    build(study)
    assert without_remarks(published) == without_remarks((study / "report.html").read_text())


def test_other_words_for_the_same_numbers_are_no_edit(study):
    """A folder of another version shows this version's words, and nobody has to take care."""
    results = json.loads((study / "results.json").read_text())
    results |= {"headline": "Other words.", "advice": "Words, too.", "remarks": ["And these."]}
    (study / "results.json").write_text(json.dumps(results))
    found = load(study)
    assert found.notes == () and "ords" not in found.results["headline"] + found.results["advice"]


def without_remarks(page):
    """The page less the note of the edited file, and what a call alone knows."""
    return {line for line in page.splitlines() if "results.json does not say" not in line}


# Not the file that was written.

def loop(path):
    path.symlink_to(path)


def deep(path):
    path.write_text("[" * 100_000)


def closed_and_deep(path):
    path.write_text('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1))


DAMAGES = [Path.mkdir, os.mkfifo, loop, deep, closed_and_deep, Path.touch]


def replace(path, damage):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    damage(path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["plan.json", "results.json"])
def test_a_plan_or_results_that_are_no_such_file_are_one_error(study, name, damage):
    before = trials(study)
    replace(study / name, damage)
    words = r"plan\.json was damaged" if name == "plan.json" else r"results\.json must"
    for call in (load, build):
        with pytest.raises(UserError, match=words):
            call(study)
    if name == "plan.json":
        with pytest.raises(UserError, match=r"plan\.json"):
            studies.run(study, plan())
    assert trials(study) == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["result.json", "config.json", "metrics.jsonl", ""])
def test_a_trial_that_is_no_such_file_is_left_out_and_runs_again(study, name, damage):
    key = judged(study)
    whole = load(study).results
    replace(study / "trials" / key / name, damage)
    folder = load(study)
    assert any(key in note and "left out" in note for note in folder.notes) and key not in folder.trials()
    with pytest.raises(UserError, match=key):
        folder.trial(key)
    if damage is loop:  # a page takes seconds
        assert key in build(study).read_text()  # it says what it left out
    told = []
    studies.run(study, plan(), lambda event: told.append(event["message"]))
    assert any(m and key in m and "put aside" in m for m in told)
    assert not load(study).notes and studies.without_timing(load(study).results) == studies.without_timing(whole)


@pytest.mark.parametrize("line", [b"[" * 100_000, b"3", b'{"kind": "train"}'])
def test_measures_that_cannot_be_read_are_one_error_though_their_hash_fits(study, line):
    """Whoever writes the record of a file can write its hash."""
    key = judged(study)
    trial = study / "trials" / key
    (trial / "metrics.jsonl").write_bytes(line + b"\n")
    record = json.loads((trial / "result.json").read_text())
    record["files"]["metrics.jsonl"] = hashlib.sha256(line + b"\n").hexdigest()
    record["checksum"] = _checksum(record)
    (trial / "result.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=key):
        build(study)


@pytest.mark.parametrize("damage", [Path.touch, loop])
@pytest.mark.parametrize("name", ["trials", "figures", "running", ".lock"])
def test_a_part_of_the_folder_that_is_another_kind_of_thing_is_one_error(study, name, damage):
    if (study / name).exists():
        replace(study / name, damage)
    elif name != ".lock" or damage is not Path.touch:
        damage(study / name)
    if name in ("trials", "figures"):
        with pytest.raises(UserError):
            build(study)
    (study / "results.json").unlink()
    with contextlib.suppress(UserError):  # where nothing of that part is needed, the study goes on
        studies.run(study, plan())


# A disk that fills.

@contextlib.contextmanager
def at_most(size):
    """No file may grow past so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_figures_or_the_page_are_written(study):
    before, page = trials(study), (study / "report.html").read_bytes()
    figures = max(path.stat().st_size for path in (study / "figures").iterdir())
    assert figures < len(page)
    for size in (figures // 2, (figures + len(page)) // 2):
        with at_most(size), pytest.raises(UserError, match="is full; every finished run is kept"):
            build(study)
        assert trials(study) == before and (study / "report.html").read_bytes() == page
        assert not list(study.glob(".*.tmp"))
    status, out, err = nonlin("report", study, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (figures // 2, resource.RLIM_INFINITY)))
    assert (status, out) == (2, "") and "is full; every finished run is kept" in err
    assert build(study).read_bytes() == page


def test_a_disk_that_fills_while_text_is_prepared(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} the quick brown fox jumps over the lazy dog\n" for i in range(4000)))
    with at_most(50_000), pytest.raises(UserError, match="is full"):
        compare(text, "gelu,silu", layers=1, dim=16, heads=2, context=16, steps=8, out=tmp_path / "new", progress=False)
    assert [path.name for path in (tmp_path / "new" / "data").iterdir()] == [".lock"]
    folder = tmp_path / "study"
    studies.run(folder, plan(data=studies.DATA | {"paths": [str(text)]}))
    before = trials(folder)
    with at_most(50_000), pytest.raises(UserError, match="is full; every finished run is kept"):
        resume_study(folder, progress=False)
    assert trials(folder) == before and load(folder).results["status"] == "complete"


# A folder that cannot be written, and names.

def without_the_right_to_write_everywhere():
    """Let the system's modes bind the superuser too, in a process that is about to start a program."""
    capability, drop = 1, 24  # CAP_DAC_OVERRIDE, PR_CAPBSET_DROP
    ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0)


@pytest.fixture
def read_only(study):
    """The study's folder, in which nothing can be made."""
    folders = [study, study / "figures", *(study / "trials").iterdir(), study / "trials"]
    for folder in folders:
        folder.chmod(0o555)
    yield study
    for folder in reversed(folders):
        folder.chmod(0o755)


def test_the_report_of_a_folder_that_is_read_only_is_one_error(read_only):
    options = {"preexec_fn": without_the_right_to_write_everywhere} if sys.platform == "linux" else {}
    tried = subprocess.run(["touch", read_only / "new"], capture_output=True, **options)
    if tried.returncode == 0:
        pytest.skip("this user may write where the modes forbid it")
    page = (read_only / "report.html").read_bytes()
    for path in (read_only / "figures").iterdir():
        path.chmod(0o444)
    status, out, err = nonlin("report", read_only, **options)
    assert (status, out) == (2, "") and "must be a folder that can be written" in err and str(read_only) in err
    assert (read_only / "report.html").read_bytes() == page
    assert sum(line.startswith("Error:") for line in err.splitlines()) == 1


def test_a_folder_whose_name_is_no_utf8_gets_its_page_and_its_errors(study, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    studies.run(folder, plan())
    status, out, _ = nonlin("report", folder)
    assert (status, out) == (0, f"{folder}/report.html\n") and "<html" in (folder / "report.html").read_text()
    status, out, _ = nonlin("report", folder, "--json")
    assert json.loads(out)["report"] == f"{folder}/report.html"
    (folder / "plan.json").unlink()
    status, _, err = nonlin("report", folder)
    assert status == 2 and err.startswith("Error:") and "no plan.json" in err
    with pytest.raises(UserError, match="must be empty or hold a study"):
        Store(folder)


def test_commands_that_go_on_with_a_study_can_be_copied_whatever_its_folder_is_called(tmp_path):
    folder = tmp_path / "my study's"
    Store(folder).create(plan())
    command = f"nonlin compare --resume --out {shlex.quote(str(folder))}"
    with pytest.raises(UserError) as error:
        must_be(folder, LADDER)
    assert f"{command} continues it" in str(error.value)
    assert f"<code>{command}</code>" in html.unescape(build(folder).read_text(encoding="utf-8"))
