"""An error is one line of bounded length that any terminal shows, whatever stands in the file that it speaks of."""

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonlin.cli import main
from nonlin.errors import NonlinError, UserError, not_empty, printable, rule, short, unknown_name
from nonlin.files import Unreadable, read_bytes, read_json, sha256
from nonlin.study import load

ANYTHING = st.text(st.characters(codec=None), max_size=50)


@given(ANYTHING, st.integers(1, 400), st.sampled_from([NonlinError, UserError]))
def test_an_error_is_one_printable_line(text, times, kind):
    error = kind(text * times)
    assert str(error).isprintable() and len(str(error)) <= 3000
    assert str(error).encode() is not None and str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(kind(str(error))) == str(error)  # as one process tells another
    told = rule("a", "b", "c", text * times, "Do it.")
    assert told.isprintable() and len(told) < 500 and told.endswith(" Do it.")
    assert str(unknown_name("thing", text * times, ["one"])).isprintable()


@given(ANYTHING)
def test_a_name_is_shown_as_it_is_where_it_can_be(text):
    assert printable(text).isprintable() and (not text.isprintable() or printable(text) == text)
    assert len(short(text, 60)) <= 60


def test_a_name_of_a_million_letters_says_how_long_it_is():
    assert "(1,000,000 letters)" in str(UserError("n" * 10**6)) and "(1,000,000 letters)" in rule(
        "a", "b", "c", "n" * 10**6, "Do it.")


@pytest.mark.parametrize("name", ["n" * 10**6, "\ud800", "\x1b[2J", "a\nb", "\u202eevil", "\x00"])
@pytest.mark.parametrize("field", ["name", "baseline", "format", "hash"])
def test_names_in_a_plan_are_shown_on_one_line(tmp_path, name, field):
    (tmp_path / "plan.json").write_text(json.dumps({field: name, name: 1, "arms": [{name: name}]}))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 3000


@pytest.mark.parametrize("call", [["check", "q" * 100_000], ["show", "q" * 100_000], ["compare", "--" + "q" * 100_000],
                                  ["q" * 100_000], ["compare", "--precision", "q" * 100_000],
                                  ["report", "q" * 100_000], ["compare", "--recipe", "q" * 100_000]],
                         ids=lambda call: call[0][:9] + str(len(call)))
def test_the_program_says_it_on_one_line_too(call, capsys):
    with pytest.raises(SystemExit) as ended:
        main(call)
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "Error" in told[-1] and all(len(line) <= 3100 for line in told)


def test_a_file_that_is_empty_but_for_its_size_takes_no_memory(tmp_path):
    for name in ("plan.json", "result.json"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(Unreadable, match="larger than 256 MiB"):
            read_json(tmp_path / name)
    with pytest.raises(UserError):
        load(tmp_path)


def test_a_file_of_any_size_has_its_hash(tmp_path, monkeypatch):
    monkeypatch.setattr("nonlin.files.LARGEST", 1000)
    (tmp_path / "weights").write_bytes(b"w" * 5000)
    assert sha256(tmp_path / "weights") == hashlib.sha256(b"w" * 5000).hexdigest()
    with pytest.raises(Unreadable):
        read_bytes(tmp_path / "weights")


def test_a_large_file_is_hashed_again_only_once_it_changed(tmp_path, monkeypatch):
    path, read, digest = tmp_path / "model", [], hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda *given: read.append(1) or digest(*given))
    path.write_bytes(b"w" * 2_000_000)
    assert sha256(path) == sha256(path) and len(read) == 2  # written a moment ago: it may change unseen
    monkeypatch.setattr("nonlin.files._STEADY", -10**18)
    assert sha256(path) == sha256(path) and len(read) == 3
    times = path.stat()
    while path.stat().st_ctime_ns == times.st_ctime_ns:
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as one who hides the change would
    assert sha256(path) == hashlib.sha256(b"x" + b"w" * 1_999_999).hexdigest() and len(read) == 4


def test_what_is_no_text_is_never_empty():
    not_empty("compare", data=[np.array(["a", ""]), np.zeros(3)], weights=np.zeros(0), activations=[], model=None)
    with pytest.raises(UserError, match="data must not be empty"):
        not_empty("compare", data=[np.zeros(3), ""])
