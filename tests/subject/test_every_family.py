"""Every causal language model class of the installed transformers as a subject: the sweep of the documents, again."""

import importlib.util
import json
from pathlib import Path

import pytest
from benchmarks import own_model_sweep

RECORD = json.loads(own_model_sweep.RECORD.read_text())
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmoe", "glm4_moe", "llama4_text")


def test_nine_in_ten_families_that_have_blocks_are_supported():
    """Of all families with a tiny configuration that runs; what is refused has a reason, and the rest has no fault."""
    rows = {kind: row for kind, row in RECORD["rows"].items() if "not built" not in row}
    supported = {kind for kind, row in rows.items() if row.get("replaced") and not row.get("faults")}
    assert len(supported) >= 0.9 * len(rows) and set(MIXTURES) <= supported
    for kind, row in rows.items():
        assert kind in supported or row.get("refused") or row.get("faults"), kind


def test_the_page_is_of_the_record():
    assert own_model_sweep.PAGE.read_text() == own_model_sweep.page(RECORD)
    assert "own-models.md" in Path("mkdocs.yml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(RECORD["rows"]))
def test_every_family_is_as_recorded(kind):
    import transformers

    if transformers.__version__ != RECORD["transformers"]:
        pytest.skip(f"the record is of transformers {RECORD['transformers']}")
    before = RECORD["rows"][kind]
    if (needed := before.get("needs")) and not importlib.util.find_spec(needed):
        pytest.skip(f"{needed} is not installed")
    row = own_model_sweep.sweep(kind)
    assert row.get("faults") == before.get("faults")
    assert (row.get("replaced"), row.get("saved")) == (before.get("replaced"), before.get("saved"))
