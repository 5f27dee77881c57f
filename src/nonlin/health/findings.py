"""From a record to findings: each rule once, with its grade, its evidence, and what to do. Loads no torch.

"serious" findings lose quality or stop training, "warning" deserves a look, "info" is worth knowing.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from nonlin.numbers import number

Record = dict[str, Any]
Finding = dict[str, Any]
GRADES = ("serious", "warning", "info")

SHARE_SERIOUS, SHARE_WARNING = 0.10, 0.01
"""Shares of a layer's units that are dead or saturated."""

ENOUGH_TOKENS = 2000
"""Below so many tokens, a unit of a ReLU-like activation that never fired may only be rare."""

SOME_TOKENS = 64
"""On so many tokens, a block none of whose units ever fired is dead and not rare."""

ALWAYS_ON = 0.25
OUTLIER_RATIO, OUTLIER_GRAVE = 20.0, 100.0
"""Root mean square of a channel of the residual stream, times the median channel's."""

GRADIENT_WARNING, GRADIENT_SERIOUS = 1e2, 1e3
"""Ratio of the gradients' root mean squares between the first and the last block, either way."""

LOGITS_WARNING, LOGITS_SERIOUS = 1e3, 1e4
"""Largest attention logit; above 1e4 every run of arXiv:2309.14322 diverged."""

FLUSHED_WARNING = 0.10
TRAINED_WITH_NATS, TRAINED_WITH_ERRORS = 0.03, 4.0
"""Another activation than the model's explains the weights where it lowers the loss by both of these."""


def grade(record: Record) -> list[Finding]:
    """Return a record's findings, the gravest first, those of one grade in the order of layers."""
    found = [f for rule in _RULES for f in rule(record)]
    return sorted(found, key=lambda f: GRADES.index(f["grade"]))


def _finding(grade: str, measure: str, block: Record | None, text: str, action: str, units: list[int] | None = None,
             **evidence: Any) -> Finding:
    return {"grade": grade, "measure": measure, "layer": block["name"] if block else "the model",
            "index": block["index"] if block else None, "units": units or [], "text": text, "action": action,
            "evidence": evidence}


def _list(units: list[int], count: int, few: int = 6) -> str:
    shown = ", ".join(map(str, units[:few]))
    return f"unit{'s' if count > 1 else ''} {shown}{', …' if count > few else ''}"


