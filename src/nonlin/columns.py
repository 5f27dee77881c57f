"""Tables for a terminal: a narrow one gets fewer columns, and no number is cut."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_GAP = 2  # spaces between two columns


@dataclass(frozen=True)
class Column:
    """A column: its header, its cells with markup, and when it is left out.

    Columns of the highest ``rank`` are left out first, those of rank 0 last: then each row is printed as lines.
    Text in a column with a ``fold`` goes on in further lines, at that width or more; any other cell is one line.
    """

    header: str
    cells: Sequence[str] = field(default_factory=list[str])
    rank: int = 0
    right: bool = False
    fold: int = 0
    style: str = ""


def print_columns(console: Console, columns: Sequence[Column], elsewhere: str = "--json has them",
                  header: str = "bold", rows: Sequence[str] = (), indent: int = 0) -> None:
    """Print a table as far as the console is wide, and name what is left out.

    ``rows`` are the rows' styles; ``indent`` spaces stand before each line of the table.
    """
    kept = list(columns)
    while not (fits := _needed(kept) + indent <= console.width) and (most := max(c.rank for c in kept)) > 0:
        kept = [column for column in kept if column.rank < most]
    if fits:
        console.print(Padding(_table(kept, header, rows), (0, 0, 0, indent), expand=False))
    else:
        _print_rows(console, kept)
    left_out = [" ".join(c.header.replace("-\n", "").split()) for c in columns if c not in kept]
    if left_out:
        console.print(f"Left out at this width: {', '.join(left_out)} ({elsewhere}).", style="dim", highlight=False)


def _needed(columns: Sequence[Column]) -> int:
    """The least width at which no cell is cut."""
    widths = [max(cell_len(line) for text in (c.header, *(Text.from_markup(cell).plain for cell in c.cells))
                  for line in text.split("\n")) for c in columns]
    gaps = _GAP * (len(columns) - 1)
    return gaps + sum(min(w, c.fold) if c.fold else w for w, c in zip(widths, columns, strict=True))


def _table(columns: Sequence[Column], header: str, rows: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style=header)
    for c in columns:
        table.add_column(c.header, justify="right" if c.right else "left", no_wrap=not c.fold, style=c.style,
                         overflow="fold", min_width=c.fold or None)
    for i, cells in enumerate(zip(*(c.cells for c in columns), strict=True)):
        table.add_row(*cells, style=rows[i] if rows else None)
    return table


def _print_rows(console: Console, columns: Sequence[Column]) -> None:
    """Print each row as lines, a value behind its header."""
    for cells in zip(*(c.cells for c in columns), strict=True):
        for column, cell in zip(columns, cells, strict=True):
            name = " ".join(column.header.replace("-\n", "").split())
            console.print(Text(f"{name}: " if name else "") + Text.from_markup(cell), overflow="fold")
        console.print()
