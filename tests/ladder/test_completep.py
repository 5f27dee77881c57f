"""CompleteP as a rule of a ladder: its recipe makes requests, and its factors are the horizon's alone."""

from dataclasses import replace

import pytest

from nonlin.ladder import design
from nonlin.ladder.completep import CompleteP
from nonlin.training import transfer
from tests.study import studies


@pytest.fixture
def rungs():
    return [design.rung(size, "carried", 16, design.Settings()) for size in (60_000, 240_000, 960_000)]


def test_the_rate_falls_with_the_tokens_alone(rungs):
    rule, (small, middle, large) = CompleteP(), rungs
    assert rule.factor(small, small) == 1 and rule.factor(small, replace(large, tokens=small.tokens)) == 1
    assert rule.factor(small, large) == pytest.approx(rule.factor(small, middle) * rule.factor(middle, large))
    assert rule.factor(small, replace(small, tokens=10 * small.tokens)) == pytest.approx(10 ** -0.3)


def test_the_recipe_of_a_rung_makes_a_study(rungs):
    rule, (base, *_) = CompleteP(), rungs
    for one in rungs:
        shape = {"layers": one.layers, "dim": one.dim, "heads": one.heads, "kv_heads": one.heads}
        made = studies.plan(training=rule.training(one, base), model=studies.MODEL | shape)
        assert transfer.ratios(made.training["transfer"], made.model) == (one.dim / base.dim, one.layers / base.layers)
        # The horizon is in the rung's own rate already.
        assert transfer.horizon(made.training["transfer"], one.tokens) == 1
    assert all(group.rate == 1 for group in transfer.groups(rule.training(base, base)["transfer"], {
        "layers": base.layers, "dim": base.dim, "heads": base.heads}).values())
