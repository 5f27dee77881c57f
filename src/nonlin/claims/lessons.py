"""The verdict on a claim in one sentence for a beginner; the numbers come after it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from nonlin.claims.definition import DEPENDS, FAILS, HOLDS, NO, OPEN, YES

Row = Mapping[str, Any]


def lesson(row: Row) -> str:
    """Return the sentence of a claim's row in results.json; empty where it has no verdict.

    >>> lesson({"number": 10, "verdict": "does not hold here", "parts": {}, "measures": None})
    'No: the smooth functions needed as many training tokens as ReLU, or more.'
    """
    if not row["verdict"]:
        return ""
    said = _LESSONS[row["number"]][_VERDICTS.index(row["verdict"])]
    return said(row) if callable(said) else said


def budget(row: Row) -> str:
    """Return what the verdict of a claim's row takes; empty where no run says.

    >>> budget({"verdict": "not settled", "minutes": {"planned": 20.0, "needed": 57.3}})
    'About 58 minutes would decide it (--minutes 58), if the effects are as they look here.'
    """
    minutes = row.get("minutes")
    if minutes is None or not row["verdict"]:
        return ""
    if row["verdict"] != OPEN:
        return f"Decided in a run of {minutes['planned']:g} minutes."
    if minutes["needed"] is None:
        return ("More minutes would hardly decide it: what was seen lies too near the rule's margin for as many seeds "
                "as a run has, or did not train.")
    needed = math.ceil(minutes["needed"])
    return f"About {needed:,} minutes would decide it (--minutes {needed}), if the effects are as they look here."


def _answers(row: Row, answer: str) -> list[str]:
    return [part for part, given in row["parts"].items() if given == answer]


def _listed(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _tasks(row: Row) -> str:
    yes, no = ([part.removeprefix("essential to ") for part in _answers(row, answer)] for answer in (YES, NO))
    return (f"It depends on the task: without activations a network learns almost nothing of some ({_listed(yes)}), "
            f"and nearly everything of others ({_listed(no)}).")


def _approximation(row: Row) -> str:
    return ("True of almost all activations, as long as they are no polynomials: products and straight lines stop "
            "learning at a few units, however many are added.")


def _vanishing(row: Row) -> str:
    yes = _answers(row, YES)
    both = all(f"sigmoid vanishes, {gain} gain" in yes for gain in ("common", "proper"))
    first = "True of sigmoid, whatever the first weights are" if both else "It depends on the first weights"
    return f"{first}. Which others lose the gradient is decided by how the weights begin, more than by the function."


def _dying(row: Row) -> str:
    yes, no = _answers(row, YES), _answers(row, NO)
    return f"Units die {_listed(yes)}. They do not {_listed(no)}."


def _gelu(row: Row) -> str:
    yes, no = _answers(row, YES), _answers(row, NO)
    return f"GELU is in part what the sentence says: {_listed(yes)}. Not found: {_listed(no)}."


def _gating(row: Row) -> str:
    yes, no = ([part.removeprefix("better ") for part in _answers(row, answer)] for answer in (YES, NO))
    return f"The gate helps {_listed(yes)}, and not {_listed(no)}: say what is held equal."


def _stability(row: Row) -> str:
    return f"In part: {_listed(_answers(row, YES))}. In the rest, ReLU is as steady."


def _pairs(row: Row) -> str:
    return f"Some of them do: {_listed(_answers(row, YES))}. The others just add up."


Sentence = str | Callable[[Row], str]
_VERDICTS = (HOLDS, FAILS, DEPENDS, OPEN)  # of the four sentences of each claim, in their order
_MORE = "more seeds would tell."
_LESSONS: Mapping[int, tuple[Sentence, Sentence, Sentence, Sentence]] = {
    1: ("True: without activations, many layers can do no more than one.",
        "No: the layers did not collapse into one.",
        "True of plain layers. Not of a transformer: attention and normalization are not linear.",
        "Rounding errors were too large to say whether the layers collapse into one."),
    2: ("True: with more units, every activation comes closer to every function that was tried.",
        "No: most activations stopped improving although units were added.", _approximation,
        "For some activations it is unclear whether more units still help."),
    3: ("True of every task tried: without activations a network learned little of it.",
        "No: for every task tried, a network without activations learned nearly as much.", _tasks,
        f"For one of the tasks it is undecided how much is lost without activations: {_MORE}"),
    4: ("True: the gradient dies away through many layers of sigmoid or tanh, and not of ReLU.",
        "No: the gradient did not die away where the sentence says so.", _vanishing,
        f"Too close to say for one of the functions: {_MORE}"),
    5: ("True in every network tried: some of ReLU's units shut for good.",
        "No: hardly any unit of ReLU died, in any network tried.", _dying,
        f"In one of the networks it is undecided whether units die: {_MORE}"),
    6: ("True: GELU is smoother than ReLU and lets the gradient through better.",
        "No: GELU had none of the advantages that are named.", _gelu,
        f"GELU is smooth; whether the gradient gains from it is undecided: {_MORE}"),
    7: ("True: SiLU is smooth, dips below zero, and fitted better than GELU.",
        "SiLU is smooth and dips below zero, but so does GELU, which fitted as well or better.",
        "SiLU fits better than GELU at one width, and not at another.",
        f"SiLU is smooth and dips below zero; whether it fits better than GELU is undecided: {_MORE}"),
    8: ("True: the gate helps whether width, parameters or training time are held equal.",
        "No: whatever was held equal, the gate did not help.", _gating,
        f"The gate looks helpful, and not in every comparison surely: {_MORE}"),
    9: ("True: the smooth functions forgive a wrong learning rate more than ReLU does.",
        "No: the smooth functions were as easily upset as ReLU.", _stability,
        f"No difference in steadiness is sure: {_MORE}"),
    10: ("True: the smooth functions needed fewer training tokens than ReLU.",
         "No: the smooth functions needed as many training tokens as ReLU, or more.",
         "True of one of the two smooth functions, and not of the other.",
         f"Whether the smooth functions need fewer training tokens is undecided: {_MORE}"),
    11: ("True here: the gate pays off only as the model grows.",
         "No: part of the sentence is wrong at these sizes.",
         "True at some of these sizes, and not at others.",
         f"Whether gating gains more in larger models is undecided at these sizes: {_MORE}"),
    12: ("True: what one of the three does depends on the other two.",
         "No: the three just add up.", _pairs,
         f"Whether the three change each other's effect is undecided: {_MORE}"),
    13: ("True: the models compute what the sentence says.",
         "No: a model computes something else.",
         "True of the names. Some models compute a variant with another formula, so that swapping them "
         "changes the output.",
         "The models could not be read here."),
}
