"""How often a ladder's forecasts hold, on simulated ladders with known truths.

    python benchmarks/ladder_simulation.py --ladders 60 --out benchmarks/records/ladder-simulation.json
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from nonlin.ladder import simulated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ladders", type=int, default=60)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    print("| truth | held-out rung | target | each | false verdict | decided | half width |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for name, world in simulated.worlds().items():
        for widened in (True, False) if any(world.drifts) else (True,):
            found = simulated.coverage(world, asked.ladders, widened=widened)
            title = name if widened else f"{name}, intervals not widened by rates"
            rows.append({"world": title} | asdict(found))
            print(f"| {title} | {found.held_out:.1%} | {found.target:.1%} | {found.each:.1%} | {found.false:.1%} | "
                  f"{found.decided:.0%} | {found.half_width:.3f} |", flush=True)
            if asked.out:
                command = f"python benchmarks/ladder_simulation.py --ladders {asked.ladders}"
                asked.out.write_text(json.dumps({"command": command, "ladders": asked.ladders, "seeds": 3, "arms": 4,
                                                 "beyond": 3.0, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
