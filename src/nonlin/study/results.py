"""The results of a study: from records to the values of results.json."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nonlin.study import verdict
from nonlin.study.advice import advice, headline, remarks, winner
from nonlin.study.pairs import judge_pairs
from nonlin.study.plan import Plan
from nonlin.study.response import Run
from nonlin.study.tuning import Records, Tuning, complete, judge_trials, tune_trials, tuning

_COLUMNS = ("name", "kind", "verdict", "bits_per_byte", "standard_deviation", "difference", "low", "high",
            "p_value", "seeds", "seeds_needed", "learning_rate", "learning_rate_sensitivity", "diverged_runs",
            "spike_score", "dead_share", "sparsity", "gradient_ratio", "hidden", "parameters",
            "flops_per_token", "tokens_per_second", "peak_memory_bytes")


def results(plan: Plan, records: Records, environment: Mapping[str, Any] | None = None, seconds: float = 0.0,
            interrupted: bool = False) -> dict[str, Any]:
    """Return the values of results.json: every arm's verdict, numbers and runs, and one sentence of advice.

    "status" is "complete", "interrupted", or "partial" where runs are missing. Times and memory lie under keys
    named "timing" only; all else is a function of the plan and the records.
    """
    states = {arm["name"]: tuning(plan, arm["name"], records) for arm in plan.arms}
    runs = {arm: _judged_losses(plan, arm, state, records) for arm, state in states.items()}
    responses = {arm: _responses(plan, arm, state, records) for arm, state in states.items()}
    verdicts = verdict.judge(plan.rule, runs, plan.baseline, responses)
    arms = [_arm(plan, arm, states[arm["name"]], verdicts[arm["name"]], records) for arm in plan.arms]
    done = complete(plan, records)
    looks = [found for stage in plan.history if (found := _look(stage, runs, responses, plan.baseline))]
    status = "complete" if done else "interrupted" if interrupted else "partial"
    unlike = _unlike(plan, records)
    left = sum(len(plan.judge_seeds) - len(run) for run in runs.values())
    pairs = [] if left else [
        pair.as_dict() for pair in judge_pairs(plan.rule, verdicts, responses, plan.baseline)]
    return {
        "format": 1, "name": plan.name, "status": status, "rule": plan.rule, "baseline": plan.baseline,
        "advice": advice(plan, arms, left), "remarks": unlike + ([] if left else remarks(plan, arms, pairs)),
        "winner": winner(arms, plan.baseline), "ranking": [row["name"] for row in ranking(plan, records)], "arms": arms,
        "headline": "" if left else headline(plan, arms, pairs), "pairs": pairs, "looks": looks,
        "plan": plan.as_dict(), "data": plan.data, "environment": dict(environment or {}),
        "timing": {"seconds": seconds,
                   "trial_seconds": math.fsum(r["timing"]["seconds"] for r in records.values())}}


def _unlike(plan: Plan, records: Records) -> list[str]:
    """Return a remark for each seed whose runs began with other tensors outside the feed-forward blocks."""
    found: dict[int, set[str]] = {}
    for arm in (a["name"] for a in plan.arms if a.get("own")):
        state = tuning(plan, arm, records)
        for t in (*tune_trials(plan, arm, state.rates), *judge_trials(plan, arm, records)):
            if t.key in records and records[t.key].get("outside_sha256"):
                found.setdefault(t.seed, set()).add(records[t.key]["outside_sha256"])
    return [f"runs of seed {seed} began with different weights outside the feed-forward blocks: they differ in more "
            "than the activation" for seed, hashes in found.items() if len(hashes) > 1]


def ranking(plan: Plan, records: Records) -> list[dict[str, Any]]:
    """Return the arms by their mean bits per byte so far, the best first; unjudged arms come last."""
    rows = []
    for arm in (a["name"] for a in plan.arms):
        found = [records[t.key] for t in judge_trials(plan, arm, records) if t.key in records]
        mean = _mean(record["bits_per_byte"] for record in found)
        rows.append({"name": arm, "bits_per_byte": mean, "seeds": len(found)})
    return sorted(rows, key=lambda r: math.inf if r["bits_per_byte"] is None else r["bits_per_byte"])


def _judged_losses(plan: Plan, arm: str, state: Tuning, records: Records) -> dict[int, float | None]:
    if state.done and state.best is None:  # no learning rate trains it
        return dict.fromkeys(plan.judge_seeds)
    return {t.seed: _loss(records[t.key]) for t in judge_trials(plan, arm, records) if t.key in records}


def _responses(plan: Plan, arm: str, state: Tuning, records: Records) -> list[Run]:
    """Return an arm's finished runs, judged and tuned near its best rate, as the response model takes them."""
    found = [(t, True) for t in judge_trials(plan, arm, records)]
    if plan.arm(arm)["tune_steps"] == plan.arm(arm)["judge_steps"]:  # shorter runs have other levels
        found += [(t, False) for t in tune_trials(plan, arm, state.near)]
    finished = [(t, judged) for t, judged in found if t.key in records and records[t.key]["status"] == "finished"]
    step = math.log(plan.learning_rate_factor)
    return [Run(t.seed, math.log(t.learning_rate) / step, records[t.key]["bits_per_byte"], judged)
            for t, judged in finished]


