"""A study's runs in the real trackers: one run per trial, grouped by arm, curves, the table of verdicts."""

import json
import os
import sys

import pytest

from nonlin.errors import UserError
from nonlin.study import load
from nonlin.tracking import Following, chosen_trackers, following
from nonlin.tracking.records import tracked_run, verdicts_of
from tests.study import studies

ARMS = ("gelu", "silu")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of fake runs, which write what real ones do."""
    directory = tmp_path_factory.mktemp("studies") / "one"
    studies.run(directory, studies.plan(*ARMS))
    for trial in (directory / "trials").iterdir():
        assert (trial / "result.json").exists()
    return directory


@pytest.fixture
def copied(study, tmp_path):
    import shutil

    shutil.copytree(study, tmp_path / "runs" / "one")
    return tmp_path / "runs" / "one"


def followed(directory, *names):
    said = []
    with Following(directory, names, said.append):
        pass
    return said


def runs_of(directory):
    folder = load(directory)
    return [tracked_run(folder, key) for key in folder.trials()]


def test_what_a_run_tells(study):
    folder = load(study)
    for run in runs_of(study):
        config, record, lines = folder.trial(run.key)
        assert run.arm == config["activation"]["name"] and run.purpose == config["purpose"]
        assert run.outcome["bits_per_byte"] == record["bits_per_byte"]
        assert run.config["training.learning_rate"] == config["training"]["learning_rate"]
        assert [step for step, _ in run.curve] == sorted({line["step"] for line in lines})
    verdicts = verdicts_of(folder.results)
    assert [row[0] for row in verdicts.rows] == folder.results["ranking"]
    assert verdicts.numbers["gelu/bits_per_byte"] == next(
        a["bits_per_byte"] for a in folder.results["arms"] if a["name"] == "gelu")


def test_tensorboard(copied):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = followed(copied, "tensorboard")
    root = copied / "tracking" / "tensorboard"
    assert str(root) in said[0]
    for run in runs_of(copied):
        events = EventAccumulator(str(root / run.arm / f"{run.purpose}-{run.key}")).Reload()
        tags = {name for _, values in run.curve for name in values}
        assert tags | {f"outcome/{name}" for name in run.outcome} == set(events.Tags()["scalars"])
        for tag in tags:
            assert [(e.step, e.value) for e in events.Scalars(tag)] == [
                (step, pytest.approx(values[tag])) for step, values in run.curve if tag in values]
    (table,) = root.glob("verdicts-*")
    text = EventAccumulator(str(table)).Reload().Tensors("verdicts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| activation |") and all(f"| {arm} |" in text for arm in ARMS)


def test_mlflow_in_sqlite(copied, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed (pip install 'nonlin[mlflow]')")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = followed(copied, "mlflow")
    assert (copied.parent / "mlflow.db").exists() and "mlflow ui" in said[0], said
    client = MlflowClient(tracking_uri=f"sqlite:///{copied.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(f"nonlin {load(copied).plan.name}")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = {run.info.run_id: run.data.tags["nonlin_arm"] for run in found if "nonlin_arm" in run.data.tags}
    assert sorted(parents.values()) == sorted(ARMS)
    by_key = {run.data.params["config_hash"]: run for run in found if "config_hash" in run.data.params}
    wanted = runs_of(copied)
    assert by_key.keys() == {run.key for run in wanted}
    for run in wanted:
        made = by_key[run.key]
        assert parents[made.data.tags["mlflow.parentRunId"]] == run.arm and made.info.status == "FINISHED"
        assert made.data.metrics["bits_per_byte"] == run.outcome["bits_per_byte"]
    last = wanted[-1]
    tag = next(iter(last.curve[-1][1]))
    history = client.get_metric_history(by_key[last.key].info.run_id, tag)
    assert sorted((m.step, m.value) for m in history) == [(s, v[tag]) for s, v in last.curve if tag in v]
    (verdicts,) = [run for run in found if run.data.tags.get("purpose") == "verdicts"]
    assert "gelu/bits_per_byte" in verdicts.data.metrics
    (table,) = (copied.parent / "mlflow-artifacts").rglob("verdicts.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == load(copied).results["ranking"]


def log_records(data):
    """The records of a file of wandb's: blocks of 32 KiB of (checksum, length, kind) and a piece of a record."""
    at, held, block = 7, b"", 32768
    while at + 7 <= len(data):
        if block - at % block < 7:  # too short for a head: the block is filled up
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4:at + 6], "little"), data[at + 6]
        held += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield held
            held = b""


