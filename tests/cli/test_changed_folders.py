"""Folders whose writer was not nonlin, under seals that fit, through the commands that train and write.

Whatever stands in them, a call ends well or with one error, within ten seconds of this process's time and a GiB of
memory, and nothing outside the folder is touched.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from nonlin.errors import UserError
from nonlin.report import style
from nonlin.study import load
from tests.cli import changed_folders, whole_folders
from tests.cli.in_this_process import call, must_be_told, trained_here, what_lies_in
from tests.ladder import tiny

COMMANDS = {
    "resume": ("study", ["compare", "--resume", "--out", "FOLDER"]),
    "extend by seeds": ("study", ["extend", "FOLDER", "--seeds", "5"]),
    "extend by an activation": ("study", ["extend", "FOLDER", "--activations", "mish"]),
    "extend by minutes": ("study", ["extend", "FOLDER", "--minutes", "0.01"]),
    "report": ("study", ["report", "FOLDER"]),
    "sample": ("study", ["sample", "FOLDER", "--length", "5"]),
    "several": ("study", ["compare-studies", "FOLDER", "WHOLE", "--out", "PAGE"]),
    "ladder": ("ladder", ["ladder", "--resume", "--out", "FOLDER"]),
    "report of a ladder": ("ladder", ["report", "FOLDER"]),
    "claims": ("claims", ["claims", "1", "--resume", "--out", "FOLDER"])}
OF_STUDIES = [name for name, (kind, _) in COMMANDS.items() if kind == "study"]
FEW, MANY = 6, 160


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Whole folders by their kind, each made when it is asked for."""
    base, made = tmp_path_factory.mktemp("whole"), {}

    def folder(kind):
        if kind not in made:
            made[kind] = getattr(whole_folders, kind)(base / kind, tiny.write_text(base))
        return made[kind]

    with trained_here():
        yield folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with things of somebody else, and an empty one that the call is made in."""
    outside = tmp_path / "outside"
    (outside / "full" / "1").mkdir(parents=True)
    for name in ("file", "full/x", "full/1/x"):
        (outside / name).write_text("mine")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def copied(whole, kind, place):
    return Path(shutil.copytree(whole(kind), place / "folder", symlinks=True))


def called(name, folder, whole):
    place = folder.parent
    before, names = what_lies_in(place / "outside"), set(os.listdir(place))
    values = {"FOLDER": folder, "WHOLE": whole("study"), "PAGE": place / "page.html"}
    done = call(*(values.get(word, word) for word in COMMANDS[name][1]))
    must_be_told(done)
    assert what_lies_in(place / "outside") == before
    assert set(os.listdir(place)) <= names | {"page.html"} and not os.listdir(place / "cwd")
    return done


def holds(name, seed, whole, place):
    chance = random.Random(f"{name} {seed}")
    folder = copied(whole, COMMANDS[name][0], place)
    chance.choice(changed_folders.CHANGES)(folder, chance)
    called(name, folder, whole)


@pytest.mark.parametrize("seed", range(FEW))
@pytest.mark.parametrize("name", OF_STUDIES)
def test_a_changed_study_is_used_or_refused_in_one_line(whole, place, name, seed):
    holds(name, seed, whole, place)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FEW, MANY))
@pytest.mark.parametrize("name", COMMANDS)
def test_a_changed_folder_is_used_or_refused_in_one_line(whole, place, name, seed):
    holds(name, seed, whole, place)


@pytest.mark.parametrize("name", ["data", "running", "running/KEY", "running/KEY/1", "trials", "figures", ".new",
                                  "plans"])
def test_nothing_is_written_or_emptied_through_a_link(whole, place, name):
    folder = copied(whole, "study", place)
    key = next((folder / "running").iterdir()).name
    path = folder / name.replace("KEY", key)
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(place / "outside" / "full", target_is_directory=True)
    done = called("extend by seeds", folder, whole)
    assert done.status == 2 or name == ".new" or name.startswith("running/")
    if done.status == 2:
        assert "must be a folder to be written to; it is a link" in done.told or name == "trials"


@pytest.mark.parametrize("name", [".progress.json.tmp", "data/.train.bin.tmp", "figures/curves.svg", "report.html",
                                  "runs.csv", "results.csv", ".lock", "data/.lock", "data/train.bin"])
def test_no_file_is_written_through_a_link(whole, place, name):
    folder = copied(whole, "study", place)
    path = folder / name
    path.unlink(missing_ok=True)
    path.symlink_to(place / "outside" / "file")
    (folder / "data" / "validation.bin").write_bytes(b"")  # so that the tokens are made anew
    called("resume", folder, whole)


def test_figures_are_not_drawn_through_a_link(whole, place):
    folder = copied(whole, "study", place)
    for path in list((folder / "figures").iterdir()):
        path.unlink()
    for end in ("svg", "png"):
        (folder / "figures" / f"curves.{end}").symlink_to(place / "outside" / "file")
    before = what_lies_in(place / "outside")
    with style.settings():
        style.write_files(Figure(figsize=(1, 1)), folder / "figures", "curves")
    assert what_lies_in(place / "outside") == before and (folder / "figures" / "curves.png").is_file()


@pytest.mark.parametrize(("name", "new"), [
    ("vocabulary", 3), ("vocabulary", 0), ("dtype", "object"), ("train_tokens", -1), ("end", "x"), ("tokenizer", []),
    ("bytes_per_token_validation", "x"), ("parts", {"train": []}), ("parts", []), ("files", []), ("sha256", 3)])
def test_a_description_of_tokens_that_is_none_is_written_anew_or_said(whole, place, name, new):
    folder = copied(whole, "study", place)
    path = folder / "data" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: new}))
    done = called("resume", folder, whole)
    assert done.status == 0 or "is damaged: it has the token" in done.told
    if done.status == 0:
        assert json.loads(path.read_text()).get(name) != new and load(folder).results["status"] == "complete"


def test_tokens_beyond_the_models_vocabulary_are_one_error(whole, place):
    """The plan says a vocabulary of 3, under a hash that fits; an embedding would read beyond its end."""
    folder = copied(whole, "study", place)
    plan = json.loads((folder / "plan.json").read_text())
    plan["model"]["vocabulary"] = plan["request"]["model"]["vocabulary"] = 3
    changed_folders.seal_plan(plan)
    (folder / "plan.json").write_text(json.dumps(plan))
    done = called("resume", folder, whole)
    assert done.status == 2 and "256 tokens, and the model 3" in done.told


@pytest.mark.parametrize("position", [
    "[]", "{}", '{"course": []}', '{"log_bytes": "x"}', '{"log_bytes": -1}', '{"course": {"step": "x"}}', "[" * 9999,
    '{"course": {"step": 1e999}}'])
def test_a_checkpoint_of_another_form_is_none(whole, place, position):
    """Its seal names the run, and the run begins anew: its end is that of one that never stopped."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = copied(whole, "study", place)
    path = next(folder.glob("running/*/1/checkpoint.safetensors"))
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    known = json.loads(about["position"])
    if position.startswith("{"):
        new = json.loads(position.replace("1e999", "1e308"))
        if isinstance(new.get("course"), dict):
            new["course"] = known["course"] | new["course"]
        position = json.dumps(known | new)
    save_file(tensors, path, about | {"position": position})
    assert called("resume", folder, whole).status == 0
    assert load(folder).results["status"] == "complete"


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.jsonl"])
@pytest.mark.parametrize("made", ["folder", "pipe", "loop"])
def test_a_stopped_run_whose_files_are_other_things_begins_anew(whole, place, name, made):
    folder = copied(whole, "study", place)
    path = next(folder.glob("running/*/1/checkpoint.safetensors")).with_name(name)
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path)}[made]()
    assert called("resume", folder, whole).status == 0
    assert load(folder).results["status"] == "complete" and not (folder / "running").exists()


