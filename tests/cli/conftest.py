"""The program, and one small real study that several tests look at."""


import pytest

from tests.cli.programs import ARMS, SMALL, Program, Study


@pytest.fixture(scope="session")
def nonlin():
    return Program()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text file of 80 KB, under a name that a page must not take for markup."""
    folder = tmp_path_factory.mktemp("text")
    path = folder / "<script>alert(1)<&script>.txt"
    lines = (f"{i}: the quick brown fox jumps over {i * i % 89} lazy dogs, and then some\n" for i in range(1250))
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def command(text):
    return ["compare", "--data", text, "--activations", ARMS, *SMALL]


@pytest.fixture(scope="session")
def study(nonlin, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "whole" / "a study & <b>more"
    return Study(folder, nonlin.call(*command, "--out", folder, "--json"))
