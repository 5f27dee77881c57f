"""A text that a model does not know says nothing of the activation that it was trained with."""

import json
import math

import pytest
import torch

from nonlin import health
from nonlin.data import Corpus, Dataset, prepare
from nonlin.errors import UserError
from nonlin.health import checking, inputs
from nonlin.health.findings import _trained_with
from nonlin.patching.loading import Loaded
from tests.patching.families import FAMILIES


def record(own, best, frequencies):
    other = {"activation": "silu", "loss_nats": best, "difference_nats": best - own, "standard_error": 0.001}
    return {"blocks": [{"name": "block", "index": 0}], "alternatives": {
        "activation": "gelu", "loss_nats": own, "others": [other], "frequencies_nats": frequencies}}


@pytest.mark.parametrize(("own", "best", "found"), [
    (9.7, 9.2, "foreign_text"), (9.7, 9.8, "foreign_text"), (9.7, 2.1, "trained_with"), (2.5, 2.1, "trained_with"),
    (2.1, 2.1, None)])
def test_only_a_text_that_some_activation_knows_tells_of_a_wrong_one(own, best, found):
    made = list(_trained_with(record(own, best, 3.2)))
    assert [f["measure"] for f in made] == ([found] if found else [])
    assert all(f["grade"] == ("info" if found == "foreign_text" else "serious") for f in made)


def test_frequencies_alone_give_the_entropy_of_the_tokens():
    assert checking._entropy(torch.tensor([[1, 2, 3, 4]])) == pytest.approx(math.log(4))
    assert checking._entropy(torch.tensor([[7, 7]])) == 0.0


def study(folder, text=b"six words and nothing else here " * 4000, tokenizer="bytes"):
    """A folder with what a check reads of a study: its plan's kind and its text."""
    prepare(Corpus([("a.txt", text)], "six words", "user"), folder / "data", tokenizer)
    (folder / "plan.json").write_text(json.dumps({"arms": []}))
    return text


def own_text(folder, tokenizer=None):
    return checking._own_text(Loaded(torch.nn.Identity(), None, str(folder)), tokenizer)


def test_a_studys_model_is_checked_on_the_studys_own_text(tmp_path):
    text = study(tmp_path)
    tokens, described = own_text(tmp_path / "model") or pytest.fail("none was found")
    assert bytes(tokens[:200].tolist()) in text and "six words" in described
    model = torch.nn.Embedding(256, 4)
    model.config = type("Config", (), {"vocab_size": 256})()  # type: ignore[assignment]
    try:
        given = inputs.prepare(model, None, None, 64, 16, own=(tokens, described))
    except UserError:
        pytest.fail("its own text fits")
    assert given.real and given.sequences.flatten().tolist() == tokens[:64].tolist()
    assert own_text(tmp_path / "elsewhere" / "model") is None
    (tmp_path / "data" / "train.bin").unlink()
    assert own_text(tmp_path / "model") is None


def test_a_model_that_only_lies_beside_a_studys_text_is_not_run_on_it(tmp_path):
    study(tmp_path)
    assert own_text(tmp_path / "llama") is None and own_text(tmp_path) is None
    assert own_text(tmp_path / "model") is not None
    (tmp_path / "plan.json").unlink()  # somebody's data/ and model/, and no study
    assert own_text(tmp_path / "model") is None


def test_a_model_with_another_tokenizer_than_the_studys_text_is_not_run_on_it(tmp_path):
    study(tmp_path, b"".join(b"%d words and %d more\n" % (i, i * 7) for i in range(20000)), 300)
    data = Dataset(tmp_path / "data")

    def its_own(text, **_):
        return {"input_ids": data.encode(text)}

    def others(text, **_):
        return {"input_ids": list(text.encode())}

    assert own_text(tmp_path / "model", its_own) is not None
    assert own_text(tmp_path / "model", others) is None


def test_the_check_of_a_folder_beside_a_studys_text_takes_another(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    study(tmp_path)
    for name in ("model", "llama"):
        FAMILIES["llama"].build(vocab_size=256).save_pretrained(tmp_path / name)
    said = {name: health.check(tmp_path / name, tokens=64, context=32)["text"] for name in ("", "model", "llama")}
    assert "own text" in said[""] and "own text" in said["model"] and "own text" not in said["llama"]
