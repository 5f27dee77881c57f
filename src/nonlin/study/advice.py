"""One sentence that says what to do, no surer than the study is."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nonlin.letters import quoted
from nonlin.numbers import nothing, number, percent, short
from nonlin.progress import span
from nonlin.study.plan import Plan

EQUAL_TIMES = 0.05  # training times that differ by less count as equal: the loss falls with the logarithm of time
_TOLD = 3  # pairs, and commands, that are told one by one


def advice(plan: Plan, arms: Sequence[Mapping[str, Any]], runs_left: int = 0) -> str:
    """Return the advice for finished arms, or what is missing (``runs_left`` judged runs).

    ``arms`` are those of results.json.
    """
    base = plan.baseline
    if runs_left:
        total = len(plan.arms) * len(plan.judge_seeds)
        return (f"No advice yet: {total - runs_left} of {total} judged runs are done, and the rule was fixed for all "
                "of them.")
    if not any(arm["judged"] for arm in arms):
        return "No advice: every activation diverged at every learning rate; try much lower ones."
    lost = next(a["diverged_runs"] for a in arms if a["name"] == base)
    better, open_ = _group(arms, "better"), _group(arms, "undecided")
    if lost and not better:
        return (f"No advice: {lost} of {len(plan.judge_seeds)} judged runs of the baseline {base} diverged; take "
                "another baseline, or lower learning rates.")
    if not better and open_:
        return f"Keep {base} for now: none was found better, and {_names(open_)} {_are(open_)} undecided."
    if not better:
        return f"Keep {base}: no other activation was found better."
    best, difference = better[0], better[0]["difference"]
    if difference is None:
        return f"Use {best['name']}: it trains where {base} diverges."
    return f"Use {best['name']}."


def headline(plan: Plan, arms: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> str:
    """Return the finding of a finished study in one sentence that says what it stands on: size, text, differences."""
    base, better = plan.baseline, _group(arms, "better")
    if not any(arm["judged"] for arm in arms):
        return f"{_set_up(plan)}, every activation diverged at every learning rate."
    if better and better[0]["difference"] is None:
        return f"{_set_up(plan)}, {better[0]['name']} trains and {base} does not."
    if better:
        leaders = _leaders(better, pairs)
        known = bool(pairs) and len(leaders) > 1
        gated = known and all(arm["kind"] == "gated" for arm in leaders) and plan.arm(base)["kind"] != "gated"
        found = (f"gated activations beat {base}, {leaders[0]['name']} by {_gain(leaders[0])}" if gated
                 else f"{leaders[0]['name']} beats {base} by {_gain(leaders[0])}")
        tied = f"equally good within {plan.rule['margin']:g} bits per byte"
        word = tied if _tied(leaders, pairs) else "not separated"
        return f"{_set_up(plan)}, {found}{f'; {_names(leaders)} are {word}' if known else ''}."
    parts = [f"no activation was found better than {base}"]
    same, ties = _same(_group(arms, "tie"))
    parts += [f"{_names(group)} {_are(group)} {word}" for group, word in (
        (same, "the same in every run"), (ties, "as good"), (_group(arms, "worse"), "worse"),
        (_group(arms, "undecided"), "undecided")) if group]
    return f"{_set_up(plan)}, {'; '.join(parts)}."


def _leaders(better: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best of the better arms, and those that it was not found better than."""
    return [arm for arm in better if arm is better[0] or not _told_from(pairs, better[0]["name"], arm["name"])]


