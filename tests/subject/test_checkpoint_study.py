"""A study that begins with trained weights: it measures recovery, and says so."""

import pytest

import nonlin
from nonlin.subject.building import family_model
from tests.subject.test_study import SMALL, text
from tests.subject.tiny import configuration

__all__ = ["text"]


@pytest.fixture(scope="module")
def study(text, tmp_path_factory):
    from nonlin.subject.configuration import described

    own = {"kind": "transformers", **described({"config": configuration("llama", vocab_size=256)})}
    folder = tmp_path_factory.mktemp("trained")
    family_model(own, 3).save_pretrained(folder)
    return nonlin.compare(text, ["silu", "relu"], model=folder, from_checkpoint=True, progress=False,
                          out=tmp_path_factory.mktemp("studies") / "trained", **SMALL)


def test_recovery_is_measured_and_said(study):
    assert study.status == "complete" and study.plan.baseline == "silu"  # the gate's own activation
    assert {arm.kind for arm in study.arms.values()} == {"gated"}  # relu became the gate's
    own, swapped = study.arms["silu"].recovery, study.arms["relu"].recovery
    assert own.before == pytest.approx(own.points[0][1], abs=1e-6) and own.back_at_tokens == 0
    assert swapped.before == own.before and len(swapped.points) >= 8 and swapped.points[-1][0] == 8 * 4 * 16
    page = study.report.read_text()
    assert "Recovery from the swap" in page and "not the activation" in page
    assert any("recovers from another activation" in remark for remark in study.results.remarks)
    assert study.plan.learning_rates == [5e-5, 1e-4]


def test_every_run_begins_with_the_same_trained_weights(study):
    hashes = {record["outside_sha256"] for _, record in study.folder.trials().values()}
    assert len(hashes) == 1
