"""Sentences in a terminal are broken between words, and a command that is to be copied stays whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from nonlin.paragraphs import wrapped

WORDS = st.lists(st.text("abcdefghij:.,()−±", min_size=1, max_size=12), min_size=1, max_size=30)


@given(WORDS, st.integers(20, 100), st.sampled_from(["", "  ", "    "]))
def test_no_word_is_cut_and_none_is_lost(words, width, indent):
    told = wrapped(indent + " ".join(words), width)
    assert told.split() == words
    assert all(cell_len(line) <= width for line in told.split("\n"))
    assert all(line.startswith(indent + "  ") for line in told.split("\n")[1:])


@pytest.mark.parametrize("command, after", [
    ("nonlin extend runs/mine --seeds 267", ""),
    ("nonlin compare --resume --out runs/a", " continues it; to begin something else, give another folder."),
    ("nonlin ladder --target 125M --activations 'gelu,mine=x * sigmoid(2*x)' --baseline gelu --data 'my text'", ""),
    ("nonlin watch study", "."), ("nonlin report /tmp/a", " (again)")])
@pytest.mark.parametrize("width", [24, 40, 80])
def test_a_command_stays_on_one_line(command, after, width):
    told = wrapped(f"This is to be done if more is to be known of it (it takes a while): {command}{after}", width)
    assert sum(command in line for line in told.split("\n")) == 1, told


def test_columns_stay_as_they_are():
    row = "rung     parameters  tokens  a word at the end that is long"
    assert wrapped(f"{row}\nshort", 30) == f"{row}\nshort"
