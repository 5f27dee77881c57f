"""Progress fits the program: a notebook's bar, a terminal's panel, plain lines, or none."""

import io
import sys
import types

import pytest
from rich.console import Console

from nonlin import progress

RUNNING = [{"name": "gelu", "purpose": "judge", "step": 5, "steps": 10}]


def event(stage="judge", done=1, total=4, message=None, ranking=()):
    return {"stage": stage, "done": done, "total": total, "seconds_left": 65.0, "ranking": list(ranking),
            "message": message, "running": RUNNING}


@pytest.fixture
def kernel(monkeypatch):
    """What a notebook's kernel puts in place."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    return shell


def test_which_progress(kernel):
    assert isinstance(progress.listener(), progress.Notebook) and isinstance(progress.listener(False), progress.Silent)
    kernel.config.clear()  # a shell in a terminal
    assert isinstance(progress.listener(), progress.Lines)


def test_a_notebook_gets_a_bar_for_each_stage(kernel, capsys, monkeypatch):
    from tqdm.std import tqdm

    monkeypatch.setattr(progress, "_tqdm", lambda: tqdm)
    with progress.listener() as told:
        told(event("tune", 0, 6))
        told(event("judge", 1, 4, "a worker ended", [{"name": "gelu", "bits_per_byte": 2.0, "seeds": 1}]))
        assert told.bar.n == 1.5 and told.bar.total == 4  # half of the run in flight counts
    shown = capsys.readouterr().err
    for words in ("Tuning learning rates", "Judging on fresh seeds", "a worker ended", "1 min 05 s left",
                  "so far: gelu 2.0000 (1)"):
        assert words in shown, shown


def test_lines_are_few():
    file = io.StringIO()
    lines = progress.Lines(Console(file=file))
    for done in (0, 1, 2, 3, 4, 4):
        lines(event(done=done))
    assert [line.split("  ")[0] for line in file.getvalue().splitlines()] == [
        "Judging on fresh seeds: 0/4", "Judging on fresh seeds: 4/4"]


def test_nothing_is_said_where_nothing_is_to_be_shown(capsys):
    with progress.listener(False) as told:
        told(event(message="a worker ended"))
        told.say("words")
    with progress.batches("Loading the model", "Running text", False) as told:
        told(1, 2)
    assert capsys.readouterr() == ("", "")


def test_batches_in_a_notebook(kernel, capsys, monkeypatch):
    from tqdm.std import tqdm

    monkeypatch.setattr(progress, "_tqdm", lambda: tqdm)
    with progress.batches("Loading the model", "Running text") as told:
        told(3, 4)
    assert "Running text" in capsys.readouterr().err


def test_batches_in_a_pipe_are_few_lines(capsys):
    with progress.batches("Loading the model", "Running text") as told:
        for done in range(1, 5):
            told(done, 4)
    assert capsys.readouterr().err.splitlines() == ["Loading the model …", "Running text: 4 of 4 batches"]


def test_time_left_of_batches_is_told_now_and_then(capsys, monkeypatch):
    clock = iter((0.0, 1.0, 6.0, 7.0, 30.0, 31.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.batches("Loading the model", "Running text") as told:
        for done in (1, 2, 3, 4, 8):
            told(done, 8)
    assert capsys.readouterr().err.splitlines()[1:] == [
        "Running text: 2 of 8 batches, 18 s left", "Running text: 4 of 8 batches, 30 s left",
        "Running text: 8 of 8 batches"]


def test_a_panel_that_begins_again_erases_nothing_above_it():
    """A ladder shows one panel a rung, with words between; the second erased as many lines as the first had."""
    file = io.StringIO()
    told = progress.Terminal(Console(file=file, force_terminal=True, force_jupyter=False, width=80, _environ={}))
    with told:
        told(event())
    told.say("words that stay")
    before = len(file.getvalue())
    with told:
        told(event())
    assert "\x1b[1A" not in file.getvalue()[before:].partition("Judging")[0]


def test_words_in_a_terminal_are_broken_between_words():
    file = io.StringIO()
    told = progress.Terminal(Console(file=file, force_terminal=True, force_jupyter=False, width=40, color_system=None))
    told.say("A sentence that is longer than the terminal is wide. nonlin extend runs/mine --seeds 12")
    with told:
        told(event(message="Another sentence that is longer than the terminal is wide."))
    lines = file.getvalue().split("\n")
    assert lines[:3] == ["A sentence that is longer than the", "  terminal is wide.",
                         "  nonlin extend runs/mine --seeds 12"]
    assert "Another sentence that is longer than the" in file.getvalue()


@pytest.mark.parametrize("make", [
    lambda file, _: progress.Lines(Console(file=file)), lambda file, _: progress.Terminal(Console(file=file, width=80)),
    lambda file, patch: patch.setattr(sys, "stderr", file) or progress.Notebook()], ids=["lines", "panel", "notebook"])
def test_words_are_shown_whatever_names_are_in_them(make, monkeypatch):
    """A study's folder may say that it was begun with any version: half a character, or one that a terminal obeys."""
    file = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    told = make(file, monkeypatch)
    told.say("began with torch \ud800\nand \x1b[31mred")
    told(event(message="\ud800"))
    shown = file.buffer.getvalue().decode()
    assert "torch \\ud800" in shown and "and \\x1b[31mred" in shown
