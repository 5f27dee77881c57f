"""Thirty blows at a Ray cluster: nodes, workers and the driver die at random moments, and the study is the same."""

import os
import signal
import uuid
from pathlib import Path

import pytest

from tests.study import studies
from tests.study.engines.comparing import tokens
from tests.study.engines.ray_cluster import three_nodes
from tests.study.engines.striking import survives

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="workers are found in /proc")]

DRIVER = """
import json, sys
from pathlib import Path
from nonlin.study import Store, run_study
from nonlin.study.engines.ray import RayEngine
from tests.study import studies
folder = Path(sys.argv[1])
with RayEngine(folder / "data", {address!r}, command=studies.WORKER, copy_tokens=True) as engine:
    run_study(studies.plan(), Store(folder), engine, lambda event: print(json.dumps(event), flush=True))
"""
MARK = uuid.uuid4().hex  # in the environment of this cluster's processes alone


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NONLIN_TEST_CLUSTER", MARK)
        with three_nodes(ray, seconds=1.0) as made:
            yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    studies.run(folder, studies.plan())
    return folder


def _workers():
    """The processes that train for this cluster."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"fake_worker.py" in (process / "cmdline").read_bytes() and MARK.encode() in (
                    process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("seed", range(20, 25))
def test_six_blows_at_nodes_workers_and_driver(cluster, whole, tmp_path, seed):
    nodes = [cluster.add_node(**cluster.small)]

    def node(order):
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(**cluster.small))
        return True

    def worker(order):
        there = _workers()
        if there:
            os.kill(order.choice(there), signal.SIGKILL)
        return bool(there)

    tokens(tmp_path / "data")
    driver = DRIVER.format(address=cluster.address)
    struck = survives(tmp_path, whole, driver, {"node": node, "worker": worker}, seed, 6)
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    assert sum(struck.values()) >= 5, struck