def _activation(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        a = b["activation"]
        if a["status"] == "partial":
            yield _finding("serious", "activation", b, f"{b['name']} computes {a['computed']}: {a['reason']}.",
                           "A clamp is missing or differs: compare the code's constants with the model's own.", **a)
        elif a["agrees"] is False:
            yield _finding("serious", "activation", b, f"{b['name']} computes {a['computed']}; the configuration says "
                           f"{a['claimed']}.", "Find out which of the two the weights were trained with, and correct "
                           "the other.", **a)
        elif a["status"] == "unknown":
            yield _finding("info", "activation", b, f"{b['name']}: its activation is not known: {a['reason']}.",
                           "Define it (nonlin.define), or pass inputs that reach the block.", **a)
        elif a["status"] == "ambiguous":
            yield _finding("info", "activation", b, f"{b['name']} computes {a['computed']}: the block rounds too "
                           "coarsely, or its values reach too little, to tell them apart.",
                           "Check in float32 to know which.", **a)


def _trained_with(record: Record) -> Iterator[Finding]:
    found = record["alternatives"]
    if not found or not found["others"]:
        return
    best = min(found["others"], key=lambda o: o["difference_nats"])
    gain, ignorant = -best["difference_nats"], found.get("frequencies_nats")
    if ignorant is not None and min(found["loss_nats"], best["loss_nats"]) >= ignorant:
        yield _finding("info", "foreign_text", None, f"The model does not know this text: its loss is "
                       f"{found['loss_nats']:.3f} nats per token, and the tokens' frequencies alone give "
                       f"{ignorant:.3f}. "
                       "Whether it was trained with another activation cannot be told from it.",
                       "Pass text like that it was trained on, with --text.", frequencies_nats=ignorant)
    elif gain > TRAINED_WITH_NATS and gain > TRAINED_WITH_ERRORS * best["standard_error"]:
        blocks = record["blocks"]
        yield _finding("serious", "trained_with", blocks[0], f"All blocks, from {blocks[0]['name']} on: the text's "
                       f"loss falls from {found['loss_nats']:.3f} to {best['loss_nats']:.3f} nats per token with "
                       f"{best['activation']} in place of {found['activation']}: the weights were trained with "
                       "another activation than the configuration names.",
                       f"Correct the configuration's activation; {best['activation']} fits best of those tried.",
                       **best)


def _nonfinite(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        for name, s in b["streams"].items():
            if s["nonfinite"]:
                yield _finding("serious", "nonfinite", b, f"{b['name']}: {s['nonfinite']:,} values of {name} are "
                               "infinite or not numbers.", "Find the first layer with them; run in bfloat16 or float32 "
                               "if this is float16.", stream=name, count=s["nonfinite"])
                break
    count = record.get("nonfinite_outputs", 0)
    if count and not any(s["nonfinite"] for b in record["blocks"] for s in b["streams"].values()):
        yield _finding("serious", "nonfinite", None, f"{count:,} values of the model's output are infinite or not "
                       "numbers, though those of its blocks are finite.", "Look at what follows the last block: its "
                       "weights, the last norm and the output weights.", count=count)


def _grade_of_share(share: float) -> str:
    return "serious" if share >= SHARE_SERIOUS else "warning" if share >= SHARE_WARNING else "info"


def _dead(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        d = b["dead"]
        if not d["count"]:
            continue
        grade, few = _grade_of_share(d["share"]), b["tokens"] < ENOUGH_TOKENS and b["activation"]["flat"]
        if d["share"] == 1 and b["tokens"] >= SOME_TOKENS:
            few = False  # rare units take turns: not all of them are still for so long
        if few and grade == "serious":
            grade = "warning"
        doubt = " So few tokens may leave rare units out: use more text." if few else ""
        yield _finding(grade, "dead", b, f"{b['name']}: {d['count']:,} of {b['hidden'] * max(1, b['experts']):,} units "
                       f"({d['share']:.1%}) put out nothing and learn nothing on any of {b['tokens']:,} tokens: "
                       f"{_list(d['units'], d['count'])}.{doubt}",
                       "Lower the learning rate or the warmup's steepness, look at biases and weight decay, draw the "
                       "units' weights anew, or take an activation with a negative derivative; or prune them.",
                       d["units"], share=d["share"], count=d["count"], tokens=b["tokens"])


def _saturated(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        s = b["saturated"]
        if s["count"]:
            what = "gates" if b["kind"] == "gated" else "units"
            yield _finding(_grade_of_share(s["share"]), "saturated", b, f"{b['name']}: {s['count']:,} {what} "
                           f"({s['share']:.1%}) lie where the activation is flat on every token, and cannot learn: "
                           f"{_list(s['units'], s['count'])}.",
                           "Look at the gate's biases and weight norms; lower its learning rate, or decay its weights.",
                           s["units"], share=s["share"], count=s["count"])


def _always_on(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        s = b["always_on"]
        if s["share"] >= ALWAYS_ON:
            yield _finding("info", "always_on", b, f"{b['name']}: {s['share']:.1%} of the units are positive before "
                           f"the activation on every token, and act almost linearly: {_list(s['units'], s['count'])}.",
                           "Nothing is broken; the layer uses less of its non-linearity than it could.", s["units"],
                           share=s["share"])


def _span(blocks: list[Record]) -> str:
    names = [b["name"] for b in blocks]
    return names[0] if len(names) == 1 else f"{len(names)} blocks from {names[0]} to {names[-1]}"


def _massive(record: Record) -> Iterator[Finding]:
    groups: dict[tuple[str, int], list[tuple[Record, Record]]] = {}
    for b in record["blocks"]:
        for stream in ("hidden", "residual"):
            here = [m for m in b["massive"] if m["stream"] == stream]
            if here:
                m = max(here, key=lambda m: m["value"])
                groups.setdefault((stream, m["unit"]), []).append((m, b))
    for (stream, unit), seen in groups.items():
        m, b = max(seen, key=lambda pair: pair[0]["value"])
        at = f" at token {m['place']} of a sequence" if "place" in m else f" at token {m['token']}"
        at += f" ({m['text']!r})" if m.get("text") is not None else ""
        place = f"{'unit' if stream == 'hidden' else 'channel'} {unit}" + (f" of {b['name']}" if len(seen) > 1 else "")
        yield _finding("info", "massive", b, f"{_span([b for _, b in seen])}: |{stream}| reaches {m['value']:,.0f} in "
                       f"{place}{at}, {m['value'] / max(m['median'], 1e-12):,.0f} times the median.",
                       "Usual in trained language models, where such values act as biases of attention; keep them out "
                       "of 8-bit quantization.", [unit], blocks=[b["name"] for _, b in seen], largest=m)


def _outliers(record: Record) -> Iterator[Finding]:
    groups: dict[int, list[tuple[Record, Record]]] = {}
    for b in record["blocks"]:
        far = [c for c in (b["outliers"] or {}).get("channels", []) if c["ratio"] > OUTLIER_RATIO]
        if far:
            groups.setdefault(far[0]["unit"], []).append((far[0], b))
    for unit, seen in groups.items():
        c, b = max(seen, key=lambda pair: pair[0]["ratio"])
        kurtosis = b["outliers"]["kurtosis"]
        yield _finding("warning" if c["ratio"] > OUTLIER_GRAVE else "info", "outlier", b,
                       f"{_span([b for _, b in seen])}: channel {unit} of the layer's output is up to "
                       f"{c['ratio']:,.0f} times the median channel (root mean square {number(c['rms'], ',.4g')} in "
                       f"{b['name']}); kurtosis over channels {number(kurtosis, '.3g')} of at most {b['dim']:,}.",
                       "Quantize with a scale per channel, or rotate; in training, a lower learning rate or more "
                       "warmup makes fewer of them.", [unit], blocks=[b["name"] for _, b in seen],
                       kurtosis=kurtosis, largest=c)


def _range(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        for name, s in b["streams"].items():
            if s["over_float16"]:
                grade = "serious" if record["dtype"] == "float16" else "warning"
                yield _finding(grade, "float16", b, f"{b['name']}: |{name}| reaches {s['largest']:,.0f}, beyond "
                               f"float16's 65,504, in {s['over_float16']} units.", "Run this model in bfloat16 or "
                               "float32.", stream=name, largest=s["largest"])
    flushed = [(s["flushed_float8"], b, name) for b in record["blocks"] for name, s in b["streams"].items()
               if name == "hidden" and s["flushed_float8"] > FLUSHED_WARNING]
    if flushed:
        share, b, name = max(flushed, key=lambda f: f[0])
        yield _finding("info", "float8", b, f"{len(flushed)} blocks' {name}, {b['name']} most of all: {share:.0%} of "
                       "the values become zero in float8 e4m3 with one scale for all.",
                       "Use one scale per token, or per group of values, for 8-bit matrix products.", share=share,
                       blocks=[f[1]["name"] for f in flushed])


def _gradients(record: Record) -> Iterator[Finding]:
    blocks = [b for b in record["blocks"] if b["gradients"]]
    if len(blocks) < 2:
        return
    rms = [b["gradients"]["rms"] for b in blocks]
    broken = [b for b in blocks if not math.isfinite(b["gradients"]["rms"])]
    if broken:
        at = broken[-1]  # gradients come from the last block
        yield _finding("serious", "nonfinite", at, f"{at['name']}: its gradients are infinite or not numbers.",
                       "Look at the loss and at the blocks behind it; in float16, scale the loss.", rms=rms)
        return
    first, last = rms[0], rms[-1]
    if not last or not first:
        at = blocks[0] if not first else blocks[-1]
        if any(rms):
            yield _finding("serious", "vanishing", at, f"{at['name']}: no gradient at all reaches it.",
                           "Look for a detached tensor, a frozen part, or a flat activation behind it.", rms=rms)
        return
    ratio, depth = first / last, len(rms) - 1
    if max(ratio, 1 / ratio) < GRADIENT_WARNING:
        return
    grade = "serious" if max(ratio, 1 / ratio) >= GRADIENT_SERIOUS else "warning"
    a_layer = ratio ** (1 / depth)
    what, at = ("vanishing", blocks[0]) if ratio < 1 else ("exploding", blocks[0])
    verb = "shrink" if ratio < 1 else "grow"
    yield _finding(grade, what, at, f"{at['name']}: gradients {verb} on their way from {blocks[-1]['name']} "
                   f"({number(last, '.2g')}) to it ({number(first, '.2g')}), by a factor of "
                   f"{number(max(a_layer, 1 / a_layer), '.3g')} per block, {max(ratio, 1 / ratio):,.0f} in all.",
                   "Scale the initial weights by the square root of their inputs (and the activation's gain), put a "
                   "norm before each part and a residual connection around it, or use fewer layers.",
                   ratio=ratio, factor_a_block=a_layer, rms=rms)


def _zero_gradients(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        share = (b["gradients"] or {}).get("zero_share")
        if share is not None and share > 0.99:
            yield _finding("warning", "zero_gradient", b, f"{b['name']}: {share:.1%} of the gradients before the "
                           "activation are exactly zero.", "Nearly nothing of this block learns from a token; see its "
                           "dead units.", share=share)


def _attention(record: Record) -> Iterator[Finding]:
    for i, largest in enumerate((record["attention"] or {}).get("largest_logits", [])):
        if largest >= LOGITS_WARNING:
            yield _finding("serious" if largest >= LOGITS_SERIOUS else "warning", "attention_logits", None,
                           f"Attention {i}: the largest logit is {largest:,.0f}.",
                           "Normalize queries and keys, or lower the learning rate.", largest=largest, attention=i)


def _experts(record: Record) -> Iterator[Finding]:
    for b in record["blocks"]:
        if b["experts"] and b["unseen"]:
            idle = b["unseen"] // b["hidden"]
            yield _finding("info", "idle_experts", b, f"{b['name']}: {idle} of {b['experts']} experts got none of "
                           f"{b['tokens']:,} tokens.", "With more text, see whether the router ever chooses them.",
                           count=idle)


_RULES: tuple[Callable[[Record], Iterator[Finding]], ...] = (
    _activation, _trained_with, _nonfinite, _dead, _saturated, _gradients, _zero_gradients, _attention, _range,
    _outliers, _massive, _always_on, _experts)