def _look(stage: Mapping[str, Any], runs: Mapping[str, verdict.Runs], responses: Mapping[str, list[Run]], baseline: str
          ) -> dict[str, Any] | None:
    """Return the verdicts of an earlier stage, by its rule, from its runs. None where it ended before its last run, or
    did not have the baseline."""
    then = stage["rule"]
    seeds = sorted(next(iter(runs.values())))[:then["seeds"]]
    arms = [arm["name"] for arm in stage["request"]["arms"]]
    missing = any(set(seeds) - set(runs[arm]) for arm in arms) or len(seeds) < then["seeds"]
    if missing or baseline not in arms or not stage["looked"]:
        return None
    earlier = {arm: {seed: runs[arm][seed] for seed in seeds} for arm in arms}
    kept = {arm: [run for run in responses[arm] if not run.judged or run.seed in seeds] for arm in arms}
    found = verdict.judge(then, earlier, baseline, kept)
    return {"seeds": then["seeds"], "verdicts": {arm: one.verdict for arm, one in found.items()}}


def _loss(record: Mapping[str, Any]) -> float | None:
    return record["bits_per_byte"] if record["status"] == "finished" else None


def _arm(plan: Plan, arm: Mapping[str, Any], state: Tuning, found: verdict.Verdict, records: Records
         ) -> dict[str, Any]:
    name, reason = arm["name"], found.reason
    if state.done and state.best is None:
        reason = f"it diverged at every learning rate from {state.rates[0]:g} to {state.rates[-1]:g}"
    trials = [t for t in judge_trials(plan, name, records) if t.key in records]
    judged = [records[t.key] for t in trials]
    finished = [record for record in judged if record["status"] == "finished"]
    tuned = [t for t in tune_trials(plan, name, state.rates) if t.key in records]
    measured = {key: _mean(r.get(key) for r in finished) for key in ("spike_score", "dead_share", "sparsity")}
    layers = _mean_layers(finished)
    return {
        "name": name, "kind": arm["kind"], "formula": arm["formula"],
        "activation": arm.get("activation") or name, "verdict": found.verdict, "reason": reason,
        "bits_per_byte": found.mean, "standard_deviation": _standard_deviation([r["bits_per_byte"] for r in finished]),
        "difference": found.difference, "seeds_needed": found.seeds_needed,
        "learning_rate": state.best, "learning_rate_at_edge": state.at_edge,
        "learning_rate_sensitivity": _sensitivity(plan, name, state, records),
        "tuning": [{"learning_rate": t.learning_rate, **_run(t.key, t.seed, records[t.key]),
                    "initial_bits_per_byte": records[t.key]["initial_bits_per_byte"]} for t in tuned],
        "judged": [_run(t.key, t.seed, record) for t, record in zip(trials, judged, strict=True)],
        "diverged_runs": len(judged) - len(finished),
        "diverged_tuning_runs": sum(records[t.key]["status"] != "finished" for t in tuned),
        **measured, "gradient_ratio": _gradient_ratio(layers), "hidden": arm["hidden"],
        "parameters": judged[0]["parameters"] if judged else arm["parameters"],
        "parameters_relative_error": arm["parameters_relative_error"],
        "flops_per_token": judged[0]["flops_per_token"] if judged else None, "layers": layers,
        **_recovery(plan, finished),
        "timing": {"tokens_per_second": _mean(r["timing"].get("tokens_per_second") for r in judged),
                   "tokens_per_processor_second": _mean(r["timing"].get("tokens_per_processor_second") for r in judged),
                   "peak_memory_bytes": max((r["timing"].get("peak_memory_bytes") or 0 for r in judged),
                                            default=None)}}


