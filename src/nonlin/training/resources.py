"""The resources of this process: cores, memory, the processor's name. Loads no torch."""

import functools
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nonlin.system import cores

_ROOT = Path("/")
_MEMORY_SHARE = 0.8  # of what is free: the system, and a trial that takes more than the measured one, need some too


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may keep busy: its affinity and its container's quota counted; 1 or more.

    ``root`` is where /proc and /sys are read, for tests.
    """
    usable, quota = cores(), _quota(root)
    return usable if quota is None else max(1, min(usable, math.ceil(quota - 1e-9)))


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "surrogateescape").strip()
    except OSError:
        return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process' control group and of all groups around it: any of them may hold the limit.

    A container often shows its own group as the root of the tree, under a path that is valid outside only.
    """
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            tops = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            tops = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            for length in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:length])


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the control groups allow; None for no limit."""
    found = []
    for group in _groups(root, "cpu"):
        words = (_read(group / "cpu.max") or "").split()  # version 2: "200000 100000", or "max 100000"
        if len(words) == 2 and words[0] != "max":
            found.append(int(words[0]) / int(words[1]))
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")  # version 1; -1: none
        if quota and period and int(quota) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def available_memory_bytes(root: Path = _ROOT) -> int | None:
    """Return how much memory more processes can take here, the container's limit counted; None where unknown."""
    found = []
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for group in _groups(root, "memory"):
        for most, used, cache in (("memory.max", "memory.current", "inactive_file "),
                                  ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")):
            limit, now = _read(group / most), _read(group / used)
            if limit and now and limit != "max":
                statistics = (_read(group / "memory.stat") or "").splitlines()
                freed = next((int(line.split()[1]) for line in statistics if line.startswith(cache)), 0)
                found.append(max(0, int(limit) - int(now) + freed))  # files read once make room at once
    return min(found, default=None)


def machine_memory_bytes(root: Path = _ROOT) -> int | None:
    """Return how much memory this machine has, the container's limit counted; None where unknown."""
    found = [1024 * int(line.split()[1]) for line in (_read(root / "proc/meminfo") or "").splitlines()
             if line.startswith("MemTotal:")]
    for group in _groups(root, "memory"):
        for most in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(group / most)
            if limit and limit != "max":
                found.append(int(limit))
    return min(found, default=None)


def out_of_memory_kills(root: Path = _ROOT) -> int:
    """Return how many processes of our control groups the system has killed for want of memory."""
    kills = 0
    for group in _groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            for line in (_read(group / name) or "").splitlines():
                if line.startswith("oom_kill "):
                    kills += int(line.split()[1])
    return kills


def workers_that_fit(bytes_per_trial: int | None, cores: int | None = None, memory_bytes: int | None = None) -> int:
    """Return how many trials to run at once: one a core, as far as memory allows; 1 or more.

    >>> workers_that_fit(2 * 2**30, cores=64, memory_bytes=50 * 2**30)
    20
    """
    cores = usable_cores() if cores is None else cores
    memory = available_memory_bytes() if memory_bytes is None else memory_bytes
    if not bytes_per_trial or memory is None:
        return cores
    return max(1, min(cores, int(_MEMORY_SHARE * memory / bytes_per_trial)))


@functools.cache
def processor_name() -> str:
    """Return the name of this machine's processor."""
    return _processor_fields().get("model name", platform.machine())


def processor() -> dict[str, Any]:
    """Return the processor's name and the instruction sets that matter to us."""
    fields = _processor_fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
    return {"name": processor_name(), "instructions": [flag for flag in wanted if flag in flags]}


def _processor_fields() -> dict[str, str]:
    text = _read(_ROOT / "proc/cpuinfo")
    if text is None:
        return {"model name": platform.processor() or platform.machine()}
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in lines.items()}
