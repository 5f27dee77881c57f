"""The rules of claims 8 to 12 can fail: planted losses of language models turn each verdict."""

import json
import math
from dataclasses import replace

import pytest

from nonlin.claims import n08_gating, n09_stability, n10_convergence, n11_size, n12_tandem
from nonlin.claims.definition import DEPENDS, FAILS, HOLDS, OPEN
from nonlin.errors import UserError
from tests.advice.test_ladder import folder as ladder_folder
from tests.claims import planted


def verdict(claim, effect, **options):
    """The verdict of a claim whose studies' losses are planted."""
    return claim.decide(claim.measure(planted.found(claim, effect, **options)))


def gate(width=0.0, params=0.0, time=0.0):
    made = planted.plan()
    wide = made.study("gate-width").arm("swiglu")["hidden"]
    steps = made.study("gate-params").arm("swiglu")["judge_steps"]

    def effect(config):
        if config["activation"]["name"] != "swiglu":
            return 0.0
        if config["model"]["hidden"] == wide:
            return width
        return params if config["training"]["steps"] == steps or config["purpose"] == "tune" else time

    return effect


def test_8_turns_with_planted_losses():
    claim = n08_gating.CLAIM
    assert verdict(claim, planted.activation(swiglu=-0.05)).verdict == HOLDS
    assert verdict(claim, planted.activation(swiglu=0.05)).verdict == FAILS
    assert verdict(claim, gate(width=-0.05)).verdict == DEPENDS
    assert verdict(claim, planted.activation(), scale=0.05).verdict == OPEN


def test_8_says_nothing_at_equal_time_where_times_were_not_equal_in_favour_of_what_was_found():
    claim = n08_gating.CLAIM
    for effect, slow, fast in ((-0.05, OPEN, HOLDS), (0.05, FAILS, OPEN), (0.0, FAILS, OPEN)):
        for speed, expected in ((0.8, slow), (1.25, fast), (1.0, HOLDS if effect < 0 else FAILS)):
            found = planted.found(claim, planted.activation(swiglu=effect))
            for arm in found.study("gate-time")["arms"]:
                arm["timing"]["tokens_per_second"] = speed if arm["name"] == "swiglu" else 1.0
            assert bool(n08_gating.questions(n08_gating.measure(found))) is (expected != OPEN)
            told = n08_gating.decide(n08_gating.measure(found))
            assert told.verdict == expected and ("nothing is said at equal time" in told.summary) == (expected == OPEN)


def sensitivity(**far):
    return lambda config: far.get(config["activation"]["name"], 0.0) * math.log(
        config["training"]["learning_rate"] / 0.01) ** 2


def test_9_turns_with_planted_losses():
    claim = n09_stability.CLAIM
    calm = verdict(claim, sensitivity(relu=0.5))
    assert calm.verdict == DEPENDS and calm.parts["gelu is less sensitive"] == "yes"
    assert calm.parts["gelu bears a higher rate"] == "yes" and calm.parts["gelu spikes less"] == "no"
    assert verdict(claim, lambda config: 0.0).verdict == FAILS
    assert verdict(claim, sensitivity(relu=0.006), scale=0.3).verdict == OPEN


def test_9_holds_where_relu_spikes_too():
    found = planted.found(n09_stability.CLAIM, sensitivity(relu=0.5))
    for arm in found.study("core")["arms"]:
        for t in arm["tuning"]:
            found.records[t["config_hash"]]["spike_score"] = 0.05 * (arm["name"] == "relu")
    assert n09_stability.decide(n09_stability.measure(found)).verdict == HOLDS


def curves(**speed):
    """Training curves that fall with the logarithm of tokens, faster for some activations."""
    made = planted.plan()
    of_key = _trials(made)

    def lines(key):
        config = of_key[key]
        factor = speed.get(config["activation"]["name"], 1.0) * (1 + 0.01 * planted.noise(key))
        return [{"kind": "train", "tokens": t, "loss_nats": 4 - 0.4 * math.log(factor * t)}
                for t in range(100, 10000, 100)]

    return lines


def _trials(made):
    from nonlin.study.tuning import complete, trials_of

    configs, found = {}, planted.records(made, ["core"], planted.activation())
    study = made.study("core")
    known = {}
    while not complete(study, known):
        for stage in ("tune", "judge"):
            for t in trials_of(study, stage, known):
                configs[t.key], known[t.key] = t.config, found[t.key]
    return configs


