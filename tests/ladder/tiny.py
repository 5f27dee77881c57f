"""Ladders so small that they train in moments, for the tests of the small model's and of an own one."""

import contextlib

import pytest

from nonlin.calls import ladder_comparison
from nonlin.report import style
from nonlin.study import defaults

SIZES = [12e3, 25e3, 40e3, 70e3]
TINY = {"sizes": SIZES, "tokens_per_parameter": 0.05, "context": 16, "batch": 4, "longer": 0, "learning_rates": 2,
        "progress": False, "workers": 1}


@contextlib.contextmanager
def short_runs():
    """Let runs be as short as tests need, and growing grids stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MINIMUM_STEPS", 1)
        patch.setattr(defaults, "LEARNING_RATE_EXTENSIONS", 0)
        patch.setattr(defaults, "TRAINING", defaults.TRAINING | {"evaluation_tokens": 256})
        patch.setattr(ladder_comparison, "_SECONDS", 0.01)
        patch.setattr(style, "write_files", lambda *_: None)  # drawing takes longer than training
        yield


def write_text(folder):
    """Write a text that is long enough for them, and return its path."""
    path = folder / "text.txt"
    path.write_text("".join(f"line {i}: {i * i} squares\n" for i in range(6000)))
    return path
