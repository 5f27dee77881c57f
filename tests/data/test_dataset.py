"""Prepared tokens: what is written and read back, byte pairs, batches as a pure function, damage."""

import json

import numpy as np
import pytest

from nonlin.data import Corpus, Dataset, batch, evaluation_batches, prepare
from nonlin.errors import UserError

TEXTS = [("".join(f"{i}.{j}: naïve café, {i * j % 97} €; 日本 \U0001f600\n" for j in range(250))).encode()
         for i in range(30)]


@pytest.fixture(scope="module")
def corpus():
    return Corpus(tuple((f"{i}.txt", text) for i, text in enumerate(TEXTS)), "test text", "user")


@pytest.fixture(scope="module")
def as_bytes(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    prepare(corpus, folder)
    return Dataset(folder)


@pytest.fixture(scope="module")
def as_pairs(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    prepare(corpus, folder, 400)
    return Dataset(folder)


def test_bytes_are_the_text(as_bytes, corpus):
    info = as_bytes.info
    sides = bytes(as_bytes.train), bytes(as_bytes.validation)
    assert all(sum(text in side for side in sides) == 1 for text in TEXTS)
    assert sum(map(len, sides)) == sum(map(len, TEXTS)) + 2 * (len(TEXTS) - 2)  # two newlines between texts
    assert (info["sha256"], info["vocabulary"], info["dtype"]) == (corpus.sha256, 256, "uint8")
    assert info["train_bytes"] == info["train_tokens"] == len(as_bytes.train)
    assert info["bytes_per_token_validation"] == 1.0
    assert as_bytes.decode(as_bytes.encode("é€\n")) == "é€\n"
    assert as_bytes.decode([65, 255, 66]) == "A\ufffdB"


def test_byte_pairs_read_back_what_was_written(as_pairs, as_bytes):
    assert as_pairs.info["vocabulary"] == 400 and as_pairs.info["dtype"] == "uint16"
    for side in ("train", "validation"):
        tokens = getattr(as_pairs, side)
        assert as_pairs.decode(tokens.tolist()).encode() == bytes(getattr(as_bytes, side))
        assert tokens.max() < 400
    assert len(as_pairs.train) < 0.6 * len(as_bytes.train)
    for text in (" leading, trailing ", "\n\n\t", "never seen: ßþ漢 \U0001f47d", ""):
        assert as_pairs.decode(as_pairs.encode(text)) == text


def test_bytes_per_token_undoes_the_scale_of_the_tokenizer(as_pairs, as_bytes):
    """A model that knows nothing but how often bytes occur pays the same for the text, in whatever tokens."""
    validation = bytes(as_bytes.validation)
    counts = np.bincount(np.frombuffer(validation, np.uint8), minlength=256)
    bits_of_byte = -np.log2(np.maximum(counts, 1) / counts.sum())
    whole = bits_of_byte[list(validation)].sum() / len(validation)
    each = [bits_of_byte[list(as_pairs._tokenizer.decode([int(t)]).encode())].sum() for t in as_pairs.encode("abc 12")]
    assert sum(each) == pytest.approx(bits_of_byte[list(b"abc 12")].sum())
    info = as_pairs.info
    bits_a_token = whole * len(validation) / len(as_pairs.validation)
    assert bits_a_token / info["bytes_per_token_validation"] == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("size", [257, 65536, -1, "words", 3.5])
def test_a_vocabulary_out_of_range_is_refused(corpus, tmp_path, size):
    with pytest.raises(UserError, match="vocabulary of 258 to 65535"):
        prepare(corpus, tmp_path / "new", size)


def test_prepared_once_and_equal_when_prepared_again(corpus, tmp_path):
    for tokenizer in ("bytes", 300):
        one, two = tmp_path / f"{tokenizer}-one", tmp_path / f"{tokenizer}-two"
        info = prepare(corpus, one, tokenizer)
        times = {p.name: p.stat().st_mtime_ns for p in one.iterdir()}
        assert prepare(corpus, one, tokenizer) == info
        assert {p.name: p.stat().st_mtime_ns for p in one.iterdir()} == times
        assert prepare(corpus, two, tokenizer) == info
        assert all((one / name).read_bytes() == (two / name).read_bytes() for name in times)


def test_a_folder_with_other_data_is_refused(corpus, tmp_path):
    prepare(corpus, tmp_path)
    with pytest.raises(UserError, match=r"holds other data \(test text\).*another --out"):
        prepare(corpus, tmp_path, 300)
    other = Corpus((*corpus.documents, ("new.txt", b"new")), "other", "user")
    with pytest.raises(UserError, match="holds other data"):
        prepare(other, tmp_path)


@pytest.mark.parametrize("tokenizer", ["bytes", 300])
@pytest.mark.parametrize("damage", ["description cut", "description empty", "tokens cut", "tokens changed",
                                    "tokens gone"])
def test_damaged_tokens_are_written_again(corpus, tmp_path, tokenizer, damage):
    info = prepare(corpus, tmp_path, tokenizer)
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    described, tokens = tmp_path / "dataset.json", tmp_path / "train.bin"
    if damage == "description cut":
        described.write_bytes(whole["dataset.json"][:60])
    elif damage == "description empty":
        described.write_bytes(b"{}")
    elif damage == "tokens cut":
        tokens.write_bytes(whole["train.bin"][:-2])
    elif damage == "tokens changed":
        tokens.write_bytes(whole["train.bin"][:-2] + b"##")
    else:
        tokens.unlink()
    assert prepare(corpus, tmp_path, tokenizer) == info
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == whole


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "no description", "half a description", "no count"])
def test_a_damaged_folder_is_noticed_where_it_is_read(corpus, tmp_path, damage):
    prepare(corpus, tmp_path, 300)
    tokens, described = tmp_path / "validation.bin", tmp_path / "dataset.json"
    if damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-4])
    elif damage == "gone":
        tokens.unlink()
    elif damage == "empty":
        tokens.write_bytes(b"")
    elif damage == "no description":
        described.unlink()
    elif damage == "half a description":
        described.write_text(described.read_text()[:50])
    else:
        described.write_text(json.dumps({"dtype": "uint16", "tokenizer": 300}))
    with pytest.raises(UserError, match=r"[Ss]tart the study again"):
        Dataset(tmp_path)


