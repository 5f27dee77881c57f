"""The answer: every option with its evidence, costs and destinations; the choice; the study that would decide."""

import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nonlin.advice import measured, runtimes
from nonlin.advice.evidence import NEAR, REACH, Choice, Evidence, choose, from_ladder, from_papers, from_study
from nonlin.advice.initialization import initialization
from nonlin.advice.records import Advice, Hardware
from nonlin.advice.reported import REPORTS
from nonlin.advice.shape import SMALLEST, WHY_MULTIPLE, Shape, shape_for
from nonlin.advice.sizes import size_text
from nonlin.errors import UserError, not_empty, rule
from nonlin.functions import Definition, define, get
from nonlin.ladder.folder import load_ladder
from nonlin.letters import quoted
from nonlin.numbers import number
from nonlin.study import load
from nonlin.study.defaults import LEARNING_RATES, MINIMUM_STEPS, TUNE_FRACTION, TUNE_SEEDS

OPTIONS = ("relu", "gelu", "silu", "relu_squared", "reglu", "geglu", "swiglu")
_COMPARED = 4  # options in a suggested study
_SHARE, _BATCH = 16, 32  # a suggested study's parameters and tokens are this part of those asked for


def advise(params: float, tokens: float, hardware: Hardware | None = None, inference: Hardware | None = None,
           study: str | Path | None = None, measure: bool = True, ladder: str | Path | None = None) -> Advice:
    """Return the advice for a model of ``params`` parameters trained on ``tokens``.

    ``hardware`` ("cpu" or "gpu"; None: what this machine has) trains it, ``inference`` runs it afterwards, ``study``
    is a folder of ``nonlin compare``, ``ladder`` one of ``nonlin ladder``. With ``measure`` the options are timed
    here for a few seconds. The rules of the
    choice are in :mod:`nonlin.advice.evidence`. UserError for sizes out of range, or no study there.

    >>> advice = advise(params=125e6, tokens=2.5e9, measure=False)
    >>> advice.choice, advice.sureness
    ('swiglu', 'likely')
    """
    not_empty("advise", hardware=hardware, inference=inference, study=study, ladder=ladder)
    params, tokens = _whole("params", params), _whole("tokens", tokens)
    for name, kind in (("hardware", hardware), ("inference", inference)):
        if kind not in (None, "cpu", "gpu"):
            raise UserError(rule("advise", name, "be cpu or gpu", kind, "Choose one, or leave it out."))
    shape_for(params, hardware or "cpu")  # what is wrong with the call is said before torch is loaded
    evidence = from_papers(params, tokens)
    evidence += [e for e in from_papers(params, tokens, measured.tables()) if e.distance <= REACH]
    folder = None if study is None else load(study)
    climbed = None if ladder is None else load_ladder(ladder)
    hardware = hardware or ("gpu" if _gpu_here() else "cpu")
    shape = shape_for(params, hardware)
    own = None if folder is None else from_study(folder, params, tokens)
    if own is not None:
        evidence.insert(0, own)
    if climbed is not None and (seen := from_ladder(climbed, params, tokens)) is not None:
        evidence.insert(0, seen)
    definitions = _definitions(evidence)
    hidden = {d.name: shape.hidden(d.gated) for d in definitions}
    costed, why_not = _costs(definitions, shape, hidden, hardware) if measure else (None, "not asked for")
    steps = {} if costed is None else {name: c["step_ms"] for name, c in costed["options"].items()}
    goes = {d.name: {"huggingface": runtimes.huggingface(d), "llama_cpp": runtimes.llama_cpp(d)} for d in definitions}
    choice = choose(evidence, {name: _places(where) for name, where in goes.items()}, steps)
    taken = next(d for d in definitions if d.name == choice.name)
    return Advice.from_dict({
        "choice": choice.name, "formula": taken.formula, "sureness": choice.sureness, "reasons": list(choice.reasons),
        "asked": {"params": params, "tokens": tokens, "hardware": hardware, "inference": inference},
        "options": [_option(d, shape, hidden, evidence, costed, goes) for d in definitions],
        "evidence": [_source(e) for e in evidence], "reports": [report.as_dict() for report in REPORTS],
        "model": _model(shape, taken, hardware), "costs": costed, "not_measured": why_not,
        "initialization": initialization(taken, shape.dim, hidden[taken.name], shape.layers),
        "inference": _inference(taken, goes[taken.name], inference),
        "missing": _missing(choice, evidence, own is None and folder is not None, study),
        "commands": _commands(choice, evidence, shape, params, tokens, hardware)}, "advise")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(rule("advise", name, "be a finite number", value, "Try params=125e6, tokens=2.5e9."))
    return round(float(value))


