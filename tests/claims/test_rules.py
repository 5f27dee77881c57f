"""Rules of claims can fail: an altered activation or planted data turns the verdict. Those of 8 to 12 stand apart."""

import math

import pytest
import torch

from nonlin.claims import (
    all_claims,
    n01_linear,
    n02_approximation,
    n03_essential,
    n04_vanishing,
    n05_dying,
    n06_gelu,
    n07_silu,
    n13_models,
)
from nonlin.claims.definition import DEPENDS, FAILS, HOLDS, OPEN, Found, effects
from nonlin.claims.runner import answer
from nonlin.claims.worker import run_experiment
from nonlin.functions import define
from tests.claims import planted

SEEDS = [1, 2, 3, 4, 5, 6]


def values(mean, spread=0.01):
    """Six values with this mean and this spread."""
    return [mean + spread * x for x in (-1, -0.5, 0, 0, 0.5, 1)]


def run(module, **changes):
    """The measures of a claim's first experiment of a tiny plan, its configuration changed."""
    experiment = module.CLAIM.experiments(planted.plan())[0]
    return run_experiment({**experiment.config, **changes})["measured"]


def test_the_claims_are_thirteen_and_each_says_all_that_the_page_shows():
    claims = all_claims()
    assert [c.number for c in claims] == list(range(1, 14))
    for claim in claims:
        assert all(len(text) > 60 for text in (claim.background, claim.tested, claim.rule, claim.change, claim.caption))


# 1: linear

def linear(identity=1e-6, relu=0.5, model=0.5):
    return n01_linear.decide({"depths": [1, 64], "networks": {
        "identity": {"additive": [1e-7, identity], "matrix": [1e-7, identity]}, "relu": {"additive": [0.6, relu]}},
        "language_model": {"additive": {"nothing else": model, "both": 1e-7}, "block_matrix": 1e-7}}).verdict


def test_1_turns_with_the_numbers():
    assert linear() == DEPENDS and linear(model=1e-6) == HOLDS
    assert linear(identity=0.3) == FAILS and linear(relu=1e-6) == FAILS
    assert linear(identity=1e-3) == OPEN


def test_1_sees_through_an_activation_that_is_linear_in_disguise():
    define("claims_disguised", "2*x + max(x, 0) - max(-x, 0)")  # 3 x
    assert max(run(n01_linear, activation="claims_disguised", seeds=[1, 2])["additive"]) < 1e-4
    assert min(run(n01_linear, activation="relu", seeds=[1, 2])["additive"]) > 0.1


# 2: approximation

def approximation(**falls):
    rows = {name: {"falls": values(fall), "errors": [0.5, fall], "polynomial": name == "square"}
            for name, fall in falls.items()}
    return n02_approximation.decide({"activations": rows})


def test_2_turns_with_the_numbers():
    assert approximation(identity=1.0, relu=0.3, gelu=0.2).verdict == HOLDS
    depends = approximation(identity=1.0, relu=0.3, gelu=0.2, square=1.0)
    assert depends.verdict == DEPENDS and "square" in depends.on
    assert approximation(identity=0.3, relu=0.3, gelu=0.2).verdict == FAILS
    assert approximation(identity=1.0, relu=1.0, gelu=1.0, silu=0.2).verdict == FAILS
    assert approximation(identity=1.0, relu=0.75, gelu=0.2).verdict == OPEN


def test_2_a_square_instead_of_an_activation_stops_and_relu_does_not():
    define("claims_square", "x*x")
    falls = {}
    for name in ("claims_square", "relu"):
        errors = run(n02_approximation, activation=name, seeds=[1, 2])["errors"]
        start, end = (sum(math.log(e) for seed in errors for e in seed[i]) / 6 for i in (2, -1))
        falls[name] = math.exp(end - start)
    assert falls["claims_square"] > 0.9 and falls["relu"] < 0.5


# 3: essential

def essential(read, match, language, missing=None):
    kept = {"read a digit": values(read), "do two digits match": values(match), "predict text": values(language)}
    return n03_essential.decide({"kept": effects(kept), "missing": missing}).verdict


def test_3_turns_with_the_numbers():
    assert essential(0.97, 0.05, 0.9) == DEPENDS and essential(0.2, 0.05, 0.1) == HOLDS
    assert essential(0.97, 0.9, 0.9) == FAILS and essential(0.97, 0.5, 0.9) == OPEN
    assert essential(0.97, 0.05, 0.9, missing="install it") == OPEN


def test_3_a_language_model_that_learns_nothing_without_activations(monkeypatch):
    monkeypatch.setattr(n03_essential, "missing", lambda: "not here")
    for identity, expected in ((5.0, "yes"), (0.1, "no")):
        found = planted.found(n03_essential.CLAIM, planted.activation(identity=identity))
        decided = n03_essential.decide(n03_essential.measure(found))
        assert decided.parts["essential to predict text"] == expected and "not here" in decided.summary