def test_10_turns_with_planted_curves():
    claim = n10_convergence.CLAIM

    def of(**speed):
        return verdict(claim, planted.activation(), lines=curves(**speed)).verdict

    assert of(gelu=1.3, silu=1.3) == HOLDS and of(gelu=1.3) == DEPENDS and of() == FAILS
    assert of(gelu=1.045, silu=1.3) == OPEN  # its interval reaches past the margin, its mean does not


def by_size(*gaps):
    dims = [shape[1] for shape in n11_size.LADDER.values()]
    return lambda config: dict(zip(dims, gaps, strict=True))[config["model"]["dim"]] * (
        config["activation"]["name"] == "swiglu")


def test_11_turns_with_planted_losses():
    claim = n11_size.CLAIM
    assert verdict(claim, by_size(0.02, 0.0, -0.02, -0.05)).verdict == HOLDS
    assert verdict(claim, by_size(-0.03, -0.03, -0.03, -0.03)).verdict == FAILS  # better already in the smallest
    assert verdict(claim, by_size(0.0, 0.0, 0.0, 0.0)).verdict == FAILS  # no trend
    assert verdict(claim, by_size(0.0, 0.0, 0.0, 0.0), scale=0.1).verdict == OPEN


def tandem(ax=0.0, at=0.0, nt=0.0):
    """Interactions between the three factors on top of main effects."""
    def effect(config):
        relu, model = config["activation"]["name"] == "relu", config["model"]
        bare, off = model.get("norm") == "none", not model.get("attention", True)
        return 0.3 * bare + 0.4 * off + 0.05 * relu + ax * (relu and bare) + at * (relu and off) + nt * (bare and off)

    return effect


def test_12_turns_with_planted_losses():
    claim = n12_tandem.CLAIM
    assert verdict(claim, tandem(0.2, 0.2, 0.2)).verdict == HOLDS
    assert verdict(claim, tandem()).verdict == FAILS  # main effects alone are no interaction
    depends = verdict(claim, tandem(nt=0.2))
    assert depends.verdict == DEPENDS and "normalization × attention" in depends.on
    assert verdict(claim, tandem(), scale=0.1).verdict == OPEN


def test_12_contrasts_leave_out_what_diverged_and_name_it():
    made = planted.found(n12_tandem.CLAIM, tandem(nt=0.2))
    measures = n12_tandem.measure(made)
    cells = {(c["activation"], c["normalization"], c["attention"]): list(c["bits_per_byte"]) for c in measures["cells"]}
    cells["relu", "none", "off"][0] = None
    found = n12_tandem.contrasts(cells)
    assert found["diverged"] == ["relu none off"]
    assert found["contrasts"]["normalization × attention: none, off"]["mean"] == pytest.approx(0.2, abs=0.01)


# 11, by a ladder

def climbed(monkeypatch, effects, sizes=None):
    """Claim 11's verdict by a simulated ladder of gelu and swiglu."""
    there = ladder_folder(*effects)
    text = json.dumps([results for _, results in there.ladder.finished])
    text = text.replace("arm-0", "gelu").replace("arm-1", "swiglu")
    ran = zip([one for one, _ in there.ladder.finished], json.loads(text), strict=True)
    there.ladder.finished = list(ran)[:sizes]
    plan = replace(there.plan, request={"arms": [{"name": name} for name in ("gelu", "swiglu")]}, baseline="gelu")
    object.__setattr__(there, "plan", plan)
    monkeypatch.setattr(n11_size, "load_ladder", lambda _: there)
    return n11_size.by_ladder("runs/ladder")


def test_11_is_judged_by_a_ladder(monkeypatch):
    better = climbed(monkeypatch, [-0.08])
    assert better["verdict"] == FAILS and better["parts"]["GELU is as good or better in the smallest"] == "no"
    assert better["parts"]["SwiGLU is better in the largest"] == "yes" and len(better["sizes"]) == 5
    assert better["rule"] == n11_size.CLAIM.rule and better["forecast"] is None
    assert climbed(monkeypatch, [0.08])["parts"]["SwiGLU is better in the largest"] == "no"
    with pytest.raises(UserError, match="3 or more finished rungs"):
        climbed(monkeypatch, [-0.08], sizes=2)
    monkeypatch.setattr(n11_size, "load_ladder", lambda _: ladder_folder(-0.08))
    with pytest.raises(UserError, match="compare gelu and swiglu"):
        n11_size.by_ladder("runs/ladder")
