"""Every family of transformers that shrinks to a tiny model: accelerated or refused with a reason, never wrong."""

import importlib.util

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from benchmarks import model_sweep as sweep

RECORD = sweep.read()
# One of each kind that once failed: plain and gated blocks in one model, heads that read the same field, norms
# before the block, products of other shapes or without a function, mixers of positions, fields that a class reads
# its own way.
FEW = ["llava", "git", "hy_v4", "bert", "clip", "cpmant", "jetmoe", "esm", "squeezebert", "mamba", "jamba",
       "nemotron_h", "recurrent_gemma", "xlstm", "openai-gpt", "xlm", "bart", "neomme", "whisper", "gemma3n_text",
       "perceiver"]


def holds(kind):
    recorded = RECORD["rows"][kind]
    if (needed := recorded.get("needs")) and not importlib.util.find_spec(needed):
        pytest.skip(f"{needed} is not installed")
    row = sweep.sweep(kind)
    assert not sweep.faults(row), row
    same = ("left out",) if "left out" in recorded else ("class", "blocks", "accelerated", "activations", "config")
    assert {k: row.get(k) for k in same} == {k: recorded.get(k) for k in same}


@pytest.mark.parametrize("kind", FEW)
def test_a_family(kind):
    holds(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in RECORD["rows"] if k not in FEW])
def test_every_family(kind):
    import transformers

    if transformers.__version__ != RECORD["transformers"]:
        pytest.skip(f"the record is of transformers {RECORD['transformers']}")
    holds(kind)


def test_the_page_is_the_records():
    assert sweep.PAGE.read_text() == sweep.page(RECORD)
    assert not any(sweep.faults(row) for row in RECORD["rows"].values())
