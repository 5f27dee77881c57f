"""``nonlin claims``: what articles say about activations, put to the test on this machine."""

import sys
from pathlib import Path
from typing import Any

import click

from nonlin.cli.engine_options import EngineChoice, engine_options
from nonlin.cli.output import json_option, print_json, say
from nonlin.errors import UserError

_MARKS = {"holds": "green", "does not hold here": "red", "depends": "cyan", "not settled": "yellow"}


@click.command()
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]...")
@click.option("--minutes", type=float, default=20.0, show_default=True, help="Time that all claims together may take.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another one repeats everything independently.")
@click.option("--data", multiple=True, metavar="PATH", help="Text for the language model. Default: the text of "
              "Python's standard library.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder. Default: runs/claims-SEED.")
@click.option("--resume", is_flag=True, help="Continue the claims in --out as they were planned.")
@engine_options
@json_option
@click.pass_context
def claims(ctx: click.Context, numbers: tuple[int, ...], out: Path | None, resume: bool, as_json: bool,
           engine: EngineChoice, **options: Any) -> None:
    """Put to the test what articles say about activation functions: all claims, or those of these NUMBERs.

    Every rule is fixed before the first run. It can be stopped at any time: the same command continues, and more
    claims can be added to the same folder later.
    """
    from nonlin.claims import all_claims

    known = {claim.number: claim for claim in all_claims()}
    wrong = [n for n in numbers if n not in known]
    if wrong:
        raise UserError(f"claims: numbers must be 1 to {len(known)}; got {wrong[0]}. "
                        "Leave them out to test every claim.")
    chosen = [known[n] for n in sorted(set(numbers) or known)]
    if resume:
        given = [p.opts[0] for p in ctx.command.params if p.name in options and p.name is not None
                 and ctx.get_parameter_source(p.name) is click.core.ParameterSource.COMMANDLINE]
        if out is None or given:
            raise UserError(f"claims: --resume must come with --out and none of the plan's options; got "
                            f"{', '.join(given) or 'no --out'}. Name the folder alone.")
    _run(chosen, list(known.values()), options, out, resume, as_json, engine)


def _run(chosen: list[Any], everything: list[Any], options: dict[str, Any], out: Path | None, resume: bool,
         as_json: bool, choice: EngineChoice) -> None:
    from nonlin.claims.page import build
    from nonlin.claims.plan import ClaimsPlan, check
    from nonlin.claims.runner import run_claims
    from nonlin.data import load_corpus, prepare
    from nonlin.progress import listener, span
    from nonlin.study import Store
    from nonlin.study.engines import ask
    from nonlin.study.engines.opening import fit_to_records, open_engine

    check(options["minutes"], options["seed"])
    out = out or Path("runs") / f"claims-{options['seed']}"
    if resume and not (out / "plan.json").exists():
        raise UserError(f"claims: {out} must hold claims to resume; it has no plan. Leave --resume out to begin there.")
    store = Store(out, ClaimsPlan)
    planned = store.plan() if resume else None
    corpus = load_corpus((planned.data["paths"] if planned else options["data"]) or None)
    info = prepare(corpus, out / "data")
    asked = {"seed": options["seed"], "minutes": options["minutes"], "data": corpus.sha256}
    asked = (planned.request if planned else asked) | {"rules": {str(c.number): c.rule for c in everything}}
    command = [sys.executable, "-m", "nonlin.claims.worker"]
    with open_engine(choice, out, command) as engine:
        environment = ask(engine, {"do": "describe"})
        plan = store.resume(_Asked(asked))
        if plan is None:
            say("Measuring this machine …")
            plan = _plan(asked, info | {"paths": list(options["data"])}, engine, environment)
            store.create(plan)
            say(plan.describe())
        else:
            fit_to_records(engine, plan.machine, environment, store)
        for claim in chosen:
            if claim.missing():
                say(f"Claim {claim.number}: {claim.missing()}")
        with listener() as told:
            results = run_claims(plan, chosen, everything, store, engine, told, environment)
    page = build(out, results)
    _show(results, chosen, as_json)
    say(f"Took {span(results['timing']['seconds'])}.\nPage: {page}")
    if results["status"] == "interrupted":
        say(f"Stopped; every finished run is kept. To go on: nonlin claims --resume --out {out}")
        raise click.exceptions.Exit(130)


class _Asked:
    """What was asked for, as the store compares it with the plan that lies there."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def as_dict(self) -> dict[str, Any]:
        return self.values


def _plan(asked: dict[str, Any], data: dict[str, Any], engine: Any, environment: Any) -> Any:
    from nonlin.claims.plan import CORE, make, speed_requests
    from nonlin.study.engines.opening import choose_machine, measure_and_fit

    requests = speed_requests(data)
    first = requests[CORE].measure_configs({"engine": "torch", "dtype": "float32", "threads": 1})["gelu"]
    machine = choose_machine(engine, first, environment)
    configs = {f"{size} {arm}": config for size, request in requests.items()
               for arm, config in request.measure_configs(machine).items()}
    speeds = measure_and_fit(engine, configs, machine, environment, 0.7)
    return make(asked, speeds, machine, data, engine.total())


def _show(results: dict[str, Any], chosen: list[Any], as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    if as_json:
        return print_json(results)
    numbers = {claim.number for claim in chosen}
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 140)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("claim", ratio=3)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what was found", ratio=5)
    for row in results["claims"]:
        if row["number"] in numbers:
            verdict = row["verdict"] or "not run"
            table.add_row(str(row["number"]), row["statement"], f"[{_MARKS.get(verdict, 'dim')}]{verdict}[/]",
                          row["summary"])
    console.print(table)
