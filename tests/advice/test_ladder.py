"""A ladder as evidence for advice: simulated rungs in place of trained ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from nonlin.advice.evidence import choose, from_ladder, from_papers
from nonlin.ladder import simulated
from nonlin.ladder.folder import LadderFolder
from nonlin.ladder.plan import LadderPlan, rows


class Simulated(LadderFolder):
    """A ladder's folder whose rungs are simulated."""

    def finished(self):
        return self.ladder.finished


def folder(*effects):
    world = replace(simulated.QUIET, truths=tuple(simulated.Truth(e) for e in effects))
    ladder = simulated.Ladder(world, 0)
    ladder.run()
    names = [arm["name"] for arm in ladder.finished[0][1]["arms"]]
    plan = LadderPlan(
        "ladder", {"arms": [{"name": name, "formula": None} for name in names]}, {"seeds": 3}, rows(ladder.rungs),
        names[0], {"margin": 0.005, "confidence": 0.95}, {"name": "standard"}, {}, {}, 1e6, {}, 1)
    made = Simulated(Path("runs/ladder"), plan)
    object.__setattr__(made, "ladder", ladder)
    return made


def test_a_ladder_that_is_nearer_decides_before_papers():
    there = folder(-0.08, 0.05)
    found = from_ladder(there, 2e6, 4e7)
    assert found is not None and found.own and found.bucket == "near" and found.favours == ("arm-1",)
    assert found.rejects == ("arm-0", "arm-2") and found.found["arm-2"].startswith("worse, +0.05")
    made = choose([found, *from_papers(2e6, 4e7)], {}, {})
    assert made.name == "arm-1" and made.decided_by == (found,)


def test_far_beyond_its_rungs_it_says_only_what_every_form_says():
    found = from_ladder(folder(-0.008, 0.008), 125e6, 2.5e9)
    assert found is not None and found.favours == () and found.bucket == "far"
    assert all(word.startswith("undecided") for name, word in found.found.items() if name != "arm-0")


def test_an_arm_that_diverged_at_the_largest_rung_is_not_advised():
    there = folder(-0.08, 0.05)
    assert from_ladder(there, 2e6, 4e7).favours == ("arm-1",)
    one, top = there.ladder.finished[-1]
    arms = [arm | {"diverged_runs": 1} if arm["name"] == "arm-1" else arm for arm in top["arms"]]
    there.ladder.finished[-1] = one, top | {"arms": arms}
    found = from_ladder(there, 2e6, 4e7)
    assert found.favours == ("arm-0",) and found.found["arm-1"].startswith("undecided")


@pytest.mark.parametrize("keep", [0, 2])
def test_a_ladder_that_has_too_few_rungs_says_nothing(keep):
    there = folder(-0.08)
    there.ladder.finished = there.ladder.finished[:keep]
    assert from_ladder(there, 2e6, 4e7) is None
