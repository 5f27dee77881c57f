"""Two hundred slots that die and are late: what a study runs and finds depends on none of it, and no slot waits."""

import json

import pytest

from nonlin.study import Store, load, run_study
from tests.study import studies
from tests.study.engines.comparing import comparable
from tests.study.engines.fake_cluster import FakeCluster

ARMS = ("gelu", "swiglu", "silu", "relu", "identity", "tanh", "mish", "geglu", "reglu", "elu", "selu", "quick_gelu")


@pytest.fixture(scope="module")
def plan():
    return studies.plan(*ARMS, seeds=40)


@pytest.fixture(scope="module")
def calm(plan, tmp_path_factory):
    """The study on one slot that never dies."""
    folder = tmp_path_factory.mktemp("calm")
    run_study(plan, Store(folder), FakeCluster(0, nodes=1, each=1))
    return folder


@pytest.mark.parametrize("seed", [1, 2])
def test_random_deaths_and_delays_change_nothing(plan, calm, tmp_path, seed):
    cluster = FakeCluster(seed, deaths=0.08)
    results = run_study(plan, Store(tmp_path), cluster)
    assert cluster.died > 20 and results["timing"]["lost_attempts"]
    assert sum(results["timing"]["lost_attempts"].values()) == cluster.died
    assert comparable(tmp_path) == comparable(calm)
    keys = Store(tmp_path).hashes()
    assert keys == Store(calm).hashes()
    for key in keys:  # each record is of the attempt that ended, not of a ghost's
        sealed = json.loads((tmp_path / "trials" / key / "result.json").read_text())
        assert sealed["status"] in ("finished", "diverged")
        assert f"{key}.{sealed['attempt']}" in cluster.starts
    assert len(cluster.starts) == len(keys) + cluster.died  # nothing ran but what was lost ran again
    assert not (tmp_path / "running").exists()


def test_the_makespan_is_near_the_bound_of_list_scheduling(plan, tmp_path):
    """Graham (1966): at most the work over the slots and the longest chain, here one tuning and one judged run."""
    cluster = FakeCluster(3)
    run_study(plan, Store(tmp_path), cluster)
    work, chain = cluster.busy_seconds / cluster.total(), 2 * 60 * 1.2
    assert work <= cluster.now <= 1.1 * max(work + chain * (1 - 1 / cluster.total()), chain)
    assert cluster.now <= 1.1 * (work + 60 * 1.2)  # and in fact a run's length above what no schedule can beat


def test_no_slot_is_idle_while_a_run_waits(plan, tmp_path):
    idle = []

    class Watched(FakeCluster):
        def poll(self, seconds):
            if study and study[0].waiting:
                idle.append(sum(self.free_on.values()))
            return super().poll(seconds)

    from nonlin.study import runner

    study = []
    plain = runner.Jobs

    def watched(*arguments):
        study.append(plain(*arguments))
        return study[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "Jobs", watched)
        run_study(plan, Store(tmp_path), Watched(4, nodes=5, each=4))
    assert len(idle) > 100 and not any(idle)


def test_runs_that_are_compared_share_a_processor(plan, tmp_path):
    """Nodes of two kinds: all runs of a seed, over all arms, are computed on one kind; both kinds work."""
    cluster = FakeCluster(5, deaths=0.03, processors=("A", "B"))
    run_study(plan, Store(tmp_path), cluster)
    homes = {}
    for config, sealed in load(tmp_path).trials().values():
        assert sealed["processor"] == cluster.where[sealed["config_hash"]]
        homes.setdefault(config["seed"], set()).add(sealed["processor"])
    assert all(len(kinds) == 1 for kinds in homes.values())
    assert {kind for kinds in homes.values() for kind in kinds} == {"A", "B"}


class Interrupted(FakeCluster):
    """Ctrl-C comes once ten runs are done, however fast the machine is."""

    done = 0

    def poll(self, seconds):
        if self.done >= 10:
            raise KeyboardInterrupt
        events = super().poll(seconds)
        self.done += sum(event.kind == "done" for event in events)
        return events


def test_a_kind_of_processor_that_is_gone_is_said(tmp_path):
    plan, told = studies.plan("gelu", "swiglu"), []
    run_study(plan, Store(tmp_path), Interrupted(0, 1, 2, processors=("old",)))
    results = run_study(plan, Store(tmp_path), FakeCluster(0, 1, 2, processors=("new",)),
                        lambda event: told.append(event["message"] or ""))
    assert results["status"] == "complete"
    assert any("runs on new, since no old is there any more" in words for words in told)
