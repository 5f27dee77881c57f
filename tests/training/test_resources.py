"""What a process may use, read from copies of the files in which the system says it."""

import os

import pytest

from nonlin.training import resources


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


def write(root, files):
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")
    return root


V1, V2 = "4:cpu,cpuacct:/box\n3:memory:/box", "0::/pod/box"


@pytest.mark.parametrize(("files", "cores"), [
    ({}, 64),
    ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "max 100000"}, 64),
    ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "400000 100000"}, 4),
    ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "250000 100000"}, 3),
    ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/cpu.max": "10000 100000"}, 1),
    # The outer group's limit holds too, and so does one at the root, which is where a container sees its own.
    ({"proc/self/cgroup": V2, "sys/fs/cgroup/pod/cpu.max": "200000 100000",
      "sys/fs/cgroup/pod/box/cpu.max": "400000 100000"}, 2),
    ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "800000 100000"}, 8),
    ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "-1",
      "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000"}, 64),
    ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "600000",
      "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000"}, 6),
    ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3)])
def test_cores_are_those_of_the_affinity_within_the_quota(tmp_path, many_cores, files, cores):
    assert resources.usable_cores(write(tmp_path, files)) == cores


def test_affinity_counts_and_the_machine_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert resources.usable_cores(tmp_path) == 3


@pytest.mark.parametrize(("files", "available"), [
    ({}, None),
    ({"proc/meminfo": "MemTotal: 100 kB\nMemAvailable:    2048 kB"}, 2048 * 1024),
    ({"proc/meminfo": "MemAvailable: 2048 kB", "proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/memory.max": "1000000",
      "sys/fs/cgroup/pod/box/memory.current": "700000",
      "sys/fs/cgroup/pod/box/memory.stat": "anon 1\ninactive_file 200000"}, 500000),
    ({"proc/meminfo": "MemAvailable: 2048 kB", "proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/memory.max": "max",
      "sys/fs/cgroup/pod/box/memory.current": "700000"}, 2048 * 1024),
    ({"proc/meminfo": "MemAvailable: 2048 kB", "proc/self/cgroup": V1,
      "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "900000",
      "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "850000"}, 50000)])
def test_memory_is_what_is_free_within_the_limit(tmp_path, files, available):
    assert resources.available_memory_bytes(write(tmp_path, files)) == available


@pytest.mark.parametrize(("files", "most"), [
    ({}, None),
    ({"proc/meminfo": "MemTotal: 100 kB\nMemAvailable:    20 kB"}, 102400),
    ({"proc/meminfo": "MemTotal: 100 kB", "proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/memory.max": "max"}, 102400),
    ({"proc/meminfo": "MemTotal: 100 kB", "proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/memory.max": "1000"}, 1000),
    ({"proc/meminfo": "MemTotal: 100 kB", "proc/self/cgroup": V1,
      "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000"}, 2000)])
def test_a_machines_memory_is_what_it_has_within_the_limit(tmp_path, files, most):
    assert resources.machine_memory_bytes(write(tmp_path, files)) == most


def test_kills_for_want_of_memory_are_counted(tmp_path):
    root = write(tmp_path, {"proc/self/cgroup": V2, "sys/fs/cgroup/pod/box/memory.events": "low 0\noom 4\noom_kill 3"})
    assert resources.out_of_memory_kills(root) == 3


@pytest.mark.parametrize(("each", "cores", "memory", "workers"), [
    (None, 8, 2**30, 8), (2**30, 8, 64 * 2**30, 8), (2**30, 8, 5 * 2**30, 4), (2**30, 8, 2**20, 1),
    (2**30, 8, None, 8)])
def test_workers_fit_cores_and_memory(each, cores, memory, workers, monkeypatch):
    monkeypatch.setattr(resources, "available_memory_bytes", lambda: memory)
    assert resources.workers_that_fit(each, cores) == workers
