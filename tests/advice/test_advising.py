"""The rules of the advice: planted evidence turns it, distance is said, nothing is claimed that nothing shows."""

import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nonlin.advice import advise, measured, parse_size, runtimes, size_text
from nonlin.advice.costs import measure
from nonlin.advice.evidence import Evidence, choose, from_papers, from_study
from nonlin.advice.initialization import initialization, second_moment
from nonlin.advice.published import TABLES
from nonlin.advice.reported import REPORTS
from nonlin.advice.shape import shape_for
from nonlin.cli import main
from nonlin.cli.advise import advise as command
from nonlin.cli.compare import compare
from nonlin.errors import UserError
from nonlin.functions import get, names
from nonlin.model import ModelConfig, parameter_count
from nonlin.model.language_model import LanguageModel
from nonlin.nn import FeedForward, matched_hidden
from nonlin.study import load

M, B = 10**6, 10**9


def ask(params=125 * M, tokens=2500 * M, **options):
    return advise(params, tokens, measure=False, **options)


# Sizes.

@pytest.mark.parametrize(("text", "value"), [
    ("125M", 125 * M), ("2.5B", 2500 * M), ("1e9", B), ("7b", 7 * B), (" 300k ", 300_000), ("1_000", 1000),
    ("12,000", 12000), ("1,234,567.5", 1_234_568), ("2T", 2 * 10**12), ("1.5e3M", 1500 * M)])
def test_sizes_are_read(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "M", "-5M", "0", "1.2.3M", "125MB", "many", "1e99", "nan", "1e-3", "٣M5", "2,5B",
                                  "1,0000"])
def test_other_sizes_are_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"advise: --params must be a number like 125M, 2.5B or 1e9; got .*\. Write"):
        parse_size(text, "params")


@given(st.integers(1, 10**15))
def test_a_size_reads_back_to_three_digits(value):
    assert parse_size(size_text(value)) == pytest.approx(value, rel=0.005)


# Published tables.

def test_published_tables_say_what_the_papers_say():
    """Gating is worth about 0.04 nats; one pointwise function for another less than 0.01."""
    for table in TABLES:
        assert -0.055 < table.difference("swiglu", "gelu")[0] < -0.035
        assert max(abs(table.difference(n, "gelu")[0]) for n in ("relu", "silu")) < 0.0145
    assert {t.tokens for t in TABLES} == {65_536 * 80_128, 524_288 * 80_128}


@pytest.mark.parametrize("ladder", measured.LADDERS, ids=lambda one: one.name)
def test_a_recorded_ladder_is_what_the_record_has(ladder):
    path = Path(__file__).parents[2] / f"benchmarks/records/ladder-{ladder.name}.json"
    rungs = [rung for rung in json.loads(path.read_text("utf-8"))["rungs"] if rung["longer"] == 1]
    assert [(t.params, t.tokens) for t in ladder.tables()] == [(r["parameters"], r["tokens"]) for r in rungs]
    for table, rung in zip(ladder.tables(), rungs, strict=True):
        assert list(table.losses) == list(rung["arms"])
        for name, arm in rung["arms"].items():
            difference, error = table.difference(name, "gelu")
            if name != "gelu":
                assert difference == pytest.approx(arm["difference"]["mean"] * math.log(2), abs=1e-4)
                paired = [value * math.log(2) for value in arm["each"]]
                assert error < 4 * statistics.stdev(paired)  # pooled over the activations


def test_recorded_ladders_are_evidence_near_their_sizes():
    found = ask(1_200_000, 3 * M)
    assert found["sureness"] == "likely" and "recorded ladder" in found["reasons"][0]
    assert sum("recorded ladder on English prose" in e["source"] for e in found["evidence"]) == 1
    assert found["choice"] in ("swiglu", "geglu", "swiglu_clamped", "situ_glu")
    # The English ladder did not try the other gates: it says nothing against them.
    for params, tokens in ((231_000, 578_000), (1_230_000, 3_076_000)):
        choice = choose(from_papers(params, tokens, measured.tables()), {}, {})
        assert {"swiglu", "geglu", "situ_glu"} <= set(choice.favoured) and choice.sureness == "likely"
    assert not any("recorded ladder" in e["source"] for e in ask()["evidence"])  # 100 times larger: not shown


def test_a_papers_longer_training_answers_a_longer_question():
    short, long = from_papers(223 * M, 5 * B), from_papers(223 * M, 40 * B)
    assert {e.bucket for e in short + long} == {"near"}
    assert short[0].found["relu"].startswith("+0.014") and long[0].found["relu"].startswith("−0.002")


