"""A/A studies: what a verdict is worth with a person's own set-up.

Every arm of an A/A study is the same activation under another name, tuned and judged as any study's is. All that it
calls better or worse is false. There are two kinds, as arms of a study may share their random streams or not:

* "private": the feed-forward weights of each arm come from a stream of its own, as those of a gated and a plain arm do;
* "shared": all arms begin with the same weights, as plain arms do. Each activation's argument is scaled by another
  number that is nearly 1: runs of one function would be equal in every bit.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sympy

from nonlin.calls.arguments import Asked
from nonlin.calls.comparison import changes, measured, requested
from nonlin.errors import UserError, rule, stopped_in, unknown_name
from nonlin.files import Unreadable, finite, inside, read_json, write_json
from nonlin.functions import Definition, define, get
from nonlin.functions.grammar import write
from nonlin.kinds import CALIBRATION, STUDY, kind_of, must_hold
from nonlin.numbers import counted, number, percent
from nonlin.progress import listener
from nonlin.records import Record
from nonlin.report.live import LivePages
from nonlin.study import Arm, Plan, Request, Store, defaults, load, make_plan, run_study, statistics
from nonlin.study.engines import Engine, EngineChoice, ask
from nonlin.study.engines.opening import open_engine
from nonlin.study.folder import plan_in
from nonlin.study.several import SeveralWatcher
from nonlin.study.wellformed import BadForm, Natural, Positive, Size, must_be

_FILE, _ASKED, _STUDIES = "calibration.json", "asked.json", "studies"


@dataclass(frozen=True)
class Calibration:
    """The result of A/A studies; ``false`` of ``studies`` have a false verdict.

    ``low`` to ``high`` is the exact 95 % interval (Clopper and Pearson) of the share of such studies. ``half_width``
    is the median half width of the intervals in bits per byte. ``detectable`` is the difference that this set-up calls
    better or worse with a probability of 80 %.
    """

    directory: Path
    studies: int
    false: int
    low: float
    high: float
    half_width: float | None
    detectable: float | None
    stated: float
    results: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, a row per study."""
        return {"format": 1, "studies": self.studies, "false": self.false, "low": self.low, "high": self.high,
                "half_width": self.half_width, "detectable": self.detectable, "stated": self.stated,
                "results": self.results}

    def __str__(self) -> str:
        if not self.studies:
            return "No A/A study is complete yet."
        share, low, high = (number(v, ".0%") for v in (self.false / self.studies, self.low, self.high))
        told = (f"{self.false} of {counted(self.studies, 'A/A study', 'A/A studies')} "
                f"{'has' if self.studies == 1 else 'have'} a false verdict: {share} "
                f"(95 % interval {low} to {high}); the rule states at most {percent(self.stated)}.")
        if self.detectable is None:
            return told
        return told + (f" This set-up sees a difference of {self.detectable:.3f} bits per byte four times in five; its "
                       f"intervals reach {self.half_width:.3f} to each side.")


def calibrate(asked: Asked, studies: int, out: Path | None = None, *, streams: str = "private",
              engine: EngineChoice | None = None, progress: bool = True) -> Calibration:
    """Run a set-up as A/A studies of its baseline and return how often a verdict was false.

    ``asked`` is the set-up, as :func:`nonlin.compare` takes it; its activations decide the number of arms. ``streams``:
    "private" or "shared" (see above). Finished runs are kept: the same call continues, and a larger number of
    ``studies`` adds to those that are there. Each study takes as long as the set-up's own.
    Raises UserError for values that make no study; Interrupted at Ctrl-C.
    """
    if studies < 1:
        raise UserError(rule("compare", "aa", "be 1 or more", studies, "Use --aa 20 for a first look."))
    if streams not in defaults.AA_STREAMS:
        raise unknown_name("kind of streams", streams, defaults.AA_STREAMS)
    shown = listener(progress)
    if out is not None:
        must_hold(out, CALIBRATION, also=(STUDY,))
    request, root = requested(asked, out, shown)
    choice = engine or EngineChoice()
    with root.lock(), open_engine(choice, root.directory) as opened:
        environment = ask(opened, {"do": "describe"})
        arms = twins(request, streams)
        machine, speeds, steps = _measured(root, request, opened, environment, choice.parallel, streams)
        request = replace(request, minutes=None, steps=steps)
        for line in changes(machine.get("made_on", {}), environment):
            shown.say(line)
        inside(root.directory / _STUDIES)
        write_json(root.directory / _ASKED, {"studies": studies})
        found = []
        with _live(root.directory):
            for number in range(studies):
                plan = aa_plan(request, arms, number, speeds, machine, opened.total())
                store = Store(root.directory / _STUDIES / f"aa-{number + 1:04d}")
                results = _finished(store, plan)
                if results is None:
                    shown.say(f"A/A study {number + 1} of {studies}")
                    with shown:
                        results = finite(run_study(plan, store, opened, shown, environment))
                    if results["status"] == "interrupted":
                        raise stopped_in(root.directory, None)
                found.append(results)
        made = summary(root.directory, found)
        write_json(root.directory / _FILE, made.as_dict() | {"plan": plan.as_dict(), "environment": environment})
        build_report(root.directory, ended=True)
    return made


