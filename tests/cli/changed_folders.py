"""Changes of a study's, a ladder's or claims' folder that its writer could not have made, under seals that fit."""

import hashlib
import json
import os
import shutil

from nonlin.claims.plan import ClaimsPlan
from nonlin.ladder.plan import LadderPlan
from nonlin.study import Plan
from nonlin.study.store import _checksum
from nonlin.training.config import config_hash
from tests.changed_values import GONE, changed, places

WRONG = [GONE, None, 3, -1, 0, 1e308, -1e308, 10**18, 2**62, "x", "", [], {}, True, [[]], [{}], {"a": 1}, "\ud800",
         [None, None], 0.5, "../../outside/x", "/../outside", "a/b", "..", "x" * 100_000, "\x1b[31m\n", [0] * 5000,
         "gelu", "1e999*x", ["gelu"], 1e-320, "0x10", "\0"]
TEXTS = ["NaN", "-Infinity", "1e999", "1" + "0" * 400, "[" * 100_000, "[" * 70 + "]" * 70, '{"a": 1, "a": 2}',
         '"\\ud800"', "tru", ""]
HELD = "held-place-of-a-value"


def seal_plan(values):
    """The hash of a plan's values, whatever they are: whoever writes a file can write it too."""
    kind = LadderPlan if "rungs" in values else ClaimsPlan if "studies" in values else Plan
    made = kind.__new__(kind)
    for name, field in kind.__dataclass_fields__.items():
        missing = field.default_factory() if callable(field.default_factory) else None
        object.__setattr__(made, name, values.get(name, missing))
    values["hash"] = made.hash


def seal_run(folder):
    """Let a run's folder have the name, and its record the sums, of what lies in it now."""
    record = json.loads((folder / "result.json").read_text())
    key = config_hash(json.loads((folder / "config.json").read_text()))
    if isinstance(record, dict):
        record["config_hash"] = key
        if isinstance(record.get("files"), dict):
            for name in record["files"]:
                if isinstance(name, str) and (folder / name).is_file():
                    record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        record["checksum"] = _checksum(record)
    (folder / "result.json").write_text(json.dumps(record))
    if folder.name != key:
        folder.rename(folder.with_name(key))


def seal_data(folder):
    """Let the description of tokens have their sums."""
    path = folder / "dataset.json"
    info = json.loads(path.read_text())
    if isinstance(info, dict) and isinstance(info.get("files"), dict):
        for name in info["files"]:
            if isinstance(name, str) and name and (folder / name).is_file():
                info["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(info))


def seal(path):
    """Make the seals fit that a file has, or that it stands under; where no seal can be made, it stays without."""
    try:
        if path.name == "plan.json":
            values = json.loads(path.read_text())
            seal_plan(values)
            path.write_text(json.dumps(values))
        elif path.parent.parent.name == "trials":
            seal_run(path.parent)
        elif path.parent.name == "data":
            seal_data(path.parent)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OSError):
        pass


