"""What the documents show works: every fence has a language; Python and shell ones run, or say why not.

A fence that cannot run in a test begins with a comment, ``# not run: REASON``. It is still parsed: Python must compile,
a nonlin command must exist with its options, a make target must be there.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from nonlin.cli import program

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PYTHON, SHELL = ("python", "py"), ("sh", "bash", "shell")
LANGUAGES = {*PYTHON, *SHELL, "text", "json", "cpp", "pycon", "console", "toml", "js"}
NOT_RUN = "# not run: "


def fences(text):
    """(language, body) of each fence, the indentation of a list taken off."""
    found = []
    for indent, language, body in FENCE.findall(text):
        found.append((language.strip(), re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)))
    return found


def of(path):
    return fences(path.read_text(encoding="utf-8"))


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


def runs(body):
    return not body.startswith(NOT_RUN)


def commands(body):
    """The commands of a shell block, each as words: without comments and variables before it."""
    for line in body.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[|;]", line.strip()):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield words


def parse(words):
    """Parse the arguments of nonlin as the program does, and do nothing."""
    with program.make_context("nonlin", list(words)) as context:
        rest = [*context._protected_args, *context.args]
        name, command, arguments = program.resolve_command(context, rest)
        command.make_context(name, arguments, parent=context).close()


def check(words):
    if Path(words[0]).name == "nonlin":
        parse(words[1:])
    elif Path(words[0]).name.startswith("python") and words[1:3] == ["-m", "nonlin"]:
        parse(words[3:])
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for target in words[1:]:
            assert "=" in target or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def script(blocks):
    """One Python program of a document's blocks in their order, shell ones as calls of bash."""
    parts = ["import subprocess as _subprocess\n"]
    for language, body in blocks:
        if language in PYTHON:
            parts.append(body)
        elif language in SHELL:
            parts.append(f"_subprocess.run(['bash', '-euc', {body!r}], check=True)\n")
    return "".join(parts)


@named(DOCUMENTS)
def test_every_fence_has_a_language(path):
    assert [(language, body) for language, body in of(path) if language not in LANGUAGES] == []


@named(DOCUMENTS)
def test_a_per_cent_sign_stands_after_a_space(path):
    """As on the pages that nonlin writes; fences and code are as they are."""
    prose = re.sub(r"`[^`]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))
    assert re.findall(r".{0,20}\d%.{0,20}", prose) == []


RUN = [path for path in DOCUMENTS if any(language in PYTHON + SHELL and runs(body) for language, body in of(path))]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@named(RUN)
def test_blocks_run(path, tmp_path, studies):
    blocks = [(language, body) for language, body in of(path) if runs(body)]
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "nonlin"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "small_nonlin.py"}" "$@"\n')
    wrapper.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=900,
        env=os.environ | {"PYTHONIOENCODING": "utf-8", "PATH": f"{wrapper.parent}:{os.environ['PATH']}",
                          "HF_HUB_OFFLINE": "1", "SMALL_STUDIES": str(studies)})
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@named(DOCUMENTS)
def test_what_does_not_run_parses(path):
    for language, body in of(path):
        if language in PYTHON:
            compile(body, str(path), "exec")
        if language in SHELL:
            for words in commands(body):
                try:
                    check(words)
                except click.exceptions.Exit:  # --help, --version
                    continue


def test_a_reason_stands_where_a_block_does_not_run():
    for path in DOCUMENTS:
        for _, body in of(path):
            if not runs(body):
                assert len(body.splitlines()[0].removeprefix(NOT_RUN).split()) >= 3, (path, body)


def test_the_checks_find_what_does_not_exist(tmp_path):
    """The tests above can fail."""
    body = ("nonlin compare --minutes 10 \\\n    --activations 'gelu,mine=x*sigmoid(2*x)'  # ten minutes\n"
            "X=1 .venv/bin/nonlin show swiglu | head\nmake test\n")
    for words in commands(body):
        check(words)
    for wrong in ("nonlin compare --minute-s 10", "nonlin compares", "nonlin compare --seeds many", "nonlin sample",
                  "python -m nonlin compare --match luck"):
        with pytest.raises(click.ClickException):
            check(shlex.split(wrong))
    with pytest.raises(AssertionError):
        check(["make", "tea"])
    assert fences("```\nx\n```\n") == [("", "x\n")]
    assert fences("* a\n\n    ```sh\n    false\n    ```\n") == [("sh", "false\n")]
    for failing in ([("sh", "false\ntrue\n")], [("python", "x = 1\n"), ("python", "assert x == 2\n")]):
        assert subprocess.run([sys.executable, "-c", script(failing)], capture_output=True).returncode != 0


def test_the_tables_of_where_things_live_name_files_that_are_there():
    """docs/design.md: each row names files; and what a newcomer looks for is in the file that it names."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ((?:`[^`]+`(?:, )?)+) \|$", text, re.MULTILINE)
    assert len(rows) > 15
    package = ROOT / "src" / "nonlin"
    for what, files in rows:
        for name in re.findall(r"`([^`]+)`", files):
            assert list(package.glob(name.replace("NN_title", "*"))), (what, name)
    found = dict(rows)
    for what, marker in (
            ("the polynomial of exp, on a CPU", "e^r - 1"), ("the proof that a Llama block is equal", "def prove"),
            ("the verdict rule", "def judge"), ("the dead-unit measure, and all others", "DEAD"),
            ("the C++ matrix product of the small model", "static void gemm"),
            ("the registration with `ACT2FN`", "ACT2FN")):
        first = re.findall(r"`([^`]+)`", found[what])[0]
        assert marker in (package / first).read_text(encoding="utf-8"), (what, first)


def test_the_map_of_the_readme_names_folders_that_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = text[text.index("```text\nsrc/nonlin/"):].split("```")[1]
    for name in re.findall(r"(\w+)/", drawn):
        places = (*ROOT.glob(name), *ROOT.glob(f"*/{name}"), *(ROOT / "src").rglob(name))
        assert any(path.is_dir() for path in places), name
    for name in re.findall(r"\b\w+\.(?:py|h)\b", drawn):
        assert list((ROOT / "src").rglob(name)), name


def test_every_record_has_the_command_that_made_it():
    records = ROOT / "benchmarks" / "records"
    listed = (records / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(records.glob("*.json")) if f"`{path.name}`" not in listed] == []
