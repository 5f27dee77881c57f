"""Best learning rates: found at a rung, carried upward, checked."""

import math
import random
from types import SimpleNamespace

import pytest

from nonlin.ladder import rates
from nonlin.ladder.design import Settings, design
from nonlin.ladder.rates import Check
from nonlin.ladder.results import rates_that_moved
from nonlin.training import transfer
from tests.study import studies

RUNGS = design([50e3, 100e3, 210e3, 900e3], Settings(longer=4.0))
PLAIN = [one for one in RUNGS if one.longer == 1]


def arm(name, best, tried=(0.005, 0.01, 0.02), seeds=(1001, 1002), bend=0.07, noise=0.001, lost=()):
    """An arm's part of a study's results, whose losses are a parabola with its vertex at ``best``."""
    draw = random.Random(name)
    level = {seed: 2 + 0.02 * draw.gauss(0, 1) for seed in seeds}
    tuning = [{"seed": seed, "learning_rate": rate, "bits_per_byte": None if rate in lost else
               level[seed] + bend * math.log(rate / best) ** 2 + noise * draw.gauss(0, 1)}
              for rate in tried for seed in seeds]
    return {"name": name, "tuning": tuning, "learning_rate": 0.01}


def test_vertices_are_found_with_errors_that_cover():
    inside = 0
    for trial in range(40):
        arms = [arm(f"{name}{trial}", best) for name, best in (("a", 0.009), ("b", 0.012), ("c", 0.01))]
        found = rates.optima(arms)
        assert found.curvature == pytest.approx(0.07, rel=0.15)
        for one, best in zip(arms, (0.009, 0.012, 0.01), strict=True):
            low, high = found.by_arm[one["name"]].interval(0.9)
            inside += low <= best <= high
    assert inside >= 0.8 * 120


def test_a_grid_that_grew_counts_with_the_three_rates_around_its_best():
    grown = arm("a", 0.024, (0.005, 0.01, 0.02, 0.04), noise=1e-6)
    cubic = grown | {"tuning": [run | {"bits_per_byte": run["bits_per_byte"] + (run["learning_rate"] == 0.005)}
                                for run in grown["tuning"]]}
    assert rates.optima([cubic, arm("b", 0.01, noise=1e-6)]).by_arm["a"].rate == pytest.approx(0.024, rel=0.02)


def test_a_rate_that_diverges_is_left_out():
    found = rates.optima([arm("a", 0.01, noise=1e-6, lost=(0.02,)), arm("b", 0.01, noise=1e-6)])
    assert found.by_arm["a"].rate == pytest.approx(0.01, rel=0.05)
    assert rates.optima([arm("a", 0.01, lost=(0.005, 0.01, 0.02)), arm("b", 0.01)]).by_arm.keys() == {"b"}


def test_an_arm_that_trains_at_one_rate_alone_shows_no_best_one():
    one = arm("a", 0.01, lost=(0.01, 0.02)) | {"learning_rate": 0.005}
    arms = [one, arm("b", 0.01), arm("c", 0.01)]
    assert rates.optima(arms).by_arm.keys() == {"b", "c"}
    carried = rates.carry(rates.RULES["standard"], [(PLAIN[0], arms)])
    assert carried.at_base["a"].rate == pytest.approx(0.005) and carried.at_base["a"].error >= 0.3


def test_losses_that_fall_over_all_rates_have_no_optimum():
    falling = arm("a", 0.01) | {"tuning": [
        {"seed": s, "learning_rate": r, "bits_per_byte": 2 - 0.1 * math.log(r) ** 2} for r in (0.005, 0.01, 0.02)
        for s in (1, 2)]}
    found = rates.optima([falling])
    assert found.by_arm == {} and found.curvature is None


def test_rates_are_carried_by_the_rule_from_both_tuned_rungs():
    rule = rates.Standard()
    small, large = PLAIN[0], PLAIN[1]
    shift = rule.factor(small, large)
    carried = rates.carry(rule, [(small, [arm("a", 0.01, noise=1e-6)]), (large, [arm("a", 0.01 * shift, noise=1e-6)])])
    assert carried.at_base["a"].rate == pytest.approx(0.01, rel=1e-3)
    expected = 0.01 * (PLAIN[3].parameters / small.parameters) ** (-1 / 3)
    assert carried.to(PLAIN[3])["a"] == pytest.approx(expected, rel=5e-3)
    longer = next(one for one in RUNGS if one.longer == 4)
    assert carried.to(longer)["a"] == pytest.approx(0.01 * 4**-0.3, rel=5e-3)


