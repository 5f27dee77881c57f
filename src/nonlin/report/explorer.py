"""The explorer: one page, or a part of a study's page, to look at activations. Records in, HTML out; no torch."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nonlin.errors import UserError
from nonlin.files import write_atomically
from nonlin.functions import Definition, describe, javascript, mathml
from nonlin.numbers import typeset
from nonlin.report import palette

_VENDOR = Path(__file__).parent / "templates" / "vendor"
_NUMBER = re.compile(r"[+−×<±]? ?[\d.∞]")
_KINDS = {"pointwise": "plain", "gated": "gated", "tensor": "not pointwise"}


def environment(*packages: str) -> jinja2.Environment:
    """Return the environment of our pages' templates: the report's, and those of other packages."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "nonlin.report")])
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True,
                              undefined=jinja2.StrictUndefined)
    made.globals["colours"] = palette.variables
    made.globals["vendored"] = lambda name: Markup((_VENDOR / name).read_text(encoding="utf-8"))
    made.globals["columns_of_words"] = columns_of_words
    made.filters["typeset"] = unbroken
    return made


def columns_of_words(rows: Sequence[Sequence[str]]) -> set[int]:
    """Return the places of a table's columns that hold words, which begin at the left; numbers end at the right.

    >>> sorted(columns_of_words([["gelu", "better", "−0.1", "–"], ["relu", "–", "diverged", "–"]]))
    [0, 1]
    """
    told = [[cell for cell in column if cell and cell != "–"] for column in zip(*rows, strict=False)]
    return {place for place, cells in enumerate(told) if cells and not any(_NUMBER.match(cell) for cell in cells)}


def unbroken(text: str) -> str:
    """Return a sentence of a page with its numbers set; no line breaks before their units."""
    return typeset(text).replace(" %", "\u00a0%")


def write(definitions: Sequence[Definition], path: Path, selected: str | None = None) -> Path:
    """Write the explorer of these activations as one self-contained file, and return its path.

    It opens with ``selected``, else with the first. Raises UserError where the file cannot be written.
    """
    page = with_its_scripts(
        environment().get_template("explorer.html").render(**values(definitions, selected), explorer_address=True))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        raise UserError(f"show: --out must name a file that can be written; {error}. Choose another.") from error
    return path


def values(definitions: Sequence[Definition], selected: str | None = None, compared: Sequence[str] = ()
           ) -> dict[str, Any]:
    """Return what the template explorer_part.html needs to show these activations."""
    slots = palette.paint([d.name for d in definitions])
    data = {"activations": [_facts(d) | {"slot": slots[d.name].slot} for d in definitions],
            "selected": selected or definitions[0].name, "compared": list(compared)}
    return {"definitions": definitions, "explorer_data": in_script(data),
            "explorer_functions": Markup(javascript.activations(definitions)),
            "explorer_primitives": Markup(javascript.primitives())}


def in_script(values: Any) -> Markup:
    """Return values as JSON that can stand in a script element.

    >>> str(in_script({"name": "</script>"}))
    '{"name":"\\\\u003c/script>"}'
    """
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def with_its_scripts(page: str) -> str:
    """Return the page with its policy opened for the scripts it holds, by hash: no other can run in it."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
               for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return page.replace("script-src 'none'", f"script-src {allowed}", 1)


def _facts(definition: Definition) -> dict[str, Any]:
    facts = describe(definition)
    kept = ("name", "formula", "source", "used_by", "aliases", "parameters", "note", "properties", "derivatives")
    return {key: facts[key] for key in kept} | {
        "kind": _KINDS[definition.kind], "mathml": mathml.formula(definition), "variables": definition.variables,
        "drawn": definition.expr is not None}