def test_wandb_offline(copied, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install 'nonlin[wandb]')")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    few = sorted(path.name for path in (copied / "trials").iterdir())[:2]  # each starts a process
    (copied / "tracking").mkdir()
    known = sorted(path.name for path in (copied / "trials").iterdir() if path.name not in few)
    (copied / "tracking" / "wandb.json").write_text(json.dumps(known))
    said = followed(copied, "wandb")
    assert "wandb sync" in said[0], said
    logs = {}
    for path in (copied / "tracking" / "wandb").glob("offline-run-*/*.wandb"):
        records = [wandb_internal_pb2.Record.FromString(data) for data in log_records(path.read_bytes())]
        (start,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][:1]
        logs[start.run_id] = (start, records)
    wanted = {run.key: run for run in runs_of(copied)}
    assert len(logs) == 3
    for key in few:
        start, records = logs[f"{load(copied).plan.name}-{key}"]
        assert (start.run_group, start.job_type) == (wanted[key].arm, wanted[key].purpose)
        history = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item}
                   for r in records if r.WhichOneof("record_type") == "history"]
        assert [row["_step"] for row in history] == [step for step, _ in wanted[key].curve]
        _, values = wanted[key].curve[-1]
        assert values.items() <= history[-1].items()
        told = {i.key or i.nested_key[0]: json.loads(i.value_json) for r in records
                if r.WhichOneof("record_type") == "summary" for i in r.summary.update}
        assert told["bits_per_byte"] == wanted[key].outcome["bits_per_byte"]
    (verdicts,) = [records for name, (_, records) in logs.items() if "verdicts" in name]
    assert any("gelu/bits_per_byte" in (i.key, *i.nested_key) for r in verdicts for i in r.summary.update)


def test_trackio(copied, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed; its pillow is older than the pinned one")
    said = followed(copied, "trackio")
    assert "trackio show" in said[0], said
    api = trackio.Api()
    names = {run.name for run in api.runs(f"nonlin-{load(copied).plan.name}")}
    assert names == {run.name for run in runs_of(copied)} | {"verdicts"}


def test_a_study_that_goes_on_logs_nothing_twice(copied):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    first = followed(copied, "tensorboard")
    files = sorted((copied / "tracking" / "tensorboard").rglob("events*"))
    assert first and followed(copied, "tensorboard") == []
    assert sorted((copied / "tracking" / "tensorboard").rglob("events*")) == files


class Broken:
    def __init__(self, error):
        self.error = error

    def run(self, run):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no\nnetwork"), SystemExit(1), UserError("wandb must know your key")])
def test_a_tracker_that_fails_is_said_once_and_the_study_goes_on(tmp_path, monkeypatch, error):
    module = type(sys)("nonlin.tracking.to_wandb")
    module.open_tracker = lambda study, directory: Broken(error)
    monkeypatch.setitem(sys.modules, "nonlin.tracking.to_wandb", module)
    monkeypatch.setattr(following, "_SECONDS", 0.01)
    said = []
    with Following(tmp_path / "study", ("wandb",), said.append):
        found = studies.run(tmp_path / "study", studies.plan(*ARMS))
    assert found["status"] == "complete"
    assert len(said) == 1 and "wandb failed" in said[0] and type(error).__name__ in said[0] and "\n" not in said[0]


def test_no_key_is_said_and_not_asked_for(copied, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (pip install 'nonlin[wandb]')")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    (said,) = followed(copied, "wandb")
    assert "wandb login" in said and "WANDB_MODE=offline" in said


def test_names_are_checked_before_anything_runs(monkeypatch):
    with pytest.raises(UserError, match="Did you mean wandb"):
        chosen_trackers("wandv")
    from nonlin.tracking import names

    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'nonlin\[mlflow\]'"):
        chosen_trackers(["mlflow"])


def test_compare_takes_it(tmp_path):
    """From Python, over real runs: every run of a study has its events."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    import nonlin

    (tmp_path / "text.txt").write_text("".join(f"{i}: the quick brown fox {i * i % 89}\n" for i in range(4000)))
    study = nonlin.compare(tmp_path / "text.txt", ["gelu", "silu"], steps=10, seeds=4, learning_rates=2, layers=1,
                           dim=8, heads=1, context=8, batch=2, out=tmp_path / "study", track="tensorboard",
                           progress=False)
    logged = {path.parent.name.rsplit("-", 1)[1] for path in
              (tmp_path / "study" / "tracking" / "tensorboard").rglob("events*") if path.parent.parent.name in ARMS}
    assert logged == {run.config_hash for run in study.runs()}
    assert os.path.exists(tmp_path / "study" / "tracking" / "tensorboard.json")
