"""What a finished study gets beside its numbers: sampled text, the winner's model, the page."""

import shutil
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError

PROMPT = "def "
_LENGTH = 240


def best_trial(results: dict[str, Any], arm: str) -> str | None:
    """Return the hash of an arm's judged run of least loss; None where all diverged."""
    runs = next(a for a in results["arms"] if a["name"] == arm)["judged"]
    finished = [run for run in runs if run["bits_per_byte"] is not None]
    return min(finished, key=lambda run: run["bits_per_byte"])["config_hash"] if finished else None


def finish(directory: Path, results: dict[str, Any], engine: Any) -> dict[str, str]:
    """Write samples.json, model/ and report.html; return what lies where, for people.

    A sample or an export that fails is said in the answer and costs nothing else.
    """
    from nonlin.report import build
    from nonlin.study.store import write_json

    made: dict[str, str] = {}
    trials = {arm["name"]: best_trial(results, arm["name"]) for arm in results["arms"]}
    prompt = PROMPT if results["data"].get("paths") == [] else "The "
    requests = {name: {"do": "sample", "trial": str(directory / "trials" / key), "prompt": prompt, "length": _LENGTH,
                       "temperature": 0.7, "seed": 0} for name, key in trials.items() if key}
    try:
        texts = dict(zip(requests, engine.map(list(requests.values())), strict=True))
        write_json(directory / "samples.json", {"prompt": prompt, "texts": texts})
    except NonlinError as error:
        made["Samples"] = f"none: {error}"
    key = trials[results["winner"]]
    if key:
        made["Model"] = _export(directory, key, engine)
    made["Report"] = str(build(directory))
    return made


def _export(directory: Path, key: str, engine: Any) -> str:
    target, fresh = directory / "model", directory / ".new" / "model"
    shutil.rmtree(fresh.parent, ignore_errors=True)
    try:
        described = engine.call({"do": "export", "trial": str(directory / "trials" / key), "out": str(fresh)})
    except NonlinError as error:
        return f"none: {error}"
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    fresh.parent.rmdir()
    return f"{target} ({described['architecture']}; {described['note']})"
