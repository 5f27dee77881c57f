"""A subject's description: what is built, where its blocks are, how each is replaced, what that costs.

All of it is proved here, once, on a model in memory. The model runs on tokens alone and looks at none that come later.
Each replacement computes the same as the block under the family's own activation. The arms' models are equal outside
their blocks.
"""

import gc
import itertools
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nonlin.errors import UserError, rule
from nonlin.functions import Definition, define, get
from nonlin.functions.registry import gated_by
from nonlin.patching import bounded
from nonlin.patching.blocks import Block
from nonlin.patching.finding import find_convolved, some_blocks
from nonlin.patching.loading import refuse
from nonlin.patching.location import located
from nonlin.patching.replacements import class_name, replacements_of
from nonlin.patching.verify import Replacement
from nonlin.subject import building, configuration, entering, packing, stacking
from nonlin.subject.asking import folder_of
from nonlin.subject.looking import TOKENS, Look
from nonlin.subject.model import must_fit_context, outside_hash
from nonlin.subject.owning import not_own
from nonlin.subject.roles import roles
from nonlin.subject.sizes import scaled
from nonlin.subject.widths import arm_widths, block_parameters, flops_per_token

_CALL = "compare"
_SAMPLING = 4.5  # standard errors that two samples of one std may lie apart
_CONSTANT = 1e-8  # std of a bias that is one number everywhere
_UNUSED = "tokens alone do not pass through it"
_BYTES = {"kind": "bytes", "ends": [0]}
_CONTEXT = 512  # tokens per sequence, where nobody says how many and the model has the positions


