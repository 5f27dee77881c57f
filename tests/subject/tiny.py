"""Small subjects, described once, and runs' configurations of them."""

import functools
import json
from typing import Any

from tests.patching.families import FAMILIES

VOCABULARY, CONTEXT = 64, 16
ARMS = ("swiglu", "relu", "gelu", "geglu", "prelu")


def configuration(name: str, **changes: Any) -> dict[str, Any]:
    """Return the JSON values of a small family's configuration."""
    import transformers

    family = FAMILIES[name]
    config = getattr(transformers, family.config)(**(family.settings | changes))
    return json.loads(json.dumps(config.to_dict())) | {"architectures": [family.model]}


def request(wanted: dict[str, Any], match: str = "params", arms: tuple[str, ...] = ARMS, **values: Any
            ) -> dict[str, Any]:
    """Return a request to describe what is wanted."""
    return {"wanted": wanted, "vocabulary": VOCABULARY, "context": CONTEXT, "rows": 2, "match": match, "seed": 1,
            "arms": [{"name": arm} for arm in arms], **values}


@functools.cache
def described(name: str, match: str = "params") -> Any:
    """Return the description of a small family's model and its arms."""
    from nonlin.subject import describe

    return describe(request({"config": configuration(name)}, match))


def run_config(found: dict[str, Any], arm: str, seed: int = 1, **machine: Any) -> dict[str, Any]:
    """Return what a run of an arm builds its model from."""
    widths = next(a["widths"] for a in found["arms"] if a["name"] == arm)
    return {"seed": seed, "model": {"own": found["own"], "widths": widths, "context": found["context"]},
            "machine": {"dtype": "float32", **machine}}
