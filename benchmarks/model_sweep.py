"""Every family of the installed transformers that shrinks to a tiny model: accelerate, swap, save, watch, check, copy.

    python -m benchmarks.model_sweep [--only KIND ...] [--record FILE] [--page FILE]

writes a record and, from it, the table of docs/models.md. A fault is anything that is neither equal nor a refusal
with its reason; the slow test tests/patching/test_every_family.py holds the sweep to having none.
"""

import argparse
import collections
import contextlib
import copy
import io
import json
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nonlin
from benchmarks.tiny_models import VOCABULARY, build, families, needs
from nonlin.errors import UserError
from nonlin.patching.anew import roots
from nonlin.patching.configuration import field, tree
from nonlin.patching.finding import find_blocks

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "benchmarks" / "records" / "models.json", ROOT / "docs" / "models.md"
EQUAL = 1e-4  # of the output's norm, in float32


def awake(model: nn.Module) -> None:
    """Give every weight values that reach all parts of an activation; what a fresh model has is near zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in find_blocks(model):
            for p in block.projections.values():
                weight = p.weight
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5 * 1.5)
        for q in model.parameters():
            if not bool(q.isfinite().all()) or not q.any():
                q.copy_(torch.randn(q.shape, generator=generator) * 0.05)


def inputs(model: Any) -> Iterator[dict[str, Any]]:
    """Arguments that the model may take, the likeliest first."""
    config, draw = model.config, torch.Generator().manual_seed(2)
    tokens = torch.randint(30, VOCABULARY - 20, (2, 8), generator=draw)

    def size(otherwise: int, *names: str) -> int:
        found = (field(c, n) for _, c in tree(config) for n in names)
        return next((v for v in found if isinstance(v, int)), otherwise)

    side = size(32, "image_size")
    pixels = torch.randn(2, size(3, "num_channels"), side, side, generator=draw)
    bins = size(80, "num_mel_bins", "input_feat_per_channel")
    sound = torch.randn(2, bins, 64, generator=draw)
    text = {"input_ids": tokens, "use_cache": False}
    both = text | {"decoder_input_ids": tokens}
    yield from (text, both, {"input_ids": tokens}, {"input_ids": tokens, "decoder_input_ids": tokens},
                {"pixel_values": pixels}, {"input_ids": tokens, "pixel_values": pixels},
                {"pixel_values": pixels, "decoder_input_ids": tokens},
                {"input_features": sound, "decoder_input_ids": tokens},
                {"input_features": sound.transpose(1, 2), "decoder_input_ids": tokens},
                {"input_features": sound.transpose(1, 2)}, {"input_features": sound},
                {"input_values": torch.randn(2, 4000, generator=draw)},
                {"input_values": torch.randn(2, 4000, generator=draw), "decoder_input_ids": tokens},
                {"pixel_values": pixels[:, None]})


def tensors(value: Any) -> list[Tensor]:
    """All floating-point tensors of an output, in order."""
    if isinstance(value, Tensor):
        return [value.double()] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


@torch.no_grad()
def output(model: nn.Module, given: dict[str, Any]) -> Tensor:
    """The output's numbers in one vector."""
    torch.manual_seed(0)
    return torch.cat([t.flatten() for t in tensors(model(**given))])


def apart(a: Tensor, b: Tensor) -> float:
    """How far two outputs lie apart, of the first one's norm."""
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    off = float((a - b).where(~same, 0.0).norm() / a.nan_to_num(0, 0, 0).norm().clamp(min=1e-30))
    return float("inf") if off != off else off


def said(config: Any) -> Any:
    """What a configuration says, without the fields that saving adds."""
    added = ("architectures", "transformers_version", "dtype", "_name_or_path")
    return {path: {k: repr(v) for k, v in inner.to_dict().items() if k not in added and not isinstance(v, dict)}
            for path, inner in tree(config)}


