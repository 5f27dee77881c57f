"""The page of the claims: one self-contained HTML file that reads as an article."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nonlin.claims import all_claims
from nonlin.claims.claim import VERDICTS, Claim
from nonlin.files import finite, write_atomically, writing
from nonlin.report import style
from nonlin.report.explorer import environment

#: The verdicts' colours are those of a study's.
CLASSES = dict(zip(VERDICTS, ("better", "worse", "tie", "undecided"), strict=True))


def build(directory: str | Path, results: Mapping[str, Any]) -> Path:
    """Write claims.html and figures/ from the values of results.json, and return the page's path."""
    with writing(directory):
        return _build(Path(directory), results)


def _build(directory: Path, results: Mapping[str, Any]) -> Path:
    target = directory / "figures"
    target.mkdir(exist_ok=True)
    known: dict[int, Claim] = {claim.number: claim for claim in all_claims()}
    sections = []
    with style.settings():
        for row in finite(results)["claims"]:
            claim = known[row["number"]]
            sections.append({"claim": claim, "row": row, **_drawn(claim, row, target)})
    counts = Counter(row["verdict"] for row in results["claims"] if row["verdict"])
    page = environment("nonlin.claims").get_template("claims.html").render(
        sections=sections, results=results, counts=[(v, counts[v]) for v in VERDICTS if counts[v]], classes=CLASSES,
        done=sum(counts.values()))
    path = directory / "claims.html"
    write_atomically(path, page)
    return path


def _drawn(claim: Claim, row: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """The figure, the table behind it, and what is published, where the claim has run and has something to show."""
    measures = row["measures"]
    if measures is None:
        return {"svg": None, "table": None, "literature": None}
    table, literature = claim.table(measures), claim.literature(measures) if claim.literature else None
    if not table[1]:
        return {"svg": None, "table": None, "literature": literature}
    figure = claim.draw(measures)
    name = f"claim-{claim.number:02}-{claim.slug}"
    svg = style.inline_svg(figure, name, claim.statement.replace('"', "'"))
    style.write_files(figure, target, name)
    return {"svg": svg, "table": table, "literature": literature, "name": name}
