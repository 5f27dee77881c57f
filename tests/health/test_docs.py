"""The figures in docs/check.md are those of the records it names."""

import ast
import json
from pathlib import Path

import pytest

from nonlin.health.findings import grade
from nonlin.numbers import typeset

ROOT = Path(__file__).parents[2]
TEXT = " ".join((ROOT / "docs" / "check.md").read_text().split())


def record(name):
    return json.loads((ROOT / "benchmarks" / "records" / f"health_{name}.json").read_text())


def largest(block, stream):
    return sorted((m for m in block["massive"] if m["stream"] == stream), key=lambda m: -m["value"])


def test_smollm2():
    made = record("smollm2")
    blocks = made["blocks"]
    first, second = largest(blocks[11], "hidden")[:2]
    residual, taken_out = largest(blocks[11], "residual")[0], largest(blocks[28], "hidden")[0]
    assert all(m["place"] == 0 for b in blocks for m in b["massive"])
    assert sum(b["dead"]["count"] + b["saturated"]["count"] for b in blocks) == 0
    assert not [f for f in made["findings"] if f["grade"] == "serious"]
    assert len([f for f in made["findings"] if f["grade"] == "warning"]) == 1
    gradients, shares = [b["gradients"]["rms"] for b in blocks], [b["sparsity"] for b in blocks]
    others = {o["activation"]: o["difference_nats"] for o in made["alternatives"]["others"]}
    for said in (
            f"on {made['tokens']:,} tokens", f"at {made['loss_nats']:.3f} nats",
            f"unit {first['unit']:,} reach {first['value']:,.0f} and unit {second['unit']:,} reach "
            f"{second['value']:,.0f}", f"writes {residual['value']:,.0f} into channel {residual['unit']}",
            f"unit {taken_out['unit']}, which reaches {taken_out['value']:,.0f}",
            f"{blocks[11]['outliers']['channels'][0]['ratio']:,.0f} times the median channel",
            f"{blocks[11]['streams']['hidden']['flushed_float8']:.1%} of block 11's hidden activation",
            f"Between {min(shares):.0%} and {max(shares):.0%} of the units",
            f"is {gradients[0] / min(gradients):.0f} times larger",
            f"largest attention logit is {max(made['attention']['largest_logits']):.0f}.",
            f"costs {others['geglu']:.2f} nats per token more, with ReGLU {others['reglu']:.2f}"):
        assert typeset(said) in TEXT, said


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_the_recorded_findings_are_those_that_its_measures_give_today(name):
    made = record(name)
    assert json.loads(json.dumps(grade(made))) == made["findings"]


def test_minilm():
    made = record("minilm")
    kurtosis = [b["streams"]["hidden"]["kurtosis"] for b in made["blocks"]]
    assert made["findings"] == []
    assert f"falls from {max(kurtosis):.0f} in block {kurtosis.index(max(kurtosis))} to {min(kurtosis):.0f}" in TEXT


def test_overhead():
    made = record("overhead")
    assert made["overhead_at_interval"] < 0.03  # recorded on a quiet machine, not measured here
    shares = made["overhead_at_interval"], made["overhead_at_interval_with_gradients"]
    assert typeset(f"that is {shares[0]:.2%}, or {shares[1]:.2%}") in TEXT


def test_every_finding_is_explained():
    tree = ast.parse((ROOT / "src" / "nonlin" / "health" / "findings.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "_finding"]
    names = {n.args[1].value for n in calls if isinstance(n.args[1], ast.Constant)} | {"vanishing", "exploding"}
    assert len(names) > 12 and [n for n in names if n not in TEXT] == []
