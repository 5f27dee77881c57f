"""A program in two processes that talk over gloo on this machine: how a test starts it, and how it joins and leaves."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

DONE = "all compared"


def run(program, folder, *arguments, timeout=240):
    """What each rank printed; fails unless both came to their end. The ranks meet through a file: no port to clash."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "RANK_STORE": str(Path(folder) / "store"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    # To files: neither rank waits for a full pipe while the other is read, and a rank that hangs has said where.
    files = [Path(folder) / f"rank{rank}.txt" for rank in range(2)]
    ranks = []
    for rank, file in enumerate(files):
        with file.open("w") as said:
            ranks.append(subprocess.Popen([sys.executable, str(program), *arguments], stdout=said,
                                          stderr=subprocess.STDOUT, env=environment | {"RANK": str(rank)}))
    with contextlib.suppress(subprocess.TimeoutExpired):
        for rank in ranks:
            rank.wait(timeout)
    for rank in ranks:
        rank.kill()  # one that has ended stays as it ended
        rank.wait()
    texts = [file.read_text().rstrip() for file in files]
    for rank, text in zip(ranks, texts, strict=True):
        assert rank.returncode == 0 and text.endswith(DONE), f"exit {rank.returncode}\n{text[-3000:]}"
    return [text.removesuffix(DONE) for text in texts]


@contextlib.contextmanager
def joined():
    """The rank of this process, inside the group. What follows is never run: the process ends where the block ends.

    It ends without the interpreter's own ending: torch's threads may still hold tensors then, and a thread that asks
    for the interpreter while it ends aborts the process (github.com/pytorch/pytorch/pull/179291), now and then.
    """
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['RANK_STORE']}", rank=rank, world_size=2)
    yield rank
    dist.barrier()  # neither leaves while the other still reads from it
    print(DONE, flush=True)
    os._exit(0)
