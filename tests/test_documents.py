"""What the documents show works: Python blocks run, nonlin commands parse, make targets exist."""

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
BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(path, *languages):
    return [body for _, language, body in BLOCK.findall(path.read_text(encoding="utf-8")) if language in languages]


def with_blocks(*languages):
    found = [path for path in DOCUMENTS if blocks(path, *languages)]
    return pytest.mark.parametrize("path", found, ids=[str(path.relative_to(ROOT)) for path in found])


def commands(body):
    """The commands of a shell block, each as words: without prompts, comments, and what is printed."""
    lines = body.replace("\\\n", " ").splitlines()
    prompted = any(line.lstrip().startswith("$ ") for line in lines)
    for line in lines:
        text = line.strip()
        if prompted and not text.startswith("$ "):
            continue
        for part in re.split(r"&&|\|\||[|;]", text.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            while words and re.match(r"\w+=", words[0]):  # variables before the command
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


@with_blocks("python", "py")
def test_python_blocks_run(path, tmp_path):
    code = "\n".join(blocks(path, "python", "py"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr[-3000:]


@with_blocks("sh", "bash", "shell", "console")
def test_commands_parse(path):
    for body in blocks(path, "sh", "bash", "shell", "console"):
        for words in commands(body):
            try:
                check(words)
            except click.exceptions.Exit:  # --help, --version
                continue


def test_the_check_finds_what_does_not_exist():
    """The test above can fail."""
    body = ("$ nonlin compare --minutes 10 \\\n    --activations 'gelu,mine=x*sigmoid(2*x)'  # ten minutes\n"
            "output: nonlin nonsense\n$ X=1 .venv/bin/nonlin show swiglu | head\n$ make test\n")
    for words in commands(body):
        check(words)
    for wrong in ("nonlin compare --minute-s 10", "nonlin compares", "nonlin compare --seeds many", "nonlin sample",
                  "python -m nonlin compare --match luck"):
        with pytest.raises(click.ClickException):
            check(shlex.split(wrong))
    with pytest.raises(AssertionError):
        check(["make", "tea"])
