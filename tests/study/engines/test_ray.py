"""A Ray cluster of several nodes on this machine: nodes die and join, and the results are those of plain processes."""

import json
import os
import tempfile
import time
from pathlib import Path

import pytest

from nonlin.errors import UserError
from nonlin.study import ProcessEngine, Store, run_study
from nonlin.study.engines import Request, ask
from tests.study import studies
from tests.study.engines import own_model
from tests.study.engines.comparing import comparable, tokens
from tests.study.engines.ray_cluster import three_nodes

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="ray is not installed")

from nonlin.study.engines.ray import RayEngine, different_versions  # noqa: E402


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
        there.stop(handle)
        sizes, deadline = [-1, beat.stat().st_size], time.monotonic() + 20
        while sizes[-1] != sizes[-2] and time.monotonic() < deadline:
            time.sleep(1.0)
            sizes.append(beat.stat().st_size)
        assert sizes[-1] == sizes[-2], sizes
        assert there.poll(0.1) == []


def test_what_ray_says_of_a_task_is_lost_or_failed():
    """Want of memory is a result: Ray itself would try it again without end."""
    from types import SimpleNamespace

    made = RayEngine.__new__(RayEngine)
    made.ray, made._nodes, node = ray, {"a": None}, SimpleNamespace(id="a", host="somewhere")
    made._alive = lambda: {"a": {}}
    kind, value = made._outcome(ray.exceptions.OutOfMemoryError("killed"), node)
    assert kind == "error" and value["type"] == "OutOfMemory" and "somewhere" in value["message"]
    kind, value = made._outcome(ray.exceptions.WorkerCrashedError(), node)
    assert kind == "lost" and value["cause"] == "worker"
    made._alive = dict
    kind, value = made._outcome(ray.exceptions.WorkerCrashedError(), node)
    assert kind == "lost" and value["cause"] == "node" and made._nodes == {}


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