def load_calibration(directory: str | Path) -> Calibration:
    """Return what the A/A studies in a folder show, as far as they are complete; UserError where there are none."""
    directory = Path(directory)
    must_hold(directory, CALIBRATION)
    if kind_of(directory) is None:
        raise UserError(f"{directory} must hold A/A studies; it has no machine.json. Give the folder of some.")
    return summary(directory, _complete(directory))


def build_report(directory: Path, ended: bool = False) -> Path:
    """Write the page of the A/A studies in a folder as of this moment, and return its path.

    ``ended`` is for the process that runs them and is about to leave the folder.
    """
    from nonlin.report.calibration import build

    return build(directory, page_values(load_calibration(directory)), watcher_of(directory).look(ended))


def watcher_of(directory: Path) -> SeveralWatcher:
    """Return what looks how far the A/A studies in a folder are."""
    there = _folders(directory)
    try:
        asked = read_json(directory / _ASKED)["studies"]
    except (Unreadable, KeyError, TypeError):
        asked = len(there)  # begun before the number was written down
    named = [directory / _STUDIES / f"aa-{i + 1:04d}" for i in range(asked if isinstance(asked, int) else 0)]
    first = next((plan_in(path) for path in there if os.path.lexists(path / "plan.json")), None)
    seconds = 60 * first.predicted_minutes if first else 0.0
    return SeveralWatcher(directory, CALIBRATION, dict.fromkeys([*named, *there], seconds))


def page_values(found: Calibration) -> dict[str, Any]:
    """Return the values that the page is made from."""
    return found.as_dict() | {"name": found.directory.resolve().name, "words": str(found)}


def _live(directory: Path) -> LivePages:
    """Keep the page of A/A studies up to date while a block runs; a study's records are read once."""
    from nonlin.report import calibration as page

    known: dict[Path, dict[str, Any]] = {}
    return LivePages(watcher_of(directory), lambda: page_values(summary(directory, _complete(directory, known))), page)


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / _STUDIES).glob("aa-[0-9]*") if path.is_dir())


