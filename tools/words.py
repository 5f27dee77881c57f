"""Look for words that the project does not use, and for long sentences: ``python tools/words.py [PATH ...]``.

The exit status is 1 if there are any. ``--table`` prints the list of words as docs/glossary.md shows it.

Reads prose alone: Markdown outside code; Python's docstrings, comments and texts of three words or more. Of C++ and
JavaScript it reads comments, of HTML pages the text. The list and its exceptions are in ``tools/words.toml``.

Sentences have at most 25 words in Markdown and in docstrings. Headings, tables, blocks of code, addresses and figures
do not count, nor do asides in brackets. Several names of code in a row count as one word.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tools" / "words.toml"
_FENCE = re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^ *\2", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+).+?\1", re.DOTALL)
_LINK = re.compile(r"\]\([^)]*\)")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_MARKUP = re.compile(r"<script.*?</script>|<style.*?</style>|\{[%{#].*?[%}#]\}|<[^>]*>", re.DOTALL)
_EXAMPLE = re.compile(r"^\s*(>>>|\.\.\.) .*$", re.MULTILINE)
MOST = 25  # words of a sentence
_LINE = re.compile(r"[|#<]|!\[")  # begins what is no sentence
_ITEM = re.compile(r"^([-*+]|\d+\.)\s+|^\[\^\w+\]:\s*")
_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]\(")
_NAMES = re.compile("\ue000(?:(?:[\\s,;/→|]|and|or)+\ue000)+")
_STOP = re.compile(r"(?<!\bal)(?<!\b[A-Z])[.!?][*_”\"]*(?:\s+|$)")
_SESSION = re.compile(r"^[ \t]*>>> .*?(?=^[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_C = {".cpp", ".h", ".js", ".css"}


@dataclass(frozen=True)
class Found:
    """A banned word: where it is, and the word to use."""

    path: str
    line: int
    text: str
    use: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text!r} -> {self.use}"


@dataclass(frozen=True)
class Word:
    """A banned pattern, an example of it, and its replacement."""

    says: str
    pattern: re.Pattern[str]
    use: str
    names: bool


def blank(text: str, pattern: re.Pattern[str], keep: bool = False) -> str:
    """Return the text with a pattern's matches (or all but them, with ``keep``) made spaces; lines stay in place.

    >>> blank("a `b` c", _CODE)
    'a     c'
    """
    def spaces(part: str) -> str:
        return re.sub(r"[^\n]", " ", part)

    made, end = [], 0
    for found in pattern.finditer(text):
        between, inside = text[end:found.start()], found.group()
        made += [spaces(between), inside] if keep else [between, spaces(inside)]
        end = found.end()
    made.append(spaces(text[end:]) if keep else text[end:])
    return "".join(made)


def markdown(text: str) -> str:
    """Return the prose of Markdown (or of a docstring): no code, no addresses, no examples."""
    for pattern in (_FENCE, _EXAMPLE, _CODE, _LINK):
        text = blank(text, pattern)
    return text


def python(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each piece of a module's prose: comments in a row are one piece."""
    row, lines = 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if lines and token.start[0] != row + len(lines):
            yield row, "\n".join(lines)
            lines = []
        if not lines:
            row = token.start[0]
        lines.append(token.string.lstrip("#: "))
    if lines:
        yield row, "\n".join(lines)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) >= 3:
            yield node.lineno, markdown(node.value)


