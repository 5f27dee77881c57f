"""How many minutes a verdict needs: the estimate is held against simulated runs of as many seeds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from nonlin.claims import all_claims, n08_gating, n09_stability, n10_convergence, n11_size, n12_tandem
from nonlin.claims.definition import NO, OPEN, UNSURE, YES, above
from nonlin.claims.lessons import budget
from nonlin.claims.n12_tandem import interacts
from nonlin.claims.needs import Question, share_needed
from nonlin.claims.plan import make, minutes_for
from nonlin.claims.runner import results
from nonlin.study.defaults import POWER
from nonlin.study.statistics import effect_of
from nonlin.study.store import Store
from tests.claims import planted


def seen(mean, sd, seeds, confidence=0.95):
    """An effect as a run shows it."""
    return vars(effect_of(mean, sd / seeds**0.5, seeds, confidence))


def simulated(mean, sd, seeds, margin, sides, confidence, times=4000):
    """The share of runs of so many seeds that the rule of the claims answers."""
    random = np.random.default_rng(seeds)
    drawn = mean + sd * random.standard_normal((times, seeds))
    answers = []
    for row in drawn:
        effect = vars(effect_of(row.mean(), row.std(ddof=1) / seeds**0.5, seeds, confidence))
        answers.append(above(effect, margin) if sides == 1 else interacts([effect]))
    expected = YES if (mean if sides == 1 else abs(mean)) > margin else NO
    return sum(a == expected for a in answers) / times


@pytest.mark.parametrize(("mean", "sd", "margin", "sides", "confidence"), [
    (0.001, 0.05, 0.02, 1, 0.95), (0.05, 0.06, 0.02, 1, 0.95), (-0.03, 0.08, 0.01, 1, 0.975),
    (0.004, 0.02, 0.02, 2, 0.95), (-0.06, 0.05, 0.02, 2, 0.99)])
def test_as_many_seeds_answer_with_the_stated_power_and_fewer_do_not(mean, sd, margin, sides, confidence):
    needed = Question(seen(mean, sd, 6, confidence), margin, sides).seeds()
    assert simulated(mean, sd, needed, margin, sides, confidence) > POWER - 0.03
    assert simulated(mean, sd, max(2, needed // 2), margin, sides, confidence) < POWER + 0.03


def test_an_effect_at_its_margin_is_beyond_reach_and_one_without_spread_needs_two_seeds():
    assert Question(seen(0.02, 0.05, 6), 0.02, 2).seeds() is None
    assert Question(seen(0.0, 0.0, 6), 0.02).seeds() == 2
    assert share_needed([Question(seen(0.02, 0.05, 6), 0.02, 2), Question(seen(0.0, 0.1, 6), 0.2)]) is None


def test_below_is_above_turned():
    effect = seen(-0.05, 0.03, 8)
    assert Question.below(effect, 0.02).seeds() == Question(seen(0.05, 0.03, 8), 0.02).seeds()
    assert Question.below(effect, 0.02).effect["low"] == pytest.approx(-effect["high"])


@pytest.mark.parametrize("module", [n08_gating, n09_stability, n10_convergence, n11_size, n12_tandem])
def test_every_statistical_claim_has_its_questions(module):
    claim = module.CLAIM
    curve = [{"kind": "train", "tokens": 512 * i, "loss_nats": 3.0 - i / 200} for i in range(100)]
    measures = claim.measure(planted.found(claim, lambda config: 0.0, lines=lambda key: curve, scale=0.02))
    asked = claim.questions(json.loads(json.dumps(measures)))  # as a page reads them
    assert asked
    verdict = claim.decide(measures)
    if UNSURE not in verdict.parts.values():
        assert all(q.seeds() is None or q.seeds() <= 4 * q.effect["seeds"] for q in asked)


def test_a_pair_is_decided_by_its_clearest_contrast():
    near, clear = seen(0.03, 0.2, 4), seen(-0.05, 0.03, 4)
    measures = {"contrasts": {f"{pair}: a, b": near for pair in n12_tandem.PAIRS}
                | {f"{n12_tandem.PAIRS[0]}: c, d": clear}}
    first, second, _ = n12_tandem.questions(measures)
    assert first.effect is clear
    assert second.effect is near


def test_an_effect_just_beyond_the_margin_does_not_hide_one_that_is_decided_sooner():
    near, far = seen(0.0201, 0.002, 4), seen(0.09, 0.05, 4)  # the nearer one is the clearer from zero
    both = {"a, b": near, "c, d": far}
    measures = {"contrasts": {f"{pair}: {k}": e for pair in n12_tandem.PAIRS for k, e in both.items()}}
    assert all(q.effect is far for q in n12_tandem.questions(measures))


def test_what_did_not_train_is_not_decided_by_minutes():
    measures = {"contrasts": {f"{pair}: a, b": seen(0.03, 0.2, 4) for pair in n12_tandem.PAIRS[1:]}}
    assert n12_tandem.questions(measures) == []
    row = {"verdict": "better", "difference": seen(0.03, 0.01, 4), "margin": 0.005}
    assert n08_gating.questions({"matches": {"width": row, "time": {"verdict": "undecided", "difference": None}}}) == []


@pytest.mark.parametrize("share", [1.01, 1.5, 2.5, 5.0])
def test_so_many_minutes_have_so_many_seeds(share):
    before = planted.plan(20)
    after = planted.plan(math.ceil(minutes_for(before, share)))
    for name, which in (("core", "tune_seeds"), ("core", "judge_seeds"), ("tandem-none-on", "judge_seeds")):
        assert len(getattr(after.study(name), which)) >= share * len(getattr(before.study(name), which))
    assert minutes_for(before, 100.0) is None


def test_a_row_says_what_is_needed_where_it_is_open(tmp_path):
    claim = n09_stability.CLAIM
    made = planted.plan()
    store = Store(tmp_path, type(made))
    row = results(made, [claim], store)["claims"][0]
    assert row["verdict"] is None
    assert budget(row) == ""
    row = row | {"verdict": OPEN, "minutes": {"planned": 20.0, "needed": 57.3}}
    assert "--minutes 58" in budget(row)
    assert "hardly" in budget(row | {"minutes": {"planned": 20.0, "needed": None}})
    assert budget(row | {"verdict": "holds"}) == "Decided in a run of 20 minutes."


def test_more_minutes_buy_seeds_before_steps():
    few, many = planted.plan(20), planted.plan(120)
    assert len(many.study("core").tune_seeds) >= 3 * len(few.study("core").tune_seeds)
    assert len(many.study("tandem-none-on").judge_seeds) >= 3 * len(few.study("tandem-none-on").judge_seeds)
    seeds = {s for name in many.studies for s in many.study(name).tune_seeds}
    judged = {s for name in many.studies for s in many.study(name).judge_seeds}
    assert not seeds & judged
    assert not (seeds | judged) & set(range(1001, 2000))  # of --seed 1


def test_the_minutes_of_the_claims_page_follow_from_the_record():
    """At the record's speeds, with a second for what a run costs beside its steps."""
    root = Path(__file__).parents[2]
    record = json.loads((root / "benchmarks/records/claims.json").read_text(encoding="utf-8"))
    page = (root / "docs/claims.md").read_text(encoding="utf-8")
    said = {int(row.split("|")[1]): row.split("|")[5].strip() for row in page.splitlines()
            if row.startswith("| ") and row.count("|") == 6 and row.split("|")[1].strip().isdigit()}
    speeds = {key: {"tokens_per_second": speed, "seconds_overhead": 1.0}
              for key, speed in record["plan"]["speeds"].items()}

    def planned(minutes):
        return make({"minutes": minutes, "seed": 0, "rules": {}}, speeds, record["plan"]["machine"],
                    record["plan"]["data"], 2)

    claims = {claim.number: claim for claim in all_claims()}
    for row in record["claims"]:
        if row["verdict"] == OPEN:
            share = share_needed(claims[row["number"]].questions(row["measures"]))
            needed = minutes_for(planned(20.0), share)
            told = said[row["number"]]
            assert ("ladder" in told) if needed is None else float(told.removeprefix("about ")) == pytest.approx(
                needed, rel=0.05), row["number"]
    assert [len(planned(minutes).study("core").judge_seeds) for minutes in (20.0, 40.0, 45.0)] == [6, 12, 20]
    assert "40 have 12 judged seeds, 45 have 20" in page
