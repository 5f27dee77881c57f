"""Several studies together: what agrees, what turned, what differed in the set-up. Numbers only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy import special

from nonlin.errors import UserError, rule
from nonlin.files import printable
from nonlin.numbers import counted
from nonlin.study import statistics
from nonlin.study.folder import StudyFolder
from nonlin.study.records import Across
from nonlin.study.results import results

_DECIDED = ("better", "worse", "tie")
_SAID = ("text", "seeds", "looks", "tune_steps", "judge_steps", "batch")  # elsewhere
_TOGETHER = {"agrees": "alike in all", "turned": "turned", "mixed": "differ", "partly": "decided in part",
             "open": "undecided"}
_WORDS = {"better": "better than", "worse": "worse than", "tie": "as good as"}


def across(folders: Sequence[StudyFolder], baseline: str | None = None) -> Across:
    """Return what these studies say together, against a baseline that all of them have.

    Without a name, the baseline is the first study's. A study whose own baseline is another one is judged anew against
    it, by its own rule, and a note says so. Raises UserError for fewer than two studies, one given twice, or one
    without the baseline.
    """
    if len(folders) < 2 or len({folder.directory.resolve() for folder in folders}) < len(folders):
        raise UserError(rule("compare-studies", "directories", "be two or more, each named once",
                             [str(folder.directory) for folder in folders], "Name the studies to compare."))
    base = baseline or folders[0].plan.baseline
    found = [_judged(folder, base) for folder in folders]
    labels = _labels([folder.directory for folder in folders])
    activations = _activations(found, base)
    set_ups = [_set_up(folder) for folder in folders]
    every = dict.fromkeys(key for text in set_ups for key in text)
    differing = {key: [text.get(key, "–") for text in set_ups] for key in every
                 if len({text.get(key) for text in set_ups}) > 1}
    notes = [f"{label} was planned against {folder.plan.baseline}; here it is judged anew against {base}."
             for label, folder in zip(labels, folders, strict=True) if folder.plan.baseline != base]
    notes += [f"{label} is not finished: it has no verdicts yet." for label, one in zip(labels, found, strict=True)
              if one["status"] != "complete"]
    notes += [f"{label}: {note}" for label, folder in zip(labels, folders, strict=True) for note in folder.notes]
    return Across.from_dict({
        "format": 1, "baseline": base,
        "studies": [{"label": label, "directory": printable(str(folder.directory)), "status": one["status"]}
                    for label, folder, one in zip(labels, folders, found, strict=True)],
        "activations": activations, "differing": differing,
        "alike": {key: text for key, text in set_ups[0].items() if key not in differing},
        "findings": _findings(activations, labels, base, [one["status"] == "complete" for one in found]),
        "notes": notes}, "the studies")


def _judged(folder: StudyFolder, base: str) -> Mapping[str, Any]:
    """Return a study's results against the baseline."""
    if base not in [arm["name"] for arm in folder.plan.arms]:
        raise UserError(rule("compare-studies", "baseline", f"be an activation of every study; {folder.directory} has "
                             + ", ".join(arm["name"] for arm in folder.plan.arms), base,
                             "Choose one that all have, with --baseline."))
    if folder.plan.baseline == base:
        return folder.results
    return results(replace(folder.plan, baseline=base), {key: record for key, (_, record) in folder.trials().items()})


def _labels(directories: Sequence[Path]) -> list[str]:
    """Return a short name for each folder: its own, and as many of those above as distinguish it.

    >>> _labels([Path("a/x"), Path("b/x"), Path("b/y")])
    ['a/x', 'b/x', 'y']
    """
    parts = [directory.resolve().parts for directory in directories]

    def label(index: int) -> str:
        mine = parts[index]
        for count in range(1, len(mine) + 1):
            if sum(other[-count:] == mine[-count:] for other in parts) == 1:
                return printable("/".join(mine[-count:]))
        return printable("/".join(mine))

    return [label(i) for i in range(len(parts))]