def describe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"own": the description, "arms": [what each arm's model is]} of what a study asks for.

    ``request``: wanted (see :func:`nonlin.subject.wanted`), vocabulary, context, rows (sequences at once), match, seed,
    arms (name, formula), options, packing and tokenizer (see :func:`nonlin.subject.packing.chosen`), memory_bytes.
    With "fixed" in what is wanted (see :func:`nonlin.subject.roles.roles`) the description has the parameters' roles.
    Raises UserError for a model that no study can be made in.
    """
    own = _whole(request["wanted"], request.get("options", {}))
    definitions = [define(a["name"], a["formula"]) if a.get("formula") else get(a["name"]) for a in request["arms"]]
    _must_fit_memory(_count(own), own, request)
    model = _family(own).eval()
    look = Look(model, own, request["vocabulary"], request["context"] or TOKENS)
    own |= look.facts()
    if unused := getattr(model, "nonlin_unused", []):
        own["checkpoint"]["unused"] = unused
    context = look.context = request["context"] or min(_CONTEXT, own["positions"] or _CONTEXT)
    must_fit_context(context, own)
    own["packing"] = packing.chosen(look, request.get("packing"), request.get("tokenizer", _BYTES))
    found, left = _replacements(model, look)
    own["blocks"] = _grouped([_described(one, look) for one in found], bool(own.get("checkpoint")))
    own["left"] = _reasons(left)
    own["outside"] = look.outside([one["block"] for one in found])
    if "fixed" in request["wanted"]:
        own["roles"] = roles(model, look, own, request["wanted"]["fixed"])
    if own.get("checkpoint"):
        _must_take(definitions, own)
    else:
        _must_fit_memory(max(_parameters(own, d, request["match"]) for d in definitions), own, request)
    alive = weakref.ref(model)
    del model, look, found
    _free(alive)
    return {"own": own, "context": context, "arms": _arms(own, definitions, request["match"], request["seed"])}


def _whole(wanted: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if "factory" in wanted:
        own = {"kind": "factory", "name": wanted["factory"]["name"], "factory": dict(wanted["factory"])}
    else:
        if "shape" in wanted:  # an architecture at a size
            wanted = {"config": scaled(wanted, **wanted["shape"])}
        found = configuration.described(wanted)
        own = {"kind": "transformers", "name": found["class"], **found}
        if wanted.get("checkpoint"):
            folder = folder_of(wanted["path"])
            located(folder, False, _CALL)  # which refuses weights that are damaged, pickled or quantized
            own["checkpoint"] = {"folder": str(folder), "sha256": building.weights_hash(folder)}
    if options.get("checkpointing"):
        own["checkpointing"] = True
    if options.get("compile", "auto") != "auto":
        own["compile"] = options["compile"]
    return own


def _count(own: Mapping[str, Any]) -> int | None:
    """Return the number of parameters; None where that cannot be told. UserError for a model that nobody could train.
    """
    try:
        return building.count(own, bounded.at_most(bounded.NUMBERS))
    except bounded.TooLarge as error:
        raise UserError(f"{_CALL}: model must {error}. Correct the sizes in its configuration.") from error


def _family(own: Mapping[str, Any]) -> nn.Module:
    try:
        model = building.family_model(own, 0)
        refuse(model, _CALL)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a class of any maker
        what = own["name"]
        raise UserError(f"{_CALL}: model must be one that can be built; {what} raised {type(error).__name__}: "
                        f"{' '.join(str(error).split())[:200]}. Correct its "
                        f"{'weights or its ' if own.get('checkpoint') else ''}configuration.") from error
    if own.get("checkpointing") and not _checkpoints(model):
        raise UserError(rule(_CALL, "activation-checkpointing", "come with a model that can recompute its layers",
                             own["name"], "Leave it out."))
    return model


def _checkpoints(model: Any) -> bool:
    return bool(getattr(model, "is_gradient_checkpointing", False))


def _replacements(model: nn.Module, look: Look) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Return how each block is replaced, proved; and (name, class, reason) of each that stays; UserError for none."""
    blocks = {b.name: b for b in some_blocks(model, _CALL, "model", look.own["name"])}
    look.counts = look.passes(blocks.values())
    stay = [(c.name, type(c.module).__name__, "its products are convolutions of one position")
            for c in find_convolved(model)]
    why = not_own(model, blocks.values())
    why |= {name: _UNUSED for name in blocks if not look.counts.get(name)}
    replacements, left = replacements_of(model, "lean", look.run, _CALL)
    found: list[dict[str, Any]] = []
    for replacement in replacements:
        block = replacement.block
        if block.name in why:
            stay.append((block.name, class_name(block.module), why[block.name]))
        else:
            found.append(_of_recipe(replacement))
    for one in left:
        block = blocks.get(one.name)
        if block is None or block.name in why:
            stay.append((one.name, one.kind, why.get(one.name, one.reason)))
            continue
        try:
            found.append(stacking.fields(model, block) if block.experts else
                         entering.fields(model, block, look.logits, one.reason))
        except (entering.Refused, stacking.Refused) as error:
            stay.append((one.name, one.kind, str(error)))
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    found.sort(key=lambda one: order[one["block"].name])
    if not found:
        name, kind, reason = stay[0]
        raise UserError(f"{_CALL}: model must have a feed-forward block that can be replaced; {kind} ({name}) is none: "
                        f"{reason}. Pass a model whose feed-forward block is a module of its own.")
    return found, stay


def _of_recipe(replacement: Replacement) -> dict[str, Any]:
    recipe = replacement.recipe
    return {"block": replacement.block, "style": str(recipe.style), "activation": recipe.activation,
            "computes": recipe.definition.name, "gate": recipe.gate, "up": recipe.up, "down": recipe.down,
            "gate_first": recipe.gate_first, "hidden_dropout": recipe.hidden_dropout,
            "out_dropout": recipe.out_dropout, "argument": recipe.argument,
            "fused": recipe.style != "experts" and bool(recipe.fused)}


def _described(one: Mapping[str, Any], look: Look) -> dict[str, Any]:
    """Return a block's description, with its name."""
    block: Block = one["block"]
    return {"name": block.name, "class": class_name(block.module), "layout": block.layout, "gated": block.gated,
            "dim": block.dim, "hidden": block.hidden, "experts": block.experts,
            "transposed": block.up.transposed if block.stacked else False,
            **{key: value for key, value in one.items() if key != "block"},
            "biases": [role for role in ("up", "down") if block.projections[role].bias is not None],
            "std": _stds(block), "uses": round(look.counts.get(block.name, 0.0), 6)}


@torch.no_grad()
def _stds(block: Block) -> dict[str, tuple[float, int]]:
    """Return (standard deviation, count) of the family's weights by role, and what its biases begin with."""
    found: dict[str, tuple[float, int]] = {}
    for role, p in block.projections.items():
        found[role] = float(p.weight.float().std()), p.weight.numel()
        bias = p.bias
        if bias is not None and bool(bias.any()):
            spread = float(bias.float().std()) if bias.numel() > 1 else 0.0
            found[f"{role}_bias"] = spread, bias.numel()
            if spread < _CONSTANT:
                found[f"{role}_bias_mean"] = float(bias.float().mean()), 0
    for extra in ("", "_bias", "_bias_mean"):  # of a gate that the family has not
        if f"up{extra}" in found:
            found.setdefault(f"gate{extra}", found[f"up{extra}"])
    return found


def _grouped(blocks: list[dict[str, Any]], trained: bool) -> list[dict[str, Any]]:
    """Return blocks of one kind as one entry with all their names; trained weights are not drawn: none differ by std.
    """
    groups: list[tuple[dict[str, Any], list[dict[str, tuple[float, int]]]]] = []
    for block in blocks:
        name, stds = block.pop("name"), block.pop("std")
        same = next((g for g in groups if {k: v for k, v in g[0].items() if k != "names"} == block
                     and (trained or _alike(g[1][0], stds))), None)
        if same is None:
            groups.append(({"names": [name], **block}, [stds]))
        else:
            same[0]["names"].append(name)
            same[1].append(stds)
    return [group | {"std": {role: _pooled([s[role] for s in stds]) for role in stds[0]}} for group, stds in groups]


def _alike(a: Mapping[str, tuple[float, int]], b: Mapping[str, tuple[float, int]]) -> bool:
    """Whether two blocks' weights may be samples of the same standard deviations; a number that is no sample, the same.
    """
    def one(role: str) -> bool:
        (x, count), (y, _) = a[role], b[role]
        return abs(x - y) <= _SAMPLING * max(x, y) / count ** 0.5 if count else math.isclose(x, y, rel_tol=1e-6)

    return a.keys() == b.keys() and all(map(one, a))


def _pooled(samples: list[tuple[float, int]]) -> float:
    """Return the standard deviation of several samples, as the shortest decimal within their sampling error."""
    total = sum(count for _, count in samples)
    if not total:
        return float(f"{samples[0][0]:.6g}")
    std = (sum(s * s * count for s, count in samples) / total) ** 0.5
    for digits in range(1, 6):
        short = float(f"{std:.{digits}g}")
        if abs(short - std) <= _SAMPLING * std / (2 * total) ** 0.5:
            return short
    return float(f"{std:.6g}")


def _reasons(left: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    found = []
    for (kind, reason), rows in itertools.groupby(sorted(left, key=lambda r: (r[1], r[2])), key=lambda r: r[1:]):
        found.append({"names": [name for name, _, _ in rows], "class": kind, "reason": reason})
    return found


def _must_fit_memory(parameters: int | None, own: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    """Raise UserError for a model whose training takes more memory than there is, before it is built.

    In float32 that is 16 bytes per parameter (weight, gradient, two moments), and the logits with their gradient.
    """
    free = request.get("memory_bytes")
    if parameters is None or free is None:
        return
    named = own.get("config", {}).get("vocab_size")
    width = named if isinstance(named, int) else request["vocabulary"]
    logits = 8 * request["rows"] * (request["context"] or _CONTEXT) * width
    needed = 16 * parameters + logits
    if needed > free:
        raise UserError(rule(_CALL, "model", f"be trained within the {free / 2**30:.1f} GiB of memory that are free",
                             f"{parameters:,} parameters, which take {needed / 2**30:.1f} GiB with their gradients and "
                             "moments", "Take a smaller configuration, a smaller --batch, or a larger machine."))


def _parameters(own: Mapping[str, Any], definition: Definition, match: str) -> int:
    """Return the parameters of an arm's model, but for those of its activation."""
    widths = arm_widths(own, definition.gated, match)
    return own["outside"]["parameters"] + sum(len(g["names"]) * block_parameters(g, width, definition.gated)
                                              for g, width in zip(own["blocks"], widths, strict=True))


def _must_take(definitions: Sequence[Definition], own: Mapping[str, Any]) -> None:
    """Raise UserError for an activation that trained blocks cannot take, since their matrices stay, and for twins."""
    plain = next((g for g in own["blocks"] if not g["gated"]), None)
    gated = next((g for g in own["blocks"] if g["gated"]), None)
    for definition in definitions:
        if definition.gated and plain is not None:
            raise UserError(rule(_CALL, "activations", f"be pointwise with --from-checkpoint, since the trained blocks "
                                 f"({plain['names'][0]}) have no gate", definition.name, "Leave it out, or train from "
                                 "scratch."))
        if gated is not None and definition.kind not in ("gated", "pointwise"):
            raise UserError(rule(_CALL, "activations", f"be pointwise or gated with --from-checkpoint, since the "
                                 f"trained blocks ({gated['names'][0]}) have a gate", definition.name, "Leave it out, "
                                 "or train from scratch."))
    arms = [gated_by(d) if gated is not None and d.kind == "pointwise" else d for d in definitions]
    if twins := [d.name for d, arm in zip(definitions, arms, strict=True) if sum(arm.name == a.name for a in arms) > 1]:
        raise UserError(rule(_CALL, "activations", "differ with --from-checkpoint, where a pointwise one becomes the "
                             "gate's", " and ".join(twins), "Leave one out."))


def _free(model: "weakref.ref[nn.Module]") -> None:
    """Free a model of which nothing is needed, where it refers to itself: a search through all objects takes a second.
    """
    if model() is not None:
        gc.collect()


def _arms(own: Mapping[str, Any], definitions: Iterable[Definition], match: str, seed: int) -> list[dict[str, Any]]:
    """Return each arm's widths, sizes and the hash of what lies outside its blocks; NonlinError where these differ."""
    found: list[dict[str, Any]] = []
    for definition in definitions:
        widths = arm_widths(own, definition.gated, match)
        model = building.family_model(own, seed)
        replaced = building.put_arm(model, own, definition, widths, seed)
        gated = replaced[0].definition.gated
        owned = {name for block in replaced for name in block.owned}
        found.append({"name": definition.name, "widths": widths, "outside": outside_hash(model, owned),
                      "kind": replaced[0].definition.kind,
                      "parameters": sum(q.numel() for q in model.parameters()),
                      "flops_per_token": flops_per_token(own, widths, gated)})
        alive = weakref.ref(model)
        del model, replaced
        _free(alive)
    unlike = [arm["name"] for arm in found if arm["outside"] != found[0]["outside"]]
    if unlike:
        raise UserError(rule(_CALL, "model", "draw the same weights from the same seed", f"{own['name']}, which "
                             f"differs outside the blocks between {found[0]['name']} and {unlike[0]}",
                             "Let its constructor draw from torch's generator alone."))
    return found