# Reports without seeds.

def test_reports_without_seeds_are_shown_and_decide_nothing(monkeypatch):
    found = ask()
    assert [r["source"] for r in found["reports"]] == [r.source for r in REPORTS] and len(REPORTS) >= 8
    assert not {r.source for r in REPORTS} & {e["source"] for e in found["evidence"]}
    shown = repr(found)
    assert "decides nothing" in shown and all(r.source.split()[0] in shown for r in REPORTS)
    monkeypatch.setattr("nonlin.advice.advising.REPORTS", ())
    without = ask()
    assert without["reports"] == [] and (without["choice"], without["reasons"]) == (found["choice"], found["reasons"])


def test_the_page_has_the_reports_as_advise_has_them():
    text = (Path(__file__).parents[2] / "docs" / "advise.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("| ") and line.count("|") == 7]
    assert rows[2:] == [[v or "–" for v in r.as_dict().values()] for r in REPORTS]
    assert all(name in names() for r in REPORTS for name in re.findall(r"\w+_\w+|powlu|\w*glu\b", r.compared)
               if name.islower())


# The choice.

def test_near_the_papers_they_decide():
    found = ask()
    assert (found["choice"], found["sureness"]) == ("swiglu", "likely")
    assert "Shazeer" in found["reasons"][0] and "Narang" in found["reasons"][0]
    assert "geglu is as good within the noise; swiglu because it runs in more places." in found["reasons"][1]


def test_scale_far_outside_is_said_and_no_more_than_a_guess():
    found = ask(70 * B, 15_000 * B)
    assert found["sureness"] == "guess"
    assert "Nothing within a factor of 30" in found["missing"][0] and "factor of " in found["missing"][0]
    assert {e["nearness"] for e in found["evidence"]} == {"far"}
    assert found["commands"]
    assert "e+" not in " ".join([*found["reasons"], *found["missing"], *(c["why"] for c in found["commands"])])


def test_between_it_is_plausible():
    assert ask(2 * B, 60 * B)["sureness"] == "plausible"


def test_the_best_of_ones_own_study_is_the_one_that_the_study_names(plant):
    folder = plant({"gelu": "baseline", "silu": "better", "swiglu": "better"})
    results = json.loads((folder / "results.json").read_text())
    results["arms"][2]["difference"]["mean"] = -0.06  # the larger difference by the fit, though not the lesser mean
    results["arms"][2]["bits_per_byte"] = 0.96
    (folder / "results.json").write_text(json.dumps(results))
    assert from_study(load(folder), 125e6, 2.5e9).favours == ("swiglu",)


@pytest.mark.parametrize("winner", ["relu_squared", "relu", "silu"])
def test_a_near_study_of_ones_own_turns_the_advice(plant, winner):
    folder = plant({"gelu": "baseline", "swiglu": "worse", winner: "better"})
    found = ask(study=folder)
    assert found["choice"] == winner
    assert str(folder) in found["reasons"][0]
    papers_know = winner != "relu_squared"
    assert found["sureness"] == ("plausible" if papers_know else "likely")  # both papers found relu and silu worse
    assert any("Shazeer" in line and "otherwise" in line for line in found["reasons"]) == papers_know
    assert found["commands"] == []


def test_a_near_study_where_all_tie_keeps_its_baseline_or_what_runs_in_more_places(plant):
    assert ask(study=plant({"gelu": "baseline", "relu": "tie"}))["choice"] == "gelu"
    assert ask(study=plant({"gelu": "baseline", "swiglu": "tie"}))["choice"] == "swiglu"


def test_a_far_study_does_not_decide_but_makes_it_less_sure(plant):
    small = {"params": 900_000, "tokens": 5 * M}
    agreeing = ask(study=plant({"gelu": "baseline", "swiglu": "better"}, **small))
    against = ask(study=plant({"gelu": "baseline", "swiglu": "worse"}, **small))
    assert (agreeing["choice"], agreeing["sureness"]) == ("swiglu", "likely")
    assert (against["choice"], against["sureness"]) == ("swiglu", "plausible")
    assert "says otherwise (worse, +0.0500 (+0.0460 … +0.0540) bits a byte; far" in against["reasons"][-1]


def test_where_only_far_evidence_is_left_the_nearest_decides(plant):
    folder = plant({"gelu": "baseline", "relu_squared": "better"}, params=10 * M, tokens=500 * M)
    found = ask(1 * M, 20 * B, study=folder)  # long training: far from the recorded ladder too
    assert (found["choice"], found["sureness"]) == ("relu_squared", "guess")
    farther = plant({"gelu": "baseline", "relu_squared": "better"}, params=900_000, tokens=5 * M)
    assert ask(70 * B, 15_000 * B, study=farther)["choice"] == "swiglu"


@pytest.mark.parametrize("verdicts", [{"gelu": "baseline", "relu": "undecided", "swiglu": "undecided"}])
def test_an_undecided_study_decides_nothing_and_that_is_said(plant, verdicts):
    found = ask(study=plant(verdicts))
    assert found["choice"] == "swiglu" and "decides nothing yet" in " ".join(found["missing"])


def test_an_unfinished_study_decides_nothing(plant):
    found = ask(study=plant({"gelu": "baseline", "relu": "better"}, status="partial"))
    assert found["choice"] == "swiglu" and "decides nothing yet" in " ".join(found["missing"])


def test_ones_own_formula_can_win(plant):
    folder = plant({"gelu": "baseline", "mine": "better"}, formulas={"mine": "x*sigmoid(3*x)"})
    found = ask(study=folder)
    assert found["choice"] == "mine" and found["formula"] == "x*sigmoid(3*x)"
    assert not found["inference"]["huggingface"]["exports"] and not found["inference"]["llama_cpp"]["exports"]


def evidence(favours, rejects=(), distance=2.0, own=False, source="a paper"):
    found = dict.fromkeys([*favours, *rejects], "-")
    return Evidence(source, own, 1e8, 1e9, distance, tuple(favours), tuple(rejects), found)


def test_papers_that_share_a_favourite_give_it():
    both = [evidence(["geglu", "swiglu"]), evidence(["swiglu", "reglu"], source="another")]
    assert choose(both, {}, {}).name == "swiglu"


def test_time_breaks_a_tie_of_places():
    one = [evidence(["geglu", "swiglu"])]
    assert choose(one, {"geglu": 1, "swiglu": 1}, {"geglu": 3.0, "swiglu": 2.0}).name == "swiglu"
    assert choose(one, {"geglu": 1, "swiglu": 1}, {"geglu": 2.0, "swiglu": 3.0}).name == "geglu"
    assert choose(one, {"geglu": 1, "swiglu": 2}, {"geglu": 2.0, "swiglu": 3.0}).name == "swiglu"


@given(st.floats(1.0, 1e5), st.floats(1.0, 1e5))
def test_the_nearest_decides_wherever_it_is(own, other):
    found = choose([evidence(["relu"], distance=own, own=True), evidence(["gelu"], distance=other)], {}, {})
    bucket = lambda d: (d > 4) + (d > 30)  # noqa: E731
    expected = "relu" if (bucket(own), own if bucket(own) == 2 else 0) <= (bucket(other), other) else "gelu"
    assert found.name == expected


# Shape, initialization, costs, destinations.

@pytest.mark.parametrize("params", [150_000, M, 10 * M, 60 * M, 125 * M, 350 * M, 1300 * M, 7 * B, 70 * B])
@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_shapes_have_the_asked_parameters(params, hardware):
    shape = shape_for(params, hardware)
    for gated in (True, False):
        assert shape.parameters(gated) == pytest.approx(params, rel=0.12 if params < M else 0.06)
        assert shape.hidden(gated) % shape.multiple == 0
        ModelConfig(shape.layers, shape.dim, shape.heads, shape.heads, shape.context, shape.vocabulary,
                    shape.hidden(gated), shape.tied)
    assert 25 <= shape.dim / shape.layers <= 160


def test_a_shape_is_a_model_with_so_many_parameters():
    shape = shape_for(M, "cpu")
    config = ModelConfig(shape.layers, shape.dim, shape.heads, shape.heads, shape.context, shape.vocabulary,
                         shape.hidden(True), shape.tied)
    model = LanguageModel(config, get("swiglu"))
    assert sum(p.numel() for p in model.parameters()) == shape.parameters(True)


@pytest.mark.parametrize("params", [99_999, 3 * 10**12])
def test_sizes_out_of_range_are_refused(params):
    with pytest.raises(UserError, match="--params must lie between 100K and 2T"):
        shape_for(params, "cpu")


@pytest.mark.parametrize("name", ["gelu", "relu_squared", "swiglu", "drelu", "swiglu_oai", "situ_glu"])
def test_second_moments_are_those_of_a_sample(name):
    definition = get(name)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2_000_000, generator=generator, dtype=torch.float64) for _ in definition.variables]
    from nonlin import functional

    squares = functional.activation(definition)(*inputs).square()
    error = float(squares.std()) / math.sqrt(len(squares))
    assert second_moment(definition) == pytest.approx(float(squares.mean()), abs=5 * error)


