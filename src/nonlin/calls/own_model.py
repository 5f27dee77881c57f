"""From a user's own model to a study's arms: described in a process that may load torch, before anything is written."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonlin.data import Sources
from nonlin.data.tokenizing import ZERO_BYTE, load_tokenizer, vocabulary_of
from nonlin.errors import UserError, rule, unknown_name
from nonlin.functions import Definition, get
from nonlin.functions.registry import gate_of
from nonlin.study import Arm, ProcessEngine, defaults
from nonlin.study.engines import ask
from nonlin.study.request import MATCHES
from nonlin.subject.asking import Wanted, wanted
from nonlin.subject.widths import main_group
from nonlin.training.recipe import check, choice

_SIZES = ("layers", "dim", "heads", "kv_heads")
COMPILE = ("auto", "yes", "no")
PACKINGS = ("stream", "end-token", "documents")
_EVALUATIONS = 10  # of a run from trained weights
LEARNING_RATE, _TRAINED_LEARNING_RATE = 1e-3, 1e-4  # middles of the grid: from scratch, and for trained weights


@dataclass(frozen=True)
class Subject:
    """A model's description, and what each arm's model is."""

    own: Mapping[str, Any]
    described: Sequence[Mapping[str, Any]]
    definitions: Sequence[Definition]
    context: int

    @property
    def model(self) -> dict[str, Any]:
        """The plan's model, but for the vocabulary."""
        return {"context": self.context, "layers": self.own["layers"], "dim": self.own["dim"], "own": dict(self.own)}

    def sources(self, sources: Sources) -> Sources:
        """Return the sources with the token that opens each document, where one does."""
        return replace(sources, end=self.own["packing"]["end"])

    @property
    def training(self) -> dict[str, Any]:
        """The part of the recipe that a trained model asks for: more evaluations, to see it recover."""
        return {"evaluations": _EVALUATIONS} if self.own.get("checkpoint") else {}

    @property
    def arms(self) -> list[Arm]:
        """The arms, each with the widths of its blocks."""
        main = main_group(self.own)
        return [Arm(d.name, one["kind"], one["widths"][main], one["parameters"],
                    d.formula if d.user_defined else None,
                    own={"widths": one["widths"], "flops_per_token": one["flops_per_token"]})
                for d, one in zip(self.definitions, self.described, strict=True)]

    def baseline(self, asked: str | None) -> str:
        """Return the arm that the others are compared with: the family's own activation where it is one of them."""
        names = [d.name for d in self.definitions]
        if asked is not None:
            return get(asked).name
        own = self.own["blocks"][main_group(self.own)]["computes"]
        gate = _gate(own) if self.own.get("checkpoint") else None
        return next((name for name in (own, gate, "gelu") if name in names), names[0])


def _gate(name: str) -> str | None:
    try:
        act = gate_of(get(name))
    except ValueError:
        return None
    return None if act is None else act.name


def wanted_of(asked: Any) -> Wanted:
    """Return the model that is asked for."""
    return wanted(asked.model, asked.from_checkpoint)


def defaults_of(asked: Any) -> dict[str, Any]:
    """Return the values of what is not said of a user's own model; UserError for sizes that its configuration says."""
    model = wanted_of(asked)
    given = [name for name in _SIZES if getattr(asked, name) is not None]
    if given and not model.sized:
        raise UserError(rule("compare", " and ".join(given), "be left to the model's configuration",
                             getattr(asked, given[0]), "Leave it out, or change the configuration."))
    found: dict[str, Any] = {"learning_rate": _TRAINED_LEARNING_RATE if asked.from_checkpoint else LEARNING_RATE}
    own = None if model.folder is None else model.folder / "tokenizer.json"
    found["tokenizer"] = str(own) if own is not None and own.is_file() else "bytes"
    if model.sized:
        found |= {"layers": defaults.LAYERS, "dim": defaults.DIM, "heads": defaults.HEADS, "context": defaults.CONTEXT}
    return found


def tokens_of(sources: Sources) -> dict[str, Any]:
    """Return what is known of the tokens before the text is read: their kind, number, and which may divide documents.

    Of bytes, and of a tokenizer that is trained on the text, that is the zero byte, which text has not.
    """
    if sources.tokenizer == "bytes":
        return {"kind": "bytes", "vocabulary": 256, "ends": [0]}
    if isinstance(sources.tokenizer, int):
        return {"kind": "trained", "vocabulary": sources.tokenizer, "ends": [ZERO_BYTE]}
    loaded = load_tokenizer(Path(sources.tokenizer))
    special = sorted(number for number, token in loaded.get_added_tokens_decoder().items() if token.special)
    return {"kind": "file", "vocabulary": vocabulary_of(loaded), "ends": special}


def subject(asked: Any, definitions: Sequence[Definition], sources: Sources, engine: ProcessEngine | None = None
            ) -> Subject:
    """Return the description of the model that is asked for; UserError where no study can be made in it.

    It is made in a process of ``engine``, or in one that ends with it.
    """
    request = describing(asked, definitions, sources)
    with contextlib.nullcontext(engine) if engine else ProcessEngine(".", 1) as here:
        found = ask(here, request)
    return Subject(found["own"], found["arms"], definitions, found["context"])


def describing(asked: Any, definitions: Sequence[Definition], sources: Sources) -> dict[str, Any]:
    """Return what a process that loads torch is asked, to describe the model; UserError for words that are none."""
    compiled = asked.compile or "auto"
    for word, value, known in (("match", asked.match, MATCHES), ("compile", compiled, COMPILE),
                               ("packing", asked.packing, PACKINGS)):
        if value is not None and value not in known:
            raise unknown_name(word, value, known)
    model, tokenizer = wanted_of(asked), tokens_of(sources)
    vocabulary = tokenizer["vocabulary"]
    values = dict(model.values)
    if model.sized:
        values["sizes"] = {"layers": asked.layers, "dim": asked.dim, "heads": asked.heads,
                           "kv_heads": asked.kv_heads or asked.heads, "context": asked.context,
                           "vocabulary": vocabulary}
    options = {"checkpointing": asked.activation_checkpointing, "compile": compiled}
    recipe = asked.recipe_values(asked.context)
    check(recipe["training"])
    return {"do": "subject", "wanted": values, "options": options, "vocabulary": vocabulary,
            "tokenizer": tokenizer, "packing": asked.packing,
            "context": asked.context,
            "rows": max(1, recipe["batch"] // choice(recipe["training"], "accumulation")), "match": asked.match,
            "seed": defaults.FIRST_JUDGE_SEED,
            "arms": [{"name": d.name, "formula": d.formula if d.user_defined else None} for d in definitions]}
