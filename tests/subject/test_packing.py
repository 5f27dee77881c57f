"""How documents follow each other: the token that opens each, and attention that stays inside one or crosses."""

import json

import numpy as np
import pytest
import torch

import nonlin
from nonlin.data import Corpus, Dataset, prepare
from nonlin.data.tokenizing import ZERO_BYTE, load_tokenizer, train
from nonlin.errors import UserError
from nonlin.subject import build, describe
from nonlin.subject.building import definition_named
from nonlin.subject.packing import positions
from nonlin.training import Run
from tests.subject.tiny import configuration, request, run_config

DOCUMENTS = [(f"{i}.txt", f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs".encode()) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer's file with an end token, as models have it."""
    from tokenizers import AddedToken

    made = load_tokenizer_of(b" ".join(text for _, text in DOCUMENTS))
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(made.to_str())
    return path


def load_tokenizer_of(text):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(train([text], len(text), 300))


def data(folder, tokenizer="bytes", end=None, documents=DOCUMENTS):
    prepare(Corpus(documents, "test text", "user"), folder, tokenizer, end=end)
    return Dataset(folder)


def own(family, packing, **changes):
    values = configuration(family, vocab_size=256) | changes
    return describe(request({"config": values}, arms=("swiglu", "relu"), vocabulary=256, packing=packing))


def test_the_end_token_opens_every_document_and_nothing_else_changes(tokenizer, tmp_path):
    end = load_tokenizer(tokenizer).token_to_id("<|end|>")
    for name, given, token in (("file", tokenizer, end), ("bytes", "bytes", 0), ("trained", 280, ZERO_BYTE)):
        dataset = data(tmp_path / name, given, token)
        tokens = np.concatenate([dataset.train, dataset.validation]).tolist()
        assert tokens.count(token) == 60 and dataset.train[0] == dataset.validation[0] == token
        texts = [dataset.decode(part).strip("\0") for part in _divided(tokens, token)]
        assert sorted(texts) == sorted(text.decode() for _, text in DOCUMENTS)
        assert dataset.info["end"] == token and not dataset.info["notes"]
        assert dataset.info["train_bytes"] + dataset.info["validation_bytes"] == sum(len(t) for _, t in DOCUMENTS)
    with pytest.raises(UserError, match="holds other data"):
        data(tmp_path / "bytes")


def _divided(tokens, end):
    starts = [i for i, token in enumerate(tokens) if token == end]
    return [tokens[a + 1:b] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def test_processes_that_tokenize_open_documents_alike(tokenizer):
    from nonlin.data import tokenizing

    texts = [[b"one ", b"two"], [b"three"], [b"four five " * 50_000]]
    one, many = ([(piece, ids.tolist()) for piece, ids in tokenizing.tokens(texts, 500_012, tokenizer, count, end=300)]
                 for count in (0, 2))
    assert one == many and [ids[0] == 300 for _, ids in one] == [True, True, True, *[False] * (len(one) - 3)]
    assert b"".join(piece for piece, _ in one) == b"one twothree" + b"four five " * 50_000


def test_an_end_token_inside_a_document_is_said(tokenizer, tmp_path):
    end = load_tokenizer(tokenizer).token_to_id("<|end|>")
    inside = [*DOCUMENTS, ("last.txt", b"about <|end|> and \0")]
    assert any("itself holds the token" in note for note in data(tmp_path / "a", tokenizer, end, inside).info["notes"])
    assert any("itself holds the token" in note for note in data(tmp_path / "b", "bytes", 0, inside).info["notes"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen3_moe"])
def test_a_document_has_the_logits_that_it_has_alone(family):
    """The rule is proved of the model, and holds of an arm's: nothing before a document's end token reaches it."""
    found = own(family, "documents", eos_token_id=3)
    assert found["own"]["packing"] == {"rule": "documents", "end": 0}  # of bytes: the zero byte
    config = run_config(found, "relu") | {"activation": {"name": "relu", "formula": None}}
    model = build(config, definition_named(config)).eval()
    tokens = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(1))
    tokens[0, 5] = tokens[1, 7] = 0
    with torch.no_grad():
        logits = model(tokens)
        for row, at in ((0, 5), (1, 7)):
            torch.testing.assert_close(logits[row, at:], model(tokens[row:row + 1, at:])[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[row, :at], model(tokens[row:row + 1, :at])[0], rtol=1e-4, atol=1e-5)
        model.end = None
        assert float((model(tokens)[0, 5:] - logits[0, 5:]).abs().max()) > 1e-4


def test_positions_begin_anew_at_the_end_token():
    tokens = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8], [5, 0, 0, 6]])
    assert positions(tokens, 0).tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [0, 0, 0, 1]]


def test_a_model_that_cannot_keep_documents_apart_is_refused(tmp_path, monkeypatch):
    """Bloom's attention knows no positions, a convolution sees its neighbours, and a function's model takes none."""
    from transformers import BloomConfig, Lfm2Config

    from nonlin.subject import wanted
    from tests.subject.test_study import FACTORY, module_of

    bloom = BloomConfig(vocab_size=256, hidden_size=16, n_layer=2, n_head=2)
    convolved = Lfm2Config(vocab_size=256, hidden_size=16, intermediate_size=40, num_hidden_layers=2,
                           num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
                           layer_types=["conv", "full_attention"])
    (tmp_path / "tiny.py").write_text(FACTORY)
    for model, words in ((bloom, "still depend on the document before"), (convolved, "still depend"),
                         (module_of(tmp_path / "tiny.py", monkeypatch).make, "takes no position_ids")):
        with pytest.raises(UserError, match=words):
            describe(request(dict(wanted(model).values), arms=("swiglu", "relu"), vocabulary=256, packing="documents"))


def test_the_rule_by_default_is_the_models_own(tokenizer):
    """The end token that the configuration names, where it is a special token of the tokenizer; else a blank line."""
    end = load_tokenizer(tokenizer).token_to_id("<|end|>")
    file = {"kind": "file", "ends": [end]}
    for named, kind, expected in ((end, file, {"rule": "end-token", "end": end}),
                                  ([7, end], file, {"rule": "end-token", "end": end}),
                                  (7, file, {"rule": "stream", "end": None}),
                                  (end, {"kind": "bytes", "ends": [0]}, {"rule": "stream", "end": None})):
        values = configuration("llama", vocab_size=512, eos_token_id=named)
        found = describe(request({"config": values}, arms=("swiglu", "relu"), vocabulary=301, tokenizer=kind))
        assert found["own"]["packing"] == expected
    values = configuration("llama", vocab_size=512, eos_token_id=7)
    with pytest.raises(UserError, match="packing documents must come with an eos_token_id"):
        describe(request({"config": values}, arms=("swiglu", "relu"), vocabulary=301, tokenizer=file,
                         packing="documents"))


def test_a_study_says_its_rule_and_goes_on_with_it(tokenizer, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    end = load_tokenizer(tokenizer).token_to_id("<|end|>")
    (folder / "config.json").write_text(json.dumps(configuration("llama", vocab_size=304, eos_token_id=end)))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    text = tmp_path / "text"
    text.mkdir()
    for name, words in DOCUMENTS:
        (text / name).write_bytes(words * 40)
    study = nonlin.compare(text, ["swiglu", "relu"], model=folder, packing="documents", steps=2, seeds=4, batch=4,
                           learning_rates=2, context=16, out=tmp_path / "study", progress=False)
    assert f"token {end} opens each; a token attends to its own document alone" in study.plan.describe()
    assert study.plan.data["end"] == end and study.plan.model["own"]["packing"]["rule"] == "documents"
    (study.directory / "data" / "train.bin").write_bytes(b"damaged")
    again = nonlin.resume_study(study.directory, progress=False)
    assert again.status == "complete" and (Dataset(study.directory / "data").train == end).any()


def test_a_run_learns_within_documents(tmp_path):
    dataset = data(tmp_path, end=0)
    config = run_config(own("llama", "documents"), "relu", engine="torch", threads=1)
    run = Run({"format": 2, "purpose": "judge", "activation": {"name": "relu", "formula": None}, **config, "training": {
        "steps": 6, "batch": 8, "learning_rate": 0.01, "weight_decay": 0.1, "warmup_fraction": 0.1, "clip": 1.0,
        "evaluation_tokens": 100, "evaluations": 1, "probe_every": 10}}, dataset)
    losses = [run.step()[0] for _ in range(6)]
    assert losses[-1] < losses[0]


def test_packing_is_of_a_model_of_ones_own():
    with pytest.raises(UserError, match="packing and compile must come with a model of your own"):
        nonlin.compare(packing="documents", progress=False)
    with pytest.raises(UserError, match="unknown packing 'dcuments'"):
        nonlin.compare(model="llama", packing="dcuments", progress=False)
