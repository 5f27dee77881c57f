"""One sentence of advice, no surer than the study; and what stands beside it."""

from nonlin.study.advice import advice, remarks, winner
from tests.study import studies

PLAN = studies.plan("gelu", "swiglu", "silu", "twin")


def _arm(name, verdict, bits=2.0, mean=None):
    difference = None if mean is None else {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "confidence": 0.95}
    return {"name": name, "verdict": verdict, "bits_per_byte": bits, "difference": difference, "judged": [1],
            "diverged_runs": 0 if bits else 4}


def test_the_best_of_those_found_better_is_named():
    arms = [_arm("gelu", "baseline"), _arm("swiglu", "better", 1.95, -0.05), _arm("silu", "better", 1.98, -0.02),
            _arm("twin", "tie", 2.0, 0.0)]
    assert advice(PLAN, arms) == "Use swiglu."
    assert winner(arms, "gelu") == "swiglu"
    beside = " ".join(remarks(PLAN, arms))
    assert "silu is better than gelu too" in beside and "twin is as good as gelu within 0.005" in beside


def test_lower_loss_without_a_verdict_wins_nothing():
    arms = [_arm("gelu", "baseline"), _arm("swiglu", "undecided", 1.5, -0.5)]
    assert advice(PLAN, arms) == "Keep gelu for now: none was found better, and swiglu is undecided."
    assert winner(arms, "gelu") == "gelu" and remarks(PLAN, arms) == []


def test_an_unfinished_study_gives_none():
    assert advice(PLAN, [_arm("gelu", "baseline")], runs_left=3).startswith("No advice yet: 13 of 16 judged runs")


def test_only_what_was_settled_keeps_the_baseline_without_a_reservation():
    arms = [_arm("gelu", "baseline"), _arm("swiglu", "worse", 2.5, 0.5), _arm("twin", "tie", 2.0, 0.0)]
    assert advice(PLAN, arms) == "Keep gelu: no other activation was found better."


def test_times_that_were_to_be_equal_and_were_not_are_said():
    plan = studies.plan("gelu", "swiglu", "silu", match="time")

    def arms(**speeds):
        return [_arm(name, "baseline" if name == "gelu" else "tie", 2.0, None if name == "gelu" else 0.0)
                | {"timing": {"tokens_per_second": speed}} for name, speed in speeds.items()]

    planned = {arm["name"]: float(arm["judge_steps"]) for arm in plan.arms}
    assert not any("Times" in line for line in remarks(plan, arms(**planned)))
    told = " ".join(remarks(plan, arms(**planned | {"swiglu": planned["swiglu"] / 1.26})))
    assert "Times are not equal: of gelu's training time the runs took swiglu 1.26." in told
    on_a_busy_machine = [arm | {"timing": arm["timing"] | {"tokens_per_processor_second": planned[arm["name"]]}}
                         for arm in arms(**planned | {"swiglu": planned["swiglu"] / 1.26})]
    assert not any("Times" in line for line in remarks(plan, on_a_busy_machine))
    assert not any("Times" in line for line in remarks(PLAN, arms(gelu=1.0, swiglu=3.0)))
    assert not any("Times" in line for line in remarks(plan, arms(gelu=None, swiglu=3.0)))


def test_a_baseline_that_diverges_in_part_is_not_recommended():
    arms = [_arm("gelu", "baseline") | {"diverged_runs": 3}, _arm("swiglu", "undecided")]
    assert advice(PLAN, arms).startswith("No advice: 3 of 4 judged runs of the baseline gelu diverged")


def test_a_baseline_that_diverges():
    arms = [_arm("gelu", "baseline", None), _arm("swiglu", "better", 1.9)]
    assert advice(PLAN, arms) == "Use swiglu: it trains where gelu diverges."
