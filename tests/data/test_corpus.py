"""Every source of text, everything that can be wrong with one, and the split into training and validation."""

import gzip
import json
import os
import random
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from nonlin.data import Corpus, load_corpus, prepare, split
from nonlin.data.corpus import SMALLEST_BYTES
from nonlin.data.splitting import left_out, sides
from nonlin.errors import UserError

TEXT = "".join(f"{i}: the naïve café costs {i * 7 % 13} €\n" for i in range(4000))
BYTES = TEXT.encode()
assert len(BYTES) > SMALLEST_BYTES


def words(seed, size=9000):
    """A text of its own."""
    draw = random.Random(seed)
    return " ".join(str(draw.random()) for _ in range(size // 18)).encode()


def _jsonl(texts):
    return "\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(texts)).encode() + b"\n\n"


def _parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_the_default_is_pythons_own_library():
    corpus = load_corpus()
    assert corpus.source == "stdlib" and corpus.size > 5_000_000 and "standard library" in corpus.description
    texts = dict(corpus.documents)
    assert b"def dumps" in texts["json/__init__.py"]
    assert not any("site-packages" in name or name.startswith("test/") for name in texts)
    assert corpus.sha256 == load_corpus().sha256


def test_every_form_of_a_file_gives_the_same_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(BYTES)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(BYTES[:5000]) + gzip.compress(BYTES[5000:]))
    halves = [zstandard.ZstdCompressor().compress(part) for part in (BYTES[:5000], BYTES[5000:])]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(halves))  # as zstd and pzstd write: several frames in one file
    lines = TEXT.splitlines(keepends=True)
    texts = ["".join(lines[:2000]), "".join(lines[2000:])]
    (tmp_path / "a.jsonl").write_bytes(_jsonl(texts))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(_jsonl(texts)))
    _parquet(tmp_path / "a.parquet", text=[*texts, None, ""], other=[1, 2, 3, 4])
    for name in ("a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "b.jsonl.gz", "a.parquet"):
        corpus = load_corpus(str(tmp_path / name))
        assert b"".join(text for _, text in corpus.documents) == BYTES, name
        assert corpus.source == "user" and str(tmp_path / name) in corpus.description
        assert len(corpus.documents) == (2 if "jsonl" in name or "parquet" in name else 1)


def test_a_folder_gives_its_text_files_and_nothing_hidden_or_binary(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "one.md").write_bytes(BYTES)
    (tmp_path / "two.py").write_bytes(b"x = 1\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\0" + BYTES)
    (tmp_path / ".hidden").write_bytes(b"secret")
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / ".git" / "objects" / "ab").write_bytes(b"packed, and without a zero byte")
    corpus = load_corpus(tmp_path)
    assert [text for _, text in corpus.documents] == [BYTES, b"x = 1\n"]
    both = load_corpus([tmp_path / "two.py", tmp_path / "deep"])
    assert [text for _, text in both.documents] == [b"x = 1\n", BYTES]


