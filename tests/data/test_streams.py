"""Text as a stream: bounded memory, the same tokens however it is cut, weights, validation text, models' tokenizers."""

import gzip
import hashlib
import json
import random
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nonlin.data import Corpus, Dataset, batch, evaluation_batches, load_corpus, prepare, tokenizing
from nonlin.errors import UserError


def words(seed, size=9000, letters="abcdefghij"):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(size // 6)).encode()


def limited(code, *arguments, megabytes):
    """Run code in a process that may have so much memory of its own, beside what its libraries take at the start."""
    start = "import resource, sys\nfrom nonlin.data import load_corpus, prepare\nimport pyarrow.parquet, zstandard\n" \
        "used = [int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmData')][0] * 1024\n" \
        f"resource.setrlimit(resource.RLIMIT_DATA, (used + {megabytes << 20},) * 2)\n"
    return subprocess.run([sys.executable, "-c", start + code, *map(str, arguments)], capture_output=True, text=True)


PREPARE = "print(prepare(load_corpus(sys.argv[1], scratch=sys.argv[2]), sys.argv[2])['train_bytes'])"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts all memory on Linux alone")
@pytest.mark.parametrize("form", ["one text", "many records", "gz of little"])
def test_memory_does_not_grow_with_the_text(tmp_path, form):
    piece, name = words(0, 1 << 20), {"one text": "a.txt", "many records": "a.jsonl", "gz of little": "a.txt.gz"}[form]
    with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wb") as file:
        for i in range(200):
            text = b"a" * (1 << 20) if form == "gz of little" else b"%d " % i + piece
            file.write(json.dumps({"text": text.decode()}).encode() + b"\n" if form == "many records" else text)
    made = limited(PREPARE, tmp_path / name, tmp_path / "out", megabytes=100)
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) > 160e6
    assert limited("bytearray(200 << 20)", megabytes=100).returncode  # the limit limits


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts all memory on Linux alone")
def test_values_that_come_again_in_a_parquet_column_are_in_memory_once(tmp_path):
    few = pyarrow.array([words(i, 1 << 20).decode() for i in range(2)])
    repeated = pyarrow.DictionaryArray.from_arrays([i % 2 for i in range(200)], few)
    pyarrow.parquet.write_table(pyarrow.table({"text": repeated}), tmp_path / "a.parquet")
    made = limited("print(load_corpus(sys.argv[1], scratch=sys.argv[2]).size)", tmp_path / "a.parquet", tmp_path,
                   megabytes=100)
    assert made.returncode == 0 and int(made.stdout) > 160e6, made.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizing.train([words(1, 200_000)], 200_000, 300))
    return path


def test_processes_give_the_tokens_that_one_gives_in_order(trained):
    text = [words(i, 50_000) + " naïve €\n".encode() + b"\xff\xfe " for i in range(50)]
    size = sum(map(len, text))
    one, many = ([*tokenizing.tokens(iter(text), size, trained, processes=n)] for n in (0, 3))
    assert len(one) > 5 and [piece for piece, _ in one] == [piece for piece, _ in many]
    assert all((a == b).all() for (_, a), (_, b) in zip(one, many, strict=True))
    whole = tokenizing.load_tokenizer(trained).encode(tokenizing.as_text(b"".join(text))).ids
    assert np.concatenate([ids for _, ids in many]).tolist() == whole


