"""An empty text for an option or argument: one line says it, where it would have been the current folder."""

import click
import pytest

import nonlin
from nonlin.cli import _COMMANDS, main, program
from nonlin.data import load_corpus
from nonlin.errors import UserError


def _parameters():
    for name in _COMMANDS:
        for one in program.get_command(None, name).params:
            if one.default != "" and not getattr(one, "is_flag", False):
                yield name, one.opts[0] if isinstance(one, click.Option) else None


@pytest.mark.parametrize(("command", "option"), list(_parameters()))
def test_an_empty_value_is_refused_by_its_name(command, option, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, *([option] if option else []), ""])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "must not be empty" in said and (option or f"{command}: ") in said


def test_an_empty_path_in_a_call_is_refused():
    for call in (lambda: load_corpus(""), lambda: load_corpus("a", validation=[""]), lambda: nonlin.check(""),
                 lambda: nonlin.load(""), lambda: nonlin.load_study(""), lambda: nonlin.compare(out=""),
                 lambda: nonlin.compare(model="")):
        with pytest.raises(UserError, match=r"empty|a path"):
            call()
