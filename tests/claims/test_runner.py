"""Claims run, resume, and become a page; the language model's variants are what they say."""

import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from nonlin.claims import all_claims
from nonlin.claims.page import build
from nonlin.claims.plan import ATTENTION, NORMS, ClaimsPlan
from nonlin.claims.runner import read, results, run_claims
from nonlin.errors import UserError
from nonlin.functions import get
from nonlin.model import ModelConfig, parameter_count
from nonlin.model.language_model import LanguageModel
from nonlin.study import ProcessEngine, Store
from nonlin.study.store import _checksum
from nonlin.study.tuning import complete, trials_of
from tests.claims import planted

WORKER = [sys.executable, "-m", "nonlin.claims.worker"]


def without_timing(value):
    """The value less everything under a key "timing"."""
    if isinstance(value, dict):
        return {k: without_timing(v) for k, v in value.items() if k != "timing"}
    return [without_timing(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which claim 1 has run."""
    folder = tmp_path_factory.mktemp("claims")
    claims, events = all_claims(), []
    with ProcessEngine("nowhere", 2, WORKER) as engine:
        found = run_claims(planted.plan(), claims[:1], claims, Store(folder, ClaimsPlan), engine, events.append)
    return folder, found, events


def test_a_claim_runs_is_stored_and_does_not_run_again(made):
    folder, found, events = made
    assert found["status"] == "partial" and found["claims"][0]["verdict"] == "depends"
    assert all(row["verdict"] is None for row in found["claims"][1:])
    assert events[-1]["total"] == 7 and json.loads((folder / "results.json").read_text())["claims"][0]["verdict"]
    before = {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}
    assert len(before) == 7
    claims = all_claims()
    with ProcessEngine("nowhere", 2, ["a command that is not there"]) as engine:  # nothing is left to start it for
        again = run_claims(planted.plan(), claims[:1], claims, Store(folder, ClaimsPlan), engine)
    assert without_timing(again) == without_timing(found)
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("trials/*/result.json")}


@pytest.mark.parametrize("line", [b"[" * 100_000, b"3", b"{"])
def test_measures_that_cannot_be_read_are_one_error(tmp_path, line):
    plan, claims = planted.plan(), all_claims()
    (tmp_path / "trials" / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / "trials" / "0123456789abcdef" / "metrics.jsonl").write_bytes(line + b"\n")
    found = read(plan, claims[:1], Store(tmp_path, ClaimsPlan))
    with pytest.raises(UserError, match="0123456789abcdef"):
        found.lines("0123456789abcdef")


def test_a_damaged_record_runs_again_with_the_same_result(made):
    folder, found, _ = made
    path = next(iter(sorted(folder.glob("trials/*/result.json"))))
    path.write_text(path.read_text().replace("measured", "mistaken"))
    claims = all_claims()
    assert results(planted.plan(), claims, Store(folder, ClaimsPlan))["claims"][0]["verdict"] is None
    with ProcessEngine("nowhere", 1, WORKER) as engine:
        again = run_claims(planted.plan(), claims[:1], claims, Store(folder, ClaimsPlan), engine)
    assert without_timing(again) == without_timing(found)


@pytest.mark.parametrize(("field", "new"), [("timing", {"seconds": "1"}), ("timing", 3), ("measured", [])])
def test_a_record_of_another_form_runs_again_though_its_sum_fits(made, tmp_path, field, new):
    folder = Path(shutil.copytree(made[0], tmp_path / "claims"))
    changed(next(iter(sorted(folder.glob("trials/*/result.json")))), field, new)
    assert results(planted.plan(), all_claims(), Store(folder, ClaimsPlan))["claims"][0]["verdict"] is None


@pytest.mark.parametrize("new", [{}, {"x": 1}, {"depths": "x"}])
def test_measures_of_another_form_are_one_error_though_their_sum_fits(made, tmp_path, new):
    """Each experiment's measures have a form of its own, which its claim alone knows."""
    folder = Path(shutil.copytree(made[0], tmp_path / "claims"))
    for path in folder.glob("trials/*/result.json"):
        changed(path, "measured", new)
    with pytest.raises(UserError, match="the runs of claim 1 must hold what they measured"):
        results(planted.plan(), all_claims(), Store(folder, ClaimsPlan))


def changed(path, field, new):
    record = json.loads(path.read_text()) | {field: new}
    path.write_text(json.dumps(record | {"checksum": _checksum(record)}))


def test_a_plan_without_one_of_its_studies_is_one_error():
    plan = planted.plan()
    plan.studies.pop("core")
    with pytest.raises(UserError, match="must hold the study 'core'"):
        plan.study("core")


def test_another_plan_is_refused(made):
    folder, _, _ = made
    with pytest.raises(UserError, match="another study"):
        Store(folder, ClaimsPlan).create(planted.plan(seed=1))


def test_studies_share_runs_and_seeds_share_none():
    one, two = planted.plan(), planted.plan(seed=1)
    keys = [{t.key for name in p.studies for t in trials_of(p.study(name), "tune", {})} for p in (one, two)]
    assert not keys[0] & keys[1]
    everything = sum(len(trials_of(one.study(name), "tune", {})) for name in one.studies)
    assert len(keys[0]) < everything  # the gate's studies and the ladder ask for the same runs
    assert all(not complete(one.study(name), {}) for name in one.studies)


def test_plans_fit_their_minutes_and_a_long_one_trains_longer():
    steps = {m: planted.plan(m) for m in (2, 20, 40)}
    assert steps[20].budget["minutes"] <= 20 and steps[40].budget["minutes"] <= 40
    assert steps[2].steps < steps[20].steps < steps[40].steps
    with pytest.raises(UserError, match="minutes"):
        planted.plan(0.1)


class _Outside(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and re.match(r"(https?:)?//", v)]


def test_the_page_stands_alone_and_says_what_was_tested_and_no_more(made):
    folder, found, _ = made
    page = build(folder, found).read_text()
    outside = _Outside()
    outside.feed(page)
    assert outside.found == []
    text = page.replace("&#39;", "'").replace("&amp;", "&")
    first, *others = all_claims()
    assert first.statement in text and 'id="claim-1"' in page
    for claim in others:
        assert claim.statement not in text and f'id="claim-{claim.number}"' not in page
    words = re.sub(r"<[^>]+>", "", text).replace("\u00a0", " ")
    assert found["claims"][0]["summary"] in words and "Not run" not in words
    assert "True of plain layers. Not of a transformer: attention and normalization are not linear." in words
    assert words.index("True of plain layers") < words.index(found["claims"][0]["summary"])
    for command in re.findall(r"<code>(nonlin claims .*?)</code>", text):  # each can be given as it stands
        assert f"--out {shlex.quote(str(folder))}" in command and ("--resume" in command) != ("--minutes 20" in command)
    assert (folder / "figures" / "claim-01-linear.svg").exists()


def test_the_whole_page_of_planted_studies(tmp_path):
    """Every claim on language models draws its figure and its tables from planted records."""
    plan = planted.plan(2)
    claims = [c for c in all_claims() if c.studies and c.number not in (3, 5)]
    curve = "".join(json.dumps({"kind": "train", "tokens": t, "loss_nats": 10 / t}) + "\n" for t in range(1, 50))
    names = dict.fromkeys(n for c in claims for n in c.studies)
    records = planted.records(plan, names, planted.activation(swiglu=-0.03))
    store = Store(tmp_path, ClaimsPlan)
    store.create(plan)
    for name in plan.studies:
        study, known = plan.study(name), {}
        while not complete(study, known):
            for t in [*trials_of(study, "tune", known), *trials_of(study, "judge", known)]:
                known[t.key] = records[t.key] | {"config_hash": t.key}
                if not (tmp_path / "trials" / t.key).exists():
                    _, folder = store.begin(t.config)
                    (folder / "metrics.jsonl").write_text(curve)
                    store.finish(folder, known[t.key])
    found = results(plan, all_claims(), store)
    verdicts = {c["number"]: c["verdict"] for c in found["claims"]}
    assert verdicts[8] == "holds" and verdicts[11] == "does not hold here" and verdicts[1] is None
    page = build(tmp_path, found).read_text()
    assert page.count("<figure") == len(claims) and "1.997 ± 0.005" in page
    assert read(plan, claims, store).records.keys() == records.keys()


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("norm", NORMS)
def test_variants_of_the_model_count_and_learn(norm, attention):
    config = ModelConfig(layers=2, dim=16, heads=2, kv_heads=2, hidden=24, context=8, **NORMS[norm],
                         **ATTENTION[attention])
    model = LanguageModel(config, get("gelu"), seed=1)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config, gated=False)
    tokens = torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(0))
    model.loss(tokens, tokens).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():  # without attention a token's logits depend on it alone
        changed = tokens.clone()
        changed[:, 0] = (changed[:, 0] + 1) % 256
        moved = (model(tokens) - model(changed))[:, -1].abs().max()
    assert (moved == 0) == (attention == "off")


