"""The schedule tells, record by record, what the rule asks for; asked anew from all records, the rule says the same."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.study.schedule import Schedule
from nonlin.study.tuning import complete, trials_of
from tests.study import fake_worker, studies


def record_of(trial, diverge=lambda config: False):
    loss = None if diverge(trial.config) else fake_worker.loss_of(trial.config)
    return {"status": "diverged" if loss is None else "finished", "bits_per_byte": loss}


def every_trial(plan, order, **options):
    """All trials that the plan asks for, where records come in an order drawn by ``order``."""
    schedule, ran = Schedule(plan), set()
    while schedule.missing:
        key = order.choice(sorted(schedule.missing))
        trial = schedule.missing[key]
        ran.add(key)
        new = schedule.add(key, record_of(trial, **options))
        assert all(t.key in schedule.missing for t in new)
        asked = {t.key for stage in ("tune", "judge") for t in trials_of(plan, stage, schedule.records)}
        assert schedule.missing.keys() == asked
        done, total = schedule.counts(schedule.stage)
        assert 0 <= done <= total
    assert complete(plan, schedule.records) and schedule.seconds()[0] == 0
    return ran


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(["none", "high", "one arm"]), st.sampled_from([2e-3, 1e-2, 8e-2]))
def test_what_is_asked_for_does_not_depend_on_the_order_of_records(seed, diverging, middle):
    plan = studies.plan("gelu", "swiglu", seeds=4, learning_rate=middle, learning_rates=3)
    diverge = {"none": lambda c: False, "high": lambda c: c["training"]["learning_rate"] > 0.015,
               "one arm": lambda c: c["activation"]["name"] == "swiglu"}[diverging]
    one = every_trial(plan, random.Random(seed), diverge=diverge)
    assert one == every_trial(plan, random.Random(seed + 1), diverge=diverge)


def test_work_grows_with_the_number_of_trials_and_not_with_its_square(monkeypatch):
    """Counted in configurations that are hashed, the dearest part: no time is asserted."""
    from nonlin.study import tuning

    counts = []
    for seeds in (8, 64):
        hashed = 0

        def counting(config, plain=tuning.config_hash):
            nonlocal hashed
            hashed += 1
            return plain(config)

        with monkeypatch.context() as patched:
            patched.setattr(tuning, "config_hash", counting)
            plan = studies.plan(seeds=seeds)
            schedule, total = Schedule(plan), 0
            while schedule.missing:
                key, trial = next(iter(schedule.missing.items()))
                schedule.add(key, record_of(trial))
                total += 1
        counts.append((hashed, total))
    (few, small), (many, large) = counts
    assert large > 4 * small and many / large < 2 * few / small


def test_predictions_are_of_what_is_left():
    plan = studies.plan("gelu", "swiglu")
    schedule = Schedule(plan)
    total, longest = schedule.seconds()
    each = [plan.trial_seconds(t.arm, t.purpose) for t in schedule.missing.values()] + schedule.later_seconds()
    assert total == pytest.approx(sum(each)) and longest == max(each)
    key, trial = next(iter(schedule.missing.items()))
    schedule.add(key, record_of(trial))
    assert schedule.seconds()[0] == pytest.approx(total - plan.trial_seconds(trial.arm, trial.purpose))
