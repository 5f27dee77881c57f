"""What a model is run on when it is checked: text as its tokens, ids as given, or random ones; and how it is called."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nonlin.data.corpus import load_corpus
from nonlin.data.reading import Losses, pieces
from nonlin.errors import UserError, rule, told
from nonlin.patching.tokenizers import token_ids

BATCH_TOKENS = 1024
AS_THEY_ARE = {"add_special_tokens": False, "verbose": False}
"""Options with which a tokenizer of transformers makes the tokens of a text, and no others."""
_CHARACTERS_A_TOKEN = 12  # so much text is read for a token: more than any tokenizer takes


@dataclass
class Inputs:
    """Sequences of token ids (B, T), where they are from, and what is to be said of them."""

    sequences: Tensor
    description: str
    real: bool
    notes: list[str] = field(default_factory=list)

    def batches(self) -> Iterator[Tensor]:
        """Yield batches (b, T) of at most BATCH_TOKENS tokens, one sequence at least."""
        yield from self.sequences.split(max(1, BATCH_TOKENS // self.sequences.shape[1]))


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return getattr(config, "text_config", None) or config


def _longest(model: nn.Module) -> int | None:
    config = _config(model)
    return next((v for n in ("max_position_embeddings", "n_positions", "context", "block_size") if isinstance(
        v := getattr(config, n, None), int)), None)


def _vocabulary(model: nn.Module, call: str) -> int:
    config = _config(model)
    for name in ("vocab_size", "vocabulary"):
        if isinstance(size := getattr(config, name, None), int):
            return size
    found = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if found is None:
        raise UserError(rule(call, "MODEL", "take token ids", type(model).__name__, "Run your own data through it: "
                             "with nonlin.health.watch(model) as health: model(...); health.findings()."))
    return found.num_embeddings


def prepare(model: nn.Module, tokenizer: Any, text: str | Path | None, tokens: int, context: int, seed: int = 0,
            call: str = "check", own: tuple[Tensor, str] | None = None, ids: Any = None) -> Inputs:
    """Return the sequences that a model is checked on, ``tokens`` in all where there is text enough.

    ``text`` is a file of text, or of the token ``ids`` that were read from it. None takes the standard library's, or
    ``own``, token ids and what they are. Without a tokenizer, a vocabulary of 256 takes the text's bytes, and any other
    gets random tokens; both are said in the notes.
    """
    length = min(context, _longest(model) or context, tokens)
    vocabulary = _vocabulary(model, call)
    if own is not None and int(own[0].max()) < vocabulary:
        ids, described, notes, real, special = own[0].numpy(), own[1], [], True, 0
    elif ids is not None:
        _must_fit(ids, str(text), vocabulary, call)
        described, notes, real, special = str(text), [], True, 0
    else:
        raw, described, lost = _read_text(text, tokens * _CHARACTERS_A_TOKEN, call)
        ids, notes, real = _tokenize(tokenizer, raw, vocabulary, tokens, seed)
        described, notes = (described, [*lost, *notes]) if real else ("random tokens", notes)
        special = _special(tokenizer) if real and tokenizer is not None else 0
    step = max(1, length - special)
    count = min(tokens, len(ids)) // step
    if not count:
        step, count = max(2, len(ids)), 1 if len(ids) >= 2 else 0
    if not count:
        raise UserError(rule(call, "--text", "give at least 2 tokens", len(ids), "Pass a longer file."))
    pieces = [list(map(int, ids[i * step:(i + 1) * step])) for i in range(count)]
    if special and tokenizer is not None:
        pieces = [tokenizer.build_inputs_with_special_tokens(piece) for piece in pieces]
    return Inputs(torch.tensor(pieces, device="cpu"), described, real, notes)


def _special(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts around a sequence; 0 where it has no way to put them."""
    try:
        count = len(tokenizer.build_inputs_with_special_tokens([]))
    except Exception:  # a tokenizer of any maker
        return 0
    return count


def holds_ids(text: Any) -> bool:
    """Whether a text is a file of token ids, by its name."""
    return isinstance(text, (str, Path)) and Path(text).suffix.lower() in (".json", ".npy")