def test_an_arm_without_an_optimum_takes_the_rate_that_its_study_chose():
    carried = rates.carry(rates.Standard(), [(PLAIN[0], [arm("a", 0.01, lost=(0.005, 0.02)) | {"learning_rate": 0.01},
                                                         arm("b", 0.01)])])
    assert carried.to(PLAIN[0])["a"] == pytest.approx(0.01, rel=0.5)
    lost = arm("c", 0.01, lost=(0.005, 0.01, 0.02)) | {"learning_rate": None}
    assert "c" not in rates.carry(rates.Standard(), [(PLAIN[0], [lost, arm("b", 0.01)])]).at_base


def checked(*places, noise=0.001):
    """The check of arms whose best rate lies these factors above the carried one."""
    names = [f"arm-{i}" for i in range(len(places))]
    rule = rates.Standard()
    tuned = [(one, [arm(name, 0.01 * rule.factor(PLAIN[0], one), noise=noise) for name in names]) for one in PLAIN[:2]]
    carried = rates.carry(rule, tuned)
    here = carried.to(PLAIN[2])
    arms = [arm(name, here[name] * place, [here[name] * 2.0**k for k in (-1, 0, 1)], noise=noise)
            for name, place in zip(names, places, strict=True)]
    return rates.check(carried, PLAIN[:2], PLAIN[2], arms)


def test_a_rule_that_holds_widens_next_to_nothing():
    found = checked(1.0, 1.0, 1.0)
    assert found is not None and not any(found.surely(name) for name in found.moved)
    assert found.widening("arm-0", "arm-1", 3e6) < 0.002


def test_an_arm_that_moved_widens_its_interval_and_more_further_up():
    found = checked(1.0, 1.7, 1.0)
    assert found is not None and found.surely("arm-1")
    at, above = (found.widening("arm-0", "arm-1", size) for size in (found.at, 3e6))
    assert at == pytest.approx(0.07 * math.log(1.7) ** 2, rel=0.4) and above > 4 * at


def test_arms_that_move_alike_do_not_change_a_difference():
    found = checked(1.7, 1.7, 1.7)
    assert found is not None and all(found.surely(name) for name in found.moved)
    assert found.cost("arm-1", 3e6) > 0.05 and found.widening("arm-0", "arm-1", 3e6) < 0.02
    assert found.cost("arm-1", PLAIN[0].parameters) == 0.0  # where it was tuned


def test_completep_carries_one_rate_and_lets_the_recipe_do_the_rest():
    rule, small, top = rates.RULES["completep"], PLAIN[0], PLAIN[3]
    assert rule.factor(small, top) == 1.0
    longer = next(one for one in RUNGS if one.longer == 4)
    assert rule.factor(small, longer) == pytest.approx(4**-0.3)
    made = rule.training(top, small, 0.01)["transfer"]
    assert made["base"] == {"layers": small.layers, "dim": small.dim, "heads": small.heads, "kv_heads": small.heads}
    assert rates.Standard().training(top, small, 0.01) == {}


def test_completeps_recipe_makes_a_study_at_every_rung():
    rule, base = rates.RULES["completep"], RUNGS[0]
    for one in RUNGS:
        shape = {"layers": one.layers, "dim": one.dim, "heads": one.heads, "kv_heads": one.heads}
        made = studies.plan(training=rule.training(one, base, 0.01), model=studies.MODEL | shape)
        assert transfer.ratios(made.training["transfer"], made.model) == (one.dim / base.dim, one.layers / base.layers)
        assert transfer.horizon(made.training["transfer"], one.tokens) == 1  # it is in the rung's own rate already


def moved_check(drift):
    """A check at which every arm's best rate surely fell to 0.6 of the carried one; the drift is no chance."""
    return Check({arm: (math.log(0.6), 0.1) for arm in drift}, drift, 20, 0.02, 1e5, 2e5)


def test_rates_that_moved_alike_change_no_difference_and_the_page_says_so():
    plan = SimpleNamespace(arms=["gelu", "swiglu"], baseline="gelu", target=125e6, rule={"margin": 0.005})
    alike = rates_that_moved(plan, moved_check({"gelu": -0.5, "swiglu": -0.5}))
    assert len(alike) == 1
    assert "moved alike within chance, which changes no difference" in alike[0]
    assert "tune the rate there" in alike[0]  # 10 doublings of the movement: 0.02 · 5.1² bits
    apart = rates_that_moved(plan, moved_check({"gelu": -0.5, "swiglu": -0.6}))
    assert "They moved more unlike than chance explains: the intervals are wider by up to 0.23" in apart[0]
    assert "by more than chance" not in apart[0]  # half a drift of its own is no test that an arm passed
    assert moved_check({"gelu": -0.5, "swiglu": -0.6}).widening("gelu", "swiglu", 125e6) > 0.0
    still = Check({"gelu": (-0.01, 0.2), "swiglu": (0.02, 0.2)}, {"gelu": 0.0, "swiglu": 0.0}, 20, 0.02, 1e5, 2e5)
    assert rates_that_moved(plan, still) == []