def test_3_is_open_where_nothing_trains_without_activations(monkeypatch):
    monkeypatch.setattr(n03_essential, "missing", lambda: "not here")
    found = planted.found(n03_essential.CLAIM, planted.activation(),
                          diverged=lambda config: config["activation"]["name"] == "identity")
    assert answer(n03_essential.CLAIM, found)[1].verdict == OPEN


def test_3_draws_an_activation_that_never_trains(monkeypatch):
    monkeypatch.setattr(n03_essential, "missing", lambda: "not here")
    found = planted.found(n03_essential.CLAIM, planted.activation(),
                          diverged=lambda config: config["activation"]["name"] == "silu")
    assert n03_essential.figure(n03_essential.measure(found)).axes


# 4: vanishing

def vanishing(**decades):
    rows = {}
    for gain in ("common", "proper"):
        at = {n: values(decades.get(f"{n}_{gain}", 0.0)) for n in n04_vanishing.ACTIVATIONS}
        rows[gain] = {n: {"at": e} for n, e in effects(at).items()}
    return n04_vanishing.decide({"gains": rows})


def test_4_turns_with_the_numbers():
    gone = {f"{n}_{g}": -9.0 for n in ("sigmoid", "tanh") for g in ("common", "proper")}
    assert vanishing(**gone).verdict == HOLDS
    assert vanishing(**gone | {"relu_common": -5.0}).verdict == DEPENDS
    assert vanishing(relu_common=-5.0, relu_proper=-5.0).verdict == FAILS
    assert vanishing(**gone | {"tanh_proper": -3.0}).verdict == OPEN


def test_4_an_activation_that_halves_its_signal_vanishes_and_one_that_keeps_it_does_not():
    define("claims_weak", "x/4 + max(x, 0)/100")
    weak = run(n04_vanishing, activation="claims_weak", gain=1.0, seeds=[1, 2], steps=1, engine="torch")
    relu = run(n04_vanishing, activation="relu", gain=None, seeds=[1, 2], steps=1, engine="torch")
    deep = n04_vanishing.DEPTHS.index(n04_vanishing.JUDGED)
    assert max(weak["by_depth"][deep]) < -10 and min(relu["by_depth"][deep]) > -2


# 5: dying

def dying(best, high, language):
    names = n05_dying.ACTIVATIONS
    shares = {key: effects({n: values(v if n == "relu" else 0.0) for n in names})
              for key, v in (("at_best", best), ("at_high", high))}
    rows = {n: {"best": 0} for n in names}
    text = {f"{rate:g}": effects({"relu": values(v)})["relu"] for rate, v in enumerate(language)}
    return n05_dying.decide({"shares": shares, "rates": [0.1], "activations": rows, "language": text}).verdict


def test_5_turns_with_the_numbers():
    assert dying(0.3, 0.9, [0.2, 0.3]) == HOLDS and dying(0.3, 0.9, [0.2, 0.0]) == DEPENDS
    assert dying(0.0, 0.0, [0.0]) == FAILS and dying(0.045, 0.9, [0.0]) == OPEN
    assert dying(0.3, 0.9, [0.045, 0.3]) == OPEN


def test_5_asks_at_every_rate_that_trains_as_well_as_the_best():
    losses = {0.01: (2.0, 2.1, 2.2), 0.02: (2.05, 2.02, 2.24), 0.04: (2.5, 2.6, 2.7), 0.08: (2.0, 2.0, None)}
    tuning = [{"learning_rate": rate, "seed": seed, "bits_per_byte": loss}
              for rate, row in losses.items() for seed, loss in enumerate(row)]
    assert n05_dying.good_rates({"name": "relu", "learning_rate": 0.01, "tuning": tuning}) == [0.01, 0.02]


def test_5_counts_judged_runs_at_a_rate_between_those_of_the_grid():
    plan = planted.plan()
    rates, seeds = len(n05_dying.RATES), len(plan.seeds[:6])
    measured = {"dead": [[[0.0] * seeds] * rates, [[0.1] * seeds] * rates], "loss": [[1.0] * seeds] * rates}
    extra = {e.key: {"measured": measured, "timing": {"seconds": 1.0}} for e in n05_dying.experiments(plan)}
    found = planted.found(n05_dying.CLAIM, planted.activation(), extra=extra, best=0.02)
    relu = next(arm for arm in found.study("core")["arms"] if arm["name"] == "relu")
    assert relu["learning_rate"] not in {run["learning_rate"] for run in relu["tuning"]}
    language = n05_dying.measure(found)["language"]
    assert language[f"{relu['learning_rate']:.3g}"]["seeds"] == len(relu["judged"]) and "0.016" in language


