"""A Ray cluster of several nodes on this machine: nodes die and join, and the results are those of plain processes."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from nonlin.errors import NonlinError, UserError
from nonlin.study import ProcessEngine, Store, load, run_study
from nonlin.study.engines import Request, ask
from nonlin.study.schedule import Schedule
from tests.study import studies
from tests.study.engines import own_model
from tests.study.engines.comparing import comparable, tokens
from tests.study.engines.ray_cluster import three_nodes

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="ray is not installed")

from nonlin.study.engines.ray import RayEngine  # noqa: E402
from nonlin.study.engines.ray_nodes import Nodes, different_versions  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of one core each; the driver's is the first."""
    with three_nodes(ray) as made:
        yield made


@pytest.fixture
def data(tmp_path):
    return tokens(tmp_path / "data")


def copied():
    return set(Path(tempfile.gettempdir()).glob(f"nonlin-{os.getuid()}/*/train.bin"))


def engine(cluster, data, **options):
    return RayEngine(data, cluster.address, command=studies.WORKER, copy_tokens=True, **options)


def test_a_node_dies_in_judging_another_joins_and_the_results_are_those_of_processes(cluster, tmp_path, data):
    plan = studies.plan("gelu", "swiglu")
    with ProcessEngine(data, 2, studies.WORKER) as here:
        run_study(plan, Store(tmp_path / "processes"), here)
    victim, told, copies, before = cluster.add_node(**cluster.small), [], set(), copied()

    def listener(event):
        nonlocal victim
        told.append(event["message"] or "")
        copies.update(copied() - before)
        if victim and event["stage"] == "judge" and event["done"] >= 1:
            cluster.remove_node(victim, allow_graceful=False)
            victim = cluster.add_node(**cluster.small) and None

    with engine(cluster, data) as there:
        assert there.total() == 4
        results = run_study(plan, Store(tmp_path / "ray"), there, listener)
    assert results["status"] == "complete"
    assert comparable(tmp_path / "ray") == comparable(tmp_path / "processes")
    assert 4 <= len(copies) <= 5 and len(copied() - before) <= 1  # one a node, removed where the node still lives
    assert any("lost" in words and "runs again" in words for words in told), told
    assert any("has joined" in words for words in told), told
    for path in (tmp_path / "ray" / "trials").glob("*/*"):
        if path.name in ("metrics.jsonl", "weights.safetensors", "config.json"):  # they came back whole
            assert path.read_bytes() == (tmp_path / "processes" / path.relative_to(tmp_path / "ray")).read_bytes()
    ran = [json.loads(path.read_text()) for path in (tmp_path / "ray" / "trials").glob("*/result.json")]
    assert all(record["processor"] for record in ran)


def test_a_trial_sees_no_gpu_and_is_not_tried_again_by_ray(cluster, data, tmp_path):
    """A task's own environment may show GPUs: the worker's must not."""
    with engine(cluster, data) as there:
        visible = ask(there, {"do": "environment", "name": "CUDA_VISIBLE_DEVICES", "config": {"machine": {
            "device": "cpu"}}})
        assert visible == ""
        slot = next(iter(there.free()))
        count = tmp_path / "starts"
        handle = there.start(Request({"do": "die", "count": str(count)}, "death"), slot)
        events = []
        while not any(event.kind == "lost" for event in events):
            events += there.poll(1.0)
        assert events[-1].handle == handle and "ended unexpectedly" in events[-1].value["reason"]
        there.poll(1.0)
        assert count.read_text() == "x"


def test_a_cancelled_request_ends_its_worker(cluster, data, tmp_path):
    beat = tmp_path / "beat"
    with engine(cluster, data) as there:
        handle = there.start(Request({"do": "beat", "file": str(beat)}, "beat"), next(iter(there.free())))
        while not beat.exists():
            there.poll(0.1)
        worker = int(Path(f"{beat}.pid").read_text())
        there.stop(handle)
        assert gone(worker)
        assert not [event for event in there.poll(0.1) if event.handle == handle]


