"""A study whose parts are struck at moments drawn by chance, until it is complete: what every engine must survive."""

import collections
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from nonlin.study import Store, load
from tests.study.engines.comparing import comparable

ROOT = Path(__file__).parents[3]


def finished(folder):
    """When each finished record was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "trials").glob("*/result.json")}


def survives(folder, whole, driver, strikes, seed, points, environment=None, longest=2.0):
    """Run the program ``driver`` on a folder until the study there is complete; return the blows by their kind.

    ``strikes``: by kind a function of a random generator that does the damage, and returns whether there was any to
    do. The driver itself is killed too. No record may be written twice, lost, or differ from those of ``whole``.
    """
    order, struck, program, seen = random.Random(seed), collections.Counter(), None, {}

    def start():
        return subprocess.Popen([sys.executable, "-c", driver, str(folder)], stdout=subprocess.PIPE, text=True,
                                cwd=ROOT, env=os.environ | (environment or {}))

    try:
        while sum(struck.values()) < points:
            if program is None:
                program = start()
                program.stdout.readline()  # its first word of progress: it has begun
            time.sleep(order.uniform(0.0, longest))
            if program.poll() is not None:
                assert program.returncode == 0
                break
            kind = order.choice([*strikes, "driver"])
            if kind == "driver":
                program.kill()
                program.communicate()
                program = None
                struck["driver"] += 1
            else:
                struck[kind] += bool(strikes[kind](order))
            now = finished(folder)
            assert seen.items() <= now.items()
            seen = now
        last = program or start()
        said = last.communicate(timeout=600)[0]
        assert last.returncode == 0, said[-2000:]
    finally:
        if program is not None and program.poll() is None:
            program.kill()
            program.communicate()
    after = finished(folder)
    assert seen.items() <= after.items()
    assert comparable(folder) == comparable(whole)
    assert Store(folder).hashes() == Store(whole).hashes()
    assert len(load(folder).trials()) == len(after) and not (folder / "running").exists()
    assert all(json.loads(path.read_text())["attempt"] >= 1 for path in after)
    return struck