def test_5_counts_units_that_an_altered_relu_kills_before_training():
    define("claims_dead", "max(x - 6, 0)")
    dead = run(n05_dying, activation="claims_dead", seeds=[1], steps=2, engine="torch")["dead"]
    alive = run(n05_dying, activation="leaky_relu", seeds=[1], steps=2, engine="torch")["dead"]
    assert min(min(row) for row in dead[0]) == 1.0 and max(max(row) for row in alive[0]) == 0.0


# 6: GELU

def gelu(zero, noise, flow, smoothness="smooth"):
    rows = {n: {"smoothness": s, "zero": values(zero), "flow": values(flow)}
            for n, s in (("relu", "C0"), ("gelu", smoothness))}
    less = effects({"zero": values(zero), "noise": values(noise), "flow": values(flow)})
    return n06_gelu.decide({"activations": rows, "differences": less}).verdict


def test_6_turns_with_the_numbers():
    assert gelu(0.5, 0.5, 0.5) == HOLDS and gelu(0.5, 0.0, -1.0) == DEPENDS
    assert gelu(0.0, 0.0, -1.0, smoothness="C0") == FAILS and gelu(0.5, 0.25, -1.0) == OPEN


def test_6_measures_an_altered_activation():
    define("claims_leaky", "max(x, 0) + min(x, 0)/5")
    experiment = n06_gelu.experiments(planted.plan())[-1]
    zero = {n: run_experiment({**experiment.config, "activation": n, "seeds": [1, 2]})["measured"]["zero"]
            for n in ("relu", "claims_leaky")}
    assert min(zero["relu"]) > 0.35 and max(zero["claims_leaky"]) == 0.0


# 7: SiLU

def silu(narrow, wide, monotonic=False):
    about = {n: {"smoothness": "smooth", "monotonic": monotonic, "minimum": (-1.28, -0.28)} for n in ("silu", "gelu")}
    return n07_silu.decide({"properties": about, "differences": effects(
        {"width 16": values(narrow), "width 64": values(wide)})}).verdict


def test_7_turns_with_the_numbers():
    assert silu(-0.2, -0.2) == HOLDS and silu(-0.2, 0.1) == DEPENDS and silu(0.1, 0.2) == FAILS
    assert silu(-0.2, -0.2, monotonic=True) == FAILS and silu(-0.045, -0.2) == OPEN


def test_7_a_seed_does_not_choose_its_own_learning_rate():
    by_rate = [[0.0, 9.0, 9.0], [1.0, 1.0, 1.0]]
    assert n07_silu.judged(by_rate) == [1.0, 1.0, 1.0]
    assert n07_silu.judged([[None, 0.5, 0.5], [1.0, 1.0, 1.0]]) == [math.inf, 1.0, 1.0]


# 13: models

def models(**computed):
    rows = {name: {"claimed": family[0], "is": computed.get(name.replace("-", "_"), family[0])}
            for name, family in n13_models.FAMILIES.items()}
    return n13_models.decide({"families": rows, "missing": None}).verdict


def test_13_turns_with_the_numbers():
    assert models() == HOLDS and models(gpt_oss="swiglu_oai") == DEPENDS and models(BERT="relu") == FAILS
    assert n13_models.decide({"families": {}, "missing": "install it"}).verdict == OPEN


def test_13_tells_apart_what_the_configurations_confuse():
    pytest.importorskip("transformers", reason="reading models needs transformers")
    found = {}
    made = planted.plan()
    chosen = [e for e in n13_models.experiments(made) if e.config["family"] in ("BERT", "GPT-2", "gpt-oss")]
    for e in chosen:
        errors = run_experiment(e.config)["measured"]["errors"]
        found[e.config["family"]] = [n for n, error in errors.items() if error < n13_models.SAME]
    assert found == {"BERT": ["gelu"], "GPT-2": ["gelu_tanh"], "gpt-oss": ["swiglu_oai"]}


def test_an_altered_block_is_found_out(monkeypatch):
    bert = pytest.importorskip("transformers.models.bert.modeling_bert", reason="reading models needs transformers")
    monkeypatch.setitem(bert.ACT2FN, "gelu", torch.nn.ReLU)
    e = next(e for e in n13_models.experiments(planted.plan()) if e.config["family"] == "BERT")
    errors = run_experiment(e.config)["measured"]["errors"]
    assert errors["relu"] < n13_models.SAME < errors["gelu"]


@pytest.mark.parametrize("claim", [c for c in all_claims() if c.studies and c.number not in (3, 5)])
def test_studies_whose_runs_all_diverge_settle_nothing(claim):
    found = planted.found(claim, lambda config: 0.0, diverged=lambda config: True)
    assert answer(claim, found)[1].verdict == OPEN


def test_found_reads_nothing_that_is_not_there():
    made = planted.plan()
    assert not Found(made, {}).done(n01_linear.experiments(made), [])
