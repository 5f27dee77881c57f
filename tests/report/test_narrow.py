"""The tables of a study, a check, an advice, the claims and the catalog at 80 columns: every number is whole."""

import io
import re

import pytest
from rich.console import Console

from nonlin.report import terminal

ARM = {"bits_per_byte": 2.34567, "difference": {"mean": -0.04934, "low": -0.06612, "high": -0.03210},
       "verdict": "better", "learning_rate": 0.0141, "learning_rate_sensitivity": 0.1234, "dead_share": 0.1234,
       "timing": {"tokens_per_second": 123456.7, "peak_memory_bytes": 1234 * 2**20}, "reason": "",
       "learning_rate_at_edge": False}
RESULTS = {"status": "complete", "baseline": "gelu", "ranking": ["swiglu_clamped", "gelu"],
           "rule": {"confidence": 0.95}, "advice": "", "remarks": [], "arms": [ARM | {"name": "swiglu_clamped"},
                                   ARM | {"name": "gelu", "difference": None, "verdict": "baseline"}]}


def at(width, draw, *values):
    file = io.StringIO()
    draw(*values, Console(file=file, width=width, force_terminal=True, color_system=None, highlight=False))
    return file.getvalue()


@pytest.mark.parametrize(("width", "gone"), [(80, ["sensitivity", "memory"]), (120, []), (60, ["interval"])])
def test_a_study_at_this_width(width, gone):
    told = at(width, terminal.print_table, RESULTS)
    (line,) = [line for line in told.splitlines() if "swiglu_clamped" in line]
    for cell in ("2.346", "−0.049", "better"):
        assert cell in line.split(), told
    for name in gone:
        assert name in told.split("Left out at this width")[1]
    assert ("Left out" in told) == bool(gone) and "…" not in told.replace("−0.066 … −0.032", "")


def test_best_rates_on_an_edge_come_with_what_to_call():
    def arm(name, rate, tried=(0.01, 0.02, 0.04)):
        return ARM | {"name": name, "learning_rate": rate, "learning_rate_at_edge": rate in (tried[0], tried[-1]),
                      "tuning": [{"learning_rate": one} for one in tried]}

    def told(*arms):
        return terminal.reasons(RESULTS | {"arms": arms})

    assert told(arm("gelu", 0.02)) == []
    assert told(arm("gelu", 0.04), arm("silu", 0.08, (0.04, 0.08)), arm("relu", 0.01)) == [
        "gelu, silu: the best learning rate, 0.04 or 0.08, lies on the edge of what was tried. A study in another "
        "folder with --learning-rate 0.08 tries higher ones.",
        "relu: the best learning rate, 0.01, lies on the edge of what was tried. A study in another folder with "
        "--learning-rate 0.01 tries lower ones."]


@pytest.mark.parametrize("width", [40, 60, 120])
def test_pairs_at_this_width(width):
    pair = {"first": "swiglu_clamped", "second": "relu_squared", "verdict": "undecided",
            "difference": {"mean": -0.01234, "low": -0.02345, "high": 0.00123, "p_value": 0.2}}
    told = " ".join(at(width, terminal.print_table, RESULTS | {"pairs": [pair]}).split("each other:")[1].split())
    shown, _, gone = told.partition("Left out at this width")
    assert all(cell in shown for cell in ("swiglu_clamped", "relu_squared", "−0.0123", "not separated"))
    assert "interval" in gone if width < 120 else "−0.0234 … +0.0012" in shown


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_check_at_this_width(width):
    stream = {"rms": 123.4, "largest": 45678.9, "kurtosis": 12345.6}
    block = {"name": "model.layers.10.mlp", "activation": {"computed": "swiglu"}, "dead": {"share": 0.1234},
             "saturated": {"share": 0.0567}, "always_on": {"share": 0.89}, "sparsity": 0.456,
             "streams": {"hidden": stream}, "outliers": {"channels": [{"ratio": 1234.5}]}, "gradients": {"rms": 1.2e-3}}
    record = {"source": "here", "parameters": 1000, "tokens": 10, "text": "text", "notes": [], "findings": [],
              "blocks": [block]}
    told = at(width, terminal.print_health, record)
    assert "12.3" in told.split() and not re.search(r"\d…", told)
    assert ("Left out" in told) == (width == 80)


def test_an_advice_at_80_columns():
    from nonlin.advice import advise
    from nonlin.advice.terminal import print_advice

    told = at(80, lambda found, console: print_advice(found, console), advise(125e6, 2.5e9, "cpu", measure=False))
    reported = told.split("decides nothing\n")[1].split("\nOptions")[0]
    assert all(line.startswith("  ") for line in reported.splitlines() if line.strip() and "Left out" not in line)
    assert not re.search(r"(?<![\w-])-\d", told)  # the sign is a minus
    table = told.split("Options")[1].split("How")[0]
    assert not re.search(r"[\d.]…", table) and "Left out at this width" in table
    assert re.search(r"swiglu .*\d,\d\d\d", table) or "hidden" in table.split("Left out")[1]


def test_the_catalog_at_80_columns(monkeypatch, capsys):
    from nonlin.cli.show import show
    from nonlin.functions import names

    monkeypatch.setenv("COLUMNS", "80")
    show.main([], standalone_mode=False)
    told = capsys.readouterr().out
    for name in names():
        assert re.search(rf"^{name}\s", told, re.MULTILINE)
