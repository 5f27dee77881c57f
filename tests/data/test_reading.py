"""Nothing is dropped or misread in silence: what a file holds is text, or is counted with its file and line."""

import collections
import contextlib
import gzip
import io
import json
import os
import random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlin.data import load_corpus, prepare, reading, spool
from nonlin.data import parquet as parquet_reading
from nonlin.errors import UserError

TEXT = "".join(f"{i}: the naïve café costs {i * 7 % 13} €\n" for i in range(4000))
BYTES = TEXT.encode()


def lines(*records):
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def texts_of(path):
    return [text for _, text in load_corpus(path).documents]


def test_a_zero_character_in_a_record_drops_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines({"text": TEXT}, {"text": "a\0b"}, {"text": TEXT}))
    for where in (tmp_path, tmp_path / "a.jsonl"):
        assert texts_of(where) == [BYTES, b"a\0b", BYTES]
    assert load_corpus(tmp_path).notes == ()


def test_null_and_empty_records_are_left_out_and_counted_by_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": TEXT}, {"text": None}, {"text": ""}, {"text": "x"}, *[{"text": None}] * 5))
    corpus = load_corpus(path)
    assert [text for _, text in corpus.documents] == [BYTES, b"x"]
    note, = corpus.notes
    assert note.startswith("7 records without text left out") and f"{path} line 2" in note and "line 3" in note
    pyarrow.parquet.write_table(pyarrow.table({"text": [TEXT, None, "x"]}), tmp_path / "a.parquet")
    corpus = load_corpus(tmp_path / "a.parquet")
    assert "row 2" in corpus.notes[0] and len(corpus.documents) == 2


def test_lone_surrogates_are_replaced_and_counted_and_pairs_are_characters(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": TEXT}) + b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00 \\udc00"}\n')
    corpus = load_corpus(path)
    assert [text for _, text in corpus.documents][1:] == ["a\ufffdb".encode(), "\U0001f600 \ufffd".encode()]
    note, = corpus.notes
    assert note.startswith("2 records with lone surrogates") and "line 2" in note and "line 3" in note


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL", "a.jsonlines", "a.json", "a.json.gz", "a.JSON.GZ",
                                  "a.ndjson.zst", "a.jsonl.gz"])
def test_records_are_read_as_records_whatever_the_file_is_called(tmp_path, name):
    content = lines({"text": TEXT, "id": 1}, {"text": "one {\"text\": 2} \\", "id": 2})
    if name.lower().endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".zst"):
        content = zstandard.ZstdCompressor().compress(content)
    (tmp_path / name).write_bytes(content)
    assert texts_of(tmp_path / name) == [BYTES, b'one {"text": 2} \\']


def test_a_json_array_of_records_is_records_and_other_json_is_text(tmp_path):
    records = [{"id": [1, {"a": "]"}], "text": TEXT}, {"text": 'quoted " and \\ and ]}'}, {"text": "x" * 3_000_000}]
    (tmp_path / "a.json").write_text(json.dumps(records, indent=2))
    assert texts_of(tmp_path / "a.json") == [r["text"].encode() for r in records]
    for content in (json.dumps({"body": TEXT}), json.dumps([TEXT, 1]), json.dumps({"a": TEXT}, indent=1),
                    json.dumps([[TEXT]]), "[1, 2, " + TEXT):
        (tmp_path / "b.json").write_text(content)
        assert texts_of(tmp_path / "b.json") == [content.encode()]


@given(st.lists(st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(
    st.text(), x), max_leaves=6), max_size=5), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_elements_of_an_array_are_found_wherever_the_pieces_end(values, size):
    objects = [{"text": v} for v in values]
    whole = json.dumps(objects).encode()

    class Short:
        def __init__(self):
            self.at = 0

        def read(self, _):
            self.at += size
            return whole[self.at - size:self.at]

    assert [json.loads(raw) for _, raw in reading._elements(Short())] == objects


