"""The rungs of a ladder: what they are, what they cost, what is refused."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonlin.errors import UserError
from nonlin.ladder import design as d
from nonlin.model import ModelConfig, parameter_count
from nonlin.study import defaults

SETTINGS = d.Settings(tokens_per_parameter=20)


@given(st.floats(d.SMALLEST, 5e8), st.sampled_from([16, 32, 64]))
def test_a_shape_has_about_the_parameters_asked_for(size, head):
    layers, dim = d.shape(size, head)
    assert dim % head == 0
    if size > 30 * head**2:  # one head a layer is the least
        assert abs(math.log(12 * layers * dim**2 / size)) < 0.3


def test_parameters_are_counted_with_and_without_embeddings():
    one = d.rung(100_000, "tuned", 16, SETTINGS)
    config = ModelConfig(layers=one.layers, dim=one.dim, heads=one.heads, kv_heads=one.heads, context=64,
                         vocabulary=256, hidden=4 * one.dim)
    assert one.parameters_with_embeddings == parameter_count(config, gated=False)
    assert one.parameters == one.parameters_with_embeddings - 2 * 256 * one.dim
    assert one.tokens == pytest.approx(20 * one.parameters, rel=0.01) and one.tokens == one.steps * 8 * 64
    assert one.flops == pytest.approx(6 * one.parameters * one.tokens, rel=0.5)


def test_the_two_smallest_are_tuned_a_middle_one_is_checked_and_two_run_longer():
    rungs = d.design([50e3, 900e3, 100e3, 210e3, 450e3], SETTINGS)
    plain = [one for one in rungs if one.longer == 1]
    assert [one.role for one in plain] == ["tuned", "tuned", "checked", "carried", "carried"]
    longer = [one for one in rungs if one.longer != 1]
    assert [one.parameters for one in longer] == [one.parameters for one in plain[:2]]
    assert all(one.tokens == pytest.approx(4 * 20 * one.parameters, rel=0.01) for one in longer)
    assert len({one.name for one in rungs}) == len(rungs)


@pytest.mark.parametrize("sizes, word", [
    ([50e3, 100e3, 900e3], "sizes must be 4 or more"), ([50e3, 70e3, 100e3, 150e3], "span at least 30 times"),
    ([50e3, 50.1e3, 100e3, 900e3], "differ"), ([1e3, 1e4, 1e5, 1e6], "lie between")])
def test_ladders_that_say_nothing_are_refused(sizes, word):
    with pytest.raises(UserError, match=word):
        d.design(sizes, SETTINGS)


def test_runs_that_are_too_short_are_refused_with_what_to_do():
    with pytest.raises(UserError, match=r"at least 200 steps.*smaller --batch"):
        d.design([50e3, 100e3, 200e3, 900e3], d.Settings(tokens_per_parameter=1))


@pytest.mark.parametrize("changes", [{"seeds": 2}, {"tokens_per_parameter": 0}, {"batch": 0}, {"longer": 1},
                                     {"tokens_per_parameter": math.inf}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UserError):
        d.Settings(**changes)


@given(st.floats(d.SMALLEST * 6, 1e9))
def test_a_series_spans_thirty_times_the_compute(largest):
    sizes = d.series(largest)
    assert len(sizes) >= 4 and (sizes[-1] / sizes[0]) ** 2 >= 30
    assert sizes[0] >= d.SMALLEST * 0.999 and sizes[-1] == pytest.approx(largest)


def test_the_longest_ladder_that_fits_is_taken_and_too_little_names_what_is_needed():
    def fits(limit):
        return lambda rungs: d.flops(rungs, SETTINGS, 3) <= limit

    smallest = d.smallest(SETTINGS)
    least = d.flops(smallest, SETTINGS, 3)
    assert d.largest_that_fits(125e6, SETTINGS, fits(0.9 * least)) is None
    larger = d.largest_that_fits(125e6, SETTINGS, fits(20 * least))
    assert larger is not None and larger[-1].parameters > smallest[-1].parameters
    assert d.flops(larger, SETTINGS, 3) <= 20 * least
    at_target = d.largest_that_fits(300e3, SETTINGS, fits(math.inf))
    assert at_target is not None and at_target[-1].parameters == pytest.approx(300e3, rel=0.2)
    error = d.too_little(smallest, 95.2, 10, "minutes")
    assert "need about 96 minutes" in str(error) and "--minutes 105" in str(error)


def test_minutes_are_those_of_all_runs_over_the_workers():
    rungs = d.design([50e3, 100e3, 210e3, 900e3], d.Settings(longer=0))
    def seconds(one):
        return 60.0

    alone, two = (d.minutes(rungs, seconds, SETTINGS, 2, workers) for workers in (1, 2))
    assert alone > 1.8 * two > 0
    carried = next(one for one in rungs if one.role == "carried")
    assert d.rung_minutes(carried, seconds, SETTINGS, 2, 1) == pytest.approx(6, abs=0.2)  # three seeds of two arms


def test_the_plan_has_a_line_a_rung_and_counts_repeats():
    rungs = d.design([50e3, 100e3, 210e3, 900e3], SETTINGS)
    lines = d.describe(rungs, SETTINGS, lambda one: 30.0, 3, 2, {"train_tokens": 1_000_000})
    top = rungs[-1]
    table, below = lines[:len(rungs) + 1], lines[len(rungs) + 1:]
    assert [line.split()[0] for line in table] == ["rung", *(one.name for one in rungs)]
    assert [line.split()[-1] for line in table] == ["rates", *(one.role for one in rungs)]
    assert all(len(line) <= 80 for line in table) and len({len(line.rsplit("  ", 1)[0]) for line in table}) == 1
    assert all(f"{one.parameters_with_embeddings - one.parameters:,}" in line
               for one, line in zip(rungs, table[1:], strict=True))
    assert f"{top.name} is held out" in below[1]
    assert {word for word in ("tuned", "checked", "carried") if f"{word}:" in below[0]} == {one.role for one in rungs}
    assert any(f"{top.name}: a run reads it {top.tokens / 1e6:.1f} times" in line for line in lines)
    assert top.tokens / 1e6 > defaults.MAXIMUM_EPOCHS


def test_branches_are_named_in_the_plan():
    rungs = [replace(one, branches=one.longer != 1) for one in d.design([50e3, 100e3, 210e3, 900e3], SETTINGS)]
    lines = d.describe(rungs, SETTINGS, None, 3, 2, {})
    assert [line.split()[-1] for line in lines[1:len(rungs) + 1]] == [
        "branched" if one.branches else one.role for one in rungs]
    assert "branched: those of the shorter runs" in lines[len(rungs) + 1]