def gone(worker):
    """Whether a process ends, however slow the machine is."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def behaving(**environment):
    """The command of a fake worker with this environment: tasks have that of their node."""
    return ["env", *(f"{name}={value}" for name, value in environment.items()), *studies.WORKER]


def finish(cluster, data, folder, expected, command, words, error, planted):
    """A study that ends with this error on the way keeps its finished runs, and goes on to the expected end."""
    with RayEngine(data, cluster.address, command=command) as there, pytest.raises(error, match=words):
        run_study(studies.plan("gelu", "swiglu"), Store(folder), there)
    kept = {path: path.read_bytes() for path in (folder / "trials").glob("*/*")}
    assert kept and planted not in {path.parent.name for path in kept}
    with RayEngine(data, cluster.address, command=behaving(FAKE_SECONDS=0)) as there:
        assert run_study(studies.plan("gelu", "swiglu"), Store(folder), there)["status"] == "complete"
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert comparable(folder) == expected


def test_a_full_disk_on_a_node_and_memory_that_runs_out_there_are_said_and_finished_runs_kept(
        cluster, tmp_path, data):
    plan = studies.plan("gelu", "swiglu")
    studies.run(tmp_path / "processes", plan)
    expected = comparable(tmp_path / "processes")
    planted, last = tmp_path / "planted", Schedule(plan).first[-1].key  # it starts when others have finished
    planted.mkdir()
    (planted / last).touch()
    full = behaving(FAKE_SECONDS=0, FAKE_FULL=planted)
    finish(cluster, data, tmp_path / "full", expected, full,
           rf"the disk that holds {tempfile.gettempdir()} on .* is full; every finished run is kept", UserError, last)
    short = behaving(FAKE_SECONDS=0, FAKE_FAIL=f"MemoryError:{planted}")
    finish(cluster, data, tmp_path / "short", expected, short, r"MemoryError: planted\. Run fewer at once", NonlinError,
           last)
    assert (planted / "starts").read_text().splitlines() == [last]  # not again


def test_a_node_of_another_processor_is_kept_out_of_a_pair(cluster, tmp_path, data):
    with RayEngine(data, cluster.address, command=behaving(FAKE_SECONDS=0)) as there:
        other = next(iter(there._nodes.values()))
        other.processor = "another"
        results = run_study(studies.plan("gelu", "swiglu"), Store(tmp_path), there)
    assert results["status"] == "complete"
    homes = {}
    for config, record in load(tmp_path).trials().values():
        homes.setdefault(config["seed"], set()).add(record["processor"])
    assert all(len(names) == 1 for names in homes.values()) and len(set.union(*homes.values())) == 2, homes


DRIVER = """
import json, sys
from pathlib import Path
from nonlin.study import Store, run_study
from nonlin.study.engines.ray import RayEngine
from tests.study import studies
folder, address, *command = sys.argv[1:]
with RayEngine(Path(folder) / "data", address, command=command) as engine:
    run_study(studies.plan("gelu", "swiglu"), Store(folder), engine, lambda event: print(json.dumps(event), flush=True))
"""


def drive(folder, address, **environment):
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), address, *studies.WORKER], text=True,
                            cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | environment)


def until_judging(driver):
    for line in driver.stdout:
        if json.loads(line)["stage"] == "judge":
            return
    raise AssertionError(driver.stderr.read()[-3000:])


def goes_on(cluster, folder, expected):
    """The study of a driver that is gone: its finished runs stay as they are, and it ends as any other."""
    kept = {path: path.stat().st_mtime_ns for path in (folder / "trials").glob("*/result.json")}
    assert kept
    with RayEngine(folder / "data", cluster.address, command=behaving(FAKE_SECONDS=0)) as there:
        assert run_study(studies.plan("gelu", "swiglu"), Store(folder), there)["status"] == "complete"
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert comparable(folder) == expected


def test_a_driver_that_is_killed_is_started_again(cluster, tmp_path):
    studies.run(tmp_path / "processes", studies.plan("gelu", "swiglu"))
    tokens(tmp_path / "study" / "data")
    driver = drive(tmp_path / "study", cluster.address)
    until_judging(driver)
    driver.kill()
    driver.communicate()
    goes_on(cluster, tmp_path / "study", comparable(tmp_path / "processes"))


class Wire:
    """A way to a port of this machine that can be cut: what goes through it is lost, and nobody answers."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.behind, self.ends, self.whole = (host, int(port)), [], True
        self.door = socket.create_server((host, 0))  # Ray takes this machine's own address for any of its names
        self.address = f"{host}:{self.door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.door.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(self.behind)
                self.ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one, other):
        with contextlib.suppress(OSError):
            while part := one.recv(1 << 16):
                other.sendall(part)
        for end in (one, other):
            end.close()

    def cut(self):
        self.whole = False
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_driver_that_lost_its_network_ends_and_is_started_again(cluster, tmp_path):
    studies.run(tmp_path / "processes", studies.plan("gelu", "swiglu"))
    study = tmp_path / "study"
    tokens(study / "data")
    wire = Wire(cluster.address)
    driver = drive(study, wire.address, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    until_judging(driver)
    wire.cut()
    driver.communicate(timeout=300)
    wire.door.close()
    if driver.returncode:  # it may have been at its last run
        goes_on(cluster, study, comparable(tmp_path / "processes"))
    assert comparable(study) == comparable(tmp_path / "processes")


@pytest.mark.slow
def test_a_task_that_ray_kills_for_want_of_memory_is_a_result(tmp_path, data):
    """A cluster of its own, whose memory monitor allows 1 GiB more than is in use now."""
    lines = [line for line in Path("/proc/meminfo").read_text().splitlines() if "kB" in line]
    numbers = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    total, free = numbers["MemTotal"], numbers["MemAvailable"]
    share = (total - free + 2**30) / total
    if share > 0.95:
        pytest.skip("this machine has no GiB to spare")
    code = CLUSTER_OF_LITTLE_MEMORY.format(data=str(data), eat=studies.WORKER)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=580,
                          cwd=Path(__file__).parents[3], env=os.environ | {
                              "RAY_memory_usage_threshold": f"{share:.4f}", "RAY_memory_monitor_refresh_ms": "50"})
    if "must be ready for trials" in done.stderr:
        pytest.skip("what else runs here took the memory at once")
    assert done.returncode == 0, done.stderr[-3000:]
    kind, value = json.loads(done.stdout.splitlines()[-1])
    assert kind == "error" and value["type"] == "OutOfMemory" and "ran out of memory" in value["message"]


