"""A Ray cluster of three nodes of one core each, on this machine."""

import contextlib
import os

import pytest

STORE_BYTES = 80 * 2**20  # the least that Ray takes


@contextlib.contextmanager
def three_nodes(ray, seconds=0.25):
    """Start it, or skip the test where Ray does not start; ``made.small`` is what each node is given.

    A trial of the fake worker takes ``seconds``: tasks have the environment of their node, not of the driver.
    """
    from ray.cluster_utils import Cluster

    os.environ["FAKE_SECONDS"] = str(seconds)
    # Whatever else runs here, a machine that is short of memory is to kill none of the tasks.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    small = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    try:
        made = Cluster(initialize_head=True, head_node_args=small)
    except Exception as error:
        pytest.skip(f"Ray does not start here: {error}")
    made.small = {k: v for k, v in small.items() if k != "include_dashboard"}
    for _ in range(2):
        made.add_node(**made.small)
    try:
        yield made
    finally:
        os.environ.pop("FAKE_SECONDS", None)
        ray.shutdown()
        made.shutdown()
