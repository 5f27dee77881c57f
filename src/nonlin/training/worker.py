"""A process that trains: one JSON request per line on standard input, one JSON answer per line on standard output.

Requests: {"do": "trial" | "measure" | "machine" | "describe" | "subject" | "sizes" | "sample" | "export", ...};
answers: any number of {"progress": ...}, then {"done": ...} or {"error": {"type", "message"}}. The end of the input
ends it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nonlin import system
from nonlin.errors import NonlinError, UserError, told
from nonlin.training import machine, measuring, one_model, ranks, trained
from nonlin.training.config import Stopped
from nonlin.training.resources import available_memory_bytes

_WORTH_COMPILING = 600.0  # seconds of a run: every process compiles each arm's model anew, in a minute or more


def _answer(message: dict[str, Any]) -> None:
    _OUT.write(json.dumps(message) + "\n")
    _OUT.flush()


def _choose_machine(request: dict[str, Any]) -> dict[str, Any]:
    """Measure every candidate of this machine on the request's configuration; the fastest is "machine"."""
    config, precision = request["config"], request.get("precision", "auto")
    own = "own" in config.get("model", ())
    options, measured, why = [], [], {}
    seconds = request.get("seconds", 1.0)
    for option in machine.own_candidates(precision) if own else machine.candidates(
            precision, config.get("model"), config.get("training")):
        option |= why
        config = request["config"] | {"machine": option}
        try:
            measured.append(option | measuring.measure(config, Path(request["dataset"]), seconds, False))
        except Exception as error:
            if not option.get("graphs"):
                raise
            # The next option launches the step, and the plan says why.
            why = {"not captured": told(error, 160)}
            continue
        options.append(option)
    best = _fastest(measured)
    forced = own and config["model"]["own"].get("compile") == "yes"
    if own and _compiles(request, measured[best]):
        compiled = options[best] | {"compile": True}
        try:
            found = measuring.measure(request["config"] | {"machine": compiled}, Path(request["dataset"]))
        except Exception as error:  # whatever a compiler raises
            if forced:
                raise UserError(f"compare: compile must be possible here; torch.compile raised {type(error).__name__}: "
                                f"{' '.join(str(error).split())[:160]}. Leave --compile out.") from error
        else:
            options.append(compiled)
            measured.append(compiled | found)
            best = len(options) - 1 if forced else _fastest(measured)
    return {"machine": options[best], "measured": measured}


def _fastest(measured: list[dict[str, Any]]) -> int:
    return max(range(len(measured)), key=lambda i: measured[i]["tokens_per_second"])


def _compiles(request: dict[str, Any], fastest: dict[str, Any]) -> bool:
    """Whether torch.compile is to be tried: where it is asked for, and where a run is long enough to be worth it."""
    model, training = request["config"]["model"], request["config"]["training"]
    wanted, steps = model["own"].get("compile", "auto"), request.get("steps")
    if wanted != "auto":
        return wanted == "yes"
    tokens = (steps or 0) * training["batch"] * model["context"]
    return tokens / fastest["tokens_per_second"] > _WORTH_COMPILING


def _describe_subject(request: dict[str, Any]) -> dict[str, Any]:
    from nonlin.subject import describe

    return describe(request | {"memory_bytes": available_memory_bytes()})


def handle(request: dict[str, Any]) -> Any:
    """Do one request and return its answer."""
    do = request["do"]
    if do in ("trial", "measure"):
        several = request["config"]["machine"].get("devices", 1) > 1
        run = ranks.run if several else one_model.train
        with one_model.stoppable(do == "trial") as asked:
            return run(request, lambda progress: _answer({"progress": progress}), asked)
    if do == "subject":
        return _describe_subject(request)
    if do == "sizes":
        from nonlin.subject.sizes import sizes

        return sizes(request)
    if do == "machine":
        return _choose_machine(request)
    if do == "describe":
        return machine.describe()
    if do == "sample":
        keys = ("prompt", "length", "temperature", "seed")
        return trained.sample(Path(request["trial"]), Path(request["dataset"]),
                              **{k: request[k] for k in keys if k in request})
    if do == "export":
        return trained.export_winner(Path(request["trial"]), Path(request["dataset"]), Path(request["out"]))
    raise NonlinError(f"unknown request {do!r}")




# Only answers may reach standard output: a library that prints must not break the protocol.
_OUT = sys.stdout


def main(answer: Callable[[dict[str, Any]], Any] = handle) -> None:
    """Serve requests until the input ends; ``answer`` does one."""
    global _OUT
    if parent := int(os.environ.get("NONLIN_END_WITH_PARENT", 0)):  # its number, or 1: whoever it is now
        ranks.end_with(parent if parent > 1 else os.getppid())
    _OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, one_model.told_to_end)
    for warning in ("SIGUSR1", "SIGUSR2"):  # SLURM's, to all processes of a job: the job's own program tells us to end
        if hasattr(signal, warning):
            signal.signal(getattr(signal, warning), signal.SIG_IGN)
    for line in sys.stdin:
        try:
            _answer({"done": answer(json.loads(line))})
        except Stopped:  # it says nothing: whoever asked it to stop starts it again
            os._exit(128 + signal.SIGTERM)
        except ranks.Lost as lost:  # this process is lost with them, and the run may be started again
            print(lost, file=sys.stderr, flush=True)
            system.end_by_kill() if lost.killed else os._exit(1)
        except Exception as error:  # the parent decides what an error means
            _answer({"error": {"type": type(error).__name__, "message": str(error)}})


if __name__ == "__main__":
    main()
