"""A study by fake workers, whose every text that a page shows is hostile."""

import json

import pytest

from nonlin.functions import define
from nonlin.study import Arm

HOSTILE = "<script>alert('gotcha')</script><img src=x onerror=alert(1)>&amp;\"'{{ 7 * 7 }}"


@pytest.fixture(scope="session")
def hostile():
    """A text that must be shown and never be taken for markup."""
    return HOSTILE


@pytest.fixture(scope="package")
def chromium():
    """One browser for the tests of pages; not longer, since its loop would be found by others' asyncio."""
    from tests.report.headless import browser

    with browser() as made:
        yield made


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder of a finished study with seven arms, a diverging one among them, and its page."""
    from tests.study import studies

    directory = tmp_path_factory.mktemp("report") / "a <b>study & more"
    names = ["gelu", "swiglu", "silu", "relu", "identity", "exploding", "a_name_of_forty_letters_as_long_as_it_is"]
    formulas = {"exploding": "x*exp(x)", names[-1]: "max(x, 0)*min(x, 1)"}
    arms = [Arm(n, "gated" if n == "swiglu" else "pointwise", 88 if n == "swiglu" else 128, 100_000,
                formulas.get(n)) for n in names]
    data = studies.DATA | {"description": HOSTILE, "paths": [HOSTILE]}
    for name, formula in formulas.items():
        define(name, formula)
    studies.run(directory, studies.plan(arms=arms, data=data))
    (directory / "samples.json").write_text(json.dumps(
        {"prompt": HOSTILE, "texts": {"gelu": HOSTILE, "swiglu": "a" * 500 + "\0\x1b[31m", "gone": HOSTILE}}))
    from nonlin.report import build

    build(directory)
    return directory


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """The folder of a study with the default activations and a twin, its runs long enough for every figure."""
    from nonlin.report import build
    from tests.study import studies

    directory = tmp_path_factory.mktemp("full") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_LINES", "40")
        patch.setenv("FAKE_NOISE", "0.01")
        arms = [Arm(n, "gated" if n.endswith("glu") else "pointwise", 128, 100_000, None,
                    *(("its own", "gelu") if n == "twin" else ()))
                for n in ("gelu", "relu", "silu", "swiglu", "geglu", "relu_squared", "twin")]
        studies.run(directory, studies.plan(arms=arms))
    build(directory)
    return directory
