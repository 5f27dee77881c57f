"""An architecture of ``transformers`` at other sizes: its configuration there, and its parameters by width and layer.

Layers, width, heads, key-value heads and feed-forward width change in the configuration's own ratios; the width of a
head is given. Built models, which take no memory, prove that the rest follows. Twice the width doubles every side of
every matrix inside, and layers add alike. W is the width of a head, P the layers that a pattern of layers repeats
after.
"""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from nonlin.errors import UserError, rule, told
from nonlin.patching import bounded
from nonlin.patching.finding import some_blocks
from nonlin.subject import building, configuration
from nonlin.subject.naming import pattern

_CALL = "ladder"
_STEP = 1.1  # between two widths of a table
_ROUNDING = 0.2  # of a side that is rounded to whole units
_WIDEST = 400.0  # the cube of a width over a model's parameters, beyond what is customary
_ROUNDED = 8  # hidden widths are multiples of it
_BY_HEAD = ("rotary_dim", "query_pre_attn_scalar")  # fields in units of a head's width


def sizes(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"config", "class", "sha256", "period", "fixed", "rows"} of the architecture that is wanted.

    ``request``: wanted (see :func:`nonlin.subject.wanted`), vocabulary, context, head_width, largest (parameters). Each
    row has a width with its heads and key-value heads, and counts of parameters: "embeddings", output weights ("head"),
    "outside" the layers, "layers" of one period. "fixed" are the patterns of vectors that do not grow with
    the width. UserError for an architecture that nonlin cannot give other sizes.
    """
    whole = _whole(request["wanted"], request["vocabulary"], request["context"])
    found = described(whole)
    whole = whole | {"sha256": found["sha256"], "name": found["class"]}
    unit = _unit(whole, request["head_width"])
    fixed = _must_scale(whole, unit, request["head_width"])
    rows, dim = [], unit
    while True:
        row = _row(whole, dim, request["head_width"])
        if rows and (row["outside"] + row["layers"] > request["largest"] or dim**3 > _WIDEST * request["largest"]):
            break
        rows.append(row)
        dim = max(dim + unit, math.ceil(dim * _STEP / unit) * unit)
    return {**{key: whole[key] for key in ("config", "class", "sha256", "period")}, "fixed": fixed, "rows": rows}


def described(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the whole configuration, as :func:`nonlin.subject.configuration.described` has it."""
    return configuration.described({"config": whole["config"]})


def scaled(architecture: Mapping[str, Any], layers: int, dim: int, heads: int, kv_heads: int, head_width: int
           ) -> dict[str, Any]:
    """Return the values of the architecture's configuration at a size."""
    values = architecture["config"]
    config = configuration.configuration(values)
    renamed = getattr(type(config), "attribute_map", {})
    width = getattr(config, "hidden_size", None)
    made = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": heads,
            **configuration.decoder(config, layers, heads)}
    if isinstance(getattr(config, "num_key_value_heads", None), int):
        made["num_key_value_heads"] = kv_heads
    if configuration.sets_heads(config):
        made["head_dim"] = head_width
    for name in configuration.HIDDEN:
        hidden = getattr(config, name, None)
        if isinstance(hidden, int) and isinstance(width, int):
            made[name] = max(_ROUNDED, round(dim * hidden / width / _ROUNDED) * _ROUNDED)
    for name in _BY_HEAD:
        value = getattr(config, name, None)
        if isinstance(value, int):
            made[name] = max(1, round(value * head_width / _head_width(config)))
    made |= {key: (value * layers)[:layers] for key, value in _by_layer(values, config.num_hidden_layers)}
    return values | {renamed.get(key, key): value for key, value in made.items()}


