"""The commands of the two recorded studies, on models that train in seconds."""

import json
from pathlib import Path

import pytest
from benchmarks import own_model_speed, own_model_studies

from tests.subject.test_checkpoint_study import saved
from tests.subject.test_study import text

__all__ = ["text"]

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "2", "--seeds", "4", "--learning-rates", "2"]


@pytest.mark.slow
def test_qwen3_and_the_built_in_model_are_compared(text, tmp_path):
    own_model_studies.main(["agreement", "--out", str(tmp_path), "--data", str(text), "--activations", "gelu,swiglu",
                            "--record", str(tmp_path / "record.json"), *TINY])
    record = json.loads((tmp_path / "record.json").read_text())
    assert [one["label"] for one in record["across"]["studies"]] == ["built-in", "own"]
    # The same model by its sizes; plain blocks are rounded to a multiple of 8 there and to one of 4 here.
    assert record["widths"] == {"gelu": [256, 252], "swiglu": [168, 168]}
    assert (tmp_path / "agreement.html").exists()


def test_with_our_first_weights_qwen3_gives_our_verdicts_and_the_docs_say_what_the_records_have():
    records = {name: json.loads((ROOT / f"benchmarks/records/own-model-agreement{name}.json").read_text())["across"]
               for name in ("-our-weights", "")}
    of = {name: {one["name"]: one for one in found["activations"]} for name, found in records.items()}
    page = (ROOT / "docs/how-to/own-model.md").read_text()
    for name, one in of["-our-weights"].items():
        assert one["outcome"] == "agrees" and one["spread_p_value"] > 0.05
        parts = [*one["parts"], of[""][name]["parts"][1]]
        cells = [f"{part['difference']['mean']:+.3f} {part['verdict']}".replace("-", "−") for part in parts]
        assert f"| {name} | {' | '.join(cells)} |" in page


@pytest.mark.slow
def test_a_trained_model_is_swapped_trained_on_and_checked(text, tmp_path):
    own_model_studies.main(["smollm2", "--out", str(tmp_path), "--data", str(text), "--model",
                            str(saved(tmp_path / "model")), "--context", "16", "--evaluation-tokens", "64",
                            "--check-tokens", "64", "--record", str(tmp_path / "record.json"), *TINY])
    arms = json.loads((tmp_path / "record.json").read_text())["arms"]
    assert set(arms) == set(own_model_studies.SMOLLM2)
    for name, arm in arms.items():
        assert arm["points"][0][0] == 0 and arm["points"][-1][0] == 2 * 4 * 16 and arm["saved"] == "huggingface", name
    assert arms["silu"]["points"][0][1] == pytest.approx(arms["silu"]["before"])
    assert arms["relu_squared"]["sparsity"] > 0


@pytest.mark.slow
def test_the_speed_of_both_loops_is_measured(tmp_path, monkeypatch):
    record = tmp_path / "record.json"
    monkeypatch.setattr("sys.argv", ["speed", "--steps", "3", "--rounds", "2", "--dim", "16", "--context", "16",
                                     "--record", str(record)])
    own_model_speed.main()
    found = json.loads(record.read_text())
    assert found["ratio"] > 0 and len(found["tokens_per_second"]["trainer"]) == 2


def test_the_docs_say_what_the_record_of_smollm2_has():
    arms = json.loads((ROOT / "benchmarks/records/own-model-smollm2.json").read_text())["arms"]
    page = (ROOT / "docs/how-to/own-model.md").read_text()
    rows = [(f"{tokens:,}", [f"{dict(map(tuple, arm['points']))[tokens]:.3f}" for arm in arms.values()])
            for tokens in (0, 3072, 9216, 18432, 30720)]
    rows.append(("units that can be left out", [f"{arm['sparsity']:.0%}".replace("%", " %") for arm in arms.values()]))
    zeros = [sum(arm["zero_output_share"]) / len(arm["zero_output_share"]) for arm in arms.values()]
    rows.append(("outputs of units that are 0", [f"{share:.0%}".replace("%", " %") for share in zeros]))
    assert [name for name, cells in rows if f"| {name} | {' | '.join(cells)} |" not in page] == []
    assert list(arms) == list(own_model_studies.SMOLLM2)
    assert all("'trained_with'" in " ".join(arms[name]["findings"]) for name in ("relu", "relu_squared"))
