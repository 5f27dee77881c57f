"""Every number in docs/accelerate.md is a record's."""

import json
import re
from pathlib import Path

from benchmarks import accelerate_models as bench

ROOT = Path(__file__).parents[2]


def test_the_tables_are_the_records():
    text = (ROOT / "docs" / "accelerate.md").read_text()
    named = set(re.findall(r"benchmarks/records/(accelerate-[\w-]+\.json)", text))
    shown = 0
    for name in named:
        record = json.loads((ROOT / "benchmarks" / "records" / name).read_text())
        assert record["machine"]["processor"]["name"] in text
        for part in record["results"]:
            table = bench.document(record, part)
            assert table in text, f"{name}, {part}: docs/accelerate.md must hold\n{table}"
            shown += table.count("\n") + 1
    rows = [line for line in text.splitlines() if re.search(r"\d× |\d× \|", line) and line.startswith("|")]
    assert len(rows) <= shown, "a row of figures that no record backs"
