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
from nonlin.subject.naming import in_family, pattern

RULES = ("completep",)
_SHAPE = ("layers", "dim", "heads", "kv_heads")
_MORE = ("tokens", "std")
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

    ``base``: layers, dim, heads, kv_heads; with "tokens", those of its runs, rates fall with (base / own) ** 0.3. In a
    user's own model "std" has the standard deviations that the base's matrices are drawn with, by the patterns of their
    names (see :mod:`nonlin.subject.roles`).
    """
    made = {"rule": rule_name, "base": {name: base[name] for name in (*_SHAPE, *_MORE) if name in base},
            "learning_rate": learning_rate}
    check(made)
    return made


def check(transfer: Mapping[str, Any]) -> None:
    """Raise UserError for what is no transfer."""
    if transfer.get("rule") not in RULES:
        raise unknown_name("rule of transfer", str(transfer.get("rule")), RULES)
    base, rate = transfer.get("base", {}), transfer.get("learning_rate", 0)
    numbers = [base.get(name, 0) for name in _SHAPE] + [base.get("tokens", 1)]
    if set(base) - {*_SHAPE, *_MORE} or not all(isinstance(one, int) and one > 0 for one in numbers):
        raise UserError(rule("transfer", "base", f"have {', '.join(_SHAPE)}, and may have tokens, as whole numbers",
                             dict(base), "Describe the model that rates were tuned on."))
    if not (isinstance(rate, int | float) and 0 < rate < float("inf")):
        raise UserError(rule("transfer", "learning_rate", "be positive and finite", rate, "Give the base's."))


def check_model(transfer: Mapping[str, Any], training: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Raise UserError where the rule is not known for a model, or for the recipe's optimizer."""
    if training.get("optimizer", "adamw") != "adamw":
        raise UserError(rule("transfer", "optimizer", "be adamw: the rule is Adam's", training["optimizer"],
                             "Leave --transfer or --optimizer out."))
    base = transfer["base"]
    if "own" in model and "roles" in model["own"] and "std" in base:
        return  # a ladder keeps the ratio of heads
    plain = (model.get("attention", True), model.get("norm", "rms"), model.get("norm_place", "before"))
    if "own" in model or plain != (True, "rms", "before"):
        raise UserError(rule("transfer", "model", "be nonlin's small model", "another one", "Leave --transfer out."))
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
    without a transfer. Those are 1/√(inputs), and 1/√(2 layers) of that into the residual. In a user's
    own model they are in those of the base (see :func:`initial_factor`).

    >>> base = {"layers": 2, "dim": 64, "heads": 2, "kv_heads": 2}
    >>> groups(transfer_of("completep", base, 0.01), base | {"dim": 128, "heads": 4, "layers": 4})["residual"]
    Group(rate=0.25, initial=0.7071067811865476, epsilon=0.5, decays=True)
    """
    m_N, m_L = ratios(transfer, model)
    own, base = model.get("own"), transfer["base"]
    heads = base["heads"] * m_N if own else model["heads"]  # an own model's are as wide as the base's
    width = (base["dim"] / base["heads"]) * heads / model["dim"]  # of a head, inverted: 1 where it is the same
    logits = 1 / m_N  # the multiplier of the output weights, or of the last norm where they are the embedding
    head, last = (1.0, logits) if (own["roles"]["tied"] if own else model.get("tied")) else (logits, 1.0)
    hidden, residual = (m_N ** -0.5, m_N ** -0.5 / m_L) if own else (1.0, m_L ** -0.5)
    inside = 1 / (m_N * m_L)
    return {
        "embedding": Group(1.0, 1.0, 1 / m_N, True),
        "head": Group(head, head, 1 / m_N / head, True),
        "head bias": Group(),
        "hidden": Group(1 / m_N, hidden, inside, True),
        "residual": Group(1 / (m_N * m_L), residual, inside * m_L, True),
        "residual bias": Group(1 / m_L, 1 / m_L, inside * m_L),
        "residual norm": Group(1 / m_L, 1 / m_L, inside * m_L),
        "norm": Group(1.0, 1.0, inside),
        "query norm": Group(width ** 0.5, width ** 0.5, 1 / m_L / width ** 0.5),
        "key norm": Group(1.0, 1.0, 1 / m_L),
        "first norm": Group(1.0, 1.0, 1 / m_N),
        "last norm": Group(last, last, 1 / m_N / last),
        "activation": Group(1.0, 1.0, 1 / m_L),
    }


def role_in(model: Mapping[str, Any], name: str) -> str:
    """Return the role of a parameter of a model by its name: of the small model, or of a user's own."""
    if "own" not in model:
        return role_of(name)
    found = in_family(name, model["own"])
    known = model["own"]["roles"]["parameters"].get(pattern(found))
    if known is not None:
        return known[0]
    if "activation." in found:
        return "activation"
    return "norm" if found.endswith("bias") else "hidden"  # of a gate that the family has not


def initial_factor(transfer: Mapping[str, Any], model: Mapping[str, Any], name: str) -> float:
    """Return the factor on a parameter's initial values, as the model was drawn.

    A family draws a matrix of a user's own model with a standard deviation of its own at each size. The factor brings
    that to the one that the rule makes of the base's. A gate that the family has not is drawn as the matrix beside it.
    """
    factor = groups(transfer, model)[role_in(model, name)].initial
    if "own" not in model:
        return factor
    drawn, base = model["own"]["roles"]["parameters"], transfer["base"]["std"]
    at = pattern(in_family(name, model["own"]))
    if at not in drawn and role_in(model, name) == "hidden":
        at = max((one for one, (role, _) in drawn.items() if role == "hidden"), key=lambda one: _shared(one, at))
    std = drawn.get(at, (None, None))[1]
    return factor if not std else factor * base[at] / std


def _shared(one: str, other: str) -> int:
    """Return how many characters two names begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def standard_deviations(own: Mapping[str, Any]) -> dict[str, float]:
    """Return what a base's matrices are drawn with, from the description of its model."""
    return {name: std for name, (_, std) in own["roles"]["parameters"].items() if std}


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
