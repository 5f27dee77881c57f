"""A text that a model does not know says nothing of the activation that it was trained with."""

import math

import pytest
import torch

from nonlin.data import Corpus, prepare
from nonlin.errors import UserError
from nonlin.health import checking, inputs
from nonlin.health.findings import _trained_with


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


def test_a_studys_model_is_checked_on_the_studys_own_text(tmp_path):
    text = b"six words and nothing else here " * 4000
    prepare(Corpus([("a.txt", text)], "six words", "user"), tmp_path / "data")
    (tmp_path / "model").mkdir()
    tokens, described = checking._own_text(tmp_path / "model") or pytest.fail("none was found")
    assert bytes(tokens[:200].tolist()) in text and "six words" in described
    model = torch.nn.Embedding(256, 4)
    model.config = type("Config", (), {"vocab_size": 256})()  # type: ignore[assignment]
    try:
        given = inputs.prepare(model, None, None, 64, 16, own=(tokens, described))
    except UserError:
        pytest.fail("its own text fits")
    assert given.real and given.sequences.flatten().tolist() == tokens[:64].tolist()
    assert checking._own_text(tmp_path / "elsewhere" / "model") is None
    (tmp_path / "data" / "train.bin").unlink()
    assert checking._own_text(tmp_path / "model") is None
