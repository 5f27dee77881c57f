"""What a run of `nonlin claims` found, trimmed for the repository, and its table of verdicts as Markdown.

    python benchmarks/claims_record.py runs/claims-0 benchmarks/records/claims.json
"""

import json
import math
import sys
from pathlib import Path

_LEFT_OUT = ("curves", "studies", "rules", "timing")  # long, or of no meaning once a run was stopped and resumed


def trimmed(value, left_out=_LEFT_OUT):
    """JSON values without some keys (drawn curves, the plans of single studies), numbers to six digits."""
    if isinstance(value, dict):
        return {k: trimmed(v, left_out) for k, v in value.items() if k not in left_out}
    if isinstance(value, list):
        return [trimmed(v, left_out) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def needs(claim):
    """At most those planned where there is one, else an estimate."""
    minutes = claim.get("minutes")
    if minutes is None:
        return "–"
    if claim["verdict"] != "not settled":
        return f"at most {minutes['planned']:g}"
    return "beyond reach" if minutes["needed"] is None else f"about {math.ceil(minutes['needed'])}"


def table(results):
    """The verdicts as Markdown."""
    lines = ["| | claim | verdict | what was found | minutes that a verdict needs |", "| --- | --- | --- | --- | --- |"]
    for c in results["claims"]:
        verdict = f"**{c['verdict'] or 'not run'}**" + (f" on {c['on']}" if c["on"] else "")
        lines.append(f"| {c['number']} | {c['statement']} | {verdict} | {c['summary']} | {needs(c)} |")
    return "\n".join(lines)


def main():
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    results = json.loads((folder / "results.json").read_text())
    target.write_text(json.dumps(trimmed(results), indent=1, ensure_ascii=False) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
