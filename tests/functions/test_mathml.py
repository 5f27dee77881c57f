"""The drawn formula is the formula: its MathML, read back as text of the grammar, computes the same."""

import xml.etree.ElementTree as ElementTree

import pytest

from nonlin.functions import define, get, mathml, names
from nonlin.functions.expression import fold
from nonlin.functions.grammar import parse
from nonlin.functions.numeric import TABLE

SIGNS = {"\u2062": "*", "\u2061": "", "−": "-", "+": "+", "(": "(", ")": ")", ",": ",", ">": ""}
LETTERS = {"σ": "sigmoid", "Φ": "Phi", "φ": "phi", "π": "pi", "α": "alpha", "β": "beta"}
DRAWN = [name for name in names() if get(name).expr is not None]


def read(node) -> str:
    parts = [read(child) for child in node]
    text = (node.text or "").strip()
    if node.tag == "mi":
        return LETTERS.get(text, text)
    if node.tag == "mn":
        return text.replace("−", "-")
    if node.tag == "mo":
        return "|" if text == "|" else SIGNS[text]
    if node.tag == "mspace":
        return ""
    if node.tag == "mfrac":
        return f"(({parts[0]})/({parts[1]}))"
    if node.tag == "msqrt":
        return f"sqrt({''.join(parts)})"
    if node.tag == "msup":
        return f"exp({parts[1]})" if parts[0] == "e" else f"{parts[0]}**({parts[1]})"
    if node.tag == "msub":
        if parts[0] != "1":
            return f"{parts[0]}_{parts[1]}"
        return f"step({''.join(read(child) for child in node[1][:-2])})"
    if len(parts) == 3 and parts[0] == parts[2] == "|":
        return f"abs({parts[1]})"
    return "".join(parts)


def value(expr, definition, point):
    leaves = {q.name: q.initial + 0.3 for q in definition.parameters} | {"up": 0.7 - point}
    return float(fold(expr, leaves | {definition.variables[0]: point}, TABLE))


@pytest.mark.parametrize("name", DRAWN)
def test_reads_back_as_the_same_function(name, monkeypatch):
    definition = get(name)
    known = {q.name for q in definition.parameters}
    monkeypatch.setattr("nonlin.functions.grammar.VARIABLES", ("x", "gate", "up", *known))
    monkeypatch.setattr("nonlin.functions.grammar._Parser.formula", lambda self: self.sum())
    shown = read(ElementTree.fromstring(mathml.formula(definition)))
    back = parse(shown)
    for point in (-3.3, -0.4, 0.0, 0.6, 2.9, 8.0):
        exact = value(definition.expr, definition, point)
        assert value(back, definition, point) == pytest.approx(exact, rel=1e-6, abs=1e-9), shown


def test_products_of_sums_keep_their_parentheses():
    made = mathml.formula(define("mine", "(x+1)*(x-2)/3 - (x-1)**2"))
    assert value(parse(read(ElementTree.fromstring(made))), get("mine"), 1.5) == pytest.approx(-0.6666666667)


def test_decimals_are_shown_as_they_were_written():
    assert "<mn>0.044715</mn>" in mathml.formula(get("gelu_tanh"))
    assert "<mn>1.702</mn>" in mathml.formula(get("quick_gelu"))
