"""Write docs/schema/: the JSON Schema of every record that nonlin writes or prints.

    make schema
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from nonlin.advice.records import Advice
from nonlin.claims.records import ClaimsResults
from nonlin.health.records import HealthRecord
from nonlin.ladder.records import LadderResults, WrittenForecast
from nonlin.records import Record
from nonlin.study.records import Across, PlanRecord, Results, SeveralSnapshot, Snapshot
from nonlin.training.records import TrialRecord

FOLDER = Path(__file__).parents[1] / "docs" / "schema"
#: By the schema's name: the record, and the file or command that holds one.
RECORDS: dict[str, tuple[type[Record], str]] = {
    "trial": (TrialRecord, "trials/HASH/result.json of a study"),
    "plan": (PlanRecord, "plan.json of a study"),
    "results": (Results, "results.json of a study, and nonlin compare --json"),
    "snapshot": (Snapshot, "nonlin watch --json"),
    "snapshot-of-several": (SeveralSnapshot, "nonlin watch --json of a ladder and of A/A studies"),
    "across": (Across, "nonlin compare-studies --json"),
    "ladder": (LadderResults, "results.json of a ladder, and nonlin ladder --json"),
    "forecast": (WrittenForecast, "forecasts/NNNN.json of a ladder"),
    "claims": (ClaimsResults, "results.json of claims, and nonlin claims --json"),
    "advice": (Advice, "nonlin advise --json"),
    "health": (HealthRecord, "nonlin check --json"),
}


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a record. A record may hold more than it names: later versions add fields."""
    record, where = RECORDS[name]
    made = msgspec.json.schema(record)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, "$comment": where} | made


def text(name: str) -> str:
    """Return the schema as its file holds it."""
    return json.dumps(schema(name), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name in RECORDS:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")
        print(FOLDER / f"{name}.json", file=sys.stderr)


if __name__ == "__main__":
    main()
