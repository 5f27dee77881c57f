"""The page of the claims: one self-contained HTML file that reads as an article."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.claims.definition import VERDICTS, Claim
from nonlin.claims.everything import all_claims
from nonlin.claims.lessons import budget, lesson
from nonlin.claims.runner import as_measured
from nonlin.files import finite, inside, write_atomically, writing
from nonlin.letters import quoted
from nonlin.numbers import typeset
from nonlin.report.explorer import environment, unbroken, with_its_scripts
from nonlin.report.glossary import Glossary
from nonlin.report.marks import Drawings
from nonlin.report.palette import OWN

#: The verdicts' colours are those of a study's.
CLASSES = dict(zip(VERDICTS, ("better", "worse", "tie", "undecided"), strict=True))


def build(directory: str | Path, results: Mapping[str, Any]) -> Path:
    """Write claims.html and figures/ from the values of results.json, and return the page's path."""
    with writing(directory):
        return _build(Path(directory), results)


def _build(directory: Path, results: Mapping[str, Any]) -> Path:
    target = inside(directory / "figures")
    known: dict[int, Claim] = {claim.number: claim for claim in all_claims()}
    words, rows = Glossary(), finite(results)["claims"]
    drawings = Drawings(OWN)
    # What was not asked for is not announced: a claim stands on the page when it has run.
    sections = list[dict[str, Any]]()
    for row in (row for row in rows if row["verdict"]):
        claim = known[row["number"]]
        with as_measured(claim.number):
            sections.append({
                "claim": claim, "row": row, "lesson": unbroken(lesson(row)), "budget": unbroken(budget(row)),
                **_told(claim, row, words), **_drawn(claim, row, target, drawings)})
    counts = Counter(row["verdict"] for row in rows if row["verdict"])
    page = environment("nonlin.claims").get_template("claims.html").render(
        sections=sections, results=results, counts=[(v, counts[v]) for v in VERDICTS if counts[v]], classes=CLASSES,
        done=sum(counts.values()), others=[row["number"] for row in rows if not row["verdict"]],
        command=_command(directory, results), resume=f"nonlin claims --resume --out {quoted(directory)}",
        notes=words.notes(), slots=OWN, figures_data=drawings.data())
    path = directory / "claims.html"
    write_atomically(path, with_its_scripts(page))
    return path


def _command(directory: Path, results: Mapping[str, Any]) -> str:
    """The command of these claims, whole: it can be given again in the same place, or with numbers added."""
    request = results["plan"]["request"]
    return (f"nonlin claims --seed {results['plan']['seed']} --minutes {request['minutes']:g} "
            f"--out {quoted(directory)}")


def _told(claim: Claim, row: Mapping[str, Any], words: Glossary) -> dict[str, Any]:
    """The claim's texts with the field's words explained where they first stand."""
    texts = {"background": claim.background, "summary": f"It depends on {row['on']}. {row['summary']}"
             if row["on"] else row["summary"], "caption": claim.caption, "tested": claim.tested, "rule": claim.rule,
             "change": claim.change}
    return dict(zip(texts, words.mark(*map(unbroken, texts.values())), strict=True))


def _drawn(claim: Claim, row: Mapping[str, Any], target: Path, drawings: Drawings) -> dict[str, Any]:
    """The figure, the table behind it, and what is published, where the claim has something to show."""
    measures = row["measures"]
    if measures is None:
        return {"svg": None, "table": None, "literature": None}
    (header, rows), literature = claim.table(measures), claim.literature(measures) if claim.literature else None
    table = ([typeset(cell) for cell in header], [[typeset(cell) for cell in row] for row in rows])
    if not rows:
        return {"svg": None, "table": None, "literature": literature}
    name = f"claim-{claim.number:02}-{claim.slug}"
    svg = drawings.inline(lambda: claim.draw(measures), name, claim.statement, target)
    return {"svg": svg, "table": table, "literature": literature, "name": name}