def _whole(wanted: Mapping[str, Any], vocabulary: int, context: int) -> dict[str, Any]:
    """Return the configuration and its proportions, at its own size."""
    if "name" in wanted:
        wanted = {**wanted, "sizes": configuration.sizes_by_default(wanted["name"], vocabulary, context)}
    shown = str(wanted.get("name", wanted.get("path", "the configuration")))
    found = configuration.described(wanted)
    cls: Any = building.model_class(found)
    config = configuration.for_class(cls, found["config"])
    values = configuration.values_of(config) | {"architectures": [found["class"]]}
    whole = {"config": values, "class": found["class"]}
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    got: dict[str, Any] = {name: getattr(config, name, None) for name in names}
    if missing := [name for name, value in got.items() if not isinstance(value, int) or value < 1]:
        raise UserError(rule(_CALL, "model", "have a width, layers and attention heads that its configuration sets",
                             f"{shown} ({found['class']}), without {' and '.join(missing)}",
                             "Run nonlin compare --model at each size."))
    heads = got["num_attention_heads"]
    shared = getattr(config, "num_key_value_heads", None) or heads
    if heads % shared:
        raise UserError(rule(_CALL, "model", "have heads that are a multiple of its key-value heads",
                             f"{heads} and {shared}", "Correct its configuration."))
    return whole | {"period": _period(values, got["num_hidden_layers"]), "heads_a_kv": heads // shared,
                    "inner": Fraction(heads * _head_width(config), got["hidden_size"])}


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _by_layer(values: Mapping[str, Any], layers: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield the fields that say something of each layer."""
    for key, value in values.items():
        if "layer" in key and isinstance(value, list) and len(value) == layers:
            yield key, value


def _period(values: Mapping[str, Any], layers: int) -> int:
    """Return P; UserError where layers follow no pattern that could be continued."""
    lists = dict(_by_layer(values, layers))
    for period in range(1, max(1, layers // 2) + 1):
        if all(value == (value[:period] * layers)[:layers] for value in lists.values()):
            return period
    raise UserError(rule(_CALL, "model", "have layers in a pattern that repeats, to be continued at other depths",
                         f"{' and '.join(lists)} of {layers} layers without one",
                         "Run nonlin compare --model at each size."))


def _unit(whole: Mapping[str, Any], head_width: int) -> int:
    """Return the width that all widths are multiples of, so that heads and key-value heads are whole."""
    return math.lcm(Fraction(whole["inner"], head_width * whole["heads_a_kv"]).denominator, _ROUNDED)


def _shape(whole: Mapping[str, Any], layers: int, dim: int, head_width: int) -> dict[str, int]:
    heads = int(whole["inner"] * dim / head_width)
    return {"layers": layers, "dim": dim, "heads": heads, "kv_heads": heads // whole["heads_a_kv"],
            "head_width": head_width}


def _built(whole: Mapping[str, Any], layers: int, dim: int, head_width: int) -> Any:
    """Return the model of a size, without memory; UserError where it cannot be built."""
    shape = _shape(whole, layers, dim, head_width)
    try:
        cls = building.model_class(whole)
        with torch.device("meta"), building.quiet(), bounded.at_most(bounded.NUMBERS):
            return cls(configuration.for_class(cls, scaled(whole, **shape)))
    except (Exception, SystemExit) as error:  # classes check their fields, and divide, in their own ways
        raise UserError(f"{_CALL}: model must be one that can be built at other sizes; {whole['class']} of {layers} "
                        f"layers of width {dim} raised {told(error, 200)}. "
                        "Run nonlin compare --model at each size.") from error


def _head(model: Any) -> Any:
    return getattr(model, "get_output_embeddings", lambda: None)()


def embeddings_of(model: Any) -> set[str]:
    """Return the names of the parameters that count as embeddings: of tokens, of positions, and the output weights."""
    modules = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if (head := _head(model)) is not None:
        modules.append(head)
    known = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in known}


def _inside(model: Any) -> dict[str, torch.Size]:
    outer = embeddings_of(model)
    return {name: p.shape for name, p in model.named_parameters() if name not in outer}


def _count(shapes: Mapping[str, torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes.values())


def _row(whole: Mapping[str, Any], dim: int, head_width: int) -> dict[str, Any]:
    """Return a width's counts of parameters."""
    one, two = (_built(whole, n * whole["period"], dim, head_width) for n in (1, 2))
    inside = _count(_inside(one))
    layers = _count(_inside(two)) - inside
    shape = _shape(whole, 1, dim, head_width)
    return {"dim": dim, "heads": shape["heads"], "kv_heads": shape["kv_heads"], "outside": inside - layers,
            "layers": layers, "embeddings": sum(p.numel() for p in one.parameters()) - inside,
            "head": 0 if _head(one) is None else _head(one).weight.numel()}


def _must_scale(whole: Mapping[str, Any], unit: int, head_width: int) -> list[str]:
    """Return the patterns of vectors that do not grow with the width.

    Raises UserError for a mixture of experts, and where width and depth do not change what they should.
    """
    dim, period = 4 * unit, whole["period"]
    small = _built(whole, period, dim, head_width)
    mixture = next((b for b in some_blocks(small, _CALL, "model", whole["class"]) if b.experts), None)
    if mixture is not None:
        raise UserError(rule(
            _CALL, "model", "be a dense one", f"{whole['class']}, a mixture of {mixture.experts} experts "
            f"({mixture.name}): its parameters and those that a token goes through are two sizes, and a forecast and "
            "the tokens of a run need one", "Run nonlin compare --model at each size."))
    narrow, wide = _inside(small), _inside(_built(whole, period, 2 * dim, head_width))
    for name, shape in narrow.items():
        sides = list(zip(shape, wide.get(name, ()), strict=False))
        grows = [abs(b / a - 2) <= _ROUNDING for a, b in sides]
        if len(sides) != len(shape) or (len(shape) > 1 and not all(grows)) or not all(
                g or a == b for g, (a, b) in zip(grows, sides, strict=True)):
            raise UserError(rule(
                _CALL, "model", "have a configuration whose width sets every width inside", f"{whole['class']}: at "
                f"twice the width, {name} goes from {tuple(shape)} to {tuple(wide.get(name, ()))}",
                "Run nonlin compare --model at each size."))
    counts = [_count(_inside(_built(whole, n * period, dim, head_width))) for n in (2, 3)]
    if counts[1] - counts[0] != counts[0] - _count(narrow):
        raise UserError(rule(_CALL, "model", "have layers that add alike", whole["class"],
                             "Run nonlin compare --model at each size."))
    return sorted({pattern(name) for name, shape in narrow.items() if wide[name] == shape})
