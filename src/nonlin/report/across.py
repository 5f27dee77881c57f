"""Several studies together: one page, one table in the terminal."""

from pathlib import Path

from matplotlib.ticker import FuncFormatter
from rich.console import Console

from nonlin.columns import Column, print_columns
from nonlin.errors import short
from nonlin.files import must_be_page, write_atomically, writing
from nonlin.numbers import interval, number, places
from nonlin.report import style
from nonlin.report.explorer import environment, with_its_scripts
from nonlin.report.marks import Drawings
from nonlin.report.palette import MARKERS, paint
from nonlin.report.style import INK, MUTED, new_figure
from nonlin.report.tables import Table
from nonlin.study.records import Across, AcrossActivation, AcrossPart

OUTCOMES = {"agrees": "agree", "turned": "turned", "mixed": "differ", "partly": "decided in part", "open": "undecided"}
_TITLE = "Differences to the baseline, by study"
_LONGEST = 36  # letters of a study's name that a figure has room for


def write(found: Across, path: str | Path) -> Path:
    """Write the page of several studies, and return its path: one file that needs nothing else."""
    must_be_page("compare_studies", "the page's path", path)
    path = Path(path)
    names = [row.name for row in found.activations]
    slots = {name: p.slot for name, p in paint(names).items()}
    drawings = Drawings(slots)
    drawn = drawings.inline(lambda: _figure(found), "across", _TITLE) if _shown(found) else ""
    page = environment().get_template("across.html").render(
        found=found, table_=differences(found), set_up=set_up(found), figure=drawn, title=_TITLE,
        slots=slots, figures_data=drawings.data())
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, with_its_scripts(page))
    return path


def differences(found: Across) -> Table:
    """Each activation's difference and verdict in each study, and what they say together."""
    digits = _digits(found)
    rows = [[row.name, *(_cell(part, digits, study.status == "complete")
                         for part, study in zip(row.parts, found.studies, strict=True)), together(row),
             number(row.spread_p_value, ".2g")] for row in found.activations]
    return ["activation", *(study.label for study in found.studies), "together", "p of equal differences"], rows


def together(row: AcrossActivation) -> str:
    """Return in words what the studies say of an activation together."""
    return OUTCOMES[row.outcome] if sum(part is not None for part in row.parts) > 1 else "in one study"


def set_up(found: Across) -> Table:
    """The parts of the set-ups that differ."""
    return (["", *(study.label for study in found.studies)],
            [[key, *texts] for key, texts in found.differing.items()])


def _digits(found: Across) -> int:
    return places((part.difference.high - part.difference.low) / 2 for part in _shown(found) if part.difference)


def _shown(found: Across) -> list[AcrossPart]:
    return [part for row in found.activations for part in row.parts if part and part.difference]


def _cell(part: AcrossPart | None, digits: int, ended: bool) -> str:
    short, reach = _verdict(part, digits, ended), _interval(part, digits)
    return short if reach == "–" else f"{short} ({reach})"


def _verdict(part: AcrossPart | None, digits: int, ended: bool) -> str:
    if part is None:
        return "–"
    verdict = part.verdict if ended else "not yet"
    return verdict if part.difference is None else f"{verdict} {number(part.difference.mean, f'+.{digits}f')}"


def _interval(part: AcrossPart | None, digits: int) -> str:
    if part is None or part.difference is None:
        return "–"
    return interval(part.difference.low, part.difference.high, f"+.{digits}f")


def print_across(found: Across, console: Console | None = None) -> None:
    """Print the table on standard output."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    rows, digits = found.activations, _digits(found)
    columns = [Column("activation", [row.name for row in rows])]
    for i, study in enumerate(found.studies):
        parts = [row.parts[i] for row in rows]
        columns += [Column(study.label, [_verdict(part, digits, study.status == "complete") for part in parts]),
                    Column(f"interval in {study.label}", [_interval(part, digits) for part in parts], 2)]
    columns += [Column("together", [together(row) for row in rows]),
                Column("p of equal\ndifferences", [number(row.spread_p_value, ".2g") for row in rows], 1, right=True)]
    console.print(f"\nDifferences to {found.baseline} in bits per byte:", highlight=False)
    print_columns(console, columns)


def words(found: Across) -> list[str]:
    """Return what is said below the table."""
    differs = [f"Differs: {key} ({'; '.join(texts)})." for key, texts in found.differing.items()]
    return [*found.findings, *found.notes, *differs]


def _figure(found: Across):
    """Each activation's differences, a row per study, with their intervals."""
    rows = [(row.name, study.label, part.difference) for row in found.activations
            for study, part in zip(found.studies, row.parts, strict=True) if part and part.difference]
    colours = style.colours([row.name for row in found.activations])
    figure = new_figure(0.9 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, lw=1)
    shapes = {study.label: MARKERS[i % len(MARKERS)] for i, study in enumerate(found.studies)}
    for place, (name, label, d) in enumerate(reversed(rows)):
        axes.plot([d.low, d.high], [place, place], color=colours[name], lw=2.4, solid_capstyle="butt")
        axes.plot(d.mean, place, shapes[label], ms=6, color=colours[name], mec=INK, mew=0.5)
    axes.set_yticks(range(len(rows)), [f"{name}, {short(label, _LONGEST)}" for name, label, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, "+.6g") if v else "0"))
    axes.set_xlabel(f"bits per byte less {found.baseline}'s   (left of zero is better)")
    return figure