def test_a_folder_gives_nothing_that_nonlin_wrote_there(tmp_path, monkeypatch):
    """The default folder of a study lies where one calls from, as the text of --data . does."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(words(number, 40_000))
    before = load_corpus(".")
    prepare(before, tmp_path / "runs" / "begun" / "data")  # stopped before its plan was written
    (tmp_path / "runs" / "begun" / "data" / "dataset.json").unlink()
    (tmp_path / "runs" / "study" / "trials").mkdir(parents=True)
    for name, content in (("plan.json", '{"arms": []}'), ("report.html", "words"), ("trials/metrics.jsonl", "{}")):
        (tmp_path / "runs" / "study" / name).write_text(content)
    again = load_corpus(".")
    assert again.sha256 == before.sha256
    assert again.notes == ("2 folders of studies left out: ./runs/begun/data, ./runs/study.",)
    _refused(str(tmp_path / "runs" / "study"), "must hold text files", "1 folders of studies left out")


def _refused(spec, *words):
    with pytest.raises(UserError) as caught:
        load_corpus(spec)
    for word in words:
        assert word in str(caught.value)


def test_what_is_missing_empty_or_too_small_is_refused(tmp_path):
    _refused(tmp_path / "nowhere.txt", "must exist", "nowhere.txt")
    _refused("nowhere/here.txt", "must exist")
    (tmp_path / "empty.txt").touch()
    _refused(tmp_path / "empty.txt", "hold text", "empty")
    (tmp_path / "nothing").mkdir()
    _refused(tmp_path / "nothing", "must hold text files")
    (tmp_path / "small.txt").write_bytes(b"a" * (SMALLEST_BYTES - 1))
    _refused(tmp_path / "small.txt", "at least 65536 bytes", "got 65535")
    (tmp_path / "small.txt").write_bytes(b"a" * SMALLEST_BYTES)
    assert load_corpus(tmp_path / "small.txt").size == SMALLEST_BYTES


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "something else"])
def test_damaged_archives_are_refused(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(BYTES))
    elif name.endswith("zst"):
        path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(BYTES))
    else:
        _parquet(path, text=[TEXT])
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes({"truncated": whole[:-40], "something else": BYTES,
                      "changed": whole[:middle] + bytes(255 - b for b in whole[middle:middle + 64])
                      + whole[middle + 64:]}[damage])
    _refused(path, "cannot be read", name, "Pass text, .gz, .zst, .jsonl or .parquet")


@pytest.mark.parametrize(("name", "content", "why"), [
    ("a.txt", b"\0\1\2\3" + BYTES, "binary"),
    ("a.jsonl", _jsonl([TEXT]) + b'{"body": "none"}\n', 'line 3 has no "text"'),
    ("b.jsonl", b'{"text": 5}\n', 'line 1 has no "text"'),
    ("c.jsonl", b'["text"]\n', 'line 1 has no "text"'),
    ("d.jsonl", _jsonl([TEXT])[:-9], "line 1"),
    ("e.jsonl", b'{"text": "\xff"}\n', "line 1"),
    ("f.txt.gz", gzip.compress(b"\0" * 100_000), "binary")])
def test_content_that_is_no_text_is_refused_with_the_reason(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    _refused(tmp_path / name, "cannot be read", name, why)


def test_parquet_without_a_column_of_text(tmp_path):
    _parquet(tmp_path / "a.parquet", body=["x"], title=["y"])
    _refused(tmp_path / "a.parquet", 'no column "text" among body, title')
    _parquet(tmp_path / "b.parquet", text=[1, 2, 3])
    _refused(tmp_path / "b.parquet", 'column "text" holds int64')


@pytest.fixture
def without_root():
    """Root may read everything: be somebody else for a moment."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.fixture
def locked(tmp_path_factory):
    """A folder with a file and a folder that nobody may read, all the way to it open."""
    folder = tmp_path_factory.mktemp("locked")
    above = folder
    while above != above.parent and (above.stat().st_mode & 0o777) == 0o700:
        above.chmod(0o755)
        above = above.parent
    (folder / "fine.txt").write_bytes(BYTES)
    (folder / "file").mkdir()
    (folder / "file" / "a.txt").write_bytes(BYTES)
    (folder / "file" / "a.txt").chmod(0)
    (folder / "folder" / "inside").mkdir(parents=True)
    (folder / "folder" / "inside" / "a.txt").write_bytes(BYTES)
    (folder / "folder" / "inside").chmod(0)
    yield folder
    (folder / "folder" / "inside").chmod(0o755)


def test_what_may_not_be_read_is_said_and_never_left_out(locked, without_root):
    for spec in ("file/a.txt", "file", "folder/inside", "folder", "folder/inside/a.txt", "."):
        _refused(locked / spec, "Permission denied")


@pytest.mark.parametrize(("spec", "dataset"), [
    ("someone/stories", True), ("someone/stories-1.5B", True), ("here/stories-1.5B", False), ("texts/a.txt", False),
    ("texts/a.jsonl", False), ("a/b/c", False), ("./stories", False), ("/stories", False), ("stories", False)])
def test_which_missing_names_are_datasets(monkeypatch, tmp_path, spec, dataset):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    _refused(spec, "pip install datasets" if dataset else "must exist", spec)


def test_a_named_dataset_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    _refused("someone/stories", "pip install datasets", "'someone/stories'")


def _stand_in(monkeypatch, rows):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_a_named_dataset_is_streamed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = _stand_in(monkeypatch, [{"text": f"{i} {TEXT[:3000]}"} for i in range(40)])
    corpus = load_corpus("someone/stories")
    assert asked == [("someone/stories", "train", True)]
    assert len(corpus.documents) == 40 and corpus.documents[7][1] == f"7 {TEXT[:3000]}".encode()
    (tmp_path / "someone" / "stories").mkdir(parents=True)  # a folder here goes before a name there
    _refused("someone/stories", "hold text files")


def test_a_named_dataset_stops_at_a_hundred_megabytes(monkeypatch):
    text = "a" * 30_000_000

    def endless():
        while True:
            yield {"text": text}

    _stand_in(monkeypatch, endless())
    assert len(load_corpus("someone/stories").documents) == 4


@pytest.mark.parametrize(("rows", "why"), [
    (ConnectionError("no route to host"), "no route to host"),
    ([{"body": "x", "title": "y"}], 'no column "text" among body, title'),
    ([{"text": 5}], 'no column "text"')])
