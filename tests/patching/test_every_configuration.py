"""Every size in a configuration may be any value: a model's folder is opened within its bounds, or refused in one line.

The bounds are a GiB of memory and ten seconds of this process's time, up to where weights would be read.
"""

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks.tiny_models import families

from tests.patching.every_configuration import first_of_lists, swept

FEW = ["qwen3", "bert", "llava", "mamba"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEW)
def test_sizes_of_a_configuration(kind):
    counts, faults = swept(kind, values=(10**9, "x"), most=6)
    assert not faults and sum(counts.values()) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", families())
def test_every_size_of_every_configuration(kind):
    assert swept(kind)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", families())
def test_the_first_number_of_every_list(kind):
    assert swept(kind, values=(10**9, "x"), places=first_of_lists)[1] == []
