"""The rule: each verdict, and its error rates over simulated studies."""

import numpy as np
import pytest

from nonlin.errors import UserError
from nonlin.study import judge, statistics

RULE = {"metric": "bits_per_byte", "margin": 0.005, "confidence": 0.95, "correction": "holm", "seeds": 4}


def runs_of(**arms):
    return {arm: dict(enumerate(values, 1)) for arm, values in arms.items()}


def study(rng, effects, sd, seeds):
    """Bits per byte of arms with these true effects: noise of the seed is shared, noise of the run is not."""
    shared = rng.normal(2.0, 0.02, seeds)
    noise = sd / np.sqrt(2)  # a difference has two runs' noise
    return {arm: dict(enumerate((shared + effect + rng.normal(0, noise, seeds)).tolist()))
            for arm, effect in effects.items()}


def judge_many(effects, sd, seeds, studies, margin=0.005):
    rng = np.random.default_rng(seeds)
    rule = RULE | {"seeds": seeds, "margin": margin}
    return [judge(rule, study(rng, effects, sd, seeds), "gelu") for _ in range(studies)]


def upper_bound(rate, studies):
    """A true rate is exceeded by four standard errors in one test of 30,000."""
    return rate + 4 * np.sqrt(rate * (1 - rate) / studies)


@pytest.mark.parametrize(("seeds", "margin"), [(4, 0.0), (5, 0.0), (4, 0.005), (8, 0.002)])
def test_no_true_difference_gives_a_false_winner_no_more_often_than_stated(seeds, margin):
    effects = dict.fromkeys(["gelu", "relu", "silu", "swiglu", "geglu", "relu_squared"], 0.0)
    studies = 1000
    found = judge_many(effects, 0.006, seeds, studies, margin)
    wrong = [any(v.verdict in ("better", "worse") for v in verdicts.values()) for verdicts in found]
    assert np.mean(wrong) <= upper_bound(0.05, studies)
    if margin == 0.0:  # the rate stated is nearly reached: the correction is not merely never saying anything
        assert np.mean(wrong) >= 0.02


def test_some_true_differences_do_not_raise_the_rate_of_false_winners():
    effects = {"gelu": 0.0, "swiglu": -0.05, "geglu": -0.05, "relu": 0.0, "silu": 0.0, "identity": 0.2}
    found = judge_many(effects, 0.006, 5, 1000, margin=0.0)
    false = [any(v[a].verdict in ("better", "worse") for a in ("relu", "silu")) for v in found]
    assert np.mean(false) <= upper_bound(0.05, 1000)


def test_a_difference_past_the_margin_is_called_a_tie_no_more_often_than_stated():
    effects = {"gelu": 0.0} | {f"arm{i}": 0.0051 for i in range(5)}
    found = judge_many(effects, 0.002, 8, 1000)
    false = [any(v.verdict == "tie" for v in verdicts.values()) for verdicts in found]
    assert np.mean(false) <= upper_bound(0.05, 1000)


@pytest.mark.parametrize(("effect", "sd", "seeds"), [(-0.02, 0.01, 4), (0.01, 0.006, 6), (0.007, 0.003, 8)])
def test_a_true_difference_is_found_as_often_as_the_power_says(effect, sd, seeds):
    studies = 1500
    found = judge_many({"gelu": 0.0, "other": effect}, sd, seeds, studies)
    right = "better" if effect < 0 else "worse"
    share = np.mean([verdicts["other"].verdict == right for verdicts in found])
    assert share == pytest.approx(statistics.power(effect, sd, seeds, 0.005, 0.95).better_or_worse, abs=0.05)


def test_a_twin_is_a_tie():
    base = [2.1, 2.2, 2.15, 2.3]
    found = judge(RULE, runs_of(gelu=base, twin=base, relu=[2.2, 2.3, 2.24, 2.41]), "gelu")
    assert found["twin"].verdict == "tie" and found["twin"].difference["mean"] == 0.0
    assert found["relu"].verdict == "worse"
    only = judge(RULE, runs_of(gelu=base, twin=base), "gelu")["twin"]
    assert (only.verdict, only.difference["low"], only.difference["high"]) == ("tie", 0.0, 0.0)