def _recovery(plan: Plan, finished: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how a trained model recovers, as {"recovery": ...}; nothing in a study from scratch."""
    runs = [record["evaluations"] for record in finished if record.get("evaluations")]
    if not runs:
        return {}
    before = math.fsum(r["before_bits_per_byte"] for r in finished) / len(finished)
    points = [[at[0][0], math.fsum(loss for _, loss in at) / len(at)] for at in zip(*runs, strict=False)
              if all(loss is not None for _, loss in at)]  # a run may leave the numbers and come back
    back = next((int(tokens) for tokens, loss in points if loss <= before + plan.rule["margin"]), None)
    return {"recovery": {"before": before, "points": points, "back_at_tokens": back}}


def _run(key: str, seed: int, record: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": seed, "bits_per_byte": _loss(record), "status": record["status"], "config_hash": key}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _standard_deviation(values: list[float]) -> float | None:
    """Return the sample standard deviation over the seeds of one arm; exactly zero for equal values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    if max(values) == min(values):
        return 0.0
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _sensitivity(plan: Plan, arm: str, state: Tuning, records: Records) -> float | None:
    """Return the mean over the shared grid of min(loss, loss at initialization), less the best loss (arXiv:2309.14322).

    Over the shared grid even where this arm's grew, so that all arms are measured over the same rates.
    """
    if not state.done or state.best is None or plan.arm(arm).get("learning_rate") is not None:
        return None
    capped = []
    for t in tune_trials(plan, arm, plan.learning_rates):
        start, loss = records[t.key]["initial_bits_per_byte"], _loss(records[t.key])
        capped.append(start if loss is None else loss if start is None else min(loss, start))
    best = min(loss for loss in state.losses if loss is not None)
    mean = _mean(capped)
    return None if mean is None or best is None else mean - best


def _mean_layers(records: list[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Return the last probe's measures of each layer, averaged over seeds."""
    probed = [record["layers"] for record in records if record.get("layers")]
    if not probed:
        return []
    return [{key: _mean(layers[i].get(key) for layers in probed) for key in probed[0][i]}
            for i in range(min(len(layers) for layers in probed))]


def _gradient_ratio(layers: list[dict[str, float | None]]) -> float | None:
    """Return the gradient at the first layer's output over that at the last's: small where gradients vanish."""
    ends = [layer.get("gradient_rms") for layer in (layers[:1] + layers[-1:])]
    return ends[0] / ends[1] if len(ends) == 2 and ends[0] is not None and ends[1] else None


def csv_rows(results: Mapping[str, Any]) -> list[list[Any]]:
    """Return results.csv's rows: a header, then one per arm in the plan's order."""
    rows: list[list[Any]] = [list(_COLUMNS)]
    for arm in results["arms"]:
        difference = arm["difference"] or {}
        values = arm | arm["timing"] | {"difference": difference.get("mean")} | {
            key: difference.get(key) for key in ("low", "high", "p_value", "seeds")}
        rows.append(["" if values[column] is None else values[column] for column in _COLUMNS])
    return rows
