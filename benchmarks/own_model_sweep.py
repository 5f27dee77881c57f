"""Every causal language model class of the installed transformers as the subject of a study: replaced, trained, saved.

    python -m benchmarks.own_model_sweep [--only KIND ...] [--record FILE] [--page FILE]

builds each family as a tiny random model and puts two arms in it, one gated and one plain. It checks that the arms are
equal outside their blocks, that a training step is finite, that a gradient reaches every weight that was replaced, and
that each arm's model loads again with equal logits. A family that is refused is refused with a reason. The record's
table is docs/own-models.md; the slow test tests/subject/test_every_family.py runs the sweep again.
"""

import argparse
import collections
import contextlib
import io
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import nonlin
from benchmarks import tiny_models
from benchmarks.tiny_models import VOCABULARY
from nonlin.errors import UserError
from nonlin.subject import build, describe
from nonlin.subject.saving import save

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "benchmarks" / "records" / "own-models.json", ROOT / "docs" / "own-models.md"
ARMS, CONTEXT = ("swiglu", "relu"), 16


def classes() -> dict[str, str]:
    """Return the causal language model class of each model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))


def configuration(kind: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return (the JSON values of a tiny configuration, the library that it needs) or (None, why there is none)."""
    model, why = tiny_models.build(kind, classes()[kind])
    if model is None:
        return None, why
    config = model.config
    text = config.get_text_config()
    for one in {id(config): config, id(text): text}.values():
        for name in ("is_decoder", "causal"):
            if hasattr(one, name):
                setattr(one, name, True)
    values = json.loads(json.dumps(config.to_dict(), default=str))
    return values | {"architectures": [type(model).__name__], "model_type": config.model_type}, tiny_models.needs(model)