def test_a_sure_effect_inside_the_margin_is_a_tie_and_one_across_it_undecided():
    base = np.array([2.1, 2.2, 2.15, 2.3])
    jitter = np.array([1, -1, 1, -1])
    for mean, spread, verdict in [(0.003, 0.0002, "tie"), (0.0048, 0.0004, "undecided"),
                                  (0.0052, 0.0002, "worse"), (-0.0052, 0.0002, "better"),
                                  (0.02, 0.02, "undecided")]:
        found = judge(RULE, runs_of(gelu=base.tolist(), a=(base + mean + spread * jitter).tolist()), "gelu")["a"]
        assert found.verdict == verdict, (mean, spread)
        assert (found.seeds_needed is None) == (verdict != "undecided")
        if verdict == "undecided":
            assert found.seeds_needed > 4 and f"about {found.seeds_needed} seeds in all" in found.reason


def test_reported_interval_and_p_value_agree_with_the_verdict():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        effects = {"gelu": 0.0, "a": 0.02, "b": -0.01, "c": 0.006, "d": 0.0}
        for arm, verdict in judge(RULE, study(rng, effects, 0.006, 4), "gelu").items():
            if arm != "gelu":
                d = verdict.difference
                inside = d["low"] >= -0.005 and d["high"] <= 0.005
                apart = (d["low"] > 0 or d["high"] < 0)
                assert apart == (d["p_value"] <= 0.05)
                expected = "tie" if inside else "undecided" if not apart or abs(d["mean"]) <= 0.005 else (
                    "worse" if d["mean"] > 0 else "better")
                assert verdict.verdict == expected


def test_diverged_runs():
    good = [2.1, 2.2, 2.15, 2.3]
    found = judge(RULE, runs_of(gelu=good, bad=[1.5, None, 1.5, 1.5]), "gelu")
    assert found["bad"].verdict == "worse" and found["bad"].reason == "1 of 4 judged runs diverged"
    assert found["bad"].mean == 1.5
    found = judge(RULE, runs_of(gelu=[None] * 4, good=good, bad=[None] * 4), "gelu")
    assert (found["gelu"].verdict, found["good"].verdict, found["bad"].verdict) == (
        "baseline", "better", "undecided")
    found = judge(RULE, runs_of(gelu=[2.1, 2.2, 2.1, None], good=good), "gelu")
    assert found["good"].verdict == "undecided" and "another baseline" in found["good"].reason


def test_arms_that_diverge_do_not_sharpen_the_test_of_the_others():
    base = [2.0, 2.0, 2.0, 2.0]
    a = [b + d for b, d in zip(base, [0.010, 0.022, 0.016, 0.030], strict=True)]
    near = judge(RULE, runs_of(gelu=base, a=a, b=[2.0, 2.01, 1.99, 2.0], c=[2.01, 2.0, 1.99, 2.0]), "gelu")["a"]
    lost = judge(RULE, runs_of(gelu=base, a=a, b=[None] * 4, c=[None] * 4), "gelu")["a"]
    assert near.verdict == lost.verdict == "undecided"
    assert near.difference == lost.difference


def test_an_unfinished_study_gives_no_verdict_however_clear_it_looks():
    found = judge(RULE, runs_of(gelu=[2.1, 2.2, 2.3, 2.4], a=[1.1, 1.2, 1.3]), "gelu")["a"]
    assert found.verdict == "undecided" and "3 of 4" in found.reason
    assert found.difference["mean"] == pytest.approx(-1.0)
    assert judge(RULE, runs_of(gelu=[], a=[]), "gelu")["a"].difference is None
    whole = judge(RULE, runs_of(gelu=[2.1, 2.2, 2.3, 2.4], a=[1.1, 1.2, 1.3, 1.4], b=[1.1]), "gelu")["a"]
    assert whole.verdict == "undecided" and "1 of 4 judged runs of b" in whole.reason  # b may still change its test


def test_an_unknown_baseline_is_refused():
    with pytest.raises(UserError, match="baseline"):
        judge(RULE, runs_of(gelu=[2.0] * 4), "relu")
