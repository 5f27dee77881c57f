"""The processes that train one model together: torchrun starts them, and the first one answers.

``python -m nonlin.training.ranks FOLDER`` is one of them and does the request in FOLDER/request.json. The first one,
or one that fails, writes its answers to FOLDER/answers.jsonl, a line each, as a worker does on its standard output.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError, UserError, rule
from nonlin.system import KILLED
from nonlin.training.config import Stopped
from nonlin.training.resources import usable_cores

_REQUEST, _ANSWERS, _ERRORS, _STOP = "request.json", "answers.jsonl", "errors.txt", "stop"
_END_SECONDS = 20.0  # that torchrun takes at most to end its processes
_FEW = 8  # processes, which any machine can start
_PARENT = "NONLIN_GROUP"  # the number of the process that the processes of a group end with


class Lost(NonlinError):
    """The processes that train together ended without an answer; ``killed`` where one was, as for want of memory."""

    def __init__(self, words: list[str], ends: set[int]):
        told = [line for line in words if line.strip("=- \n")][-1:]
        how = ", ".join(f"signal {-end}" for end in sorted(ends)) or "".join(told)
        super().__init__(f"a process of those that train together ended without an answer ({how})")
        self.killed = KILLED in ends


def run(request: dict[str, Any], told: Callable[[dict[str, Any]], None],
        asked: Callable[[], bool] = lambda: False) -> Any:
    """Do a request with as many processes as its configuration says; return its answer.

    ``told`` gets the progress; once ``asked()`` says so, the processes write their checkpoint and Stopped is raised.
    Raises the error of the first process, Lost where they end without one.
    """
    count = request["config"]["machine"]["devices"]
    _must_be_there(count, request["config"]["machine"].get("device", "cpu"))
    with tempfile.TemporaryDirectory(prefix="nonlin-ranks-") as place:
        folder = Path(place)
        (folder / _REQUEST).write_text(json.dumps(request))
        (folder / _ANSWERS).touch()
        with (folder / _ERRORS).open("wb") as errors:
            # A port of its own, on this machine alone: torchruns beside one another do not meet.
            group = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
                 "--local-addr=127.0.0.1", f"--nproc-per-node={count}", "-m", __spec__.name, str(folder)],
                stdout=errors, stderr=errors,
                env=os.environ | {"TORCHELASTIC_ERROR_FILE": os.devnull, _PARENT: str(os.getpid())})
        try:
            return _follow(group, folder, told, asked)
        finally:
            _end(group)


def _must_be_there(count: int, device: str) -> None:
    """Raise UserError for more processes than this machine has devices for; without a GPU they share its cores."""
    import torch

    most = max(_FEW, usable_cores()) if device == "cpu" else torch.cuda.device_count()
    if count > most:
        raise UserError(rule("run", "the plan's devices", f"be at most {most} on this machine", count,
                             "Continue where they are, or begin a study here."))


def _follow(group: subprocess.Popen[bytes], folder: Path, told: Callable[[dict[str, Any]], None],
            asked: Callable[[], bool]) -> Any:
    with (folder / _ANSWERS).open(encoding="utf-8") as answers:
        rest = ""
        while True:
            ended = group.poll() is not None
            if asked():
                (folder / _STOP).touch()
            rest += answers.read()
            *lines, rest = rest.split("\n")
            for line in lines:
                (kind, value), = json.loads(line).items()
                if kind == "done":
                    return value
                if kind == "stopped":
                    raise Stopped
                if kind == "error":
                    if value["type"] != "UserError":
                        _killed(group, folder)  # then the others raise the error of a lost connection
                    raise (UserError if value["type"] == "UserError" else NonlinError)(value["message"])
                told(value)
            if ended:
                if asked():  # whoever asked told them too
                    raise Stopped
                _killed(group, folder)
                raise Lost(_words(folder), set())
            time.sleep(0.05)


def _words(folder: Path) -> list[str]:
    return (folder / _ERRORS).read_text(errors="replace").strip().splitlines()


def _killed(group: subprocess.Popen[bytes], folder: Path) -> None:
    """Raise Lost if a signal ended one of the processes, other than that by which torchrun ends the rest."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        group.wait(_END_SECONDS)
    words = _words(folder)
    ends = {int(number) for number in re.findall(r"exitcode\s*: (-\d+)", "\n".join(words))} - {-signal.SIGTERM}
    if ends:
        raise Lost(words, ends)


def _end(group: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        group.terminate()  # torchrun ends its processes
    with contextlib.suppress(subprocess.TimeoutExpired):
        group.wait(_END_SECONDS)
    group.kill()
    group.wait()


def end_with(parent: int) -> None:
    """End this process when its parent is gone: nobody waits for the answer, and the cores are wanted."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def lead(arguments: list[str]) -> None:
    """Be the process that starts the group and ends with the one that wants it: torchrun itself outlives its parent."""
    from torch.distributed.run import main as torchrun

    end_with(int(os.environ[_PARENT]))
    os.environ[_PARENT] = str(os.getpid())
    torchrun(arguments)


def main(folder: Path) -> None:
    """Be one of the processes."""
    end_with(int(os.environ[_PARENT]))
    import torch
    import torch.distributed as dist

    from nonlin.training.one_model import train

    request = json.loads((folder / _REQUEST).read_text())
    config = request["config"]
    if config["machine"].get("device", "cpu") == "cpu":
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo")
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    first = dist.get_rank() == 0
    with (folder / _ANSWERS).open("a", encoding="utf-8", buffering=1) as file:
        def tell(message: dict[str, Any]) -> None:
            if first or "error" in message:
                file.write(json.dumps(message) + "\n")

        try:
            answer = train(request, lambda progress: tell({"progress": progress}), (folder / _STOP).exists)
        except Stopped:
            tell({"stopped": None})
            dist.barrier()
            os._exit(0)
        except Exception as error:
            tell({"error": {"type": type(error).__name__, "message": str(error)}})
            os._exit(1)  # torchrun ends the others, which may wait for this one
        dist.barrier()  # none leaves while another still reads from it
        tell({"done": answer})
    # Without the interpreter's own ending: torch's threads may still hold tensors then (pytorch#179291).
    os._exit(0)


if __name__ == "__main__":
    lead(sys.argv[1:]) if len(sys.argv) > 2 else main(Path(sys.argv[1]))