def test_batches_are_a_pure_function_of_seed_and_step(as_bytes):
    inputs, targets = batch(as_bytes, 3, 16, 32, seed=5)
    assert inputs.shape == targets.shape == (16, 32) and inputs.dtype == targets.dtype == np.int64
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    for row, target in zip(inputs, targets, strict=True):  # each is a piece of the training text
        assert bytes([*row.tolist(), int(target[-1])]) in bytes(as_bytes.train)
    batch(as_bytes, 1, 4, 8, seed=9)  # what was drawn before changes nothing
    again, _ = batch(Dataset(as_bytes.directory), 3, 16, 32, seed=5)
    assert (again == inputs).all()
    for step, seed in ((4, 5), (3, 6)):
        assert not (batch(as_bytes, step, 16, 32, seed)[0] == inputs).all()


def test_batches_reach_the_first_and_the_last_window_alike(tmp_path):
    text = b"".join(bytes([i]) for i in range(1, 41)) * 5
    prepare(Corpus((("a", text),), "short", "user"), tmp_path)
    data = Dataset(tmp_path)
    room = len(data.train) - 176  # windows that fit
    starts = np.concatenate([batch(data, step, 50, 176, 0)[0][:, 0] for step in range(40)])
    seen = np.unique(starts)
    assert len(seen) == room == 4 and set(seen) == {1, 2, 3, 4}
    counts = np.array([(starts == s).sum() for s in seen])
    assert (abs(counts - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)).all()


def test_evaluation_windows_are_fixed_distinct_and_spread(as_bytes):
    found = list(evaluation_batches(as_bytes, 2000, 7, 32))
    windows = np.concatenate([inputs for inputs, _ in found])
    assert 2000 <= windows.size < 2000 + 32
    assert all(len(inputs) == 7 for inputs, _ in found[:-1])
    validation = bytes(as_bytes.validation)
    assert len({bytes(row.tolist()) for row in windows}) == len(windows)
    assert bytes(windows[0].tolist()) == validation[:32]
    assert bytes([*windows[-1].tolist(), int(found[-1][1][-1, -1])]) == validation[-33:]
    again = np.concatenate([inputs for inputs, _ in evaluation_batches(as_bytes, 2000, 50, 32)])
    assert (again == windows).all()  # whatever the batch
    everything = list(evaluation_batches(as_bytes, 10**9, 64, 32))
    count = sum(len(inputs) for inputs, _ in everything)
    assert count == (len(validation) - 32) // 32  # no byte is counted twice


def test_a_context_longer_than_the_text_is_refused(as_bytes):
    size = len(as_bytes.validation)
    with pytest.raises(UserError, match="validation text must be longer than the context"):
        next(evaluation_batches(as_bytes, 100, 4, size))
    assert len(next(evaluation_batches(as_bytes, 100, 4, size - 1))[0]) == 1
    with pytest.raises(UserError, match="training text must be longer"):
        batch(as_bytes, 0, 4, len(as_bytes.train), 0)
