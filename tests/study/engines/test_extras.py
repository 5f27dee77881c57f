"""Engines whose packages are not installed: one error that says which and how to get them."""

import sys

import pytest

import nonlin
from nonlin.errors import UserError
from nonlin.study.engines import EngineChoice


@pytest.mark.parametrize(("name", "package", "options"), [
    ("ray", "ray", {}), ("slurm", "submitit", {"slurm": {"partition": "any"}})])
def test_a_package_that_is_not_installed_is_named_with_its_extra(name, package, options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    text = tmp_path / "text.txt"
    text.write_text("a line of words\n" * 20_000)
    with pytest.raises(UserError, match=rf"{package} must be installed.*nonlin\[{name}\]"):
        nonlin.compare(text, ["gelu", "relu"], engine=EngineChoice(name, **options), steps=10, out=tmp_path / "study",
                       progress=False)
    assert not list((tmp_path / "study").glob("trials/*"))
