"""What `nonlin ladder` found, trimmed for the repository, and its tables as Markdown.

    python -m benchmarks.ladder_record runs/ladder benchmarks/records/ladder-python.json --command "nonlin ladder …"
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.claims_record import trimmed
from nonlin.claims.n11_size import by_ladder
from nonlin.errors import UserError
from nonlin.ladder.folder import load_ladder
from nonlin.ladder.rates import RULES
from nonlin.ladder.results import results

_LEFT_OUT = ("curves", "studies", "rules", "directory", "ladder")  # long, or of the machine's folders


def portable(record: Any) -> str:
    """Return a record as JSON, the files and folders of its text by their names alone."""
    data = record["plan"]["data"]
    text = json.dumps(trimmed(record, _LEFT_OUT), indent=1, ensure_ascii=False)
    for path in sorted([*data.get("paths", ()), *data.get("validation", ())], key=len, reverse=True):
        text = text.replace(json.dumps(path, ensure_ascii=False)[1:-1], Path(path).name)
    return text + "\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of Markdown."""
    lines = [list(header), ["---"] * len(list(header)), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _span(row: Mapping[str, Any] | None) -> str:
    if row is None or row["mean"] is None:
        return "–"
    return f"{row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})".replace("-", "−")


def differences(found: Mapping[str, Any]) -> str:
    """Return each rung's differences to the baseline, with their verdicts."""
    arms = [arm for arm in found["rungs"][0]["arms"] if arm != found["baseline"]]
    rungs = sorted(found["rungs"], key=lambda one: (one["longer"], one["parameters"]))
    return table(["parameters", "tokens", f"{found['baseline']}, bits per byte", *arms], (
        [f"{one['parameters']:,}", f"{one['tokens']:,}", f"{one['arms'][found['baseline']]['bits_per_byte']:.4f}",
         *(f"{_span(one['arms'][arm]['difference'])} {one['arms'][arm]['verdict']}" for arm in arms)] for one in rungs))


def forecasts(found: Mapping[str, Any]) -> str:
    """Return the forecast of the held-out rung beside what was measured there, and that of the target."""
    target = {row["arm"]: row for row in found["verdicts"]}
    return table(["", "forecast of the held-out rung", "measured", "held", "forecast of the target", "verdict"], (
        [row["arm"], _span(row), f"{row['measured']:+.4f}".replace("-", "−"), "yes" if row["covered"] else "no",
         _span(target.get(row["arm"])), target[row["arm"]]["verdict"] if row["arm"] in target else "–"]
        for row in found["comparisons"]))


def rates(found: Mapping[str, Any]) -> str:
    """Return the best learning rate by activation with its interval, and how far it moved upward."""
    return table(["", "best rate at the smallest rung", "95 %", "moved at the middle rung"], (
        [row["arm"], f"{row['rate']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}",
         "–" if row["moved"] is None else f"× {row['moved']:.2f}" + (" surely" if row["surely"] else "")]
        for row in found["rates"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("--command", required=True)
    given = parser.parse_args()
    there = load_ladder(given.folder)
    status = (there.results() or {"status": "partial"})["status"]
    found = results(there.plan, there.finished(), there.forecasts(), RULES[there.plan.transfer["name"]], status)
    try:
        claim = by_ladder(given.folder)
    except UserError as error:
        claim = {"verdict": None, "summary": str(error)}
    environment = there.finished()[0][1]["environment"]
    record = {"command": given.command, "environment": environment, "claim 11": claim, **found}
    given.record.write_text(portable(record))
    for part in (differences, forecasts, rates):
        print(part(found), "\n")
    print(claim["verdict"], claim["summary"])
    print(*found["notes"], found["advice"], sep="\n")


if __name__ == "__main__":
    main()