@pytest.mark.parametrize(("content", "why"), [
    (lines({"text": "fine"}) + b"[" * 100_000 + b"\n", "line 2 is nested too deeply"),
    (lines({"text": "fine"}) + b'{"text": "no end\n', "line 2 is not JSON"),
    (lines({"text": "fine"}, {"texts": "x"}), 'line 2 has no "text"')])
def test_a_line_that_is_no_record_is_refused_by_its_number(tmp_path, content, why):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=why):
        load_corpus(tmp_path)


@pytest.mark.parametrize("between", [b"5,", b'"b",', b"null", b",,", b"", b"]", b"] ,", b",] [", b"}",
                                     b",\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [2, 7, 1 << 20])
def test_what_stands_between_records_of_an_array_is_refused_by_its_place(tmp_path, monkeypatch, between, size):
    """A number, a text or a second array would be left out in silence, and a comma too many is a record too few."""
    monkeypatch.setattr(reading, "CHUNK", size)
    record = json.dumps({"text": "x" * (70_000 if size > 7 else 70)}).encode()
    (tmp_path / "a.json").write_bytes(b" [" + record + b" , " + record + between + record + b"]\n")
    with pytest.raises(UserError, match=r"a\.json cannot be read: after record 2 stands something that is no record"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("end", [b"", b",]", b"]]", b"] x", b'] {"text": "y"}'])
def test_an_array_that_does_not_end_as_one_is_refused(tmp_path, end):
    (tmp_path / "a.json").write_bytes(b"[" + json.dumps({"text": TEXT}).encode() + end)
    with pytest.raises(UserError, match="its end is missing" if not end else "after record 1"):
        load_corpus(tmp_path)


def test_records_over_several_lines_and_after_others_are_found(tmp_path):
    """What a .json file is, its first record alone does not tell."""
    (tmp_path / "whole.json").write_text(json.dumps({"id": 3, "text": TEXT}, indent=2))
    assert texts_of(tmp_path / "whole.json") == [BYTES]
    (tmp_path / "late.json").write_text(json.dumps([{"about": "these"}, {"text": TEXT}]))
    with pytest.raises(UserError, match='record 1 has no "text"'):
        load_corpus(tmp_path / "late.json")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([{"text": TEXT}]).encode())
    assert texts_of(tmp_path / "bom.json") == [BYTES]


def test_files_of_records_taken_as_they_are_are_told_of(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"body": TEXT}))
    (tmp_path / "b.txt").write_bytes(lines({"text": TEXT}))
    (tmp_path / "c.json").write_bytes(b"[]")
    (tmp_path / "d.jsonl").write_bytes(b"\n\n")
    notes = "\n".join(load_corpus(tmp_path).notes)
    assert '2 .json files without records that have a "text"' in notes and "a.json" in notes and "c.json" in notes
    assert "1 files of JSON lines taken as they are" in notes and "b.txt" in notes
    assert "1 files without text left out" in notes and "d.jsonl" in notes


def parquet(path, texts, **options):
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="zstd", **options)
    return path


def test_a_parquet_column_that_no_text_is_packed_so_tightly_as_is_refused(tmp_path, monkeypatch):
    """Its pages are in memory whole before a row of them is: 19 KB became 3 GB."""
    monkeypatch.setattr(reading, "LONGEST_RECORD", 1 << 20)
    path = parquet(tmp_path / "a.parquet", ["x" * 100_000 + str(i) for i in range(300)], use_dictionary=False)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r'its column "text" of [\d,]+ bytes grows to 30,'):
        load_corpus(path)


def _varint(value, length=0):
    """Return a whole number of Thrift's compact protocol, in so many bytes at least."""
    value, found = value << 1, bytearray()
    while value or not found or len(found) < length:
        found.append((value & 127) | 128)
        value >>= 7
    found[-1] &= 127
    return bytes(found)