def test_a_named_dataset_that_cannot_be_read(monkeypatch, rows, why):
    _stand_in(monkeypatch, rows)
    _refused("someone/stories", "'someone/stories' cannot be read", why)


def corpus_of(documents):
    return Corpus(tuple(documents), "test", "user")


def test_the_split_is_by_file_disjoint_and_whole():
    documents = [(f"folder/{i}.txt", words(i)) for i in range(300)]
    training, validation = split(corpus_of(documents))
    assert sorted(training + validation) == sorted(text for _, text in documents)
    # The share of 300 documents drawn one by one with chance 0.1: within four standard deviations
    assert abs(len(validation) / 300 - 0.1) < 4 * (0.1 * 0.9 / 300) ** 0.5


def test_a_document_stays_on_its_side_whatever_comes_before_it_or_beside_it():
    documents = [(f"folder/{i}.txt", words(i)) for i in range(100)]
    validation = set(split(corpus_of(documents))[1])
    shuffled = random.Random(1).sample(documents, 100)
    assert set(split(corpus_of(shuffled))[1]) == validation
    moved = [(f"elsewhere/{name}", text) for name, text in documents] + [("new.txt", words(1000))]
    assert set(split(corpus_of(moved))[1]) - {words(1000)} == validation


def test_copies_of_a_text_under_other_names_are_not_on_both_sides():
    documents = [(f"{copy}{i}.txt", words(i)) for i in range(100) for copy in "abc"]
    training, validation = split(corpus_of(documents))
    assert validation and not set(training) & set(validation)
    assert len(training) + len(validation) == 300


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_documents_are_each_cut_at_their_end(count):
    documents = [(f"{i}.txt", words(i, 20_000)) for i in range(count)]
    training, validation = split(corpus_of(documents))
    assert [a + b for a, b in zip(training, validation, strict=True)] == [text for _, text in documents]
    for head, tail in zip(training, validation, strict=True):
        assert len(tail) / len(head + tail) == pytest.approx(0.1, abs=1e-3)


def test_a_document_that_outweighs_the_rest_does_not_spoil_the_split():
    for giant in range(40):  # on whichever side it falls
        documents = [("giant.txt", words(giant, 500_000)), *((f"{i}.txt", words(i, 500)) for i in range(20))]
        training, validation = split(corpus_of(documents))
        share = sum(map(len, validation)) / sum(map(len, training + validation))
        assert 0.03 < share < 0.3


def weighted(tmp_path, **sources):
    """Return the corpus of several sources, each of these texts by their names, with weights."""
    for folder, documents in sources.items():
        (tmp_path / folder).mkdir()
        for name, text in documents.items():
            (tmp_path / folder / name).write_bytes(text)
    return load_corpus([tmp_path / folder for folder in sources], weights=[1] * len(sources))


def test_copies_in_another_source_are_on_the_same_side(tmp_path):
    texts = [words(i) for i in range(60)]
    corpus = weighted(tmp_path, one={f"a{i}.txt": text for i, text in enumerate(texts)},
                      two={f"b{i}.txt": text for i, text in enumerate(texts)})
    training, validation = split(corpus)
    assert validation and not set(training) & set(validation)
    assert len(training) + len(validation) == 120 and left_out(sides(corpus)) is None


def test_copies_of_what_is_cut_at_its_end_are_left_out_of_the_other_source_and_counted(tmp_path):
    corpus = weighted(tmp_path, few={f"a{i}.txt": words(i) for i in range(5)},
                      many={f"b{i}.txt": words(i) for i in range(200)})
    training, validation = split(corpus)
    heads = set(training) - {words(i) for i in range(200)}
    assert len(heads) == 5 and len(training) + len(validation) == 2 * 5 + 195
    assert not any(one.startswith(tuple(heads)) for one in validation)
    assert not any(one.endswith(tuple(validation)) for one in training)
    info = prepare(corpus, tmp_path / "out")
    assert any("5 documents are in another source too" in note for note in info["notes"])


def test_a_source_that_holds_little_but_copies_is_cut_as_they_are(tmp_path):
    corpus = weighted(tmp_path, few={f"a{i}.txt": words(i, 20_000) for i in range(9)},
                      more={f"b{i}.txt": words(i, 20_000) for i in range(12)})
    training, validation = split(corpus)
    assert len(training) == len(validation) == 21
    assert not any(one.endswith(tuple(validation)) for one in training)


def test_weights_alone_move_no_document(tmp_path):
    corpus = weighted(tmp_path, one={f"a{i}.txt": words(i) for i in range(60)},
                      two={f"b{i}.txt": words(i) for i in range(60, 120)})
    alone = [split(load_corpus(tmp_path / folder)) for folder in ("one", "two")]
    assert split(corpus) == tuple([*one, *two] for one, two in zip(*alone, strict=True))
