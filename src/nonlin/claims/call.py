"""``nonlin.claims(...)``: from the statements asked for to their verdicts. The command line is a thin layer over it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nonlin.errors import UserError, not_empty, rule, stopped_in

if TYPE_CHECKING:
    from nonlin.claims.definition import Claim
    from nonlin.claims.outcome import Claims
    from nonlin.claims.plan import ClaimsPlan
    from nonlin.progress import Progress
    from nonlin.study import Store
    from nonlin.study.engines import Engine, EngineChoice

MINUTES = 20.0

Data = str | Path | Sequence[str | Path] | None


class ClaimsPackage(ModuleType):
    """The package ``nonlin.claims``, which is also the function that puts claims to the test."""

    def __call__(self, numbers: Sequence[int] = (), *, minutes: float = MINUTES, seed: int = 0,
                 data: Data = None, out: str | Path | None = None, engine: "str | EngineChoice" = "processes",
                 workers: int | None = None, progress: bool = True) -> "Claims":
        """Put to the test the statements of articles with these numbers, without numbers all; return the verdicts.

        Every rule is fixed before the first run. Finished runs are kept: the same call continues, and other numbers
        can be asked for in the same folder later. ``minutes`` is the time that all claims together may take;
        another ``seed`` repeats everything independently. ``data``: text for the language model, as for
        :func:`nonlin.compare`, as are ``engine`` and ``workers``. ``out`` is the folder, by default
        runs/claims-SEED. ``progress`` shows a bar in a notebook and on a terminal, and lines elsewhere.

        Raises UserError for numbers that no claim has, or a folder that holds something else. Ctrl-C raises
        Interrupted, a KeyboardInterrupt with the claims so far as ``found``.
        """
        not_empty("claims", data=data, out=out, engine=engine)
        from nonlin.progress import listener
        from nonlin.study.engines.choice import chosen_engine

        return put_to_the_test(asked(numbers, minutes, seed, data), None if out is None else Path(out),
                               listener(progress), chosen_engine(engine, workers))


@dataclass(frozen=True)
class Asked:
    """The arguments of a call."""

    numbers: tuple[int, ...]
    minutes: float
    seed: int
    paths: tuple[str, ...]


def asked(numbers: Sequence[int], minutes: float, seed: int, data: Data) -> Asked:
    """Return what a person asks for; UserError for values of a wrong type or out of range."""
    from nonlin.claims.plan import check

    given: Any = numbers
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(rule("claims", "numbers", "be a list of numbers", numbers, "Try nonlin.claims([1, 6])."))
    for name, value, kind in (("minutes", minutes, int | float), ("seed", seed, int)):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(rule("claims", name, "be a number", value, "Choose another value."))
    check(minutes, seed)
    _check_numbers(numbers)
    paths = [data] if isinstance(data, str | Path) else list(data or ())
    return Asked(tuple(numbers), float(minutes), seed, tuple(map(str, paths)))


def _check_numbers(numbers: Sequence[int]) -> None:
    from nonlin.claims.everything import count

    for number in numbers:
        if number not in range(1, count() + 1):
            raise UserError(f"claims: numbers must be 1 to {count()}; got {number!r}. "
                            "Leave them out to test every claim.")


def chosen(numbers: Sequence[int]) -> "list[Claim]":
    """Return the claims of these numbers in their order, all of them without numbers; UserError for other numbers."""
    from nonlin.claims.everything import all_claims

    _check_numbers(numbers)
    known = {claim.number: claim for claim in all_claims()}
    return [known[n] for n in sorted(set(numbers) or known)]


def put_to_the_test(wanted: Asked, out: Path | None, progress: "Progress", choice: "EngineChoice",
                    resume: bool = False) -> "Claims":
    """Plan, or take the plan that lies in the folder; run what is missing; write the page; return the verdicts.

    With ``resume`` the plan must lie there, and decides all but the numbers.
    """
    directory = out or Path("runs") / f"claims-{wanted.seed}"
    _check_folder(directory, wanted, resume)  # before torch is loaded
    from nonlin.claims.everything import all_claims
    from nonlin.claims.outcome import Claims
    from nonlin.claims.page import build
    from nonlin.claims.runner import run_claims
    from nonlin.study.engines import ask
    from nonlin.study.engines.opening import open_engine
    from nonlin.study.store import finite

    claims, everything = chosen(wanted.numbers), all_claims()
    store, request, data = _prepared(wanted, directory, resume, progress)
    command = [sys.executable, "-m", "nonlin.claims.worker"]
    with open_engine(choice, store.directory, command) as engine:
        environment = ask(engine, {"do": "describe"})
        plan = _planned(store, request, data, engine, environment, progress.say)
        for claim in claims:
            if claim.missing():
                progress.say(f"Claim {claim.number}: {claim.missing()}")
        with progress:
            results = run_claims(plan, claims, everything, store, engine, progress, environment)
    build(store.directory, results)
    found = Claims(store.directory, tuple(claim.number for claim in claims), finite(results))
    if results["status"] == "interrupted":
        raise stopped_in(store.directory, found)
    return found


def _check_folder(directory: Path, wanted: Asked, resume: bool) -> None:
    """Raise UserError where there is nothing to resume, something else, or a text that is not there."""
    from nonlin.data import Sources
    from nonlin.kinds import CLAIMS, must_hold

    must_hold(directory, CLAIMS, "claims: ")
    if resume and not (directory / "plan.json").exists():
        raise UserError(f"claims: {directory} must hold claims to resume; it has no plan. Leave --resume out to begin "
                        "there.")
    if not resume:
        Sources(list(wanted.paths)).check()


def _prepared(wanted: Asked, out: Path, resume: bool, words: "Progress"
              ) -> "tuple[Store, _Request, dict[str, Any]]":
    """Return the folder's store, what the plan answers, and the text's description; the tokens are prepared there."""
    from nonlin.claims.everything import all_claims
    from nonlin.claims.plan import ClaimsPlan
    from nonlin.data import Sources
    from nonlin.study import Store

    store = Store(out, ClaimsPlan)
    there = store.plan() if resume else None
    paths = there.data["paths"] if there else list(wanted.paths)
    sources = Sources(paths)
    corpus = sources.read(out, words)
    data = sources.prepare(corpus, out, words) | {"paths": paths}
    values = there.request if there else {"seed": wanted.seed, "minutes": wanted.minutes, "data": corpus.sha256}
    return store, _Request(values | {"rules": {str(c.number): c.rule for c in all_claims()}}), data


class _Request:
    """The request, as the store compares it with the plan on disk."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def as_dict(self) -> dict[str, Any]:
        return self.values


def _planned(store: "Store", request: _Request, data: Mapping[str, Any], engine: "Engine",
             environment: Mapping[str, Any], say: Callable[[str], None]) -> "ClaimsPlan":
    """Return the plan that lies in the store; else measure this machine and write a plan there."""
    from nonlin.claims.plan import CORE, make, speed_requests
    from nonlin.study.engines.opening import choose_machine, fit_to_records, measure_and_fit

    plan = store.resume(request)
    if plan is not None:
        fit_to_records(engine, plan.machine, environment, store)
        return plan
    say("Measuring this machine …")
    requests = speed_requests(data)
    first = requests[CORE].measure_configs({"engine": "torch", "dtype": "float32", "threads": 1})["gelu"]
    machine = choose_machine(engine, first, environment)
    configs = {f"{size} {arm}": config for size, one in requests.items()
               for arm, config in one.measure_configs(machine).items()}
    speeds = measure_and_fit(engine, configs, machine, environment, 0.7, equal_times=True)  # of claim 8
    plan = make(request.values, speeds, machine, data, engine.total())
    with store.lock():  # another process may have planned meanwhile
        store.create(plan)
    say(plan.describe())
    return plan