_NORMAL = {"none": lambda v: v, "rms": lambda v: torch.nn.functional.rms_norm(v, (16,), eps=1e-6),
           "layer": lambda v: torch.nn.functional.layer_norm(v, (16,), eps=1e-6)}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_where_they_are_said_to_be(norm):
    x = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0)) * 7
    config = ModelConfig(layers=1, dim=16, heads=2, kv_heads=2, hidden=24, attention=False, **NORMS[norm])
    model = LanguageModel(config, get("gelu"), seed=1)
    part, normal = model.blocks[0].feed_forward, _NORMAL[config.norm]
    with torch.no_grad():
        out = model.blocks[0](x, None, None, model.engine, None)
        reference = normal(x + part(x)) if config.norm_place == "after" else x + part(normal(x))
    torch.testing.assert_close(out, reference)


def test_a_variant_exports_in_our_own_form(tmp_path):
    from nonlin.model import export_model, import_model

    config = ModelConfig(layers=1, dim=16, heads=2, kv_heads=2, hidden=24, context=8, norm="none")
    model = LanguageModel(config, get("gelu"), seed=3)
    assert export_model(model, tmp_path)["format"] == "nonlin"
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(import_model(tmp_path)(tokens), model(tokens), rtol=0, atol=0)
    with pytest.raises(UserError, match="norm must be one of"):
        ModelConfig(norm="batch")
