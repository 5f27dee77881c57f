"""Claim 13: BERT and GPT-2 use GELU; Qwen, LLaMA and GPT use SwiGLU."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from nonlin.claims import draw
from nonlin.claims.definition import DEPENDS, FAILS, HOLDS, OPEN, Claim, Experiment, Found, Table, Verdict, experiment

#: By family: the statement's activation, transformers' module and configuration, and the field that names it.
FAMILIES = {
    "BERT": ("gelu", "bert", "BertConfig", "hidden_act"),
    "GPT-2": ("gelu", "gpt2", "GPT2Config", "activation_function"),
    "Qwen3": ("swiglu", "qwen3", "Qwen3Config", "hidden_act"),
    "LLaMA": ("swiglu", "llama", "LlamaConfig", "hidden_act"),
    "gpt-oss": ("swiglu", "gpt_oss", "GptOssConfig", "hidden_act"),
    "Mistral": (None, "mistral", "MistralConfig", "hidden_act"),
    "Gemma 3": (None, "gemma3", "Gemma3TextConfig", "hidden_activation"),
}
PLAIN = ("relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "relu_squared", "tanh")
GATED = ("glu", "reglu", "geglu", "geglu_tanh", "swiglu", "swiglu_oai", "swiglu_clamped", "bilinear")
SAME = 1e-6
VARIANTS = {"gelu": ("gelu", "gelu_tanh", "quick_gelu"), "swiglu": ("swiglu", "swiglu_oai", "swiglu_clamped")}
_WIDTH, _HIDDEN = 32, 48


def missing() -> str | None:
    """Return what to install where transformers is not there."""
    if importlib.util.find_spec("transformers"):
        return None
    return "reading the models needs transformers: pip install 'nonlin[hf]'"


def experiments(plan: Any) -> list[Experiment]:
    """One run a family; none where transformers is missing."""
    if missing():
        return []
    return [experiment("n13_models", "block", f"block, {name}", 3.0, family=name, seed=plan.seeds[0])
            for name in FAMILIES]


def _block(module: Any, config: Any, kind: str) -> tuple[Any, Any, Any, Any]:
    """Return (parameters' owner, its function of x, its inputs to the activation, its way down)."""
    import torch
    import torch.nn.functional as F

    if kind == "bert":
        up, down = module.BertIntermediate(config).double(), torch.nn.Linear(_HIDDEN, _WIDTH).double()
        return (torch.nn.ModuleList([up, down]), lambda x: down(up(x)), lambda x: (up.dense(x),), down)
    if kind == "gpt2":
        block = module.GPT2MLP(_HIDDEN, config).double().eval()
        return block, block, lambda x: (block.c_fc(x),), block.c_proj
    if kind == "gpt_oss":
        block = module.GptOssExperts(config).double()
        route, weight = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.float64)

        def packed(x: Any) -> Any:
            both = x @ block.gate_up_proj[0] + block.gate_up_proj_bias[0]
            return both[..., ::2], both[..., 1::2]

        return (block, lambda x: block(x, route.expand(len(x), 1), weight.expand(len(x), 1)), packed,
                lambda h: F.linear(h, block.down_proj[0].T, block.down_proj_bias[0]))
    name = next(n for n in dir(module) if n.endswith("MLP"))
    block = getattr(module, name)(config).double()
    return block, block, lambda x: (block.gate_proj(x), block.up_proj(x)), block.down_proj


