"""One recipe for models of other sizes: rates, initial scales, epsilon and decay by parameter group. Loads no torch.

CompleteP (arXiv:2505.01618, table 1, α = 1) multiplies each branch by 1/m_L and the logits by 1/m_N. m_N is the width
and m_L the depth in units of a base model's. For normalized queries and keys and for longer runs it follows
arXiv:2512.22382. To AdamW, a multiplier c in front of a matrix is a matrix c times as large. Its rate is c times the
other's, its epsilon 1/c. It is done so here, and the model stays the one that any library computes. Decay is
independent of the rate (arXiv:2510.19093): its share of a step is that of the base's rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nonlin.errors import UserError, rule, unknown_name

RULES = ("completep",)
_SHAPE = ("layers", "dim", "heads", "kv_heads")
_HORIZON = 0.3  # the exponent of the rate's fall with the tokens of a run


@dataclass(frozen=True)
class Group:
    """The factors of a role's parameters: on the peak rate, on the initial values, on epsilon.

    ``decays`` says whether the recipe's weight decay takes them at all.
    """

    rate: float = 1.0
    initial: float = 1.0
    epsilon: float = 1.0
    decays: bool = False


def transfer_of(rule_name: str, base: Mapping[str, Any], learning_rate: float) -> dict[str, Any]:
    """Return the "transfer" of a recipe: the rule, the base's shape, and the rate that weight decay is measured in.

    ``base``: layers, dim, heads, kv_heads; with "tokens", those of its runs, rates fall with (base / own) ** 0.3.
    """
    made = {"rule": rule_name, "base": {name: base[name] for name in (*_SHAPE, "tokens") if name in base},
            "learning_rate": learning_rate}
    check(made)
    return made


def check(transfer: Mapping[str, Any]) -> None:
    """Raise UserError for what is no transfer."""
    if transfer.get("rule") not in RULES:
        raise unknown_name("rule of transfer", str(transfer.get("rule")), RULES)
    base, rate = transfer.get("base", {}), transfer.get("learning_rate", 0)
    numbers = [base.get(name, 0) for name in _SHAPE] + [base.get("tokens", 1)]
    if set(base) - {*_SHAPE, "tokens"} or not all(isinstance(one, int) and one > 0 for one in numbers):
        raise UserError(rule("transfer", "base", f"have {', '.join(_SHAPE)}, and may have tokens, as whole numbers",
                             dict(base), "Describe the model that rates were tuned on."))
    if not (isinstance(rate, int | float) and 0 < rate < float("inf")):
        raise UserError(rule("transfer", "learning_rate", "be positive and finite", rate, "Give the base's."))


def check_model(transfer: Mapping[str, Any], training: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Raise UserError where the rule is not known for a model, or for the recipe's optimizer."""
    base = transfer["base"]
    plain = (model.get("attention", True), model.get("norm", "rms"), model.get("norm_place", "before"))
    if "own" in model or plain != (True, "rms", "before"):
        raise UserError(rule("transfer", "model", "be nonlin's small model", "another one", "Leave --transfer out."))
    if training.get("optimizer", "adamw") != "adamw":
        raise UserError(rule("transfer", "optimizer", "be adamw: the rule is Adam's", training["optimizer"],
                             "Leave --transfer or --optimizer out."))
    if model["heads"] * base["kv_heads"] != model["kv_heads"] * base["heads"]:
        raise UserError(rule("transfer", "kv_heads",
                             f"be to heads as the base's, {base['kv_heads']} to {base['heads']}",
                             f"{model['kv_heads']} to {model['heads']}", "Take another --kv-heads or --heads."))


def ratios(transfer: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[float, float]:
    """Return (m_N, m_L), a model's width and depth in its base's."""
    base = transfer["base"]
    return model["dim"] / base["dim"], model["layers"] / base["layers"]


def horizon(transfer: Mapping[str, Any], tokens: int) -> float:
    """Return the factor on all rates of a run of so many tokens, (T₀/T)^0.3.

    >>> base = {"layers": 2, "dim": 64, "heads": 2, "kv_heads": 2, "tokens": 1000}
    >>> round(horizon(transfer_of("completep", base, 0.01), 10_000), 4)
    0.5012
    """
    base = transfer["base"].get("tokens")
    return 1.0 if base is None else (base / tokens) ** _HORIZON


def groups(transfer: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Group]:
    """Return the factors of each role (see :func:`role_of`) of a model's parameters.

    All are 1 where the model has its base's shape. Initial values are in units of those that a model of this shape has
    without a transfer. Those are 1/√(inputs), and 1/√(2 layers) of that into the residual.

    >>> base = {"layers": 2, "dim": 64, "heads": 2, "kv_heads": 2}
    >>> groups(transfer_of("completep", base, 0.01), base | {"dim": 128, "heads": 4, "layers": 4})["residual"]
    Group(rate=0.25, initial=0.7071067811865476, epsilon=0.5, decays=True)
    """
    m_N, m_L = ratios(transfer, model)
    base = transfer["base"]
    width = (base["dim"] / base["heads"]) * model["heads"] / model["dim"]  # of a head, inverted: 1 where it is the same
    logits = 1 / m_N  # the multiplier of the output weights, or of the last norm where they are the embedding
    head, last = (1.0, logits) if model.get("tied") else (logits, 1.0)
    inside = 1 / (m_N * m_L)
    return {
        "embedding": Group(1.0, 1.0, 1 / m_N, True),
        "head": Group(head, head, 1 / m_N / head, True),
        "hidden": Group(1 / m_N, 1.0, inside, True),
        "residual": Group(1 / (m_N * m_L), m_L ** -0.5, inside * m_L, True),
        "norm": Group(1.0, 1.0, inside),
        "query norm": Group(width ** 0.5, width ** 0.5, 1 / m_L / width ** 0.5),
        "key norm": Group(1.0, 1.0, 1 / m_L),
        "last norm": Group(last, last, 1 / m_N / last),
        "activation": Group(1.0, 1.0, 1 / m_L),
    }


_ENDINGS = {
    "attention.o.weight": "residual", "feed_forward.down.weight": "residual", "q_norm.weight": "query norm",
    "k_norm.weight": "key norm", "attention_norm.weight": "norm", "feed_forward_norm.weight": "norm"}


def role_of(name: str) -> str:
    """Return the role of a parameter of the small model by its name.

    >>> role_of("blocks.0.attention.q.weight"), role_of("blocks.1.feed_forward.activation.beta"), role_of("norm.weight")
    ('hidden', 'activation', 'last norm')
    """
    whole = {"embedding.weight": "embedding", "head.weight": "head", "norm.weight": "last norm"}
    if name in whole:
        return whole[name]
    if ".activation." in name:
        return "activation"
    return next((role for ending, role in _ENDINGS.items() if name.endswith(ending)), "hidden")


def describe(transfer: Mapping[str, Any], model: Mapping[str, Any], tokens: int) -> str:
    """Return a transfer in words."""
    (m_N, m_L), base, fall = ratios(transfer, model), transfer["base"], horizon(transfer, tokens)
    return (f"Transfer: CompleteP from {base['layers']} layers of width {base['dim']}: width × {m_N:.3g}, depth × "
            f"{m_L:.3g}{f', rates × {fall:.3g} for the length of the runs' if fall != 1 else ''}; rates, initial "
            f"values and epsilon by group, weight decay independent of the rate.")