def files_of(folder):
    """All files of a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def value(folder, chance):
    """Another value somewhere in a JSON file."""
    path = chance.choice([path for path in _read(folder) if path.suffix in (".json", ".jsonl")])
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    if not lines:
        return None
    number = chance.randrange(len(lines))
    try:
        values = json.loads(lines[number])
    except (ValueError, RecursionError):  # changed before
        return None
    at = chance.choice(list(places(values))[1:] or [()])
    if not at:
        return None
    if chance.random() < 0.2:
        new = chance.choice(TEXTS)
        lines[number] = json.dumps(changed(values, at, HELD)).replace(json.dumps(HELD), new)
    else:
        new = chance.choice(WRONG)
        lines[number] = json.dumps(changed(values, at, new))
    path.write_text("\n".join(lines) + "\n" * (path.suffix == ".jsonl"), errors="surrogatepass")
    seal(path)
    return path, at, repr(new)[:60]


def _read(folder):
    """The files, those that decide most more often."""
    found = files_of(folder)
    return found + 6 * [path for path in found if path.name in ("plan.json", "dataset.json") or
                        path.parent.name == "forecasts"] + 2 * [path for path in found if "running" in path.parts]


def several_values(folder, chance):
    """Two or three such values, which may agree where one alone would not."""
    return [value(folder, chance) for _ in range(chance.choice((2, 3)))]


def kind(folder, chance):
    """Another kind of thing in the place of a file or a folder."""
    path = chance.choice(_read(folder) + [path for path in folder.rglob("*") if path.is_dir()])
    made = chance.choice(["folder", "pipe", "loop", "dangling", "passwd", "outside", "empty", "deep", "zeros", "bytes",
                          "sparse", "gone"])
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    outside = folder.parent / "outside"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path),
     "dangling": lambda: path.symlink_to(outside / "new"), "passwd": lambda: path.symlink_to("/etc/passwd"),
     "outside": lambda: path.symlink_to(outside), "empty": path.touch,
     "deep": lambda: path.write_text("[" * 200_000), "zeros": lambda: path.write_bytes(bytes(5000)),
     "bytes": lambda: path.write_bytes(chance.randbytes(5000)),
     "sparse": lambda: (path.touch(), os.truncate(path, 1 << 36)), "gone": lambda: None}[made]()
    if made in ("zeros", "bytes", "empty"):
        seal(path)
    return path, made


_WRITTEN = [".lock", ".progress.json.tmp", "progress.json", "report.html", "figures", "results.json", "results.csv",
            "runs.csv", "running", "samples.json", "model", ".new", "paper", "plans", "plans/1.json", "data",
            "data/.lock", "data/.train.bin.tmp", "data/train.bin", "data/dataset.json", "data/tokenizer.json", "trunks",
            "forecasts", "rungs", "trials", ".results.json.tmp", "figures/curves.svg", "machine.json"]


def link(folder, chance):
    """A link that leads out, at a name that is written to."""
    trials = sorted(folder.glob("trials/*")) + sorted(folder.glob("rungs/*/trials/*"))
    names = _WRITTEN + [f"running/{path.name}{end}" for path in trials[:2] for end in ("", "/1", "/2")]
    names += [f"{path.relative_to(folder)}/{name}" for path in sorted(folder.glob("rungs/*")) for name in _WRITTEN[:20]]
    if folder.joinpath("rungs").exists():
        names += ["forecasts/0003.json", "plans/0001.json", "rungs/4-new"]
    path = folder / chance.choice(names)
    if path.parent.is_symlink() or not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    target = folder.parent / "outside" / chance.choice(["", "file", "new", "full", "full/1"])
    path.symlink_to(target)
    what = ""
    if chance.random() < 0.5:  # then something of it is made anew
        gone = chance.choice([*trials[:3], folder / "data" / "train.bin", folder / "results.json"])
        if os.path.lexists(gone) and not gone.is_symlink():
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
            what = f"without {gone.relative_to(folder)}"
    return path, str(target), what


def content(folder, chance):
    """Bytes of tokens, weights or a checkpoint that are others, a header of weights with sizes of its own."""
    path = chance.choice([path for path in files_of(folder) if path.suffix in (".bin", ".safetensors")])
    held, how = path.read_bytes(), chance.choice(["cut", "more", "header", "huge", "names", "type", "flip"])
    if path.suffix == ".bin" or how in ("cut", "more", "flip"):
        new = {"cut": held[:chance.randrange(len(held))], "more": held + bytes(999)}.get(how)
        if new is None:
            at = chance.randrange(len(held))
            new = held[:at] + chance.randbytes(8) + held[at + 8:]
        path.write_bytes(new)
    else:
        size = int.from_bytes(held[:8], "little")
        header = json.loads(held[8:8 + size])
        name = chance.choice([name for name in header if name != "__metadata__"])
        if how == "huge":
            header[name]["shape"] = [10**9, 10**9]
        elif how == "type":
            header[name]["dtype"] = chance.choice(["I64", "BOOL", "F8_E4M3", "x", 3])
        elif how == "names":
            header[chance.choice(["x", "a/../b", "\ud800"])] = header.pop(name)
        elif "__metadata__" in header:
            header["__metadata__"] = {key: chance.choice(["x", "[]", "{}", "1e999", "NaN", "[[]]", text[:-1]])
                                      for key, text in header["__metadata__"].items()}
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + held[8 + size:])
    seal(path)
    return path, how


CHANGES = [value, value, value, several_values, kind, link, link, content]
