"""A study's folder: files are written whole, damage is noticed, finished runs are kept."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.errors import UserError, not_empty
from nonlin.files import (
    Unreadable,
    finite,
    inside,
    lock,
    plain_name,
    read_json,
    sha256,
    sync,
    unwritable,
    write_atomically,
    writing,
)
from nonlin.kinds import CALIBRATION, kind_of, must_hold
from nonlin.letters import quoted
from nonlin.study.plan import Plan
from nonlin.study.wellformed import must_be_experiment, must_be_run
from nonlin.training.config import CHECKPOINT, METRICS, config_hash

_PRESENT = 2  # the format of plans whose runs this version can add to
_BEFORE = {"precision": "auto"}  # of plans from before it could be asked for
_MOMENT = 0.5  # seconds to wait for a study's lock: whoever looks whether it runs holds it for less
_TRIAL = re.compile(r"[0-9a-f]{16}\Z")
# Names that a study's folder may hold before its plan is written.
_KNOWN = {"data", "trials", "running", "machine.json", "studies", "calibration.json"}


class DamagedRecord(Exception):
    """A trial's folder is not what was written there."""


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in values.items() if k != "checksum"}, sort_keys=True,
                      separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _changed(asked: Mapping[str, Any], planned: Mapping[str, Any]) -> list[str]:
    return [key for key in asked if asked[key] != planned.get(key, _BEFORE.get(key))]