@pytest.mark.parametrize("name", ["relu_squared", "gelu", "swiglu"])
def test_the_initialization_gives_a_block_whose_layers_add_up_to_unit_size(name):
    torch.manual_seed(0)
    dim, hidden, layers = 256, 1024, 8
    start = initialization(get(name), dim, hidden, layers)
    block = FeedForward(dim, hidden, name)
    with torch.no_grad():
        for part in ("gate", "up", "down"):
            if getattr(block, part) is not None:
                getattr(block, part).weight.normal_(0, start[part])
        out = block(torch.randn(512, dim))
    assert float(out.square().mean()) * 2 * layers == pytest.approx(1, rel=0.1)


def test_costs_are_measured_and_what_is_kept_is_counted():
    found = measure([get("gelu"), get("swiglu")], 64, {"gelu": 256, "swiglu": 168}, seconds=0.05)
    for name, hidden, arrays in (("gelu", 256, 1), ("swiglu", 168, 2)):  # what the first products gave
        assert found["options"][name]["saved_bytes_per_token"] == pytest.approx(4 * hidden * arrays, rel=0.01)
        assert found["options"][name]["step_ms"] > 0


def test_destinations_agree_with_what_is_exported_and_with_llama_cpps_list():
    for definition in map(get, names()):
        place = runtimes.llama_cpp(definition)
        assert not place["exports"] or (runtimes.huggingface(definition)["hidden_act"] == "silu" and definition.gated)
    assert runtimes.huggingface(get("swiglu"))["text"] == "yes, Qwen3 with silu"
    assert not runtimes.huggingface(get("xgelu"))["exports"]
    assert "tanh form" in runtimes.llama_cpp(get("gelu"))["text"]


