"""The processes that train one model together: torchrun starts them, and the first one answers.

``python -m nonlin.training.ranks FOLDER`` is one of them and does the request in FOLDER/request.json. The first one,
or one that fails, writes its answers to FOLDER/answers.jsonl, a line each, as a worker does on its standard output.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nonlin.errors import NonlinError, UserError

_REQUEST, _ANSWERS, _ERRORS = "request.json", "answers.jsonl", "errors.txt"


def run(request: dict[str, Any], told: Callable[[dict[str, Any]], None]) -> Any:
    """Do a request with as many processes as its configuration says; return its answer.

    ``told`` gets the progress. Raises the error of the first process, NonlinError where they end without one.
    """
    count = request["config"]["machine"]["devices"]
    with tempfile.TemporaryDirectory(prefix="nonlin-ranks-") as place:
        folder = Path(place)
        (folder / _REQUEST).write_text(json.dumps(request))
        (folder / _ANSWERS).touch()
        with (folder / _ERRORS).open("wb") as errors:
            # A port of its own, on this machine alone: torchruns beside one another do not meet.
            group = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
                 "--local-addr=127.0.0.1", f"--nproc-per-node={count}", "-m", __spec__.name, str(folder)],
                stdout=errors, stderr=errors, env=os.environ | {"TORCHELASTIC_ERROR_FILE": os.devnull})
        try:
            return _follow(group, folder, told)
        finally:
            _end(group)


def _follow(group: subprocess.Popen[bytes], folder: Path, told: Callable[[dict[str, Any]], None]) -> Any:
    with (folder / _ANSWERS).open(encoding="utf-8") as answers:
        rest = ""
        while True:
            ended = group.poll() is not None
            rest += answers.read()
            *lines, rest = rest.split("\n")
            for line in lines:
                (kind, value), = json.loads(line).items()
                if kind == "done":
                    return value
                if kind == "error":
                    raise (UserError if value["type"] == "UserError" else NonlinError)(value["message"])
                told(value)
            if ended:
                words = (folder / _ERRORS).read_text(errors="replace").strip().splitlines()
                raise NonlinError("the processes that train together ended without an answer: "
                                  + " | ".join(words[-3:]))
            time.sleep(0.05)


def _end(group: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        group.terminate()  # torchrun ends its processes
    with contextlib.suppress(subprocess.TimeoutExpired):
        group.wait(20)
    group.kill()
    group.wait()


def main(folder: Path) -> None:
    """Be one of the processes."""
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
            answer = train(request, lambda progress: tell({"progress": progress}))
        except Exception as error:
            tell({"error": {"type": type(error).__name__, "message": str(error)}})
            os._exit(1)  # torchrun ends the others, which may wait for this one
        dist.barrier()  # none leaves while another still reads from it
        tell({"done": answer})
    # Without the interpreter's own ending: torch's threads may still hold tensors then (pytorch#179291).
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