class Sweep:
    """One family's outcomes, by operation: "equal", "refused: why", "as untouched: why" or "FAULT: what"."""

    def __init__(self, model: Any):
        self.model, self.row = model, {}
        awake(model)
        self.given = None
        for given in inputs(model):
            with contextlib.suppress(Exception):
                first = output(model, given)
                if first.numel() and bool(first.isfinite().any()) and apart(first, output(model, given)) == 0:
                    self.given, self.truth = given, first
                    break
        self.types = [type(m) for m in model.modules()]  # BigBird puts other modules in when it first runs

    def run(self) -> dict[str, Any]:
        """Do everything; return the row."""
        blocks = find_blocks(self.model)
        if library := needs(self.model):
            self.row["needs"] = library
        self.row |= {"class": type(self.model).__name__, "blocks": len(blocks),
                     "runs": None if self.given is None else sorted(self.given)}
        self.config = said(self.model.config)
        self._do("watch", self._watch)
        self._do("check", self._check)
        copies: dict[str, Callable[[Any], Any]] = {
            "copy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": self._loaded}
        before = {name: self._untouched(make) for name, make in copies.items()}
        self.loads = before["save"]
        self._do("accelerate", self._accelerate)
        for name, make in copies.items() if self.row["accelerate"].startswith("equal") else ():
            self._do(name, lambda name=name, make=make: self._like(make, before[name]))
        self._do("restore", self._restore)
        self._do("swap", self._swap)
        return self.row

    def _do(self, name: str, what: Callable[[], str]) -> None:
        try:
            self.row[name] = what()
        except UserError as error:
            self.row[name] = f"refused: {error}"
        except Exception as error:
            import traceback

            at = traceback.extract_tb(error.__traceback__)[-1]
            self.row[name] = f"FAULT: {type(error).__name__}: {str(error)[:200]} ({Path(at.filename).name}:{at.lineno})"

    def _same(self, model: nn.Module, truth: Tensor, limit: float = EQUAL) -> str:
        off = apart(truth, output(model, self.given or {}))
        return "equal" if off <= limit else f"FAULT: differs by {off:.2g}"

    def _accelerate(self) -> str:
        report = nonlin.accelerate(self.model)
        self.row["accelerated"] = len(report.changed)
        self.row["left"] = sorted({f"{c.kind}: {c.reason}" for c in report.left_alone})
        self.row["activations"] = sorted({c.activation for c in report.changed})
        return "equal, not run" if self.given is None else self._same(self.model, self.truth)

    def _like(self, make: Callable[[Any], Any], untouched: str) -> str:
        """A copy of the accelerated model, made so, computes what the untouched one does, where its own copy does."""
        if untouched:
            return f"as untouched: {untouched}"
        other = make(self.model)
        return "equal, not run" if self.given is None else self._same(other, self.truth)

    def _untouched(self, make: Callable[[Any], Any]) -> str:
        """Why the untouched model has no copy that is made so and computes the same; "" where it has."""
        try:
            other = make(self.model)
            differs = self.given is not None and self._same(other, self.truth).startswith("FAULT")
        except Exception as error:
            return type(error).__name__
        return "its copy differs" if differs else ""

    def _loaded(self, model: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return type(model).from_pretrained(folder).float().eval()

    def _restore(self) -> str:
        nonlin.restore(self.model)
        if [type(m) for m in self.model.modules()] != self.types or said(self.model.config) != self.config:
            return "FAULT: classes or configuration are not as before"
        return "equal, not run" if self.given is None else self._same(self.model, self.truth, 0.0)

    def _swap(self) -> str:
        kinds = {b.activation for b in nonlin.patching.describe_blocks(self.model)}
        target = "silu" if kinds & {"relu", "reglu"} else "relu"
        try:
            with warnings.catch_warnings(action="ignore"):
                report = nonlin.swap(self.model, target)
        except UserError:
            said = self._restore()
            if said.startswith("FAULT"):
                return said
            raise
        said = self._saved(report)
        nonlin.restore(self.model)
        after = self._restore()
        return after if after.startswith("FAULT") else said

    def _saved(self, report: Any) -> str:
        self.row["config"], self.row["note"] = [list(map(str, c)) for c in report.config], report.note
        if self.given is None:
            return "equal, not run"
        if self.loads:
            return f"as untouched: {self.loads}"
        truth = self.truth if report.note else output(self.model, self.given)
        said = self._same(self._loaded(self.model), truth)
        if said.startswith("FAULT"):
            return said
        return "equal, written" if not report.note else "equal, said"

    def _watch(self) -> str:
        with nonlin.health.watch(self.model) as watched:
            if self.given is not None:
                output(self.model, self.given)
        if self.given is None:
            return "equal, not run"
        made = watched.record()
        false = [b["name"] for b in made["blocks"] if b["activation"]["agrees"] is False]
        self.row["unknown"] = sum(b["activation"]["status"] == "unknown" for b in made["blocks"])
        return f"FAULT: a false claim about {false[0]}" if false else self._same(self.model, self.truth, 0.0)

    def _check(self) -> str:
        made = nonlin.health.check(self.model, tokens=32, context=8)
        false = [b["name"] for b in made["blocks"] if b["activation"]["agrees"] is False]
        if false:
            return f"FAULT: a false claim about {false[0]}"
        return "equal, not run" if self.given is None else self._same(self.model, self.truth, 0.0)


def sweep(kind: str) -> dict[str, Any]:
    """Return the row of one family; {"left out": why} where it does not shrink, or has nothing to build from."""
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        model, why = build(kind)
        if model is None:
            return {"left out": why}
        if not roots(model):
            return {"left out": "not a model of its own"}
        return Sweep(model).run()


def faults(row: dict[str, Any]) -> dict[str, str]:
    """Return the operations of a row that are neither equal nor refused."""
    return {k: v for k, v in row.items() if isinstance(v, str) and v.startswith("FAULT")}


def _outcome(row: dict[str, Any], name: str) -> str:
    value = row.get(name, "")
    words = {"equal": "yes", "equal, not run": "not run", "equal, written": "yes, written", "equal, said": "yes, said"}
    return words.get(value, value.partition(":")[0] if value else "")


def page(record: dict[str, Any]) -> str:
    """Return docs/models.md from a record."""
    rows = {k: r for k, r in record["rows"].items() if "left out" not in r}
    left = {k: r["left out"] for k, r in record["rows"].items() if "left out" in r}
    some = {k: r for k, r in rows.items() if r["blocks"]}
    done = {k: r for k, r in some.items() if r.get("accelerated")}
    text = [
        "# Which models", "",
        f"Every family of transformers {record['transformers']} that can be made small was built as a tiny random "
        f"model. They are {len(rows)} families, {len(some)} of them with feed-forward blocks of matrix products. "
        f"{len(left)} more were not built, for the reasons at the end. Each model was accelerated, restored, swapped "
        "to another activation, saved, loaded, copied, pickled, watched and checked. The outputs were compared with "
        "the untouched model's: equal, or refused with the reason, nothing else.", "",
        f"{len(done)} families are accelerated, {len(some) - len(done)} refused. Made by `python -m "
        "benchmarks.model_sweep`; the slow test `tests/patching/test_every_family.py` runs it again.", "",
        "*swap*: \"written\" is a checkpoint that loads as the swapped function; \"said\" one that loads with the old "
        "activation, and the report says why. *as untouched*: the untouched model cannot do it either. *not run*: no "
        "input of the sweep's runs the model, so no outputs were compared; its blocks were proved equal, and nothing "
        "failed. "
        "*blocks*: accelerated of found.", "",
        "| family | class | blocks | activations | restore | swap | save | copy | pickle | watch | check |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for kind, r in sorted(done.items()):
        cells = [kind, r["class"], f"{r['accelerated']} of {r['blocks']}", ", ".join(r["activations"]),
                 *(_outcome(r, n) for n in ("restore", "swap", "save", "copy", "pickle", "watch", "check"))]
        text.append("| " + " | ".join(cells) + " |")
    text += ["", "## Refused", "", "Blocks that are left alone, and why; a family appears above where others of its "
             "blocks are replaced.", "", "| reason | families |", "| --- | --- |"]
    why: dict[str, set[str]] = collections.defaultdict(set)
    for kind, r in some.items():
        lines = r.get("left") or ([] if r.get("accelerated") else _refusals(r["accelerate"]))
        for line in lines:
            why[_reason(line)].add(kind)
    for reason, kinds in sorted(why.items(), key=lambda w: (-len(w[1]), w[0])):
        text.append(f"| {reason} | {', '.join(sorted(kinds))} |")
    none = sorted(k for k, r in rows.items() if not r["blocks"])
    text += ["", "## Without feed-forward blocks of matrix products", "",
             "DBRX has some, its experts, in a form that is not read.", "", "| families |", "| --- |",
             f"| {', '.join(none)} |", "", "## Not built", "", "| reason | families |", "| --- | --- |"]
    for reason, kinds in sorted(_by_value(left).items(), key=lambda w: (-len(w[1]), w[0])):
        text.append(f"| {reason.replace('|', '/')} | {', '.join(kinds)} |")
    libraries = _by_value({k: r["needs"] for k, r in rows.items() if "needs" in r})
    text += ["", *(f"Built where {name} is installed: {', '.join(kinds)}." for name, kinds in libraries.items())]
    return "\n".join(text) + "\n"


def _by_value(values: dict[str, str]) -> dict[str, list[str]]:
    """The names of each value, in order."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name, value in sorted(values.items()):
        found[value].append(name)
    return found


def _refusals(told: str) -> list[str]:
    """Return each kind of block with its reason, from accelerate's refusal."""
    reasons = told.partition("the model is as it was. ")[2]
    return re.split(r"; (?=[\d,]+ × )", reasons) if reasons else []


def _reason(line: str) -> str:
    """A refusal's kind: its text without the class, the numbers and what a block raised."""
    line = re.sub(r"^\s*\d+ × ", "", line)
    line = line.partition(": ")[2] if re.match(r"\w+: ", line) else line
    line = re.sub(r"\s*\([^()]*(\([^()]*\)[^()]*)*\)\s*$", "", line)
    for start in ("it takes more than its input", "no definition fits", "the outputs differ", "it cannot be called "
                  "alone", "it cannot be run alone", "the proof cannot run it", "it equals"):
        if line.startswith(start):
            return start
    return re.sub(r"\|", "/", line).strip().replace("keeps slope", "keeps `slope`")


def read(record: Path = RECORD) -> dict[str, Any]:
    """Return a record."""
    return json.loads(record.read_text())


def main() -> None:
    """Run the sweep, print faults as they come, write the record and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="families; by default all")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th family from the I-th on")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path, help="write the page from the record there, and run nothing")
    given = parser.parse_args()
    if given.page:
        given.page.write_text(page(json.loads(given.record.read_text())))
        return
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    at, step = map(int, given.part.split("/"))
    rows: dict[str, Any] = read(given.record)["rows"] if given.only and given.record.exists() else {}
    for kind in (given.only or families())[at::step]:
        rows[kind] = sweep(kind)
        if faults(rows[kind]):
            print(kind, faults(rows[kind]), flush=True)
        record = {"transformers": transformers.__version__, "rows": dict(sorted(rows.items()))}
        given.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
