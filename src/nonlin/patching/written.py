"""A swapped activation in the model's configuration: written where a saved checkpoint then loads as the same function.

The model is built anew from the changed configuration and compared with the one in hand. The
configuration stays, and the note says why, if the field would change anything else (the head of BERT reads the
same one) or would not change the blocks.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nonlin.functions import Definition, get
from nonlin.patching import anew
from nonlin.patching.act2fn import held_name
from nonlin.patching.anew import Unbuildable
from nonlin.patching.configuration import FIELDS, configuration_of, tree
from nonlin.patching.configuration import field as field_of
from nonlin.patching.verify import Replacement, same_values

_ALREADY = "config unchanged: a checkpoint saved now loads with this activation as it is"


@dataclass(frozen=True)
class Written:
    """The changes of configurations, as (field, before, now), their undoing, or the reason for none."""

    changed: tuple[tuple[str, Any, Any], ...] = ()
    undo: list[tuple[Any, str, Any]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Field:
    """A field of a (sub-)configuration that names an activation, and the value that names the new one."""

    path: str
    name: str
    before: Any
    now: Any

    @property
    def label(self) -> str:
        """The field as it is reached from the model's configuration."""
        return f"{self.path}{self.name}"


def write(model: nn.Module, replacements: Sequence[Replacement], act: Definition | None) -> Written:
    """Write the new activation into the model's configurations, where that is true; ``replacements`` are of its blocks.

    ``act`` is the pointwise activation, or None where the blocks' formula is more than one of the gate.
    """
    around = [(name, root) for name, root in anew.roots(model)
              if any(_inside(p.block.name, name) for p in replacements)]
    if not around:
        return Written(note="" if configuration_of(model, replacements[0].block.name) is None else
                       f"config unchanged: transformers does not build {type(model).__name__} from it")
    name = None if act is None else held_name(act)
    if name is None:
        if all(_says_it(root, outer, replacements) for outer, root in around):
            return Written(note=_ALREADY)
        return Written(note=f"config unchanged: it cannot name this formula, so {_later(around)}" if act is None else
                       f"config unchanged: {_not_held(act)}, so {_later(around)} (see "
                       "nonlin.register_with_transformers)")
    done: list[tuple[Any, list[Field]]] = []
    for outer, root in around:
        fields, why = _true_fields(root, outer, _those_inside(replacements, outer), name)
        if why:
            return Written(note=f"config unchanged: {why}, so {_later(around)}")
        done.append((root.config, fields))
    undo, changed = [], []
    for config, fields in done:
        inner = dict(tree(config))
        for f in fields:
            undo.append((inner[f.path], f.name, f.before))
            setattr(inner[f.path], f.name, f.now)
            changed.append((f.label, f.before, f.now))
    undo += _copies(model, replacements, [f for _, fields in done for f in fields])
    return Written(tuple(changed), undo, "" if changed else _ALREADY)


def _later(around: list[tuple[str, nn.Module]]) -> str:
    """Say what comes of a checkpoint that is saved now, while the configuration names the old activation."""
    for _, root in around:
        with contextlib.suppress(Unbuildable):
            wanted = anew.build(root, root.config).state_dict()
            for name, value in root.state_dict().items():
                if name in wanted and wanted[name].shape != value.shape:
                    return (f"a checkpoint saved now does not load: the old activation has {name} in the shape "
                            f"{tuple(wanted[name].shape)}, the new one in {tuple(value.shape)}")
    return "a checkpoint saved now loads with the old activation; swap again after loading"