def _tied(arms: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each of these is as good as each other."""
    names = {arm["name"] for arm in arms}
    return all(pair["verdict"] == "tie" for pair in pairs if {pair["first"], pair["second"]} <= names)


def _set_up(plan: Plan) -> str:
    data, tokens = plan.data, plan.arm(plan.baseline)["judge_steps"] * plan.training["batch"] * plan.model["context"]
    amount = f"{tokens:,} tokens"
    if "train_bytes" in data:
        size = tokens * data["train_bytes"] / data["train_tokens"]
        amount = f"{short(size / 1e6)} MB" if size >= 5e4 else f"{short(size / 1e3)} kB"
    return f"At {plan.size} parameters on {amount} of {data.get('description', 'text')}"


def _gain(arm: Mapping[str, Any]) -> str:
    d = arm["difference"]
    mean, low, high = (number(-d[key], ".3f") for key in ("mean", "high", "low"))
    return f"{mean} bits per byte ({percent(d['confidence'])} interval {low} to {high})"


def _told_from(pairs: Sequence[Mapping[str, Any]], first: str, second: str) -> bool:
    return any((p["first"], p["second"], p["verdict"]) == (first, second, "better") for p in pairs)


def remarks(plan: Plan, arms: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return what is to be known beside the headline and the advice, a sentence each: the other winners, and ties."""
    base, made = plan.baseline, []
    better = _group(arms, "better")
    if plan.model.get("own", {}).get("checkpoint"):
        made.append("The runs began with trained weights: a short run measures how the model recovers from another "
                    "activation, not the activation.")
    made += _unequal_times(plan, arms)
    if better[1:]:
        alone = "" if pairs else "; this study does not compare the better ones with each other"
        made.append(f"{_names(better[1:])} {_are(better[1:])} better than {base} too{alone}.")
    best = _leaders(better, pairs) if pairs else []
    told = {arm["name"] for arm in best} if _tied(best, pairs) else set[str]()  # by the headline
    made += [pair_text(pair, plan.rule["margin"]) for pair in pairs if not {pair["first"], pair["second"]} <= told
             and (len(pairs) <= _TOLD or better[0]["name"] in (pair["first"], pair["second"]))]
    same, ties = _same(_group(arms, "tie"))
    if same:
        made.append(f"{_names(same)} {_are(same)} the same as {base}: no run differs.")
    if ties:
        made.append(f"{_names(ties)} {_are(ties)} as good as {base} within {plan.rule['margin']:g} bits per byte.")
    return made


def over_baselines_time(plan: Plan, arms: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how many times as long as the baseline each arm trained, by the speeds of its judged runs.

    The processor's time counts where every arm has it: that of a clock changes with other work on the machine.
    """
    measured = [{arm["name"]: arm["timing"].get(speed) for arm in arms}
                for speed in ("tokens_per_processor_second", "tokens_per_second")]
    speeds = next((one for one in measured if all(one.values())), measured[-1])
    seconds = {name: plan.arm(name)["judge_steps"] / speed for name, speed in speeds.items() if speed}
    return {name: value / seconds[plan.baseline] for name, value in seconds.items() if plan.baseline in seconds}


def _unequal_times(plan: Plan, arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence where arms that were to train equally long did not: their verdicts stand on other times."""
    if plan.match != "time":
        return []
    off = {name: ratio for name, ratio in over_baselines_time(plan, arms).items() if abs(ratio - 1) > EQUAL_TIMES}
    if not off:
        return []
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in off.items())
    return [f"Times are not equal: of {plan.baseline}'s training time the runs took {told}. The steps were planned by "
            "speeds measured before the first run. Repeat it on a machine without other work."]


def pair_text(pair: Mapping[str, Any], margin: float) -> str:
    """Return what is known of two better arms, in a sentence."""
    d, first, second = pair["difference"], pair["first"], pair["second"]
    if nothing(d["low"], d["high"]):
        return f"{first} and {second} are the same: no run differs."
    mean, low, high = (number(-d[key], ".4f") for key in ("mean", "high", "low"))
    apart = f"{mean} bits per byte ({low} to {high})"
    if pair["verdict"] == "better":
        return f"{first} is better than {second} by {apart}."
    if pair["verdict"] == "tie":
        return f"{first} and {second} are equally good within {margin:g} bits per byte."
    return f"{first} and {second} are not separated: {apart}; {pair['reason']}."


def next_steps(results: Mapping[str, Any], directory: str) -> list[tuple[str, str]]:
    """Return (what for, command) of each way to go on from a finished study.

    First come those that decide what is undecided, the cheapest first, with the time that they take here. Then comes
    whether the finding holds at other sizes.
    """
    if results["status"] != "complete":
        return []
    by_seeds: dict[int, list[str]] = {}
    for arm in results["arms"]:
        if arm["verdict"] == "undecided" and arm["seeds_needed"]:
            by_seeds.setdefault(arm["seeds_needed"], []).append(arm["name"])
    for pair in results.get("pairs") or ():
        if pair["seeds_needed"]:
            by_seeds.setdefault(pair["seeds_needed"], []).append(f"{pair['first']} against {pair['second']}")
    deciding = [(f"To decide {', '.join(names)}{_time(results, seeds)}",
                 f"nonlin extend {quoted(directory)} --seeds {seeds}")
                for seeds, names in sorted(by_seeds.items())][:_TOLD]
    return deciding + _at_other_sizes(results)


def _time(results: Mapping[str, Any], seeds: int) -> str:
    """How long a study takes to have so many seeds, by its runs so far: a plain number of seeds hides days of work."""
    arms, plan = results["arms"], results["plan"]
    runs = sum(len(arm.get("tuning") or ()) + len(arm.get("judged") or ()) for arm in arms)
    spent = (results.get("timing") or {}).get("trial_seconds") or 0.0
    added = seeds - len(plan.get("judge_seeds") or ())
    if not runs or not spent or added < 1:
        return ""
    return f" (about {span(added * len(arms) * spent / runs / max(1, plan.get('workers') or 1))})"


def _at_other_sizes(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    better = _group(results["arms"], "better")[:_TOLD]
    base = [arm for arm in results["arms"] if arm["verdict"] == "baseline"]
    if not better or not base or "own" in results["plan"]["model"]:
        return []
    names = ",".join(f"{a['name']}={a['formula']}" if a.get("formula") else a["name"] for a in [*base, *better])
    data = "".join(f" --data {quoted(path)}" for path in results["plan"]["data"].get("paths") or ())
    return [("Whether it holds at other sizes", f"nonlin ladder --target 125M --activations {shlex.quote(names)} "
             f"--baseline {base[0]['name']}{data}")]


def _group(arms: Sequence[Mapping[str, Any]], verdict: str) -> list[Mapping[str, Any]]:
    """The arms of a verdict, the best first: by their differences, as verdicts are, then by their means."""
    return sorted((a for a in arms if a["verdict"] == verdict), key=_place)


def _same(ties: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the ties whose runs are those of the baseline, and the others."""
    equal = [bool(arm["difference"]) and nothing(arm["difference"]["low"], arm["difference"]["high"]) for arm in ties]
    return ([arm for arm, one in zip(ties, equal, strict=True) if one],
            [arm for arm, one in zip(ties, equal, strict=True) if not one])


def _place(arm: Mapping[str, Any]) -> tuple[float, float]:
    mean = math.inf if arm["bits_per_byte"] is None else arm["bits_per_byte"]
    return (arm["difference"]["mean"] if arm["difference"] else -math.inf), mean


def winner(arms: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return the activation to use by these verdicts: the best of those found better, else the baseline."""
    better = _group(arms, "better")
    return better[0]["name"] if better else baseline


def _names(arms: Sequence[Mapping[str, Any]]) -> str:
    names = [arm["name"] for arm in arms]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _are(arms: Sequence[Mapping[str, Any]]) -> str:
    return "is" if len(arms) == 1 else "are"