def names(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, words) of every name that a module gives: functions, classes, arguments, variables."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        else:
            continue
        yield node.lineno, re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (first line, text) of the prose in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield 1, markdown(text)
    elif path.suffix == ".py":
        yield from python(text)
    elif path.suffix in _C:
        yield 1, blank(text, _COMMENT, keep=True)
    elif path.suffix == ".html":
        yield 1, blank(text, _MARKUP)


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each paragraph and list item of Markdown or of a docstring, on one line."""
    for pattern in (_FENCE, _SESSION):
        text = blank(text, pattern)
    first, lines = 0, []
    for at, line in enumerate([*text.split("\n"), ""], 1):
        said = line.strip()
        if lines and (not said or _LINE.match(said) or _ITEM.match(said)):
            yield first, " ".join(lines)
            lines = []
        if said and not _LINE.match(said):
            first = first if lines else at
            lines.append(_ITEM.sub("", said, count=1) if not lines else said)


def long_sentences(text: str, most: int = MOST) -> Iterator[tuple[int, int, str]]:
    """Yield (line, words, sentence) of each sentence that has more words.

    >>> [count for _, count, _ in long_sentences("It is `a`, `b` and `c` (as ever, always). Two are 2.5.", most=1)]
    [3, 2]
    """
    for line, block in blocks(text):
        plain = _CODE.sub("\ue000", re.sub(r"\]\([^)]*\)", "]", block))
        while plain != (plain := _ASIDE.sub("", plain)):
            pass
        for sentence in _STOP.split(_NAMES.sub("\ue000", plain)):
            count = sum(bool(re.search("[^\\W\\d_]|\ue000", word)) for word in sentence.split())
            if count > most:
                yield line, count, sentence


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each docstring of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0].value if node.body and isinstance(node.body[0], ast.Expr) else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.lineno, first.value


def look_for_length(path: Path, root: Path = ROOT) -> list[Found]:
    """Return the sentences of a file that are too long."""
    text = path.read_text(encoding="utf-8")
    pieces = list(docstrings(text)) if path.suffix == ".py" else [(1, text)] if path.suffix == ".md" else []
    return [Found(path.relative_to(root).as_posix(), first + line - 1, sentence.strip()[:90].replace("\ue000", "`…`"),
                  f"{count} words: split it")
            for first, piece in pieces for line, count, sentence in long_sentences(piece)]


def measured(path: Path = LIST) -> list[str]:
    """Return the paths whose sentences are counted."""
    return tomllib.loads(path.read_text(encoding="utf-8"))["sentences"]


def load(path: Path = LIST) -> tuple[list[Word], list[dict], list[str]]:
    """Return the banned words, the exceptions and the paths to check."""
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    words = []
    for entry in read["word"]:
        start = entry.get("start", False)
        before, after = (r"(?:(?<=\n\n)|(?<=[.!]\s)|\A)", "") if start else (r"(?<![\w-])", r"(?!\w)")
        pattern = f"{before}(?:{entry['ban'].replace(' ', chr(92) + 's+')}){after}"
        words.append(Word(entry["says"], re.compile(pattern, 0 if entry.get("case") else re.IGNORECASE), entry["use"],
                          entry.get("names", False)))
    return words, read.get("allow", []), read["paths"]


def look(path: Path, words: list[Word], allowed: list[dict], root: Path = ROOT) -> list[Found]:
    """Return the banned words in a file."""
    shown = path.relative_to(root).as_posix()
    spared = [entry["word"] for entry in allowed if shown in entry["files"]]
    texts = [(line, text, False) for line, text in prose(path)]
    if path.suffix == ".py":
        texts += [(line, text, True) for line, text in names(path.read_text(encoding="utf-8"))]
    found = []
    for first, text, is_name in texts:
        for word in words:
            if is_name and not word.names:
                continue
            for hit in word.pattern.finditer(text):
                said = " ".join(hit.group().split())
                if not any(re.search(rf"\b{entry}", said, re.IGNORECASE) for entry in spared):
                    found.append(Found(shown, first + text.count("\n", 0, hit.start()), said[:90], word.use))
    return sorted(set(found), key=lambda f: (f.path, f.line))


def files(paths: list[str], root: Path = ROOT) -> Iterator[Path]:
    """Yield the files of prose under the paths, each once."""
    for name in paths:
        path = (root / name).resolve()
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in {".md", ".py", ".html", *_C} and "__pycache__" not in file.parts:
                yield file


def table(words: list[Word]) -> str:
    """Return the list as a table."""
    return "\n".join(["| not | but |", "| --- | --- |", *(f"| `{word.says}` | {word.use} |" for word in words), ""])


def main(arguments: list[str]) -> int:
    """Print what is found; return the exit status."""
    words, allowed, paths = load()
    if arguments == ["--table"]:
        print(table(words), end="")
        return 0
    found = [hit for file in files(arguments or paths) for hit in look(file, words, allowed)]
    found += [hit for file in files(arguments or measured()) for hit in look_for_length(file)]
    for hit in found:
        print(hit)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
