"""How often verdicts are right on simulated studies with known truths, by the present rule and the former one.

    python benchmarks/verdict_simulation.py --studies 1000 --out benchmarks/records/verdict-simulation.json
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from nonlin.study import simulated

EFFECTS = (0, -0.04, -0.03, 0, 0.02, 0.04)
WORLDS = {
    "2 × 96, no difference": simulated.DEFAULT,
    "1 × 48, no difference": simulated.SMALL,
    "rates that share nearly all noise, no difference": replace(simulated.DEFAULT, kept_share=0.95),
    "heavy tails, no difference": replace(simulated.DEFAULT, tails=4),
    "curvatures and best rates that differ, no difference": replace(simulated.DEFAULT, bends=0.3, places=0.7),
    "2 × 96, four true differences": replace(simulated.DEFAULT, effects=EFFECTS, places=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    plan, rows = simulated.plan(6), []
    print("| world | rule | false verdict | covered | found | error |\n| --- | --- | --- | --- | --- | --- |")
    for name, world in WORLDS.items():
        for rule, made in (("former", simulated.older(plan)), ("present", plan)):
            found = simulated.rates(world, made, asked.studies)
            rows.append({"world": name, "rule": rule} | asdict(found))
            print(f"| {name} | {rule} | {found.false:.1%} | {found.covered:.1%} | "
                  f"{'–' if found.found != found.found else f'{found.found:.0%}'} | {found.error:.4f} |", flush=True)
    if asked.out:
        command = f"python benchmarks/verdict_simulation.py --studies {asked.studies}"
        clean = [{k: None if v != v else v for k, v in row.items()} for row in rows]
        asked.out.write_text(json.dumps({"command": command, "studies": asked.studies, "rows": clean}, indent=1) + "\n")


if __name__ == "__main__":
    main()