def _definitions(evidence: Sequence[Evidence]) -> list[Definition]:
    own = [name for e in evidence if e.own for name in e.found]
    formulas = {name: formula for e in evidence for name, formula in e.formulas.items()}
    names = dict.fromkeys([*OPTIONS, *own, *(n for e in evidence for n in e.favours)])
    found = [define(name, formulas[name]) if name in formulas else get(name) for name in names]
    return [d for d in found if d.expr is not None]


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _places(where: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(bool(place["exports"]) for place in where.values())


def _costs(definitions: Sequence[Definition], shape: Shape, hidden: Mapping[str, int], hardware: str
           ) -> tuple[dict[str, Any] | None, str | None]:
    """Measured here, or why not."""
    from nonlin.advice import costs

    if (hardware == "gpu") != _gpu_here():
        return None, f"this machine has {'no GPU' if hardware == 'gpu' else 'a GPU'} (--hardware)"
    return costs.measure(definitions, shape.dim, hidden), None


def _option(d: Definition, shape: Shape, hidden: Mapping[str, int], evidence: Sequence[Evidence],
            costed: Mapping[str, Any] | None, goes: Mapping[str, Any]) -> dict[str, Any]:
    measured: Mapping[str, Any] = {} if costed is None else costed["options"][d.name]
    return {"name": d.name, "gated": d.gated, "hidden": hidden[d.name],
            "parameters": shape.parameters(d.gated, len(d.parameters)), "step_ms": measured.get("step_ms"),
            "saved_bytes_per_token": measured.get("saved_bytes_per_token"),
            "found": {e.source: e.found[d.name] for e in evidence if d.name in e.found}, **goes[d.name]}


def _source(e: Evidence) -> dict[str, Any]:
    return {"source": e.source, "what": e.what, "own": e.own, "unit": e.unit, "params": e.params, "tokens": e.tokens,
            "distance": e.distance, "nearness": e.bucket, "favours": list(e.favours), "found": dict(e.found)}


def _model(shape: Shape, taken: Definition, hardware: str) -> dict[str, Any]:
    parameters = shape.parameters(taken.gated, len(taken.parameters))
    return {"layers": shape.layers, "dim": shape.dim, "heads": shape.heads, "hidden": shape.hidden(taken.gated),
            "vocabulary": shape.vocabulary, "tied": shape.tied, "parameters": parameters, "multiple": shape.multiple,
            "text": f"{shape.layers} layers of {shape.dim:,}, {shape.heads} heads, hidden width "
                    f"{shape.hidden(taken.gated):,}, a vocabulary of {shape.vocabulary:,} "
                    f"({'tied' if shape.tied else 'untied'}): {size_text(parameters)} parameters",
            "why": f"the hidden width has the parameters of a plain block of 4 × {shape.dim:,}, to a multiple of "
                   f"{shape.multiple}" + (f" ({WHY_MULTIPLE[hardware]})" if shape.multiple > 8 else "")}


def _inference(taken: Definition, goes: Mapping[str, Any], inference: str | None) -> dict[str, Any]:
    zero = bool(taken.properties.zero_gradient) and any(low is not None for low in taken.properties.zero_gradient)
    text: list[str] = []
    if inference == "cpu" and not goes["llama_cpp"]["exports"]:
        text.append("llama.cpp, the usual runtime on a CPU, will not run the model that nonlin saves.")
    if inference and zero:
        text.append("About half of its hidden outputs are exactly zero: a runtime with sparse products can skip them; "
                    "neither transformers nor llama.cpp does.")
    return {**goes, "text": text}


def _missing(choice: Choice, evidence: Sequence[Evidence], unfinished: bool, study: Any) -> list[str]:
    """The open questions, in sentences."""
    lines: list[str] = []
    nearest = min(evidence, key=lambda e: e.distance)
    if choice.sureness == "guess":
        away = number(nearest.distance, ".2g")
        lines.append(f"Nothing within a factor of {REACH:g} of this size and length was found: the nearest is "
                     f"{nearest.source}, a factor of {away} away. Take the choice as a place to begin.")
    if not any(e.own and e.favours for e in evidence):
        lines.append("No study of yours was given (--study): none of the evidence is from your text."
                     if not any(e.own for e in evidence) else
                     "Your study decides nothing yet: it is unfinished, or undecided.")
    if unfinished:
        lines.append(f"{study} has no judged runs yet. Continue it: nonlin compare --resume --out {quoted(study)}")
    if not any(e.own for e in evidence):
        lines.append("The papers trained an encoder with a decoder; a decoder alone may differ.")
    unknown = [n for n in OPTIONS if not any(n in e.found for e in evidence)]
    if unknown:
        lines.append(f"Nothing here compared {', '.join(unknown)}.")
    return lines


def _commands(choice: Choice, evidence: Sequence[Evidence], shape: Shape, params: int, tokens: int, hardware: str
              ) -> list[dict[str, str]]:
    """The studies that would tell more, with what each can do; none where a near study of one's own decided."""
    if any(e.own and e.distance <= NEAR for e in choice.decided_by):
        return []
    unknown = [n for n in OPTIONS if not any(n in e.found for e in evidence)]
    arms = list(dict.fromkeys(["gelu", choice.name, *unknown, *choice.favoured]))[:_COMPARED]
    dim = max(128, min(shape.dim, 256))
    first = f"nonlin compare --data YOUR_TEXT --activations {','.join(arms)} --baseline gelu"
    begin = (f"{first} --layers {min(shape.layers, 6)} --dim {dim} --heads {dim // 32} --minutes 60 --seeds 6 "
             "--out runs/first")
    small = shape_for(max(SMALLEST, params // _SHARE), hardware)
    steps = max(MINIMUM_STEPS, round(tokens / _SHARE / (_BATCH * small.context)))
    tokenizer = small.vocabulary if small.vocabulary > 256 else "bytes"
    decide = (f"{first} --tokenizer {tokenizer} --layers {small.layers} --dim {small.dim} --heads {small.heads} "
              f"--context {small.context} --batch {_BATCH} --steps {steps} "
              "--seeds 6 --minutes 60 --out runs/within-reach")
    trained = steps * _BATCH * small.context
    runs = len(arms) * (6 + LEARNING_RATES * TUNE_SEEDS * TUNE_FRACTION)
    flops = number(6 * small.parameters(True) * trained * runs, ".1e")
    again = f"nonlin advise --params {size_text(params)} --tokens {size_text(tokens)} --study FOLDER"
    return [{"command": begin, "why": "an hour on this machine: too small to decide, but it makes the advice more sure "
                                      "or less"},
            {"command": decide, "why": f"within reach ({size_text(small.parameters(True))} parameters, "
                                       f"{size_text(trained)} tokens), so that it decides where nothing near does; "
                                       f"about {flops} operations: it says how many --minutes it needs here"},
            {"command": again, "why": "the advice with what they found"}]
