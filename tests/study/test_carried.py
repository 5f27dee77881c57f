"""Studies whose learning rates were carried from smaller models: a ladder's upper rungs."""

import dataclasses

import pytest

from nonlin.errors import UserError
from nonlin.study import results as study_results
from nonlin.study.request import Arm
from nonlin.study.schedule import Schedule
from tests.study import studies

RATES = {"gelu": 0.004, "swiglu": 0.003}


def request(role, rates=RATES, **changes):
    base = studies.request(*rates)
    arms = [dataclasses.replace(arm, learning_rate=rates[arm.name]) for arm in base.arms]
    return dataclasses.replace(base, **{"arms": arms, "role": role, "seeds": 3} | changes)


def finished(plan, loss):
    """Run a plan with losses by (arm, rate, seed), and return its results."""
    schedule = Schedule(plan)
    waiting = list(schedule.first)
    while waiting:
        trial = waiting.pop(0)
        value = loss(trial)
        waiting += schedule.add(trial.key, {
            "status": "finished" if value is not None else "diverged", "bits_per_byte": value,
            "initial_bits_per_byte": 8.0, "parameters": 1, "flops_per_token": 1, "layers": None,
            "timing": {"seconds": 1.0}})
    return schedule, study_results.results(plan, schedule.records)


def plan_of(role, **changes):
    asked = request(role, **changes)
    return studies.make_plan(asked, {arm.name: 1e5 for arm in asked.arms}, studies.MACHINE)


def by_arm(results):
    return {arm["name"]: arm for arm in results["arms"]}


def test_carried_arms_run_judged_seeds_alone_at_their_own_rates():
    schedule, found = finished(plan_of("carried"), lambda t: 2.0 + 0.01 * t.seed - 0.1 * (t.arm == "swiglu"))
    assert {(t.purpose, t.arm, t.learning_rate) for t in schedule.first} == {
        ("judge", "gelu", 0.004), ("judge", "swiglu", 0.003)}
    assert len(schedule.records) == 6 and found["status"] == "complete"
    assert by_arm(found)["swiglu"]["verdict"] == "better" and by_arm(found)["swiglu"]["learning_rate"] == 0.003
    assert by_arm(found)["swiglu"]["learning_rate_sensitivity"] is None


def test_a_checked_arm_keeps_its_rate_and_is_compared_at_its_best():
    plan = plan_of("checked")

    def loss(trial):  # swiglu's best rate lies half a step above the carried one
        place = (trial.learning_rate / RATES[trial.arm])
        steps = {0.5: -1, 1.0: 0, 2.0: 1}[place] - 0.5 * (trial.arm == "swiglu")
        return 2.0 + 0.01 * (trial.seed % 5) - 0.1 * (trial.arm == "swiglu") + 0.04 * steps**2

    schedule, found = finished(plan, loss)
    assert sorted({t.learning_rate for t in schedule.first if t.arm == "gelu"}) == [0.002, 0.004, 0.008]
    arm = by_arm(found)["swiglu"]
    assert arm["learning_rate"] == 0.003 and len(arm["judged"]) == 3 and len(arm["tuning"]) == 6
    assert arm["difference"]["mean"] == pytest.approx(-0.1, abs=1e-6)  # the judged runs say -0.09


def test_a_neighbour_that_diverges_does_not_move_the_carried_rate():
    plan = plan_of("checked")
    _, found = finished(plan, lambda t: None if t.learning_rate == 0.008 else 2.0 + 0.001 * t.seed)
    assert by_arm(found)["gelu"]["learning_rate"] == 0.004 and found["status"] == "complete"


def test_the_cost_of_carried_rungs_is_that_of_their_own_runs():
    minutes = {role: plan_of(role).predicted_minutes for role in ("carried", "checked")}
    tuned = dataclasses.replace(studies.request(*RATES), role="tuned", seeds=3)
    minutes["tuned"] = studies.make_plan(tuned, dict.fromkeys(RATES, 1e5), studies.MACHINE).predicted_minutes
    assert minutes["carried"] < minutes["checked"] < minutes["tuned"]
    assert minutes["checked"] - 0.75 == pytest.approx(3 * (minutes["carried"] - 0.75))  # 9 runs an arm in place of 3


def test_the_plan_says_where_its_rates_come_from():
    assert "carried from smaller models: gelu 0.004, swiglu 0.003" in plan_of("carried").describe()
    assert "a neighbour on either side" in plan_of("checked").describe()
    assert "Tune: 3 learning rates" in studies.plan().describe()


@pytest.mark.parametrize("changes", [{"role": "tuned"}, {"role": None, "seeds": 4}, {"role": "lifted"}, {"seeds": 2}])
def test_roles_and_rates_that_do_not_fit_are_refused(changes):
    with pytest.raises(UserError):
        request(**{"role": "carried"} | changes)


def test_a_rung_needs_the_rates_it_says_were_carried():
    with pytest.raises(UserError, match="learning rate of their own"):
        dataclasses.replace(studies.request(), role="carried")


def test_plans_of_plain_studies_are_written_as_before():
    made = studies.plan()
    assert "role" not in made.request and not any("learning_rate" in arm for arm in made.arms)
    assert "learning_rate" not in Arm("gelu", "pointwise", 128, 1).as_dict()