def block(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration's word, and how far the block's output is from that of each of our activations."""
    import torch
    import transformers

    from nonlin.functional import activation

    _, kind, config_name, key = FAMILIES[config["family"]]
    sizes = {"hidden_size": _WIDTH, "intermediate_size": _HIDDEN} if kind != "gpt2" else {"n_embd": _WIDTH}
    made = getattr(transformers, config_name)(**sizes, **({"num_local_experts": 1} if kind == "gpt_oss" else {}))
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    owner, run, inputs, down = _block(module, made, kind)
    random = torch.Generator().manual_seed(config["seed"])
    with torch.no_grad():
        for parameter in owner.parameters():  # inputs of the activation reach beyond every clamp
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
        x = torch.randn(256, _WIDTH, generator=random, dtype=torch.float64)
        out, parts = run(x), inputs(x)
        names = PLAIN if len(parts) == 1 else GATED
        errors = {n: float((down(activation(n)(*parts)) - out).abs().max() / out.abs().max()) for n in names}
    return {"says": getattr(made, key), "errors": errors, "transformers": transformers.__version__}


EXPERIMENTS = {"block": block}


def measure(found: Found) -> dict[str, Any]:
    """Return for each family what its configuration says, and the activation whose output its block has."""
    rows = {}
    for run in experiments(found.plan):
        measured = found.record(run)["measured"]
        name = run.config["family"]
        equal = [n for n, error in measured["errors"].items() if error < SAME]
        rows[name] = {"claimed": FAMILIES[name][0], **measured, "is": equal[0] if len(equal) == 1 else None}
    return {"families": rows, "missing": missing()}


def decide(measures: Mapping[str, Any]) -> Verdict:
    """Apply the rule."""
    rows = measures["families"]
    if not rows:
        return Verdict(OPEN, f"Not run: {measures['missing']}.")
    claimed = {name: row for name, row in rows.items() if row["claimed"]}
    exact = [name for name, row in claimed.items() if row["is"] == row["claimed"]]
    variant = {name: row["is"] for name, row in claimed.items()
               if name not in exact and row["is"] in VARIANTS[row["claimed"]]}
    wrong = [name for name in claimed if name not in exact and name not in variant]
    variants = ", ".join(f"{n} computes {v}" for n, v in variant.items())
    others = ", ".join(f"{n} ({rows[n]['is'] or 'none of ours'})" for n in wrong)
    summary = (f"Exactly as said: {', '.join(exact) or 'none'}." + (f" A variant: {variants}." if variant else "")
               + (f" Something else: {others}." if wrong else "") + " GPT-2 is a GPT: not all of that name are gated.")
    if wrong:
        return Verdict(FAILS, summary)
    if variant:
        return Verdict(DEPENDS, summary, "which variant is meant by the name")
    return Verdict(HOLDS, summary)


def figure(measures: Mapping[str, Any]) -> Figure:
    """The difference of each block's output from each candidate's."""
    rows = measures["families"]
    made, axes = draw.figure(0.9 + 0.42 * max(1, len(rows)))
    for i, row in enumerate(rows.values()):
        for candidate, error in row["errors"].items():
            hit = candidate == row["is"]
            at, paint = (max(error, 1e-17), i), draw.colour("gelu" if hit else "")
            axes.plot(*at, "D" if hit else "o", color=paint, ms=8 if hit else 4)
            if hit:
                axes.annotate(candidate, at, xytext=(9, -3), textcoords="offset points", fontsize=9)
        axes.annotate(f"configuration: {row['says']}", (20, i), xytext=(0, -3), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(1e-18, 1e8)  # errors end at about 1; the words stand right of them
    axes.set_xticks([10.0 ** e for e in range(-18, 1, 3)])
    axes.axvline(SAME, color=draw.MUTED, lw=1, ls="--")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("largest difference of the block's output, relative")
    return made


def table(measures: Mapping[str, Any]) -> Table:
    """Every family's word, activation, and the nearest other one."""
    out = []
    for name, row in measures["families"].items():
        other = min((n for n in row["errors"] if n != row["is"]), key=lambda n: row["errors"][n])
        out.append([name, row["claimed"] or "–", row["says"], row["is"] or "none of ours",
                    f"{row['errors'][row['is']]:.0e}" if row["is"] else "–", f"{other} ({row['errors'][other]:.0e})"])
    return ["family", "the statement says", "the configuration says", "the block computes", "difference",
            "nearest other"], out


CLAIM = Claim(
    number=13, slug="models",
    statement="BERT and GPT-2 use GELU; Qwen, LLaMA and GPT use SwiGLU.",
    background="Names of activations hide variants: GELU has an exact form and one by tanh, SwiGLU one with clamps "
    "and a steeper gate. Swapping them in a trained model changes its outputs.",
    tested="For each family the feed-forward block of the installed transformers is made with random weights, in "
    f"double precision, and its output compared with the same block computed with each of {len(PLAIN)} plain or "
    f"{len(GATED)} gated activations of nonlin. The configuration's name for it is shown beside.",
    rule=f"A block computes an activation where the outputs agree within {SAME:g} of the largest, and with no other. "
    "All families exactly as said: holds; some by a variant (another form of GELU; SwiGLU with clamps): depends; one "
    "by something else: fails.",
    change="Other members of a family may differ: the first GPT and closed models cannot be looked at here; Gemma and "
    "T5 v1.1 gate with GELU.",
    caption="Each dot is a candidate's difference from what the model's block computes; the diamond is the one that "
    "agrees to rounding.",
    experiments=experiments, measure=measure, decide=decide, draw=figure, table=table, missing=missing)
