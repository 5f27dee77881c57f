"""An empty text for an option or argument: one line says it, where it would have been the current folder."""

import inspect
from pathlib import Path

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


def _calls(found, name, seen):
    """Yield (name, function) of a public function, of a class's public methods, and of all that a package lists."""
    if id(found) in seen or inspect.isgetsetdescriptor(found):
        return
    seen.add(id(found))
    if inspect.ismodule(found):
        called = vars(type(found)).get("__call__")
        if called is not None:
            yield name, called
        for part in getattr(found, "__all__", ()):
            yield from _calls(getattr(found, part), f"{name}.{part}", seen)
    elif inspect.isclass(found) and found.__module__.startswith("nonlin"):
        for part, value in vars(found).items():
            if part in ("__init__", "__call__") or not part.startswith("_"):
                yield from _calls(value, f"{name}.{part}", seen)
    elif inspect.isfunction(found) and found.__module__.startswith("nonlin"):
        yield name, found


def _paths():
    seen = set()
    for part in nonlin.__all__:
        for name, call in _calls(getattr(nonlin, part), part, seen):
            for one in inspect.signature(call).parameters.values():
                if "str" in (kind := str(one.annotation)) and "Path" in kind and "Mapping" not in kind:
                    yield pytest.param(call, one.name, id=f"{name}-{one.name}")


#: Calls whose paths come from calls of ours, which have refused an empty one.
_INNER = ("ProcessEngine.__init__", "identity", "intact", "Checkup.open_page")


@pytest.mark.parametrize(("call", "argument"), [p for p in _paths() if not p.id.rpartition("-")[0].endswith(_INNER)])
def test_an_empty_path_in_a_public_call_is_refused_before_anything_is_done(call, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    kind = str(inspect.signature(call).parameters[argument].annotation)
    for empty in ["", *([[""]] if "Sequence" in kind else [])]:
        wanted = {one.name: None for one in inspect.signature(call).parameters.values()
                  if one.default is one.empty and one.kind is not one.VAR_KEYWORD} | {argument: empty}
        with pytest.raises(UserError, match=r"must not be empty; got ''\. "):
            found = call(**wanted)
            if inspect.isgenerator(found):
                next(found)
    assert [path.name for path in Path().iterdir()] == ["plan.json"]


def test_an_empty_path_in_a_call_is_refused():
    for call in (lambda: load_corpus(""), lambda: load_corpus("a", validation=[""]), lambda: nonlin.check(""),
                 lambda: nonlin.load(""), lambda: nonlin.load_study(""), lambda: nonlin.compare(out=""),
                 lambda: nonlin.compare(model=""), lambda: nonlin.ladder(target=1e6, validation=[""]),
                 lambda: nonlin.ladder(target=1e6, tokenizer=""), lambda: nonlin.check("m", tokenizer="")):
        with pytest.raises(UserError, match="must not be empty"):
            call()