def _inside(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


def _those_inside(replacements: Sequence[Replacement], outer: str) -> list[Replacement]:
    return [p for p in replacements if _inside(p.block.name, outer)]


def _says_it(root: nn.Module, outer: str, replacements: Sequence[Replacement]) -> bool:
    """Whether the configuration as it is makes these blocks compute what they do."""
    inside = _those_inside(replacements, outer)
    try:
        return {p.block.name for p in inside}.isdisjoint(_off(root, outer, inside, []))
    except Unbuildable:
        return False


def _not_held(act: Definition) -> str:
    if act.parameters and act.name in ("prelu", "xielu"):
        return f"transformers keeps the learned values of {act.name!r} under other names"
    return f"transformers has no {act.name!r}"


def _copies(model: nn.Module, replacements: Sequence[Replacement], fields: list[Field]) -> list[tuple[Any, str, Any]]:
    """Write the fields into sub-models' copies of a configuration (T5's encoder has one); return the undoing."""
    undo: list[tuple[Any, str, Any]] = []
    known = {id(c) for _, root in anew.roots(model) for _, c in tree(root.config)}
    seen: set[int] = set()
    for replacement in replacements:
        config = configuration_of(model, replacement.block.name)
        if id(config) in known or id(config) in seen:
            continue
        seen.add(id(config))
        for f in fields:
            if field_of(config, f.name) == f.before:
                undo.append((config, f.name, f.before))
                setattr(config, f.name, f.now)
    return undo


def candidates(config: Any, name: str) -> list[Field]:
    """Return every field of the configuration, and of those in it, that can name the new activation."""
    found = []
    for path, inner in tree(config):
        for key in FIELDS:
            value = field_of(inner, key)
            if isinstance(value, str) and _is_activation(value):
                found.append(Field(path, key, value, name))
        value = field_of(inner, "feed_forward_proj")
        if isinstance(value, str):  # T5 reads "gated-gelu" as the tanh form
            exact = "gelu_python" if name == "gelu" else name
            found.append(Field(path, "feed_forward_proj", value, f"gated-{exact}" if value.startswith("gated-")
                               else exact))
        value = field_of(inner, "gelu_activation")
        if isinstance(value, bool) and name in ("gelu", "relu"):  # XLM, Flaubert: gelu or relu
            found.append(Field(path, "gelu_activation", value, name == "gelu"))
    return found


def _is_activation(value: str) -> bool:
    try:
        return get(value).kind == "pointwise"
    except ValueError:
        return False


def _true_fields(root: nn.Module, outer: str, replacements: list[Replacement], name: str) -> tuple[list[Field], str]:
    """Return the fields with which the model, built anew, is the one in hand; or none, and the reason.

    Without a reason none has to change.
    """
    fields, blocks = candidates(root.config, name), {p.block.name for p in replacements}
    try:
        now = set(_off(root, outer, replacements, []))
    except Unbuildable as error:
        return [], str(error)
    noise = now - blocks  # what was changed by hand, before
    if now == noise:
        return [], ""
    if not fields:
        return [], f"no field of {type(root.config).__name__} names the feed-forward activation"
    why = ""
    for chosen in _choices(root, outer, replacements, fields, now):
        said = ", ".join(f"{f.label}={f.now!r}" for f in chosen)
        try:
            off = {k: v for k, v in _off(root, outer, replacements, chosen).items() if k not in noise}
        except Unbuildable as error:
            why = why or f"with {said}, {error}"
            continue
        if not off:
            return _with_derived(root.config, chosen, fields), ""
        why = why or _untrue(said, off, blocks)
    return [], why


def _untrue(said: str, off: dict[str, str], blocks: set[str]) -> str:
    """Describe the error of a configuration that says ``said``."""
    other = [f"{path or 'the model'} ({text})" for path, text in off.items() if path not in blocks]
    left = [path for path in off if path in blocks]

    def few(names: list[str], shown: int) -> str:
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        return f"{', '.join(names[:shown])}{more}"

    lines = [f"change {few(other, 2)}"] if other else []
    lines += [f"not change {few([n or 'the model' for n in left], 1)}"] if left else []
    return f"{said} would {' and '.join(lines)}"


def _choices(root: nn.Module, outer: str, replacements: list[Replacement], fields: list[Field], before: set[str]
             ) -> Iterator[list[Field]]:
    """Yield sets of fields to try: all of them; then those that each change blocks, and nothing else, by themselves."""
    yield fields
    good = []
    for f in fields:
        with contextlib.suppress(Unbuildable):
            if set(_off(root, outer, replacements, [f])) < before:
                good.append(f)
    if good and good != fields:
        yield good


def _off(root: nn.Module, outer: str, replacements: list[Replacement], fields: list[Field]) -> dict[str, str]:
    """Return the differences between the model in hand and one built with these fields, by names in the model."""
    config = _changed(root.config, fields)
    made = anew.build(root, config)
    cut = len(outer) + 1 if outer else 0
    inner = {p.block.name: p.block.name[cut:] for p in replacements}
    found = {f"{outer}.{k}" if outer else k: v
             for k, v in anew.differences(root, made, inner.values()).items()}
    for replacement in replacements:
        try:
            other = made.get_submodule(inner[replacement.block.name])
        except AttributeError:
            found[replacement.block.name] = "it has no such block"
            continue
        if not same_values(replacement, other):
            found[replacement.block.name] = "another function"
    if not found and (text := anew.outputs_differ(root, made)):
        found[""] = text
    return found


def _changed(config: Any, fields: list[Field]) -> Any:
    config = copy.deepcopy(config)
    inner = dict(tree(config))
    for f in fields:
        try:
            setattr(inner[f.path], f.name, f.now)
        except Exception as error:  # classes check their fields, each in its own way
            raise Unbuildable(f"{type(inner[f.path]).__name__} refuses it ({type(error).__name__})") from error
    return config


def _with_derived(config: Any, chosen: list[Field], fields: list[Field]) -> list[Field]:
    """Return the chosen fields and those that follow from them when the configuration is loaded (T5's dense_act_fn)."""
    back = dict(tree(anew.loaded_configuration(_changed(config, chosen))))
    derived = [Field(f.path, f.name, f.before, now) for f in fields if f not in chosen
               and (now := field_of(back.get(f.path), f.name)) is not None and now != f.before]
    return [*chosen, *derived]