@pytest.mark.parametrize(("name", "new"), [
    ("threads", None), ("threads", "x"), ("threads", 0), ("threads", 10**18), ("engine", None), ("dtype", 3),
    ("device", []), ("devices", "x")])
def test_a_machine_that_is_none_is_one_error(whole, place, name, new):
    folder = copied(whole, "study", place)
    plan = json.loads((folder / "plan.json").read_text())
    plan["machine"] = {key: value for key, value in plan["machine"].items() if key != name} \
        | ({} if new is None else {name: new})
    changed_folders.seal_plan(plan)
    (folder / "plan.json").write_text(json.dumps(plan))
    done = called("extend by seeds", folder, whole)
    assert done.status == 2 and "plan.json" in done.told


def test_a_run_without_a_width_is_put_aside_and_made_again(whole, place):
    folder = copied(whole, "study", place)
    path = next(folder.glob("trials/*/config.json"))
    config = json.loads(path.read_text())
    del config["model"]["hidden"]
    path.write_text(json.dumps(config))
    changed_folders.seal_run(path.parent)
    assert called("extend by an activation", folder, whole).status == 0
    assert load(folder).results["status"] == "complete"


@pytest.mark.parametrize("name", ["trials/*/metrics.jsonl", "data/train.bin", "trials/*/model.safetensors"])
def test_a_file_that_is_empty_but_for_its_size_is_not_read(whole, place, name):
    folder = copied(whole, "study", place)
    found = sorted(folder.glob(name))
    if not found:
        pytest.skip(f"no {name} in the study")
    found[0].unlink()
    with found[0].open("wb") as file:
        file.truncate(1 << 40)
    if os.stat(found[0]).st_blocks > 1000:
        pytest.skip("this file system keeps no sparse files")
    assert called("resume", folder, whole).status == 0
    assert not found[0].is_file() or found[0].stat().st_size < 1 << 30


def test_an_unknown_folder_is_still_one_error(place, whole):
    with pytest.raises(UserError):
        load(place / "outside")
