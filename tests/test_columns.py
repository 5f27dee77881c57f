"""A table leaves columns out where the terminal is narrow; no cell is ever cut."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nonlin.columns import Column, print_columns

CELLS = st.text("0123456789.+-", min_size=1, max_size=12)


def printed(columns, width):
    file = io.StringIO()
    print_columns(Console(file=file, width=width, force_terminal=False, force_jupyter=False), columns)
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(16, 140))
def test_every_cell_of_a_column_that_is_shown_is_whole(data, width):
    rows = data.draw(st.integers(1, 3))
    columns = [Column(f"c{i}", data.draw(st.lists(CELLS, min_size=rows, max_size=rows)), data.draw(st.integers(0, 3)),
                      right=data.draw(st.booleans())) for i in range(data.draw(st.integers(1, 9)))]
    told = printed(columns, width)
    left_out = " ".join(told.split()).partition("Left out at this width: ")[2].partition(" (")[0].split(", ")
    words = told.split()
    for column in columns:
        shown = column.header not in left_out
        assert shown or column.rank, told
        if shown:
            assert all(cell in words for cell in column.cells), (column, told)
    kept = [c.rank for c in columns if c.header not in left_out]
    gone = [c.rank for c in columns if c.header in left_out]
    assert not gone or not kept or min(gone) > max(kept)
    assert all(len(line) <= width for line in told.splitlines())


def test_what_folds_goes_on_in_further_lines():
    told = printed([Column("formula", ["x*sigmoid(x) + a long tail of a formula"], fold=16), Column("n", ["1234567"])],
                   28)
    assert "1234567" in told and "tail" in told and "Left out" not in told


def test_rows_become_lines_where_nothing_more_can_be_left_out():
    told = printed([Column("activation", ["swiglu"]), Column("bits/\nbyte", ["2.12345"])], 12)
    assert [line for line in told.splitlines() if line] == ["activation: ", "swiglu", "bits/ byte: ", "2.12345"]


def test_markup_is_style_and_no_text():
    for width in (12, 7):
        told = printed([Column("verdict", ["[bold green]better[/]"]), Column("n", ["12345"])], width)
        assert "better" in told.split() and "[" not in told


def test_a_long_name_folds_before_a_number_is_left_out():
    name = "model.language_model.layers.12.feed_forward"
    told = printed([Column("block", [name], fold=12), Column("dead", ["0.1234"], 3)], 24)
    assert "0.1234" in told and "Left out" not in told and name in "".join(
        line.split()[0] for line in told.splitlines()[1:])