class Store:
    """The folder of one study. Raises UserError where it holds files of something else.

    An attempt at a trial is written in ``running/HASH/ATTEMPT/`` and moved to ``trials/HASH`` whole, with one rename,
    when it has ended. No two attempts share a folder, so that a worker given up for dead, should it come back, writes
    to no one.
    ``plan_type`` is the class of the plan: it has ``KIND``, ``hash``, ``request``, ``as_dict()`` and
    ``from_dict(values)``.
    """

    def __init__(self, directory: str | Path, plan_type: Any = Plan):
        not_empty("Store", directory=directory)
        self.directory, self.plan_type = Path(directory), plan_type
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{directory} must be a folder; it is a file. Choose another folder.") from None
        except OSError as error:
            raise unwritable(self.directory, error) from error
        with writing(self.directory):
            strange = sorted(p.name for p in self.directory.iterdir() if p.name not in _KNOWN and p.name[0] != ".")
        if strange and not os.path.lexists(self.plan_path) and kind_of(self.directory) != CALIBRATION:
            raise UserError(f"{directory} must be empty or hold a study; it holds {', '.join(strange[:3])}. "
                            "Choose another folder.")

    @property
    def plan_path(self) -> Path:
        """The path of the plan."""
        return self.directory / "plan.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for this process. UserError where another does; a killed process holds nothing."""
        with contextlib.ExitStack() as held:
            with writing(self.directory):
                ours = held.enter_context(lock(self.directory / ".lock", _MOMENT))
            if not ours:
                raise UserError(f"the study in {self.directory} must have one process; another one runs it now. "
                                "Wait for it, or choose another folder.")
            yield
            self._forget_attempts()

    def _forget_attempts(self) -> None:
        """Remove what attempts at finished trials left behind.

        A process may be killed between the rename that finishes a trial and the removal of its other attempts. And a
        worker whose parent was killed may write into its folder while that is removed.
        """
        running = self.directory / "running"
        with contextlib.suppress(OSError):
            for trial in () if running.is_symlink() else running.iterdir():
                if os.path.lexists(self.directory / "trials" / trial.name):
                    shutil.rmtree(trial, ignore_errors=True)
            running.rmdir()

    def plan(self) -> Any:
        """Return the plan; None if there is none yet. UserError if it is damaged or was changed."""
        if not os.path.lexists(self.plan_path):
            return None
        must_hold(self.directory, self.plan_type.KIND)
        try:
            values = read_json(self.plan_path)
        except Unreadable:
            values = {}
        return self.plan_type.from_dict(values if isinstance(values, dict) else {})

    def resume(self, request: Any) -> Any:
        """Return the plan that an earlier call with the same request made here; None if there is none.

        UserError if the study here is another one, naming what differs.
        """
        plan = self.plan()
        if plan is not None:
            self.must_go_on(plan)
            asked = request.as_dict()
            changed = _changed(asked, plan.request)
            extended = [stage["request"] for stage in getattr(plan, "history", ())]  # the command that began it goes on
            if changed and all(_changed(asked, request) for request in extended):
                raise UserError(f"{self.directory} holds another study: its {' and '.join(changed)} "
                                f"{'differs' if len(changed) == 1 else 'differ'} from this command's. "
                                "Choose another folder with --out, or give the command that began it.")
        return plan

    def must_go_on(self, plan: Any) -> None:
        """Raise UserError for a plan of an older version: its runs chose rates and drew weights otherwise."""
        if plan.format < _PRESENT:
            raise UserError(f"the study in {self.directory} was planned by an older version, whose rule chose learning "
                            f"rates otherwise: nonlin report {quoted(self.directory)} still writes its page, but it "
                            "cannot go on. Start it anew in another folder.")

    def create(self, plan: Any) -> None:
        """Write the plan. UserError where another one is."""
        existing = self.plan()
        if existing is not None and existing.hash != plan.hash:
            raise UserError(f"{self.directory} holds another study. Choose another folder with --out.")
        if existing is None:
            self._write(self.plan_path, json.dumps(plan.as_dict(), indent=1, allow_nan=False) + "\n")

    def extend(self, plan: Any) -> None:
        """Put an extended plan in the place of the one that it extends; that one stays in plans/, by its number."""
        old = self.plan()
        stages = plan.history
        if old is None or not stages or stages[-1]["hash"] != old.hash:
            raise UserError(f"the plan of {self.directory} must be the one that is extended; it is another by now. "
                            "Give the command again.")
        kept = self.directory / "plans"
        with writing(self.directory):
            inside(kept)
        self._write(kept / f"{len(stages)}.json", json.dumps(old.as_dict(), indent=1, allow_nan=False) + "\n")
        self._write(self.plan_path, json.dumps(plan.as_dict(), indent=1, allow_nan=False) + "\n")

    def _write(self, path: Path, text: str) -> None:
        try:
            write_atomically(path, text)
        except OSError as error:
            raise unwritable(self.directory, error) from error

    def write_results(self, results: Mapping[str, Any], rows: Iterable[Sequence[Any]]) -> None:
        """Write results.json, and results.csv with these rows."""
        self._write(self.directory / "results.json", json.dumps(finite(results), indent=1) + "\n")
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        self._write(self.directory / "results.csv", buffer.getvalue())

    def begin(self, config: Mapping[str, Any]) -> tuple[int, Path]:
        """Return the number of a trial's next attempt and its folder, config.json written there.

        A checkpoint of the attempt before goes along.
        """
        trial = self.directory / "running" / config_hash(dict(config))
        try:
            inside(inside(trial.parent) / trial.name)
            before = self.attempts(trial.name)
            number = max((int(name) for name in os.listdir(trial) if name.isdecimal()), default=0) + 1
            folder = trial / str(number)
            folder.mkdir()
            if before:
                self._hand_on(before[-1][1], folder)
            (folder / "config.json").write_text(json.dumps(config, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise unwritable(self.directory, error) from error
        return number, folder

    def attempts(self, key: str) -> list[tuple[int, Path]]:
        """Return (number, folder) of every attempt at a trial that has not ended in a record, the first one first."""
        trial = self.directory / "running" / key
        if trial.is_symlink() or trial.parent.is_symlink() or not trial.is_dir():
            return []
        folders = [path for path in trial.iterdir() if path.name.isdecimal() and path.is_dir()
                   and not path.is_symlink()]  # what a link leads to is not emptied
        return sorted((int(path.name), path) for path in folders)

    def _hand_on(self, before: Path, folder: Path) -> None:
        """Give an attempt the checkpoint of the one before, and a copy of its measures: that one may still write."""
        if _whole_attempt(before):
            with contextlib.suppress(FileNotFoundError):
                os.replace(before / CHECKPOINT, folder / CHECKPOINT)
                shutil.copyfile(before / METRICS, folder / METRICS)
        self.clear(before)

    def clear(self, folder: Path) -> None:
        """Empty the folder of an attempt that came to nothing, but for its checkpoint. Its number stays taken."""
        kept = {CHECKPOINT, METRICS} if _whole_attempt(folder) else set[str]()
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name in kept:
                continue
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def finish(self, folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
        """Seal an attempt that ran in ``folder``: write its record, move it to trials/; return the record.

        Where a record lies already, that one stays and is returned.
        """
        trial = folder.parent
        target = self.directory / "trials" / trial.name
        try:
            files = {p.name: sha256(p) for p in sorted(folder.iterdir())
                     if p.name[0] != "."}
            sealed = finite({**record, "files": files})
            sealed["checksum"] = _checksum(sealed)
            (folder / "result.json").write_text(json.dumps(sealed, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            for name in (*files, "result.json"):  # whole on the disk before the rename shows them
                sync(folder / name)
            sync(folder)
            inside(target.parent)
            try:
                os.rename(folder, target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                sealed = self.read(trial.name)[1]
            sync(target.parent)
        except OSError as error:
            raise unwritable(self.directory, error) from error
        shutil.rmtree(trial, ignore_errors=True)
        return sealed

    def read(self, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (config, record) of a finished trial; raises DamagedRecord where they are not as written."""
        folder = self.directory / "trials" / key
        try:
            config, record = read_json(folder / "config.json"), read_json(folder / "result.json")
            if config_hash(config) != key or record["config_hash"] != key:
                raise DamagedRecord("its configuration is not the one it is named by")
            if record["checksum"] != _checksum(record):
                raise DamagedRecord("result.json was changed after it was written")
            for name, digest in record["files"].items():
                if not plain_name(name) or sha256(folder / name) != digest:
                    raise DamagedRecord(f"{name} was changed after it was written")
            if config.get("purpose") in ("tune", "judge"):
                must_be_run(config, record)
            elif "experiment" in config:
                must_be_experiment(record)
        except Unreadable as error:
            raise DamagedRecord(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRecord("its files are no records of a trial") from error
        return config, record

    def load(self, key: str) -> tuple[dict[str, Any] | None, str | None]:
        """Return (record, warning): no record where there is none, or where it was damaged and put aside."""
        folder = self.directory / "trials" / key
        if not os.path.lexists(folder):
            return None, None
        try:
            return self.read(key)[1], None
        except DamagedRecord as damage:
            number = 1
            while os.path.lexists(aside := folder.with_name(f"{key}.damaged-{number}")):
                number += 1
            try:
                os.rename(folder, aside)
            except OSError as error:
                raise unwritable(self.directory, error) from error
            return None, f"the finished run {key} is damaged ({damage}): put aside as {aside.name}, runs again"

    def hashes(self) -> list[str]:
        """Return the hashes of all finished trials, damaged or not."""
        folder = self.directory / "trials"
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} must be a folder; it is none. Move it away, and give the study's command again.")
        with writing(self.directory):
            return sorted(p.name for p in folder.iterdir() if _TRIAL.match(p.name)) if folder.is_dir() else []


def _whole_attempt(folder: Path) -> bool:
    """Whether a run can go on from an attempt's checkpoint and measures: both are files, and no links or pipes."""
    return all(path.is_file() and not path.is_symlink() for path in (folder / CHECKPOINT, folder / METRICS))
