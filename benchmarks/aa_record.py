"""What A/A studies found, for the repository: the present rule's verdicts and the former test's on the same runs.

    nonlin compare --aa 100 --layers 1 --dim 48 --steps 300 --out runs/aa-small
    python -m benchmarks.aa_record runs/aa-small benchmarks/records/aa-small.json --command "nonlin compare --aa 100 …"

Studies that are not complete are left out, and counted. The former test takes the paired differences of the judged
runs as they are, so it is blind to the choice of the learning rate; the rates are the present rule's.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from nonlin.study import load, statistics, verdict

FALSE = ("better", "worse")


def former(results: dict[str, Any]) -> dict[str, str]:
    """Return the verdicts of the former test on the judged runs of one study."""
    rule = {key: results["rule"][key] for key in ("margin", "confidence", "seeds")}
    runs = {arm["name"]: {run["seed"]: run["bits_per_byte"] for run in arm["judged"]} for arm in results["arms"]}
    judged = verdict.judge(rule, runs, results["baseline"])
    return {name: found.verdict for name, found in judged.items() if name != results["baseline"]}


def row(results: dict[str, Any]) -> dict[str, Any]:
    """Return one study's verdicts by both tests, its differences and the rates that its arms were judged at."""
    others = [arm for arm in results["arms"] if arm["name"] != results["baseline"]]
    return {"name": results["name"],
            "verdicts": {arm["name"]: arm["verdict"] for arm in others}, "former": former(results),
            "differences": {arm["name"]: round(arm["difference"]["mean"], 5) for arm in others},
            "standard_errors": {arm["name"]: round(arm["difference"]["standard_error"], 5) for arm in others},
            "p_values": {arm["name"]: float(f"{arm['difference']['p_value_uncorrected']:.3g}") for arm in others},
            "learning_rates": {arm["name"]: float(f"{arm['learning_rate']:.4g}") for arm in results["arms"]}}


def share(rows: list[dict[str, Any]], test: str) -> dict[str, Any]:
    """Return in how many studies a test called any arm better or worse, with the exact 95 % interval of the share."""
    false = sum(any(v in FALSE for v in found[test].values()) for found in rows)
    low, high = statistics.share_interval(false, len(rows))
    return {"false": false, "studies": len(rows), "low": round(low, 4), "high": round(high, 4)}


def others(rows: list[dict[str, Any]]) -> list[float]:
    """Return the uncorrected p-values of all comparisons: a twentieth of them should lie below 0.05."""
    return [p for found in rows for p in found["p_values"].values()]


def record(folder: Path, command: str) -> dict[str, Any]:
    """Return the record of a folder of A/A studies."""
    studies = sorted((folder / "studies").iterdir())
    found = [load(study).results for study in studies if (study / "results.json").exists()]
    done = [results for results in found if results["status"] == "complete"]
    rows = [row(results) for results in done]
    plan, machine = done[0]["plan"], done[0]["environment"]
    return {"command": command, "present": share(rows, "verdicts"), "former_test": share(rows, "former"),
            "comparisons": len(others(rows)), "below_5_percent": sum(p < 0.05 for p in others(rows)),
            "half_width": statistics.median([(arm["difference"]["high"] - arm["difference"]["low"]) / 2 for results in
                                             done for arm in results["arms"] if arm["difference"]]),
            "left_out": len(studies) - len(done), "model": plan["request"]["model"],
            "training": {key: plan["training"][key] for key in ("judge_steps", "batch")},
            "seeds": plan["rule"]["seeds"],
            "environment": {key: machine[key] for key in ("nonlin", "torch", "processor") if key in machine},
            "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the studies")
    asked = parser.parse_args()
    made = record(asked.folder, asked.command)
    asked.target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    for test in ("present", "former_test"):
        print(test, made[test])


if __name__ == "__main__":
    main()
