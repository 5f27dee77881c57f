"""Thirty blows at a real SLURM: jobs, slurmd and the driver are struck at random, and the study is the same."""


import pytest

from tests.study import studies
from tests.study.engines.striking import survives
from tests.study.engines.test_slurm import DRIVER, cluster, running  # noqa: F401  a fixture

pytest.importorskip("submitit", reason="submitit is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    studies.run(folder, studies.plan("gelu", "swiglu"))
    return folder


@pytest.mark.parametrize("seed", range(30, 35))
def test_six_blows_at_jobs_daemon_and_driver(cluster, whole, tmp_path, seed):  # noqa: F811
    def on_a_job(*command):
        def strike(order):
            jobs = running(cluster)
            if jobs:
                cluster.call(*command, order.choice(jobs), check=False)
            return bool(jobs)
        return strike

    def daemon(order):
        cluster.stop_node()
        cluster.start_node()
        return True

    strikes = {"cancel": on_a_job("scancel"), "requeue": on_a_job("scontrol", "requeue"), "daemon": daemon}
    struck = survives(tmp_path, whole, DRIVER, strikes, seed, 6, {"FAKE_SECONDS": "3.0"}, longest=4.0)
    assert sum(struck.values()) >= 4, struck