def _activations(found: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """Return a row for each activation of at least one study: its part in each, and what they say together.

    Activations are the same where their names and formulas are.
    """
    by_study = [{(arm["name"], arm["formula"]): arm for arm in one["arms"]} for one in found]
    keys = list(dict.fromkeys(key for arms in by_study for key in arms if key[0] != base))
    formulas = {name: {formula for other, formula in keys if other == name} for name, _ in keys}
    rows: list[dict[str, Any]] = []
    for name, formula in keys:
        arms = [study.get((name, formula)) for study in by_study]
        parts = [None if arm is None else {
            "verdict": arm["verdict"], "difference": arm["difference"], "learning_rate": arm["learning_rate"],
            "reason": arm["reason"]} for arm in arms]
        shown = f"{name} ({formula})" if len(formulas[name]) > 1 and formula else name
        rows.append({"name": shown, "parts": parts, "outcome": outcome([p["verdict"] for p in parts if p]),
                     "spread_p_value": spread([p["difference"] for p in parts if p and p["difference"]])})
    _correct(rows)
    return rows


def _correct(rows: list[dict[str, Any]]) -> None:
    """Holm's correction over the activations whose differences could be tested."""
    tested = [row for row in rows if row["spread_p_value"] is not None]
    for row, p_value in zip(tested, statistics.holm([row["spread_p_value"] for row in tested]), strict=True):
        row["spread_p_value"] = p_value


def outcome(verdicts: Sequence[str]) -> str:
    """Return what the verdicts of several studies say together.

    "turned": better here and worse there. "agrees": the same decided verdict in all, two at least. "partly": one
    decided verdict, but not in all; "mixed": a tie in one, better or worse in another; "open": none decided.

    >>> outcome(["better", "better"]), outcome(["better", "worse"]), outcome(["tie", "undecided"]), outcome(["better"])
    ('agrees', 'turned', 'partly', 'partly')
    """
    decided = [verdict for verdict in verdicts if verdict in _DECIDED]
    kinds = set(decided)
    if {"better", "worse"} <= kinds:
        return "turned"
    if len(kinds) > 1:
        return "mixed"
    if not kinds:
        return "open"
    return "agrees" if len(decided) == len(verdicts) > 1 else "partly"


def spread(differences: Sequence[Mapping[str, float]]) -> float | None:
    """Return the p-value of differences that are all the same but for their errors; None for fewer than two.

    Welch's test of means with unequal variances ("On the comparison of several mean values", 1951). It takes the
    studies' errors as independent.

    >>> a = {"mean": 0.01, "standard_error": 0.002, "seeds": 8}
    >>> spread([a, a | {"mean": 0.05}]) < 0.001 < 0.9 < spread([a, a])
    True
    """
    known = [d for d in differences if (d.get("standard_error") or 0.0) > 0.0 and d["seeds"] > 1]
    count = len(known)
    if count < 2:
        return None
    weights = [1 / d["standard_error"] ** 2 for d in known]
    total = math.fsum(weights)
    middle = math.fsum(w * d["mean"] for w, d in zip(weights, known, strict=True)) / total
    between = math.fsum(w * (d["mean"] - middle) ** 2 for w, d in zip(weights, known, strict=True)) / (count - 1)
    loose = math.fsum((1 - w / total) ** 2 / (d["seeds"] - 1) for w, d in zip(weights, known, strict=True))
    value = between / (1 + 2 * (count - 2) * loose / (count**2 - 1))
    return float(special.fdtrc(count - 1, (count**2 - 1) / (3 * loose), value))


def _findings(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], base: str, ended: Sequence[bool]) -> list[str]:
    """Return the sentences of a page: how many agree, then each activation, then whose differences vary."""
    alone = [row for row in rows if sum(part is not None for part in row["parts"]) == 1]
    shared = [row for row in rows if row not in alone]
    counts = {kind: sum(row["outcome"] == kind for row in shared) for kind in _TOGETHER}
    told = ", ".join(f"{'all' if count == len(rows) else count} {_TOGETHER[kind]}" for kind, count in counts.items()
                     if count)
    made = [] if shared else [f"These studies have no activation in common but {base}."]
    if shared and len(rows) > 1:
        rest = f"; {len(alone)} in one study alone" if alone else ""
        made.append(f"Of {counted(len(rows), 'activation')} in {len(labels)} studies: {told}{rest}.")
    for kind in _TOGETHER:
        made += [text for row in shared if row["outcome"] == kind and (text := _finding(row, labels, base, ended))]
    wide = [row["name"] for row in rows if row["spread_p_value"] is not None and row["spread_p_value"] <= 0.05
            and row["outcome"] != "turned"]
    if wide:
        made.append(f"The size of the difference varies by more than its errors: {', '.join(wide)}.")
    for i, label in enumerate(labels):
        verdicts = [f"{row['name']} ({row['parts'][i]['verdict'] if ended[i] else 'no verdict yet'})"
                    for row in alone if row["parts"][i]]
        if verdicts:
            made.append(f"In {label} alone: {', '.join(verdicts)}.")
    return made


