"""Plans and records for the tests: whole studies whose losses are planted, run through the real tuning and rules."""

import hashlib
import math

from nonlin.claims.definition import Found
from nonlin.claims.plan import make
from nonlin.study.tuning import complete, trials_of

SIZES = ("XS", "S", "M", "L", "tandem")
MACHINE = {"engine": "torch", "dtype": "float32", "threads": 1, "device": "cpu"}
DATA = {"sha256": "0" * 64, "tokenizer": "bytes", "description": "nothing", "train_tokens": 10_000_000,
        "train_bytes": 10_000_000, "paths": []}


def plan(minutes=20, seed=0):
    """The plan of a machine as fast as the one the defaults were measured on."""
    speeds = {f"{size} {arm}": {"tokens_per_second": 50_000.0, "seconds_overhead": 0.1}
              for size in SIZES for arm in ("gelu", "swiglu")}
    return make({"minutes": minutes, "seed": seed, "rules": {}}, speeds, MACHINE, DATA, workers=2)


def noise(*what):
    """A number from -1 to 1 that depends on these values alone."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return (int.from_bytes(digest[:8], "big") / 2**64 - 0.5) * 2


def loss(config, effect, scale=0.001, best=0.01):
    """Bits per byte: noise of the seed that all arms share, noise of the run, what a wrong rate costs, the effect."""
    seed, rate = config["seed"], config["training"]["learning_rate"]
    far = min(2.0, 0.05 * math.log(rate / best) ** 2)
    own = noise(config["activation"]["name"], seed, rate, sorted(config["model"].items()))
    return 2.0 + far + 0.02 * noise(seed) + scale * own + effect(config)


def records(plan_, names, effect, diverged=lambda config: False, **options):
    """Records of every trial of these studies, the losses planted by ``effect`` of a configuration."""
    found = {}
    for name in names:
        study = plan_.study(name)
        while not complete(study, found):
            for stage in ("tune", "judge"):
                for trial in trials_of(study, stage, found):
                    lost = diverged(trial.config)
                    value = None if lost else loss(trial.config, effect, **options)
                    found[trial.key] = {
                        "status": "diverged" if lost else "finished", "bits_per_byte": value,
                        "initial_bits_per_byte": 8.0, "best_bits_per_byte": value, "spike_score": 0.0,
                        "parameters": trial.config["model"]["dim"] ** 2,
                        "hidden": 1, "flops_per_token": 1, "dead_share": 0.0, "sparsity": 0.0, "layers": None,
                        "timing": {"tokens_per_second": 1.0, "seconds": 1.0, "peak_memory_bytes": 1}}
    return found


def found(claim, effect, lines=lambda key: (), extra=None, **options):
    """What a claim reads where its studies' losses are planted."""
    made = plan()
    return Found(made, records(made, claim.studies, effect, **options) | (extra or {}), lines)


def activation(**effects):
    """An effect of the activation alone."""
    return lambda config: effects.get(config["activation"]["name"], 0.0)
