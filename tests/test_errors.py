"""An error is one line of bounded length that any terminal shows, whatever stands in the file that it speaks of."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonlin.errors import NonlinError, UserError, printable, rule, short, unknown_name
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