def _steps(found: dict[str, Any], arm: str, row: dict[str, Any]) -> None:
    """Train an arm's model for one step, save it and load it; note what is wrong."""
    definition = nonlin.get(arm)
    widths = next(a["widths"] for a in found["arms"] if a["name"] == arm)
    config = {"seed": 1, "model": {"own": found["own"], "widths": widths, "context": CONTEXT},
              "machine": {"dtype": "float32"}}
    model = build(config, definition)
    tokens = torch.randint(0, VOCABULARY, (8, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    optimizer.step()
    second = model.loss(tokens[:, :-1], tokens[:, 1:])
    second.backward()  # xLSTM begins with gates of zero, so that the first step reaches the gates alone
    reached = {n for n, p in model.inner.named_parameters() if p.grad is not None and bool(p.grad.any())}
    owned = {n for block in model.replaced for n in block.owned}
    after = float(second.detach())
    if not (torch.isfinite(loss) and after == after and abs(after) < float("inf")):
        row.setdefault("faults", []).append(f"{arm}: a step is not finite")
    unreached = sorted(owned - reached)
    if unreached:
        row.setdefault("faults", []).append(f"{arm}: no gradient reaches {unreached[0]} and {len(unreached) - 1} more")
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        told = save(model, Path(folder), prove=False)
        loaded: Any = nonlin.load(folder)
        torch.manual_seed(0)
        ours = model(tokens[:1, :CONTEXT])
        torch.manual_seed(0)
        theirs = loaded(tokens[:1, :CONTEXT], **model.options).logits
        off = float((ours - theirs).norm() / ours.norm())
        row.setdefault("saved", {})[arm] = told["format"] + ("" if told["format"] == "huggingface" else
                                                             f": {told['note'].partition(': nonlin')[0]}")
        if not off <= 1e-4:
            row.setdefault("faults", []).append(f"{arm}: loaded again it differs by {off:.2g}")


def sweep(kind: str) -> dict[str, Any]:
    """Return the row of one family."""
    row: dict[str, Any] = {"class": classes()[kind]}
    began = time.process_time()
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
        values, why = configuration(kind)
        if values is None:
            return row | {"not built": why}
        row |= {"needs": why} if why else {}
        request = {"wanted": {"config": values}, "vocabulary": VOCABULARY, "context": CONTEXT, "rows": 8,
                   "match": "params", "seed": 1, "arms": [{"name": arm} for arm in ARMS]}
        try:
            found = describe(request)
        except UserError as error:
            return row | {"refused": str(error)}
        except Exception as error:
            return row | {"faults": [f"describe: {type(error).__name__}: {str(error)[:200]}"]}
        own = found["own"]
        row |= {"replaced": sum(len(g["names"]) for g in own["blocks"]),
                "experts": any(g["experts"] for g in own["blocks"]),
                "styles": sorted({g["style"] for g in own["blocks"]}),
                "activations": sorted({g["computes"] for g in own["blocks"]}),
                "left": [f"{len(one['names'])} × {one['class']}: {one['reason']}" for one in own["left"]]}
        for arm in ARMS:
            try:
                _steps(found, arm, row)
            except Exception as error:
                row.setdefault("faults", []).append(f"{arm}: {type(error).__name__}: {str(error)[:200]}")
    return row | {"seconds": round(time.process_time() - began, 1)}


def page(record: dict[str, Any]) -> str:
    """Return docs/own-models.md from a record."""
    rows = record["rows"]
    good = {k: r for k, r in rows.items() if "replaced" in r and not r.get("faults")}
    refused = {k: r for k, r in rows.items() if "refused" in r}
    text = [
        "# Your own model: which families", "",
        f"Every causal language model class of transformers {record['transformers']} ({len(rows)} families), built as "
        "a tiny random model, with two arms: SwiGLU and ReLU at equal parameters. *Supported* means four things. The "
        "arms are equal outside their blocks. A training step is finite. A gradient reaches every weight that was "
        "replaced. Each arm's model loads again with equal logits. Made by "
        "`python -m benchmarks.own_model_sweep`; the slow test `tests/subject/test_every_family.py` runs it again.", "",
        f"{len(good)} families are supported, {len(refused)} refused with the reason, "
        f"{sum('not built' in r for r in rows.values())} have no tiny configuration that builds.", "",
        "*style*: \"block\" and \"layer\" are replaced whole, \"experts\" are stacked, \"entered\" are computed by "
        "their layer's own forward. *saved*: how the ReLU and the SwiGLU arm are saved, as a checkpoint of the family "
        "(\"family\") or in nonlin's own form.", "",
        "| family | class | blocks | style | its activation | SwiGLU saved | ReLU saved | left alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for kind, r in sorted(good.items()):
        saved = ["family" if r["saved"][arm] == "huggingface" else "own form" for arm in ARMS]
        text.append("| " + " | ".join([kind, r["class"], str(r["replaced"]), ", ".join(r["styles"]),
                                       ", ".join(r["activations"]), *saved, "; ".join(r["left"])]) + " |")
    for title, found in (("Refused", {k: r["refused"] for k, r in refused.items()}),
                         ("Without a tiny configuration", {k: r["not built"] for k, r in rows.items()
                                                           if "not built" in r}),
                         ("Faults", {k: "; ".join(r["faults"]) for k, r in rows.items() if r.get("faults")})):
        if not found:
            continue
        text += ["", f"## {title}", "", "| family | reason |", "| --- | --- |"]
        by: dict[str, list[str]] = collections.defaultdict(list)
        for kind, reason in sorted(found.items()):
            by[reason.replace("|", "\\|")].append(kind)
        text += [f"| {', '.join(kinds)} | {reason} |" for reason, kinds in by.items()]
    if wanting := sorted(kind for kind, row in rows.items() if "needs" in row):
        text += ["", f"Built where {rows[wanting[0]]['needs']} is installed: {', '.join(wanting)}."]
    return "\n".join(text) + "\n"


def main() -> None:
    """Sweep, and write the record and the page; what an earlier call found of other families stays."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    if given.only is not None and given.record.exists():
        rows = json.loads(given.record.read_text())["rows"]
    for kind in given.only or classes():
        rows[kind] = sweep(kind)
        print(kind, json.dumps({k: v for k, v in rows[kind].items() if k != "saved"}), flush=True)
        record = {"transformers": transformers.__version__, "torch": torch.__version__, "nonlin": nonlin.__version__,
                  "command": "python -m benchmarks.own_model_sweep", "rows": dict(sorted(rows.items()))}
        given.record.write_text(json.dumps(record, indent=1) + "\n")
        given.page.write_text(page(record))


if __name__ == "__main__":
    main()
