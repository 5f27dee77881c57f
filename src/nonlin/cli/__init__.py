"""The command line: one file a command, each loaded when it is called."""

import atexit
import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator

import click

from nonlin import __version__
from nonlin.cli.calls import guarded
from nonlin.cli.output import fitted, plain, say
from nonlin.errors import MOST_SHOWN, NonlinError, UserError, near, short
from nonlin.letters import NEAREST

_COMMANDS = {
    "advise": "Say which activation to use for a model of this size, with the reasons.",
    "compare": "Train small language models that differ in the activation alone; say which to use.",
    "check": "Look for what is wrong inside a model: dead units, saturation, outliers, a wrong activation.",
    "claims": "Put to the test what articles say about activation functions.",
    "extend": "Add seeds or activations to a study; finished runs are kept.",
    "watch": "Watch a study that runs: how far it is, what is known.",
    "compare-studies": "Show several studies together: what agrees, what turned.",
    "ladder": "Compare at several sizes, and forecast a size that nobody trains here.",
    "report": "Build a study's page again, of one that runs or was stopped too.",
    "sample": "Write text with the models of a study.",
    "show": "Show the catalog, or one activation.",
    "doctor": "Say what is here for nonlin, what is missing, and how to get it.",
}
_USER, _FAILED, _INTERRUPTED = 2, 3, 130
_PATIENCE = 3  # interrupts until the program ends at once
_ERROR = "Error: "  # as click itself begins a message


class _Commands(click.Group):
    """Loads a command's module only when that command is called, so that help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        return guarded(getattr(importlib.import_module(f"nonlin.cli.{name}"), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = near(args[0], _COMMANDS)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Commands: {', '.join(_COMMANDS)}."
            raise click.UsageError(f"no such command {args[0]!r}. {hint}", ctx) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nonlin")
def program() -> None:
    """Activation functions of language models: compared, computed, checked.

    Exit status: 0 fine, 1 a finding, 2 a mistake in the call, 3 nonlin failed, 130 interrupted.
    """


class _Interrupts:
    """What Ctrl-C does: it interrupts what runs, and what cleans up after it; the third time it ends the program."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count < _PATIENCE:
            raise KeyboardInterrupt
        os.write(2, b"\x1b[?25h\n" if os.isatty(2) else b"\n")  # a bar may have hidden the cursor
        os._exit(_INTERRUPTED)  # workers end with their parent; finished runs are on the disk


def _near_option(error: click.NoSuchOption) -> click.UsageError:
    """Return the error with the command's options that the unknown one may be a slip for, if any is near."""
    command = error.ctx.command if error.ctx else program
    known = [name.lstrip("-") for option in command.params for name in (*option.opts, *option.secondary_opts)]
    close = near(error.option_name.lstrip("-"), [name for name in known if len(name) > 1])
    hint = f" Did you mean {' or '.join(f'--{name}' for name in close)}?" if close else ""
    return click.UsageError(f"no such option {error.option_name!r}.{hint}", error.ctx)


@contextlib.contextmanager
def _heard_or_not() -> Generator[None]:
    """Say words where they can be said; the status says it all the same."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            sys.stderr.close()  # Python's own end would try again, and have a status of its own


def _write_anywhere() -> None:
    """Let words go to a terminal or file of any encoding: a minus sign is none of ASCII's letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=NEAREST)


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with its status; no traceback for a user's mistake."""
    _write_anywhere()
    interrupts = _Interrupts()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupts)
    try:
        # click returns the status of a command that ended by Exit, and else the command's own value, None
        status = program.main(arguments, prog_name="nonlin", standalone_mode=False) or 0
    except click.ClickException as error:
        told = _near_option(error) if isinstance(error, click.NoSuchOption) else error
        words = fitted(f"{_ERROR}{plain(short(told.format_message(), MOST_SHOWN))}").removeprefix(_ERROR)
        with _heard_or_not():
            click.UsageError(words, getattr(told, "ctx", None)).show()
        status = _USER
    except NonlinError as error:
        with _heard_or_not():
            say(f"{_ERROR}{error}")
        status = _USER if isinstance(error, UserError) else _FAILED
    except (click.Abort, KeyboardInterrupt):
        status = _INTERRUPTED
        with contextlib.suppress(KeyboardInterrupt):
            click.echo("Interrupted. Finished runs are kept; the same command continues.", err=True)
    except BrokenPipeError:
        sys.stderr.close()
        status = 0
    except OSError as error:  # what the system refuses is nothing that a traceback explains
        from nonlin.files import disk_full, disk_full_error

        where = error.filename or "your files"
        with _heard_or_not():
            say(f"{_ERROR}{disk_full_error(where) if disk_full(error) else short(str(error), MOST_SHOWN)}")
        status = _USER
    except Exception:  # a bug: its traceback is what a report of it needs, and its status is none of a finding's
        traceback.print_exc()
        status = _FAILED
    if status == _INTERRUPTED:
        interrupts.count = _PATIENCE  # what is left is Python's own end, which an interrupt must not break
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)
