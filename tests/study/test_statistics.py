"""Statistics against scipy's own, against independent computations, and against simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nonlin.errors import UserError
from nonlin.study import statistics

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@pytest.mark.parametrize("seeds", [2, 4, 5, 20])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_paired_effect_is_the_one_sample_t_test(seeds, confidence):
    differences = np.random.default_rng(seeds).normal(0.01, 0.02, seeds)
    found = statistics.paired_effect(differences, confidence)
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(confidence)
    assert found.mean == pytest.approx(np.mean(differences), rel=1e-12)
    assert found.standard_deviation == pytest.approx(np.std(differences, ddof=1), rel=1e-12)
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_paired_effect_of_equal_differences_divides_by_nothing():
    twin = statistics.paired_effect([0.0] * 4)
    assert (twin.mean, twin.low, twin.high, twin.p_value, twin.standard_deviation) == (0, 0, 0, 1, 0)
    shifted = statistics.paired_effect([0.1] * 3)  # the mean of three 0.1 is not 0.1 in floating point
    assert (shifted.mean, shifted.low, shifted.high, shifted.p_value) == (0.1, 0.1, 0.1, 0)


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, float("nan")], [0.1, float("inf")]])
def test_paired_effect_refuses_what_has_no_spread_to_know(differences):
    with pytest.raises(UserError, match="two or more finite"):
        statistics.paired_effect(differences)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=6))
def test_paired_effect_does_not_depend_on_the_order_of_seeds(differences):
    assert statistics.paired_effect(differences) == statistics.paired_effect(differences[::-1])


def closed_testing(values):
    """Holm's adjusted p-values the long way: a hypothesis falls where every set that holds it does.

    By the closure principle with Bonferroni's test on each of the 2^m − 1 intersections.
    """
    indices = range(len(values))
    adjusted = [0.0] * len(values)
    for size in range(1, len(values) + 1):
        for chosen in itertools.combinations(indices, size):
            p_value = min(1.0, size * min(values[i] for i in chosen))
            for i in chosen:
                adjusted[i] = max(adjusted[i], p_value)
    return adjusted


@given(p_values)
def test_holm_is_the_closed_bonferroni_test(values):
    assert statistics.holm(values) == pytest.approx(closed_testing(values), rel=1e-12)


def test_holm_on_a_published_example():
    # Holm (1979) as worked in the documentation of R's p.adjust and of SAS PROC MULTTEST
    assert statistics.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


@given(p_values, st.sampled_from([0.9, 0.95, 0.99]))
def test_holm_intervals_exclude_zero_exactly_where_holm_rejects(values, confidence):
    alpha = 1 - confidence
    if any(abs(p * k - alpha) < 1e-9 for p in values for k in range(1, len(values) + 1)):
        return  # on the edge itself rounding decides
    levels = statistics.holm_confidences(values, confidence)
    for p_value, adjusted, level in zip(values, statistics.holm(values), levels, strict=True):
        assert (p_value <= 1 - level) == (adjusted <= alpha)
        assert confidence - 1e-12 <= level <= 1 - alpha / len(values) + 1e-12


@pytest.mark.parametrize(("effect", "sd", "seeds"), [
    (0.02, 0.01, 4), (-0.02, 0.01, 5), (0.006, 0.004, 8), (0.0, 0.003, 6), (0.003, 0.002, 12)])
def test_power_is_what_simulation_finds(effect, sd, seeds):
    margin, confidence, studies = 0.005, 0.98, 40_000
    draws_SN = np.random.default_rng(1).normal(effect, sd, (studies, seeds))
    interval = stats.ttest_1samp(draws_SN, 0.0, axis=1).confidence_interval(confidence)
    mean_S = draws_SN.mean(axis=1)
    tie_S = (interval.low >= -margin) & (interval.high <= margin)
    side = 1 if effect >= 0 else -1
    apart_S = np.where(side > 0, interval.low > 0, interval.high < 0) & (side * mean_S > margin) & ~tie_S
    found = statistics.power(effect, sd, seeds, margin, confidence)
    # four standard errors of a share of 40,000 studies, at most
    assert found.tie == pytest.approx(np.mean(tie_S), abs=0.01)
    assert found.better_or_worse == pytest.approx(np.mean(apart_S), abs=0.01)