CLUSTER_OF_LITTLE_MEMORY = """
import json, ray
from nonlin.study.engines import Request
from nonlin.study.engines.ray import RayEngine
from tests.study.engines.ray_cluster import three_nodes
with three_nodes(ray) as cluster, RayEngine({data!r}, cluster.address, command={eat!r}) as there:
    there.start(Request({{"do": "eat"}}, "eats"), next(iter(there.free())))
    while True:
        for event in there.poll(1.0):
            if event.kind not in ("told", "progress"):
                print(json.dumps([event.kind, event.value]), flush=True)
                raise SystemExit
"""


def test_what_ray_says_of_a_task_is_lost_or_failed():
    """Want of memory is a result: Ray itself would try it again without end."""
    from types import SimpleNamespace

    made = RayEngine.__new__(RayEngine)
    made.ray, made._nodes, node = ray, {"a": None}, SimpleNamespace(id="a", host="somewhere")
    made._cluster = SimpleNamespace(alive=lambda: {"a": {}})
    kind, value = made._outcome(ray.exceptions.OutOfMemoryError("killed"), node)
    assert kind == "error" and value["type"] == "OutOfMemory" and "somewhere" in value["message"]
    kind, value = made._outcome(ray.exceptions.WorkerCrashedError(), node)
    assert kind == "lost" and value["cause"] == "worker"
    made._cluster.alive = dict
    kind, value = made._outcome(ray.exceptions.WorkerCrashedError(), node)
    assert kind == "lost" and value["cause"] == "node" and made._nodes == {}


def test_a_node_whose_memory_is_short_is_left_out_in_one_sentence():
    made = Nodes(ray, Path("data"), False)
    long = "Task was killed due to the node running low on memory.\n" + "Refer to the documentation. " * 50
    assert made._why(ray.exceptions.OutOfMemoryError(long)) == "it ran out of memory, and Ray ended the question to it"
    assert made._why(RuntimeError("no way\n" + "x" * 500)) == "x" * 160 + "…"
    assert made._why(ValueError()) == "ValueError"


def test_no_cluster_at_the_address(data):
    with pytest.raises(UserError, match=r"a running Ray cluster; got '127\.0\.0\.1:1'.*ray start"):
        RayEngine(data, "127.0.0.1:1")


def test_versions_that_differ_are_refused(cluster, data, monkeypatch):
    from nonlin.study.engines import ray_tasks

    monkeypatch.setattr(ray_tasks, "versions", lambda: {"nonlin": "9.9", "torch": "1.0"})
    with pytest.raises(UserError, match=r"versions must be equal"):
        engine(cluster, data)
    told = different_versions("b", {"nonlin": "9.9", "torch": "1.0"}, {"nonlin": "9.9", "torch": "2.0"})
    assert "node b has torch 1.0 where another has 2.0" in told


def test_a_users_model_trains_on_a_node_as_here(cluster, tmp_path):
    config, expected = own_model.tiny(tmp_path)
    with RayEngine(tmp_path / "data", cluster.address) as there:
        own_model.trains_alike(there, tmp_path / "ray", config, expected)
