"""A tokenizer.json from elsewhere: what it says of cutting and filling up is not obeyed, what it cannot do is said."""

import json

import numpy as np
import pytest

from nonlin.data import Corpus, Dataset, prepare, tokenizing
from nonlin.errors import UserError

TEXT = b"the quick fox jumps over one two held 0 1 2 3 4 5 6 7 8 9 "
PLAIN = json.loads(tokenizing.train([TEXT * 50], 3000, 280))


def written(path, **changed):
    path.write_text(json.dumps(PLAIN | changed))
    return path


def documents(count=12):
    return Corpus([(f"{i}.txt", b"%d " % i + TEXT * 40) for i in range(count)], "some text")


def test_a_text_is_neither_cut_nor_filled_up(tmp_path):
    wanted = tokenizing.encode(tokenizing.load_tokenizer(written(tmp_path / "a.json")), TEXT.decode() * 5)
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 1 << 31}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "x"}
    for changed in ({"truncation": cut}, {"padding": fill}, {"truncation": cut, "padding": fill}):
        loaded = tokenizing.load_tokenizer(written(tmp_path / "b.json", **changed))
        assert tokenizing.encode(loaded, TEXT.decode() * 5) == wanted


@pytest.mark.parametrize("id_", [1 << 24, 1 << 31, (1 << 32) - 1])
def test_ids_that_no_model_has_rows_for_are_refused(tmp_path, id_):
    model = PLAIN["model"] | {"vocab": PLAIN["model"]["vocab"] | {"zz": id_}}
    with pytest.raises(UserError, match=f"its largest id is {id_:,}"):
        tokenizing.load_tokenizer(written(tmp_path / "a.json", model=model))


@pytest.mark.parametrize("normalizer", [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 65},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40},
    {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": ".?"}, "content": "xyz"}]}] * 4},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 99}])
def test_rules_that_make_a_text_very_long_are_refused(tmp_path, normalizer):
    with pytest.raises(UserError, match="more than 64 times as long"):
        tokenizing.load_tokenizer(written(tmp_path / "a.json", normalizer=normalizer))


@pytest.mark.parametrize("normalizer", [
    None, {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"},
                                                                   "content": " "}, {"type": "Lowercase"}]},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                                         {"type": "Prepend", "prepend": "\u2581"},
                                         {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}])
def test_rules_of_usual_models_are_taken(tmp_path, normalizer):
    loaded = tokenizing.load_tokenizer(written(tmp_path / "a.json", normalizer=normalizer))
    assert tokenizing.encode(loaded, "the quick fox")


@pytest.mark.parametrize("end", [None, 100])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_tokenizer_that_leaves_nothing_of_the_text_is_refused(tmp_path, monkeypatch, end, processes):
    monkeypatch.setattr(tokenizing, "_ALONE", 0 if processes > 1 else 1 << 30)
    monkeypatch.setattr(tokenizing, "cores", lambda: 2)
    path = written(tmp_path / "a.json", normalizer={"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""})
    with pytest.raises(UserError, match=r"must make tokens of the text; got 'none of [\d,]+ bytes of some te"):
        prepare(documents(), tmp_path / "out", path, end=end)


class _Panics:
    def __getattr__(self, name):
        class PanicException(BaseException):
            pass

        def fail(*_, **__):
            raise PanicException("index out of bounds")

        return fail


def test_a_panic_of_the_library_is_one_error(tmp_path):
    for call in (lambda: tokenizing.encode(_Panics(), "a"), lambda: tokenizing.decode(_Panics(), [1])):
        with pytest.raises(UserError, match="cannot be used: index out of bounds"):
            call()
    prepare(documents(), tmp_path / "out", written(tmp_path / "a.json"))
    with pytest.raises(UserError, match="tokenizer must be"):
        Dataset(tmp_path / "out").decode([-1])


def test_an_error_in_a_process_that_tokenizes_arrives(tmp_path, monkeypatch):
    """An unknown character without a token for it is the library's error, of whichever process meets it."""
    words = {"type": "WordLevel", "vocab": {"the": 0}, "unk_token": "missing"}
    path = written(tmp_path / "a.json", model=words, pre_tokenizer={"type": "Whitespace"}, decoder=None)
    for processes in (1, 2):
        with pytest.raises(UserError, match="tokenizer must be"):
            list(tokenizing.tokens([b"the quick fox"], 13, path, processes))


@pytest.mark.parametrize("tokenizer", ["bytes", "a model's"])
def test_a_document_without_text_is_opened_by_nothing(tmp_path, tokenizer):
    texts = [(f"{i}.txt", b"" if i % 3 == 0 else b"%d " % i + TEXT) for i in range(12)]
    made = "bytes" if tokenizer == "bytes" else written(tmp_path / "a.json")
    prepare(Corpus(texts, "some"), tmp_path / "out", made, end=0)
    data = Dataset(tmp_path / "out")
    count = sum(int(np.count_nonzero(side == 0)) for side in (data.train, data.validation))
    assert count == 2 * 8  # so few are each cut: both sides have a part of each
