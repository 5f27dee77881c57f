"""``nonlin watch`` in a terminal: a pty of its own, wide and narrow, that is resized, interrupted, without colours."""

import os
import re
import select
import signal
import struct
import sys
import time

import pytest

from nonlin.study import Store
from tests.study import studies

pty = pytest.importorskip("pty", reason="there are no terminals of this kind here")
TEXT = "Study "


class Terminal:
    """The program in a terminal of so many columns; ``read`` until a text has come, or the end."""

    def __init__(self, *arguments, columns=80, **environment):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            ours = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs begin with it ignored
            # readline puts COLUMNS where os.environ does not see it, so the whole environment is given
            os.execve(sys.executable, [sys.executable, "-c", "import sys; sys.stdin.readline()\n"
                                       "from nonlin.cli import main; main(sys.argv[1:])", *map(str, arguments)],
                      {name: value for name, value in ours.items() if name not in ("COLUMNS", "LINES")}
                      | {"TERM": "xterm-256color", **environment})
        self.resize(columns)
        os.write(self.file, b"\n")  # only now does it look how wide the terminal is
        self.text = ""

    def resize(self, columns):
        import fcntl
        import termios

        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def read(self, until=None):
        ends = time.monotonic() + 120
        while (until is None or until not in self.text) and time.monotonic() < ends:
            if not select.select([self.file], [], [], 1)[0]:
                continue
            try:
                found = os.read(self.file, 65536)
            except OSError:  # Linux says so where the program has ended
                break
            if not found:
                break
            self.text += found.decode(errors="replace")
        return self.text

    def status(self):
        self.read()
        os.close(self.file)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def plain(text):
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).replace("\r", "")


def lines(text):
    """What is left of the drawing's last state, and below it."""
    return plain(text[text.rindex("\x1b[?25h"):]).splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched") / "finished"
    studies.run(folder, studies.plan())
    return folder


@pytest.mark.parametrize("columns", [60, 80])
def test_a_finished_study_is_its_table_and_fits(finished, columns):
    terminal = Terminal("watch", finished, columns=columns)
    assert terminal.status() == 0
    told = lines(terminal.text)
    table = told[:next(i for i, line in enumerate(told) if line.startswith("Left out at this width")) + 1]
    assert any("complete" in line for line in table) and all(len(line) <= columns for line in table), table
    assert any("baseline" in line for line in table) and "…" not in "".join(told[:1])
    # the cursor is back; there were colours
    assert "\x1b[?25h" in terminal.text and re.search(r"\x1b\[[\d;]*3\dm", terminal.text)


def test_without_colours_there_are_none(finished):
    terminal = Terminal("watch", finished, NO_COLOR="1")
    assert terminal.status() == 0
    codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", terminal.text) for code in found.split(";")}
    assert codes <= {"", "0", "1", "2"}, codes  # bold and dim at most


def test_a_stopped_study_says_so_and_ends(tmp_path):
    Store(tmp_path / "stopped").create(studies.plan())
    terminal = Terminal("watch", tmp_path / "stopped")
    assert terminal.status() == 0
    assert "stopped, about" in plain(terminal.text) and "0/" in plain(terminal.text)


def test_a_running_study_is_drawn_anew_resized_and_left_by_ctrl_c(tmp_path):
    store = Store(tmp_path / "running")
    store.create(studies.plan())
    with store.lock():
        terminal = Terminal("watch", tmp_path / "running", "--seconds", "0.2", columns=80)
        assert "running, about" in plain(terminal.read(until="running, about"))
        terminal.resize(50)
        terminal.text = ""
        assert "running, about" in plain(terminal.read(until="running, about"))
        os.write(terminal.file, b"\x03")
        status = terminal.status()
        assert status == 130 and "Traceback" not in terminal.text
        assert "Stopped watching; the study goes on" in plain(terminal.text).replace("\n", " ")
        assert terminal.text.rindex("\x1b[?25h") > -1