# The command.

def test_the_suggested_study_is_one_that_compare_takes():
    for params, tokens in ((125 * M, 2500 * M), (500_000, 10 * M), (7 * B, 2000 * B)):
        *studies, again = [line["command"].split() for line in ask(params, tokens)["commands"]]
        for words in studies:
            assert words[:2] == ["nonlin", "compare"]
            asked = compare.make_context("compare", words[2:]).params
            assert set(asked["activations"].split(",")) >= {"gelu", "swiglu"}
            ModelConfig(asked["layers"], asked["dim"], asked["heads"], asked["heads"])
        assert command.make_context("advise", again[2:]).params["params"] == size_text(params)


def test_the_larger_study_would_be_within_reach():
    asked = compare.make_context("compare", ask()["commands"][1]["command"].split()[2:]).params
    trained = asked["steps"] * int(asked["batch"]) * asked["context"]
    assert 4 < 2500 * M / trained < 30
    shape = ModelConfig(asked["layers"], asked["dim"], asked["heads"], asked["heads"], asked["context"],
                        int(asked["tokenizer"]), matched_hidden(asked["dim"], "gated"), True)
    assert 4 < 125 * M / parameter_count(shape, True) < 30


def test_what_it_prints_names_the_choice_the_sources_and_what_is_missing():
    made = CliRunner().invoke(command, ["--params", "125M", "--tokens", "2.5B", "--no-measure", "--inference", "cpu"])
    assert made.exit_code == 0, made.output
    text = " ".join(made.output.split())
    for part in ("swiglu", "likely", "125M parameters and 2.5B tokens", "arXiv:2002.05202", "arXiv:2102.11972",
                 "hidden width 2,048", "No study of yours", "nonlin compare --data"):
        assert part in text


def test_json_is_json_and_complete():
    made = CliRunner().invoke(command, ["--params", "1e8", "--tokens", "2e9", "--no-measure", "--json"])
    found = json.loads(made.stdout)
    assert {o["name"] for o in found["options"]} >= {"relu", "gelu", "silu", "swiglu", "relu_squared"}
    assert found["costs"] is None and np.isfinite(found["initialization"]["down"])


@pytest.mark.parametrize("arguments", [
    ["--params", "lots", "--tokens", "1B"], ["--params", "1B", "--tokens", "-3"], ["--params", "10", "--tokens", "1B"],
    ["--params", "1B", "--tokens", "1B", "--study", "/nowhere"], ["--params", "1B"]])
def test_a_users_mistake_exits_2_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["advise", *arguments])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