def read_ids(path: Path, call: str) -> Any:
    """Return the token ids in a file (.json, .npy), int64 (N,); UserError where it holds anything else."""
    try:
        # Mapped: a header that claims more than the file holds takes no memory.
        ids: Any = np.load(path, "r", allow_pickle=False) if path.suffix.lower() == ".npy" else np.array(
            json.loads(path.read_bytes()))
        if not isinstance(ids, np.ndarray):  # an archive of arrays, by another name
            raise ValueError("it holds several arrays")
        return np.array(ids.reshape(-1)).astype(np.int64, casting="same_kind")
    except Exception as error:  # whatever a file of anybody's makes a parser raise
        raise UserError(f"{call}: {path} must hold whole numbers, the token ids; {told(error)}. Pass a list in JSON or "
                        "an array in .npy.") from error


def _must_fit(ids: Any, path: str, vocabulary: int, call: str) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise UserError(rule(call, path, f"hold token ids below the vocabulary's {vocabulary:,}",
                             (int(ids.min()), int(ids.max())), "Make them with this model's own tokenizer."))


def _read_text(text: str | Path | None, characters: int, call: str) -> tuple[str, str, list[str]]:
    """Return so many characters of a text, where they are from, and what was left out of them."""
    if text is None:
        corpus = load_corpus()
        whole = b"\n\n".join(body for name, body in corpus.documents if "/" not in name)
        return whole.decode("utf-8", "replace")[:characters], corpus.description, []
    if not Path(text).is_file():
        raise UserError(rule(call, "--text", "be a readable file", str(text), "Check the path."))
    losses, found, last = Losses(), bytearray(), 0
    for number, piece in pieces(Path(text), losses, in_folder=False):  # as a text to train on is read
        found += (b"\n\n" if number != last else b"") + piece
        last = number
        if len(found) >= 4 * characters:  # bytes of UTF-8
            break
    if not found.strip():
        raise UserError(rule(call, "--text", "hold text", f"{text}, which is empty", "Pass another file."))
    return found.decode("utf-8", "replace")[:characters], str(text), losses.sentences()


def _tokenize(tokenizer: Any, raw: str, vocabulary: int, tokens: int, seed: int) -> tuple[Any, list[str], bool]:
    if tokenizer is not None:
        try:
            ids = token_ids(tokenizer, raw, "check", **AS_THEY_ARE)
        except UserError as error:
            ids, notes = [], [f"{str(error).removeprefix('check: ')} Random tokens were taken"]
        else:
            notes = ["the tokenizer's ids do not fit the model's vocabulary: random tokens were taken"]
        if ids and 0 <= min(ids) <= max(ids) < vocabulary:
            return ids, [], True
    elif vocabulary == 256:
        return list(raw.encode()[:tokens]), ["no tokenizer, a vocabulary of 256: the text's bytes are the tokens"], True
    else:
        notes = ["no tokenizer: random tokens were taken, on which a model does not behave as on text; pass token ids "
                 "(--text FILE.json or .npy) for more"]
    return np.random.default_rng(seed).integers(0, vocabulary, tokens), notes, False


def forward(model: nn.Module, ids: Tensor) -> Any:
    """Run the model on token ids (b, T) and return what it returns."""
    config, takes = _config(model), inspect.signature(model.forward).parameters
    named = [q.name for q in takes.values() if q.kind is q.POSITIONAL_OR_KEYWORD]
    # A model written by hand may generate too, and calls its tokens as it likes.
    if (named and "input_ids" not in named) or not (hasattr(model, "generate") or hasattr(config, "model_type")):
        return model(ids)
    options: dict[str, Any] = {"input_ids": ids}
    if getattr(config, "is_encoder_decoder", False):
        options["decoder_input_ids"] = ids
    if "use_cache" in takes:
        options["use_cache"] = False
    return model(**options)


def predicts_next(model: nn.Module) -> bool:
    """Whether the model's logits are of the token that comes next."""
    name = type(model).__name__
    return name == "LanguageModel" or "CausalLM" in name or "LMHead" in name


def logits_of(out: Any) -> Tensor | None:
    """Return the logits, or the last hidden state, of what a model returned."""
    if isinstance(out, Tensor):
        return out
    found = getattr(out, "logits", None)
    found = getattr(out, "last_hidden_state", None) if found is None else found
    return found if found is not None else next((x for x in out if isinstance(x, Tensor)), None) if isinstance(
        out, tuple) else found


@torch.no_grad()
def nonfinite(out: Any) -> int:
    """Return how many values of what a model returned are no numbers or +inf; -inf says that a token cannot be."""
    values = logits_of(out)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        return 0
    return int((values.isnan() | (values == torch.inf)).sum())


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the loss of each next token in nats, (b (T - 1),)."""
    logits = logits_of(forward(model, ids))
    assert logits is not None
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
