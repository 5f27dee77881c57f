"""Studies planted on disk: a real plan, and results that say what the test wants."""

import json

import pytest

from nonlin.study import Arm, Request, Store, make_plan

_MACHINE = {"engine": "native", "dtype": "float32", "threads": 1}


@pytest.fixture
def plant(tmp_path):
    """Return a function that writes a study and returns its folder."""

    def write(verdicts, params=125_000_000, tokens=2_500_000_000, status="complete", formulas=None):
        batch, context = 64, 512
        formulas = formulas or {}
        arms = [Arm(n, "pointwise", 3072, params, formulas.get(n)) for n in verdicts]
        request = Request(arms, next(iter(verdicts)), {"layers": 12, "dim": 768, "heads": 12, "kv_heads": 12,
                                                       "context": context, "vocabulary": 256},
                          {"sha256": "0" * 64, "tokenizer": "bytes", "description": "planted"}, minutes=None, seeds=4,
                          steps=max(1, tokens // (batch * context)), batch=batch)
        folder = tmp_path / f"study{len(list(tmp_path.iterdir()))}"
        plan = make_plan(request, {a.name: 1e5 for a in arms}, _MACHINE)
        Store(folder).create(plan)
        effect = {"better": -0.05, "worse": 0.05, "tie": 0.0, "undecided": -0.01, "baseline": 0.0}
        rows = [{"name": n, "verdict": v, "bits_per_byte": 1 + effect[v], "parameters": params,
                 "kind": "pointwise", "hidden": 3072, "tuning": [], "formula": formulas.get(n),
                 "judged": [{"seed": 1, "bits_per_byte": 1.0, "status": "finished", "config_hash": "0" * 16}],
                 "difference": None if v == "baseline" else {
                     "mean": effect[v], "low": effect[v] - 0.004, "high": effect[v] + 0.004, "confidence": 0.95,
                     "p_value": 0.01, "seeds": 4}}
                for n, v in verdicts.items()]
        (folder / "results.json").write_text(json.dumps(
            {"format": 1, "name": "planted", "status": status, "baseline": next(iter(verdicts)), "arms": rows,
             "rule": plan.rule, "advice": "", "winner": next(iter(verdicts)), "ranking": list(verdicts),
             "plan": plan.as_dict(), "timing": {"seconds": 1.0}, "data": {"description": "planted"}}))
        return folder

    return write
