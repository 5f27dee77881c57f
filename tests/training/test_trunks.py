"""Runs of several lengths that share their beginning end as runs that were trained from the start."""

import pytest

from nonlin.training import Run, run_trial


def asked(config, steps, **training):
    values = {"schedule": "wsd", "warmup_steps": 3, "decay_fraction": 0.25, "evaluations": 1, "probe_every": 5}
    made = config("swiglu", steps=steps, **values | training)
    del made["training"]["warmup_fraction"]
    return made


@pytest.fixture
def counted(monkeypatch):
    """Return a list that gets each step that is trained."""
    steps, step = [], Run.step

    def counting(self, probe=False):
        steps.append(self.index)
        return step(self, probe)

    monkeypatch.setattr(Run, "step", counting)
    return steps


def untimed(record):
    return record | {"timing": None}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_branches_of_one_run_are_runs_of_their_own(config, dataset, tmp_path, counted, optimizer):
    alone, branched = {}, {}
    for steps in (12, 20, 32):
        made = asked(config, steps, optimizer=optimizer)
        alone[steps] = run_trial(made, dataset.directory, tmp_path / f"alone-{steps}")
    counted.clear()
    for steps in (12, 20, 32):
        made = asked(config, steps, optimizer=optimizer)
        branched[steps] = run_trial(made, dataset.directory, tmp_path / f"branch-{steps}", trunks=tmp_path / "trunks")
        assert untimed(branched[steps]) == untimed(alone[steps])
        lines = [(tmp_path / f"{kind}-{steps}" / "metrics.jsonl").read_text() for kind in ("alone", "branch")]
        assert lines[0] == lines[1]
    assert len(counted) == 24 + 3 + 5 + 8  # the longest trunk once, and each decay
    counted.clear()
    again = run_trial(asked(config, 20, optimizer=optimizer), dataset.directory, tmp_path / "again",
                      trunks=tmp_path / "trunks")
    assert untimed(again) == untimed(alone[20]) and len(counted) == 5
    assert not list((tmp_path / "trunks").glob("*.tmp"))


@pytest.mark.parametrize("change", [
    {"seed": 2}, {"learning_rate": 0.02}, {"weight_decay": 0.2}, {"warmup_steps": 4}, {"batch": 2}, {"clip": 0.5},
    {"probe_every": 6}, {"optimizer": "muon"}, {"evaluations": 2}, {"schedule": "cosine"}], ids=str)
def test_a_run_that_differs_in_more_than_its_length_begins_anew(config, dataset, tmp_path, counted, change):
    run_trial(asked(config, 12), dataset.directory, tmp_path / "first", trunks=tmp_path / "trunks")
    counted.clear()
    other = asked(config, 20, **{k: v for k, v in change.items() if k != "seed"})
    other["seed"] = change.get("seed", 1)
    run_trial(other, dataset.directory, tmp_path / "other", trunks=tmp_path / "trunks")
    assert counted == list(range(20))


def test_rates_that_fall_with_the_horizon_share_nothing(config, dataset, tmp_path, counted):
    from nonlin.training.transfer import transfer_of

    base = {"layers": 2, "dim": 16, "heads": 2, "kv_heads": 1}
    for tokens, expected in ((None, [*range(9, 20)]), (1000, [*range(20)])):
        moved = {"transfer": transfer_of("completep", base | ({"tokens": tokens} if tokens else {}), 0.01)}
        for steps in (12, 20):
            counted.clear()
            run_trial(asked(config, steps, **moved), dataset.directory, tmp_path / f"{tokens}-{steps}",
                      trunks=tmp_path / "trunks")
        assert counted == expected


def test_a_damaged_trunk_is_no_trunk(config, dataset, tmp_path, counted):
    run_trial(asked(config, 12), dataset.directory, tmp_path / "first", trunks=tmp_path / "trunks")
    (trunk,) = (tmp_path / "trunks").iterdir()
    trunk.write_bytes(trunk.read_bytes()[:100])
    counted.clear()
    whole = run_trial(asked(config, 20), dataset.directory, tmp_path / "whole")
    found = run_trial(asked(config, 20), dataset.directory, tmp_path / "found", trunks=tmp_path / "trunks")
    assert untimed(found) == untimed(whole) and len(counted) == 40


def test_a_worker_and_a_study_take_the_folder(config, dataset, tmp_path, counted):
    from nonlin.study.jobs import Jobs
    from nonlin.study.store import Store
    from nonlin.study.tuning import trials_of
    from nonlin.training import one_model
    from tests.study import studies

    jobs = Jobs(Store(tmp_path / "study"), None, print, tmp_path / "trunks")
    body = jobs._body(trials_of(studies.plan(), "tune", {})[0])
    assert body["trunks"] == str(tmp_path / "trunks")
    for steps in (12, 20):
        counted.clear()
        one_model.train(body | {"config": asked(config, steps), "dataset": str(dataset.directory),
                             "trial": str(tmp_path / str(steps))}, print)
    assert counted == [*range(9, 20)]
    assert "trunks" not in Jobs(Store(tmp_path / "study"), None, print)._body(trials_of(studies.plan(), "tune", {})[0])


def test_a_beginning_by_another_optimizers_arithmetic_is_none(config, dataset, tmp_path, counted, monkeypatch):
    """torch's states fit our AdamW, but its steps have other last bits: the whole would be no run from the start."""
    from nonlin.kernels.transformer import adamw
    from nonlin.training.checkpoint import Checkpoints, Stopped
    from tests.training.test_checkpoint import stopping_at

    runs = {steps: asked(config, steps) | {"machine": {"engine": "native", "dtype": "float32", "threads": 1}}
            for steps in (12, 20)}
    if not adamw.serves([]):
        pytest.skip("our C++ is not here")
    with monkeypatch.context() as patch:
        patch.setattr(adamw, "serves", lambda _: False)
        run_trial(runs[12], dataset.directory, tmp_path / "first", trunks=tmp_path / "trunks")
        with pytest.raises(Stopped):
            run_trial(runs[20], dataset.directory, tmp_path / "parts",
                      checkpoints=stopping_at(tmp_path / "parts", 9, []))
    whole = run_trial(runs[20], dataset.directory, tmp_path / "whole")
    for name, options in (("branch", {"trunks": tmp_path / "trunks"}),
                          ("parts", {"checkpoints": Checkpoints(tmp_path / "parts")})):
        counted.clear()
        again = run_trial(runs[20], dataset.directory, tmp_path / name, **options)
        assert counted == list(range(20)) and untimed(again) == untimed(whole)
