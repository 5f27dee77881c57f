"""The verdict on a claim in one sentence for a beginner; the numbers come after it."""

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
    said = _LESSONS[row["number"]][row["verdict"]]
    return said(row) if callable(said) else said


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


Sentences = Mapping[str, str | Callable[[Row], str]]
_MORE = "more seeds would tell."
_LESSONS: Mapping[int, Sentences] = {
    1: {HOLDS: "True: without activations, many layers can do no more than one.",
        FAILS: "No: the layers did not collapse into one.",
        DEPENDS: "True of plain layers. Not of a transformer: attention and normalization are not linear.",
        OPEN: "Rounding errors were too large to say whether the layers collapse into one."},
    2: {HOLDS: "True: with more units, every activation comes closer to every function that was tried.",
        FAILS: "No: most activations stopped improving although units were added.", DEPENDS: _approximation,
        OPEN: "For some activations it is unclear whether more units still help."},
    3: {HOLDS: "True of every task tried: without activations a network learned little of it.",
        FAILS: "No: for every task tried, a network without activations learned nearly as much.", DEPENDS: _tasks,
        OPEN: f"For one of the tasks it is undecided how much is lost without activations: {_MORE}"},
    4: {HOLDS: "True: the gradient dies away through many layers of sigmoid or tanh, and not of ReLU.",
        FAILS: "No: the gradient did not die away where the sentence says so.", DEPENDS: _vanishing,
        OPEN: f"Too close to say for one of the functions: {_MORE}"},
    5: {HOLDS: "True in every network tried: some of ReLU's units shut for good.",
        FAILS: "No: hardly any unit of ReLU died, in any network tried.", DEPENDS: _dying,
        OPEN: f"In one of the networks it is undecided whether units die: {_MORE}"},
    6: {HOLDS: "True: GELU is smoother than ReLU and lets the gradient through better.",
        FAILS: "No: GELU had none of the advantages that are named.", DEPENDS: _gelu,
        OPEN: f"GELU is smooth; whether the gradient gains from it is undecided: {_MORE}"},
    7: {HOLDS: "True: SiLU is smooth, dips below zero, and fitted better than GELU.",
        FAILS: "SiLU is smooth and dips below zero, but so does GELU, which fitted as well or better.",
        DEPENDS: "SiLU fits better than GELU at one width, and not at another.",
        OPEN: f"SiLU is smooth and dips below zero; whether it fits better than GELU is undecided: {_MORE}"},
    8: {HOLDS: "True: the gate helps whether width, parameters or training time are held equal.",
        FAILS: "No: whatever was held equal, the gate did not help.", DEPENDS: _gating,
        OPEN: f"The gate looks helpful, and not in every comparison surely: {_MORE}"},
    9: {HOLDS: "True: the smooth functions forgive a wrong learning rate more than ReLU does.",
        FAILS: "No: the smooth functions were as easily upset as ReLU.", DEPENDS: _stability,
        OPEN: f"No difference in steadiness is sure: {_MORE}"},
    10: {HOLDS: "True: the smooth functions needed fewer training tokens than ReLU.",
         FAILS: "No: the smooth functions needed as many training tokens as ReLU, or more.",
         DEPENDS: "True of one of the two smooth functions, and not of the other.",
         OPEN: f"Whether the smooth functions need fewer training tokens is undecided: {_MORE}"},
    11: {HOLDS: "True here: the gate pays off only as the model grows.",
         FAILS: "No: part of the sentence is wrong at these sizes.",
         DEPENDS: "True at some of these sizes, and not at others.",
         OPEN: f"Whether gating gains more in larger models is undecided at these sizes: {_MORE}"},
    12: {HOLDS: "True: what one of the three does depends on the other two.",
         FAILS: "No: the three just add up.", DEPENDS: _pairs,
         OPEN: f"Whether the three change each other's effect is undecided: {_MORE}"},
    13: {HOLDS: "True: the models compute what the sentence says.",
         FAILS: "No: a model computes something else.",
         DEPENDS: "True of the names. Some models compute a variant with another formula, so that swapping them "
                  "changes the output.",
         OPEN: "The models could not be read here."},
}