def test_a_parquet_file_that_lies_about_its_sizes_is_refused(tmp_path, monkeypatch):
    """Memory is taken for what a page's header says, whatever the file's end says of the column."""
    path = parquet(tmp_path / "a.parquet", ["x" * 100_000 + str(i) for i in range(300)], use_dictionary=False)
    column = pyarrow.parquet.read_metadata(path).row_group(0).column(0)
    told, data = _varint(column.total_uncompressed_size), path.read_bytes()
    assert data.count(told) > 1  # of the group, and of the column
    path.write_bytes(data.replace(told, _varint(20_000, len(told))))
    assert pyarrow.parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 20_000
    monkeypatch.setattr(reading, "LONGEST_RECORD", 1 << 20)
    with pytest.raises(UserError, match=r'its column "text" of [\d,]+ bytes grows to 3\d,'):
        load_corpus(path)
    monkeypatch.setattr(reading, "LONGEST_RECORD", 1 << 40)
    monkeypatch.setattr("nonlin.data.parquet.LARGEST_PAGE", 1 << 20)
    with pytest.raises(UserError, match=r"its page at byte [\d,]+ grows to [\d,]+ bytes"):
        load_corpus(path)


def test_a_parquet_file_of_rows_without_end_is_refused(tmp_path):
    rows = pyarrow.nulls((1 << 24) + 1, pyarrow.dictionary(pyarrow.int8(), pyarrow.string()))
    path = parquet(tmp_path / "a.parquet", rows)
    assert path.stat().st_size < 60_000
    with pytest.raises(UserError, match="16,777,217 rows in"):
        load_corpus(path)


@given(st.lists(st.text(max_size=200) | st.none(), min_size=1, max_size=40), st.sampled_from(["1.0", "2.0"]),
       st.booleans(), st.sampled_from(["snappy", "zstd", "gzip", "none"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_sizes_of_a_parquet_columns_pages_are_those_of_their_headers(texts, version, dictionary, packed, rich):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())}), file,
                                data_page_version=version, use_dictionary=dictionary, compression=packed,
                                data_page_size=300, write_statistics=rich, write_page_checksum=rich, row_group_size=9)
    found = [text for _, text in parquet_reading.texts(file, 1 << 20)]
    assert found == texts
    group = pyarrow.parquet.read_metadata(file).row_group(0).column(0)
    starts = [group.data_page_offset, *([group.dictionary_page_offset] if group.has_dictionary_page else [])]
    pages = parquet_reading._pages(file, min(starts), min(starts) + group.total_compressed_size)
    assert 0 <= group.total_uncompressed_size - pages < 2000  # which counts the headers too


@pytest.mark.parametrize("kind", [0x19, 0x1c])  # a list of lists, a struct in a struct
def test_the_header_of_a_page_that_never_ends_is_refused_by_its_depth(kind):
    with pytest.raises(ValueError, match="nested too deeply"):
        parquet_reading._Compact(bytes([kind]) * 60_000).struct()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_parquet_file_is_one_error(tmp_path_factory, data):
    path = parquet(tmp_path_factory.mktemp("damaged") / "a.parquet", [TEXT, "b" * 50, None] * 9, data_page_size=100)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with contextlib.suppress(UserError):
        load_corpus(path)