def _finding(row: Mapping[str, Any], labels: Sequence[str], base: str, ended: Sequence[bool]) -> str:
    where: dict[str, list[str]] = {}
    for label, part, done in zip(labels, row["parts"], ended, strict=True):
        if part:
            where.setdefault(part["verdict"] if done else "no verdict yet", []).append(label)
    name, count = row["name"], sum(map(len, where.values()))
    if row["outcome"] == "agrees":
        return f"{name}: {_WORDS[next(iter(where))]} {base} in all {count}."
    if row["outcome"] == "open":
        return f"{name}: undecided everywhere."
    told = "; ".join(f"{_WORDS[verdict]} {base} in {', '.join(where[verdict])}" if verdict in _WORDS
                     else f"{verdict} in {', '.join(where[verdict])}"
                     for verdict in (*_DECIDED, "undecided", "no verdict yet") if verdict in where)
    return f"{name}{' turned' if row['outcome'] == 'turned' else ''}: {told}."


def _set_up(folder: StudyFolder) -> dict[str, str]:
    """Return what decides a study's numbers, in words."""
    plan, environment = folder.plan, folder.results.get("environment") or {}
    base, made_on = plan.arm(plan.baseline), plan.machine.get("made_on", {})
    processor = environment.get("processor") or {}
    return {
        "parameters": f"{base['parameters']:,}", **_named("model", plan.model),
        "text": str(plan.data.get("description", "")), "text's hash": str(plan.data["sha256"])[:16],
        "tokenizer": str(plan.data["tokenizer"]), "steps": f"{base['judge_steps']:,}",
        "tokens a judged run": f"{base['judge_steps'] * plan.training['batch'] * plan.model['context']:,}",
        "sequences per step": f"{plan.training['batch']:,}", "judged seeds": str(len(plan.judge_seeds)),
        "same in all arms": plan.match, "learning rates tried": ", ".join(f"{r:g}" for r in plan.learning_rates),
        "own baseline": plan.baseline, **_named("rule", plan.rule),
        "numbers": str(plan.machine.get("dtype", "")), "engine": str(plan.machine.get("engine", "")),
        "device": str(plan.machine.get("device", "cpu")),
        "processor": str(made_on.get("processor") or processor.get("name", "")),
        "torch": str(made_on.get("torch", "")), "nonlin": str(made_on.get("nonlin", "")),
        **_named("recipe", plan.training)}


def _named(what: str, values: Mapping[str, Any]) -> dict[str, str]:
    return {f"{what}: {key.replace('_', ' ')}": str(value) for key, value in values.items()
            if value is not None and not isinstance(value, dict) and key not in _SAID}
