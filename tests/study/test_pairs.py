"""The better arms with each other: by the same fit, after the baseline, and never at its cost."""

import shlex
from dataclasses import replace

import pytest

from nonlin.report import build, terminal
from nonlin.report.notebook import html
from nonlin.study import load, simulated
from nonlin.study.advice import advice, headline, next_steps, remarks
from nonlin.study.pairs import judge_pairs
from nonlin.study.verdict import judge
from tests.study import studies
from tests.study.test_response import _most
from tests.test_documents import parse

NAMES = [f"arm-{i}" for i in range(6)]


def judged(world, number=0, seeds=8):
    plan = simulated.plan(len(world.effects), seeds)
    return plan, simulated.study(world, plan, number)


def test_verdicts_with_the_baseline_are_the_same_with_pairs_and_without():
    world = replace(simulated.DEFAULT, effects=(0, -0.05, -0.05, -0.08, 0, 0.04))
    plan, found = judged(world)
    without = replace(plan, rule={key: value for key, value in plan.rule.items() if key != "pairs"})
    plain = simulated.study(world, without, 0)
    assert plain["pairs"] == [] and len(found["pairs"]) == 3
    assert [a["verdict"] for a in found["arms"]] == [a["verdict"] for a in plain["arms"]]
    assert [a["difference"] for a in found["arms"]] == [a["difference"] for a in plain["arms"]]


def test_a_pair_is_the_difference_of_its_differences_and_the_first_is_the_better():
    _, found = judged(replace(simulated.DEFAULT, effects=(0, -0.05, -0.06, -0.09, 0, 0.04)))
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert len(found["pairs"]) == 3
    for pair in found["pairs"]:
        first, second, d = arms[pair["first"]], arms[pair["second"]], pair["difference"]
        assert first["verdict"] == second["verdict"] == "better" and d["mean"] < 0
        assert d["mean"] == pytest.approx(first["difference"]["mean"] - second["difference"]["mean"], abs=1e-12)
        assert (pair["verdict"] == "better") == (d["high"] < 0 and d["mean"] < -0.005)
    assert found["pairs"][0]["first"] == found["winner"] == "arm-3"


def test_a_level_of_their_own_while_an_arm_is_not_told_from_the_baseline():
    mixed = judged(replace(simulated.DEFAULT, effects=(0, -0.05, -0.05, -0.09, 0, 0.04)))[1]
    told = judged(replace(simulated.DEFAULT, effects=(0, -0.05, -0.05, -0.09, 0.05, 0.04)))[1]
    assert {pair["difference"]["confidence"] for pair in mixed["pairs"]} == {0.99}
    assert {pair["difference"]["confidence"] for pair in told["pairs"]} == {0.95}
    for ours, other in zip(mixed["pairs"], told["pairs"], strict=True):
        assert ours["difference"]["interval_confidence"] > other["difference"]["interval_confidence"]


def test_no_pairs_without_two_better_arms_nor_before_all_runs_are_there():
    assert judged(simulated.DEFAULT)[1]["pairs"] == []
    assert judged(replace(simulated.DEFAULT, effects=(0, -0.09, 0, 0, 0, 0)))[1]["pairs"] == []
    rule = {"margin": 0.005, "confidence": 0.95, "seeds": 9, "method": "response", "pairs": 0.2}
    runs = {"a": dict.fromkeys(range(8), 2.0), "b": dict.fromkeys(range(8), 1.0), "c": dict.fromkeys(range(8), 1.5)}
    from nonlin.study.response import Run

    responses = {arm: [Run(s, 0.0, x, True) for s, x in found.items()] for arm, found in runs.items()}
    assert judge_pairs(rule, judge(rule, runs, "a", responses), responses, "a") == []
    whole = rule | {"seeds": 8}
    (pair,) = judge_pairs(whole, judge(whole, runs, "a", responses), responses, "a")
    assert (pair.first, pair.second, pair.verdict) == ("b", "c", "better")


def test_a_baseline_that_never_trains_does_not_hinder_them():
    rule = {"margin": 0.005, "confidence": 0.95, "seeds": 6, "method": "response", "pairs": 0.2}
    from nonlin.study.response import Run

    runs = {"a": dict.fromkeys(range(6)), "b": {i: 1.0 + i / 99 for i in range(6)},
            "c": {i: 1.5 + i / 98 for i in range(6)}}
    responses = {arm: [Run(s, 0.0, x, True) for s, x in found.items() if x is not None] for arm, found in runs.items()}
    (pair,) = judge_pairs(rule, judge(rule, runs, "a", responses), responses, "a")
    assert (pair.first, pair.second, pair.verdict) == ("b", "c", "better")


@pytest.mark.parametrize("effects", [(0, -0.05, -0.05, -0.05, 0, 0), (0, -0.05, -0.05, -0.05, -0.05, -0.05)])
def test_claims_of_any_kind_are_false_as_seldom_as_stated(effects):
    """Equal better arms, with and without arms that equal the baseline: the hardest cases."""
    found = simulated.rates(replace(simulated.DEFAULT, effects=effects), simulated.plan(6), 60)
    assert found.false * 60 <= _most(0.06) * 100 and found.false >= found.false_verdicts