def test_a_process_that_dies_is_an_error(tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(Exception, match="ended unexpectedly"):
        list(tokenizing.tokens([b"a b " * 2_000_000], 8_000_000, tmp_path / "bad.json", processes=2))


@given(st.lists(st.binary(max_size=60) | st.text(max_size=30).map(str.encode) | st.just(b" a b c "), max_size=8),
       st.integers(4, 50))
@example([b"\xf0\x80\x80\x80\x80\x80\x80"], 4)
@settings(max_examples=300, deadline=None)
def test_pieces_are_the_text_whatever_it_comes_in(parts, size):
    found = list(tokenizing.pieces(iter(parts), size))
    assert b"".join(found) == b"".join(parts)
    assert all(0 < len(piece) <= size for piece in found)
    assert found == list(tokenizing.pieces([b"".join(parts)], size))
    text = b"".join(parts)
    try:
        whole = text.decode()
    except UnicodeDecodeError:
        return
    assert "".join(tokenizing.as_text(piece) for piece in found) == whole  # no character is cut


def sources(tmp_path, **sizes):
    for name, (letters, size) in sizes.items():
        (tmp_path / name).mkdir()
        for i in range(20):
            (tmp_path / name / f"{i}.txt").write_bytes(words(f"{name}{i}", size, letters))
    return [tmp_path / name for name in sizes]


def test_weights_are_the_shares_of_a_batch_and_of_what_is_judged(tmp_path):
    paths = sources(tmp_path, small=("abc", 10_000), large=("xyz", 60_000))
    prepare(load_corpus(paths, weights=[3, 1]), tmp_path / "out")
    data = Dataset(tmp_path / "out")
    assert [span.share for span in data.train_spans] == [0.75, 0.25]
    rows = np.concatenate([batch(data, step, 64, 16, 0)[0] for step in range(60)])
    small = (rows < ord("d")).mean(axis=1)  # windows of one source hold its letters, and blanks
    assert not (((rows >= ord("a")) & (rows < ord("d"))).any(axis=1) & (rows >= ord("x")).any(axis=1)).any()
    ours = ((rows >= ord("a")) & (rows < ord("d"))).any(axis=1)
    assert abs(ours.mean() - 0.75) < 4 * (0.75 * 0.25 / len(rows)) ** 0.5 and small.any()
    judged = np.concatenate([inputs for inputs, _ in evaluation_batches(data, 4000, 32, 16)])
    assert abs(((judged >= ord("a")) & (judged < ord("d"))).any(axis=1).mean() - 0.75) < 0.01
    everything = np.concatenate([inputs for inputs, _ in evaluation_batches(data, 10**9, 32, 16)])
    assert abs(((everything >= ord("a")) & (everything < ord("d"))).any(axis=1).mean() - 0.75) < 0.01
    again, _ = batch(Dataset(tmp_path / "out"), 7, 64, 16, 0)
    assert (again == rows[7 * 64:8 * 64]).all()


def test_bytes_a_token_are_those_of_the_windows_that_are_judged(tmp_path, trained):
    paths = sources(tmp_path, known=("abcdefghij", 30_000), other=("ÄÖÜ", 30_000))
    info = prepare(load_corpus(paths, weights=[1, 3]), tmp_path / "out", trained)
    data = Dataset(tmp_path / "out")
    judged = np.concatenate([inputs for inputs, _ in evaluation_batches(data, 6000, 32, 16)])
    size = len(data._tokenizer.decode(judged.ravel().tolist()).encode())
    assert size / judged.size == pytest.approx(info["bytes_per_token_validation"], rel=0.05)


def test_weights_must_be_one_a_source_and_positive(tmp_path):
    paths = sources(tmp_path, one=("a", 9000), two=("b", 9000))
    for weights in ([1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(UserError, match="positive number for each of the 2 sources"):
            load_corpus(paths, weights=weights)
    for weights in ([1e308, 1e308], [1e-300, 1e300], [1, 1e10]):  # their sum, or a share of it, is no number to use
        with pytest.raises(UserError, match="give each source more than 1e-09"):
            load_corpus(paths, weights=weights)


def test_a_source_shorter_than_the_context_is_named(tmp_path):
    paths = sources(tmp_path, short=("a", 60), long=("b", 9000))
    prepare(load_corpus(paths, weights=[1, 1]), tmp_path / "out")
    with pytest.raises(UserError, match=r"training text of .*short must be longer than the context of 5000"):
        batch(Dataset(tmp_path / "out"), 0, 4, 5000, 0)


def test_validation_text_of_its_own_is_judged_by_and_never_trained_on(tmp_path):
    train, held = sources(tmp_path, train=("abc", 9000), held=("xyz", 9000))
    copy = (held / "3.txt").read_bytes()
    (train / "copy.txt").write_bytes(copy)
    corpus = load_corpus(train, validation=held)
    info = prepare(corpus, tmp_path / "out")
    data = Dataset(tmp_path / "out")
    texts = [(held / f"{i}.txt").read_bytes() for i in range(20)]
    assert bytes(data.validation) == b"\n\n".join(texts[int(n)] for n in sorted(map(str, range(20))))
    assert copy not in bytes(data.train) and len(data.train) > 20 * 8000
    assert any("1 documents of the text are in the validation text" in note for note in info["notes"])
    assert "judged by" in info["description"]


def test_one_hash_covers_texts_weights_and_validation_and_is_made_once(tmp_path, monkeypatch):
    a, b, c = sources(tmp_path, a=("abc", 9000), b=("xyz", 9000), c=("uvw", 9000))
    made = {load_corpus(spec, **more).sha256 for spec, more in (
        ([a, b], {}), ([b, a], {}), ([a, b], {"weights": [1, 2]}), ([a, b], {"weights": [2, 1]}),
        ([a, b], {"validation": c}), ([a], {"validation": [b, c]}), ([a, b, c], {}))}
    assert len(made) == 7
    assert load_corpus([a, b], weights=[1, 2]).sha256 == load_corpus([a, b], weights=[10, 20]).sha256
    corpus = load_corpus([a, b])
    monkeypatch.setattr(hashlib, "sha256", None)
    assert corpus.sha256


def model_tokenizer(path, vocabulary):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def test_the_tokenizer_of_a_model_is_used_copied_and_counted(tmp_path):
    text = b"the cat sat the dog " * 5000
    names = {"[UNK]": 0, "the": 1, "cat": 2, "sat": 70_000}
    model_tokenizer(tmp_path / "tokenizer.json", names)
    corpus = Corpus([("a.txt", text)], "cats", "user")
    info = prepare(corpus, tmp_path / "out", str(tmp_path / "tokenizer.json"))
    data = Dataset(tmp_path / "out")
    assert (info["vocabulary"], info["dtype"]) == (70_001, "uint32")
    assert data.train[:5].tolist() == [1, 2, 70_000, 1, 0] and data.encode("cat the") == [2, 1]
    assert any("5,000 of 25,000 tokens are the tokenizer's token for text" in note for note in info["notes"])
    digest = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert info["tokenizer"] == f"sha256:{digest}"
    assert prepare(corpus, tmp_path / "out", str(tmp_path / "tokenizer.json")) == info
    model_tokenizer(tmp_path / "tokenizer.json", names | {"dog": 3})
    with pytest.raises(UserError, match="holds other data"):
        prepare(corpus, tmp_path / "out", str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"model": {"type": "BPE"}}', b"[" * 50_000])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer must be the tokenizer\.json of a model"):
        prepare(Corpus([("a", words(0))], "text", "user"), tmp_path / "out", str(tmp_path / "tokenizer.json"))


def test_documents_beyond_memory_lie_in_a_file_that_leaves_nothing_behind(tmp_path, monkeypatch):
    from nonlin.data import spool

    monkeypatch.setattr(spool, "MEMORY", 10_000)
    documents = [(f"{i}.txt", words(i)) for i in range(50)]
    corpus = Corpus(documents, "text", "user", tmp_path)
    assert list(corpus.documents) == documents and corpus.documents[-1] == documents[-1]
    assert corpus.sha256 == Corpus(documents, "text", "user").sha256
    assert not list(tmp_path.iterdir())


def test_progress_counts_bytes_to_their_end(tmp_path):
    path, = sources(tmp_path, a=("abc", 90_000))
    told = []
    corpus = load_corpus(path, progress=lambda *event: told.append(event))
    prepare(corpus, tmp_path / "out", progress=lambda *event: told.append(event))
    for stage in ("Reading text", "Writing tokens"):
        done, whole = [(d, w) for s, d, w in told if s == stage][-1]
        assert 0.9 * whole <= done <= whole and whole >= corpus.size