def _complete(directory: Path, known: dict[Path, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the results of the studies that are complete; those that are known are not read again."""
    known = {} if known is None else known
    for path in _folders(directory):
        if path not in known and os.path.lexists(path / "results.json"):
            results = load(path).results
            if results["status"] == "complete":
                known[path] = results
    return [known[path] for path in sorted(known)]


def _measured(root: Store, request: Request, engine: Engine, environment: Mapping[str, Any], parallel: str,
              streams: str) -> tuple[Any, Any, int]:
    """Return the machine's settings, the speeds and the length of judged runs; measured at the first call, and kept."""
    path, asked = root.directory / "machine.json", request.as_dict() | {"streams": streams}
    if path.exists():
        kept = _kept(path)
        there = {"streams": "private"} | kept.request
        changed = [key for key, value in asked.items() if there.get(key) != value]
        if changed:
            raise UserError(f"{root.directory} holds A/A studies of another set-up: its {' and '.join(changed)} "
                            f"{'differs' if len(changed) == 1 else 'differ'} from this command's. Choose another "
                            "folder with --out, or give the command that began it.")
        engine.fit(kept.machine.get("device", "cpu"), environment, kept.memory_bytes)
        return kept.machine, {arm: speed.as_dict() for arm, speed in kept.speeds.items()}, kept.steps
    machine, speeds = measured(request, engine, environment, parallel)
    steps = make_plan(request, speeds, machine, engine.total()).training["judge_steps"]
    memory = max(speed.get("peak_memory_bytes", 0) for speed in speeds.values()) or None
    write_json(path, {"request": asked, "machine": machine, "speeds": speeds, "steps": steps, "memory_bytes": memory})
    return machine, speeds, steps


class _Speed(Record, frozen=True, kw_only=True):
    tokens_per_second: Positive
    seconds_overhead: Natural = 0.0
    peak_memory_bytes: int = 0


class _Kept(Record, frozen=True, kw_only=True):
    """machine.json: what was asked for and measured at the first call."""

    request: dict[str, Any]
    machine: dict[str, Any]
    speeds: dict[str, _Speed]
    steps: Size
    memory_bytes: int | None = None


def _kept(path: Path) -> _Kept:
    try:
        values = read_json(path)
        must_be(_Kept, values)
    except (Unreadable, BadForm) as problem:
        raise UserError(f"{path} must be as it was written; {problem}. Delete it, and give the same command "
                        "again.") from problem
    return _Kept.from_dict(values)


def _finished(store: Store, plan: Plan) -> dict[str, Any] | None:
    """Return the results of a study that is complete, made from its runs."""
    if not os.path.lexists(store.directory / "results.json"):
        return None
    found = load(store.directory)
    return found.results if found.results["status"] == "complete" and found.plan.hash == plan.hash else None


def twins(request: Request, streams: str) -> list[Arm]:
    """Return as many arms as the request has, all its baseline, with random streams of that kind."""
    base = next(arm for arm in request.arms if arm.name == request.baseline)
    names = [f"{base.name}-{i + 1}" for i in range(len(request.arms))]
    if streams == "private":
        return [replace(base, name=name, activation=base.name, stream=name) for name in names]
    known = define(base.name, base.formula) if base.formula else get(base.name)
    if known.parameters or known.expr is None:
        raise UserError(rule("compare", "baseline", "be a formula without learned parameters where streams are shared",
                             base.name, "Leave --aa-streams out, or take another baseline."))
    word = re.sub(r"\W+", "_", base.name)[:30]
    return [replace(base, name=name, activation=f"{word}_{i + 1}", formula=_near(known, i), stream=base.kind)
            for i, name in enumerate(names)]


def _near(known: Definition, number: int) -> str:
    """Return the formula with its first argument scaled by 1 + number / 10,000."""
    scaled = sympy.Symbol(known.variables[0], real=True)
    assert known.expr is not None  # twins() refused it
    return write(known.expr.subs(scaled, scaled * (1 + sympy.Rational(number, 10_000))))


def aa_plan(request: Request, arms: list[Arm], number: int, speeds: Mapping[str, Any], machine: Mapping[str, Any],
            workers: int) -> Plan:
    """Return the plan of one A/A study of arms that :func:`twins` made; each number has seeds of its own."""
    asked = replace(request, arms=arms, baseline=arms[0].name, replicate=number + 1,
                    training={**request.training, "keep_weights": False})
    cost = speeds[request.baseline]
    return make_plan(asked, {arm.name: cost for arm in arms}, machine, workers, f"aa-{number + 1:04d}")


def summary(directory: Path, found: list[dict[str, Any]]) -> Calibration:
    """Return what the results of A/A studies show together."""
    rows, widths, spreads = [], [], []
    for results in found:
        others = [arm for arm in results["arms"] if arm["name"] != results["baseline"]]
        rows.append({"name": results["name"], "verdicts": {arm["name"]: arm["verdict"] for arm in others},
                     "differences": {arm["name"]: (arm["difference"] or {}).get("mean") for arm in others},
                     "p_values": {arm["name"]: (arm["difference"] or {}).get("p_value") for arm in others},
                     "learning_rates": {arm["name"]: arm["learning_rate"] for arm in results["arms"]}})
        for arm in others:
            if arm["difference"]:
                widths.append((arm["difference"]["high"] - arm["difference"]["low"]) / 2)
                spreads.append(arm["difference"]["standard_error"] * arm["difference"]["seeds"] ** 0.5)
    false = sum(any(v in ("better", "worse") for v in row["verdicts"].values()) for row in rows)
    rule_: Mapping[str, Any] = found[0]["plan"]["rule"] if found else {"confidence": defaults.CONFIDENCE}
    stated = 1 - rule_["confidence"]
    if not found:
        return Calibration(directory, 0, 0, 0.0, 1.0, None, None, stated, rows)
    low, high = statistics.share_interval(false, len(rows))
    level = 1 - stated / max(1, len(found[0]["arms"]) - 1)
    seen = statistics.detectable(statistics.median(spreads), rule_["seeds"], rule_["margin"], level, defaults.POWER)
    return Calibration(directory, len(rows), false, low, high, statistics.median(widths), seen, stated, rows)