def test_better_arms_that_differ_are_told_so():
    found = simulated.rates(replace(simulated.DEFAULT, effects=(0, -0.05, -0.05, -0.11, 0, 0)), simulated.plan(6), 20)
    assert found.pairs_found > 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of fake workers with two better arms."""
    directory = tmp_path_factory.mktemp("pairs") / "study"
    studies.run(directory, studies.plan("relu", "swiglu", "silu", "gelu", seeds=6))
    build(directory)
    return directory


def test_the_table_the_page_and_the_words_say_what_is_not_separated(folder):
    results = load(folder).results
    assert results["pairs"], [(a["name"], a["verdict"]) for a in results["arms"]]
    page, text, cell = (folder / "report.html").read_text(), terminal.text(results, "DIR"), html(load(folder))
    for pair in results["pairs"]:
        words = terminal.PAIR_WORDS[pair["verdict"]]
        for shown in (page, text, cell):
            assert pair["first"] in shown and pair["second"] in shown and words in shown
    assert results["headline"] in text and results["headline"].split(" (")[0] in page
    assert all(f"{said}: {command}" in text for said, command in next_steps(results, "DIR"))


PLAN = replace(studies.plan("gelu", "geglu", "swiglu", "relu"), data=studies.DATA | {
    "description": "the Python 3.11 standard library", "train_bytes": 10_000, "train_tokens": 10_000})


def arm(name, verdict, mean=None, kind="gated"):
    d = None if mean is None else {"mean": mean, "low": mean - 0.017, "high": mean + 0.017, "confidence": 0.95}
    return {"name": name, "verdict": verdict, "kind": kind, "difference": d, "bits_per_byte": 2 + (mean or 0),
            "judged": [1], "diverged_runs": 0, "seeds_needed": 21 if verdict == "undecided" else None}


def pair(verdict, needed=None):
    return {"first": "geglu", "second": "swiglu", "verdict": verdict, "seeds_needed": needed, "reason": "more seeds",
            "difference": {"mean": -0.0012, "low": -0.01, "high": 0.008, "confidence": 0.99}}


ARMS = [arm("gelu", "baseline", kind="pointwise"), arm("geglu", "better", -0.049), arm("swiglu", "better", -0.0478),
        arm("relu", "worse", 0.04, "pointwise")]


def test_the_headline_says_what_it_stands_on():
    said = headline(PLAN, ARMS, [pair("undecided")])
    assert said == ("At 0.1 M parameters on 0.077 MB of the Python 3.11 standard library, gated activations beat "
                    "gelu, geglu by 0.049 bits per byte (95 % interval 0.032 to 0.066); geglu and swiglu are not "
                    "separated.")
    said = headline(PLAN, ARMS, [pair("better")])
    assert "geglu beats gelu by 0.049" in said and "separated" not in said
    said = headline(PLAN, ARMS, [pair("tie")])
    assert said.endswith("; geglu and swiglu are equally good within 0.005 bits per byte.")
    said = headline(PLAN, [ARMS[0], arm("swiglu", "undecided", -0.01), ARMS[3]], [])
    assert said.endswith("no activation was found better than gelu; relu is worse; swiglu is undecided.")
    assert "separated" not in headline(PLAN, ARMS, [])  # a rule of before: nothing was compared


def test_remarks_and_next_steps():
    said = " ".join(remarks(PLAN, ARMS, [pair("undecided", 30)]))
    assert "geglu and swiglu are not separated: 0.0012 bits per byte (−0.0080 to 0.0100)" in said
    tie = " ".join(remarks(PLAN, ARMS, [pair("tie")]))
    assert "equally good" not in tie and "swiglu is better than gelu too." in tie  # the headline says it
    assert "does not compare" not in said and "does not compare" in " ".join(remarks(PLAN, ARMS))
    results = {"status": "complete", "arms": [*ARMS, arm("silu", "undecided", -0.01)], "pairs": [pair("undecided", 30)],
               "plan": {"model": {}, "data": {"paths": ["my text"]}}}
    assert next_steps(results, "runs/x y") == [
        ("To decide silu", "nonlin extend 'runs/x y' --seeds 21"),
        ("To decide geglu against swiglu", "nonlin extend 'runs/x y' --seeds 30"),
        ("Whether it holds at other sizes",
         "nonlin ladder --target 125M --activations gelu,geglu,swiglu --baseline gelu --data 'my text'")]
    for _, command in next_steps(results, "runs/x y"):
        parse(shlex.split(command.removeprefix("nonlin ")))  # each is a command with its options
    assert next_steps(results | {"status": "partial"}, "runs/x") == []
    took = results | {"timing": {"trial_seconds": 60.0}, "plan": results["plan"] | {"judge_seeds": [1], "workers": 2}}
    ((said, _), *_) = next_steps(took, "runs/x")  # 5 arms of one run each took a minute: 12 s a run
    assert said == "To decide silu (about 10 min 00 s)"
    assert advice(PLAN, ARMS) == "Use geglu."
