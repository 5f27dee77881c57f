"""The word list finds what it bans, in every kind of file, and nothing in code."""

from pathlib import Path

import pytest
from tools import words

ROOT = Path(__file__).parents[1]
PLANTED = {
    "a.md": "Its slopes are\nnot kept for the backward pass.\n\n```python\nslope = 1\n```\n\n"
            "The `slope` of [it](slope.md).\n",
    "a.py": 'def f(x):\n    """Return the slope.\n\n    >>> slope = 1\n    """\n    return x  # mended\n\n\n'
            'def slope_of(x):\n    raise ValueError(f"the value must be settled; got {x}")\n',
    "a.h": "int slope;  // its slope\n/* how it\n   is mended */\n",
    "a.html": "<p class='slope'>the slope {{ slope }}</p><script>slope = 1</script>\n"}
EXPECTED = {"a.md": [(1, "slopes"), (2, "kept for the backward")],
            "a.py": [(2, "slope"), (6, "mended"), (9, "slope"), (10, "settled")],
            "a.h": [(1, "slope"), (3, "mended")], "a.html": [(1, "slope")]}


@pytest.mark.parametrize("name", PLANTED)
def test_a_banned_word_is_found_in_prose_alone(name, tmp_path):
    (tmp_path / name).write_text(PLANTED[name])
    banned, _, _ = words.load()
    found = words.look(tmp_path / name, banned, [], tmp_path)
    assert [(hit.line, hit.text) for hit in found] == EXPECTED[name]


def test_an_exception_needs_its_file(tmp_path):
    banned, _, _ = words.load()
    (tmp_path / "a.md").write_text("the slope\n")
    (tmp_path / "b.md").write_text("the slope\n")
    allowed = [{"word": "slope", "files": ["a.md"], "reason": "a test"}]
    assert [hit.path for name in ("a.md", "b.md")
            for hit in words.look(tmp_path / name, banned, allowed, tmp_path)] == ["b.md"]


@pytest.mark.parametrize(("text", "hits"), [
    ("The standard deviation of it.", 0), ("A deviation of 0.1.", 1), ("3.2 nats per token", 0),
    ("3.2 nats a token", 1),
    ("What is it?", 0), ("What it keeps is written down.", 1), ("Weaves are out.", 1), ("He weighs it.", 0),
    ("a 16-bit result", 0), ("sixteen-bit results", 1), ("It is amplified.", 0), ("recommended", 0)])
def test_words_end_at_their_boundaries(text, hits, tmp_path):
    (tmp_path / "a.md").write_text(text + "\n")
    assert len(words.look(tmp_path / "a.md", words.load()[0], [], tmp_path)) == hits


def test_the_glossary_shows_the_list():
    assert words.table(words.load()[0]) in (ROOT / "docs" / "glossary.md").read_text()


def test_every_exception_has_a_reason_and_a_file():
    _, allowed, paths = words.load()
    for entry in allowed:
        assert entry["reason"] and all((ROOT / name).exists() for name in entry["files"]), entry
    assert all((ROOT / name).exists() for name in paths)


def test_the_project_uses_no_banned_word():
    banned, allowed, paths = words.load()
    assert [str(hit) for file in words.files(paths) for hit in words.look(file, banned, allowed)] == []


@pytest.mark.parametrize(("text", "counts"), [
    ("one " * 25 + ".", []), ("one " * 26 + ".", [26]), ("one " * 20 + ". " + "one " * 20 + ".", []),
    ("one " * 20 + "(" + "aside " * 9 + "(deep)).", []), ("one " * 20 + "`a`, `b`, `c` and `d`, `e`; `f` or `g`.", []),
    ("one " * 20 + "0.63 → 0.51, 1.42 → 0.88 and 7 × 9 = 63.", []),
    ("* " + "one " * 20 + "\n* " + "one " * 20 + "\n\n" + "one " * 20, []), ("| " + "one " * 40 + "|", []),
    ("# " + "one " * 40, []), ("```text\n" + "one " * 40 + "\n```", []), ("**Why.** " + "one " * 25 + ".", []),
    ("[" + "one " * 14 + "](a.md) and " + "one " * 11 + ".", [26]),
    ("Narang et al. " + "one " * 25 + ".", [28]), ("at m = 3. " + "one " * 24 + ".", []),
    ("one " * 13 + "\n" + "one " * 13 + ".", [26])])
def test_sentences_are_counted(text, counts, tmp_path):
    (tmp_path / "a.md").write_text(text + "\n")
    (tmp_path / "a.py").write_text(f'def f():\n    """{text}\n\n    >>> f()\n    {"one " * 40}\n    """\n')
    for name in ("a.md", "a.py"):
        found = words.look_for_length(tmp_path / name, tmp_path)
        assert [int(hit.use.split()[0]) for hit in found] == counts, name


def test_no_sentence_is_longer_than_25_words():
    assert [str(hit) for file in words.files(words.measured()) for hit in words.look_for_length(file)] == []