def test_text_leaves_some_of_the_disk_free(tmp_path, monkeypatch):
    """A small compressed file may hold more than the disk: what else is written there goes on."""
    usage = collections.namedtuple("usage", "total used free")
    left = iter([3 << 30, 2 << 30, 1 << 29])
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: usage(1 << 40, 0, next(left)))
    monkeypatch.setattr(spool, "LOOK", 1 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some words \n" * (1 << 20)))
    with pytest.raises(UserError, match=r"leave 1 GiB of the disk .* free; after 6,\d+,\d+ bytes of it 0.5 GiB are"):
        load_corpus(tmp_path / "a.txt.gz")


def test_a_parquet_row_longer_than_the_stated_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_RECORD", 1 << 20)
    draw = random.Random(0).randbytes(1 << 20).hex()
    with pytest.raises(UserError, match="row 2 is longer than 1 MiB"):
        load_corpus(parquet(tmp_path / "a.parquet", ["x", draw, "y"]))


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary<values=string, indices=int32>"])
def test_every_kind_of_a_parquet_columns_text_is_read(tmp_path, kind):
    texts = pyarrow.array([TEXT, None, "", "é\ud7ff", TEXT])
    texts = texts.dictionary_encode() if kind.startswith("dictionary") else texts.cast(kind)
    assert str(texts.type).replace(", ordered=0", "") == kind
    assert texts_of(parquet(tmp_path / "a.parquet", texts)) == [BYTES, "é\ud7ff".encode(), BYTES]


def test_a_parquet_row_of_bytes_that_are_no_text_is_refused(tmp_path):
    broken = pyarrow.array([TEXT.encode(), b"\xff\xfe"]).view(pyarrow.string())
    with pytest.raises(UserError, match="row 2 is no UTF-8"):
        load_corpus(parquet(tmp_path / "a.parquet", broken))


def test_names_of_files_show_no_character_that_a_terminal_obeys(tmp_path):
    folder = tmp_path / "red\x1b[31m\nline\x9b"
    folder.mkdir()
    (folder / "a.txt").write_bytes(BYTES)
    (folder / "b.png").write_bytes(b"\x89PNG\0\0")
    corpus = load_corpus(folder)
    shown = "".join([corpus.description, *corpus.notes])
    assert shown.isprintable() and "red\\x1b[31m\\nline\\x9b" in shown
    (folder / "c.jsonl").write_text("{")
    with pytest.raises(UserError) as caught:
        load_corpus(folder)
    assert str(caught.value).isprintable()


def test_a_line_longer_than_the_stated_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_RECORD", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "x"}, {"text": "x" * (1 << 20)}))
    with pytest.raises(UserError, match="line 2 is longer than 1 MiB"):
        load_corpus(tmp_path)


def test_what_a_folder_holds_beside_text_is_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(BYTES)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    notes = "\n".join(load_corpus(tmp_path).notes)
    for count, kind, name in ((1, "binary files", "b.png"), (1, "empty files", "empty.txt"),
                              (1, "hidden files and folders", ".git"), (3, "broken links and special", "gone"),
                              (1, "links to folders", "again")):
        assert f"{count} {kind}" in notes and name in notes


@pytest.mark.parametrize("kind", ["pipe", "loop", "zero"])
def test_what_is_neither_a_file_nor_a_folder_is_refused_at_once(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = "/dev/zero"
    with pytest.raises(UserError, match="cannot be read"):
        load_corpus(path)


def test_a_name_that_is_no_utf8_is_read_shown_and_written(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.txt", "wb") as file:
        file.write(BYTES)
    corpus = load_corpus(os.fsdecode(folder))
    assert texts_of(os.fsdecode(folder)) == [BYTES]
    corpus.description.encode()
    assert "caf\\xe9" in corpus.description
    info = prepare(corpus, tmp_path / "data")
    json.dumps(info, ensure_ascii=False).encode()


@given(st.lists(st.binary(max_size=300), max_size=6), st.sampled_from([gzip.compress, zstandard.compress]))
@settings(max_examples=50, deadline=None)
def test_frames_one_after_the_other_are_one_text(tmp_path_factory, parts, compress):
    ending = ".gz" if compress is gzip.compress else ".zst"
    path = tmp_path_factory.mktemp("frames") / f"a.txt{ending}"
    body = [BYTES, *parts]
    path.write_bytes(b"".join(map(compress, body)))
    assert texts_of(path) == [b"".join(body)]


def test_a_copy_of_a_compressed_file_leaves_room_on_its_disk(tmp_path, monkeypatch):
    from nonlin.data import reading, spool

    monkeypatch.setattr(reading, "LOOK", 1 << 20)
    usage = type("Usage", (), {"total": 1 << 40, "free": 1 << 20})
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: usage)
    (tmp_path / "zeros.parquet.gz").write_bytes(gzip.compress(bytes(4 << 20)))
    with pytest.raises(UserError, match=r"must leave 1 GiB of the disk that holds .*after 1,048,576 bytes"):
        load_corpus(tmp_path / "zeros.parquet.gz", scratch=tmp_path)


def test_blank_lines_tell_progress(tmp_path):
    told = []
    (tmp_path / "blank.jsonl.gz").write_bytes(gzip.compress(b"\n" * (3 << 20)))
    with pytest.raises(UserError, match="hold text"):
        load_corpus(tmp_path / "blank.jsonl.gz", progress=lambda *event: told.append(event))
    assert len(told) >= 3


@pytest.mark.parametrize("form", ["lines", "array", "record"])
def test_records_after_many_blank_lines_are_records(tmp_path, form):
    """A small compressed file may begin with more blanks than are looked at."""
    records = [{"text": f"{i}: " + "words of a record " * 40} for i in range(200)]
    content = {"lines": lines(*records), "array": json.dumps(records, indent=1).encode(),
               "record": json.dumps({"text": records[0]["text"] * 200}, indent=1).encode()}[form]
    (tmp_path / "late.json.gz").write_bytes(gzip.compress(b" \n" * (3 << 19) + content))
    told = []
    corpus = load_corpus(tmp_path / "late.json.gz", progress=lambda *event: told.append(event[1]))
    assert corpus.notes == () and len(corpus.documents) == (1 if form == "record" else 200)
    assert corpus.documents[0][1].startswith(b"0: words of a record")
    assert 0 < told[-1] == (tmp_path / "late.json.gz").stat().st_size


def test_text_that_is_no_utf8_is_said(tmp_path):
    """A tokenizer cannot take it as it is: what no character is becomes U+FFFD."""
    plain = "naïve café €\n" * 8000
    (tmp_path / "latin.txt").write_bytes(plain.replace("€", "").encode("latin-1"))
    (tmp_path / "cut.txt").write_bytes(plain.encode()[:-2])  # inside its last character
    (tmp_path / "right.txt").write_text(plain, encoding="utf-8")
    found = load_corpus(tmp_path)
    assert found.notes == (f"2 files that are no UTF-8 taken byte by byte (a tokenizer reads U+FFFD in them): "
                           f"{tmp_path / 'cut.txt'}, {tmp_path / 'latin.txt'}.",)
    assert dict(found.documents)[str(tmp_path / "latin.txt")] == plain.replace("€", "").encode("latin-1")


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_records_in_utf_16_are_said_to_be_so(tmp_path, code, mark, name):
    text = ("\ufeff" if mark else "") + '{"text": "größer als ein Wort"}\n' * 5000
    data = text.encode(code)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(UserError, match="it is UTF-16 or UTF-32, and must be UTF-8"):
        load_corpus(tmp_path / name)
    (tmp_path / "b.txt").write_text("words of another file\n" * 5000)
    assert "1 files of UTF-16 or UTF-32 left out" in load_corpus(tmp_path).notes[0]


def test_a_record_that_is_no_utf_8_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a word"}\n' * 5000 + '{"text": "größer"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"line 5001 is no UTF-8\. Pass"):
        load_corpus(path)


def test_a_record_with_half_a_surrogate_pair_in_its_bytes_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a word"}\n' * 20_000 + b'{"text": "half \xed\xa0\x80 pair"}\n')
    assert "1 records with lone surrogates, each replaced by U+FFFD" in load_corpus(path).notes[0]


@pytest.mark.parametrize("code", ["utf-16", "utf-32", "utf-16-be"])
def test_text_of_wide_characters_is_not_read_as_bytes(tmp_path, code):
    text = ("\ufeff" if code.endswith("be") else "") + "中文字符" * 20_000  # no zero byte where a file is looked at
    (tmp_path / "wide.txt").write_bytes(text.encode(code))
    (tmp_path / "right.txt").write_text("plain text\n" * 9000)
    with pytest.raises(UserError, match=r"it is UTF-16 or UTF-32, and must be UTF-8|it holds binary data"):
        load_corpus(tmp_path / "wide.txt")
    notes = load_corpus(tmp_path).notes
    assert len(notes) == 1 and "left out" in notes[0] and "wide.txt" in notes[0]
