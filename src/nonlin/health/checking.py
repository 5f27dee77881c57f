"""``nonlin.health.check(model)``: a model run on text, and everything that is found in it as one record."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.data import Dataset
from nonlin.errors import UserError, not_empty, rule, told
from nonlin.files import Unreadable, finite, read_json
from nonlin.health import alternatives, inputs, record
from nonlin.health.attention import AttentionLogits
from nonlin.health.collect import Collector
from nonlin.health.findings import grade
from nonlin.health.hooks import COMPILER, Hooks
from nonlin.patching.blocks import some_tensor
from nonlin.patching.finding import find_blocks
from nonlin.patching.identification import identify_all
from nonlin.patching.loading import NO_TOKENIZER, Loaded
from nonlin.patching.tokenizers import text_of, token_ids
from nonlin.subject.loading import loaded as load

TOKENS, CONTEXT = 4096, 512
_OWN_TOKENS = 1 << 20  # of a study's text, at most
_TRIED = 256  # of a study's tokens, on which a model's tokenizer is tried
_COMPARED = 512  # tokens on which other activations are tried


@torch.inference_mode(False)
def check(model: str | Path | nn.Module, text: str | Path | None = None, *, tokenizer: Any = None,
          tokens: int = TOKENS, context: int = CONTEXT, gradients: bool = False, dtype: torch.dtype = torch.float32,
          device: str | None = None, trust_remote_code: bool = False,
          progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Run a model on text and return the record of what is in it, "findings" included; the model is left as it was.

    ``model`` and ``trust_remote_code`` are as in :func:`nonlin.patching.load`. ``text`` is a file of text or of token
    ids (.json, .npy). Without it, a model that a study wrote gets the study's text, any other that of Python's standard
    library. ``tokens`` are taken in sequences of ``context``; ``gradients`` runs one batch backward too. ``progress``
    is told (batches done, all).

    Raises UserError where the model cannot be loaded or examined, or the text cannot be read.
    """
    not_empty("check", model=model, text=text, tokenizer=tokenizer, device=device)
    for name, value in (("tokens", tokens), ("context", context)):
        if value < 2:
            raise UserError(rule("check", name, "be at least 2, since a loss needs a next token", value,
                                 "Pass a larger number."))
    # A wrong file is said before a model is loaded.
    ids = inputs.read_ids(Path(text), "check") if text is not None and inputs.holds_ids(text) else None
    if tokenizer is not None:
        token_ids(tokenizer, "a", "check", **inputs.AS_THEY_ARE)
    loaded = load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code, call="check")
    modes = [(m, m.training) for m in loaded.model.modules()]
    try:
        loaded.model.eval()
        tokenizer = tokenizer or loaded.tokenizer
        own = _own_text(loaded, tokenizer) if text is None and not isinstance(model, nn.Module) else None
        with COMPILER.aside():
            return _check(loaded, tokenizer, text, tokens, context, gradients, progress, own, ids)
    finally:
        for module, mode in modes:
            module.training = mode


def _check(loaded: Loaded, tokenizer: Any, text: str | Path | None, tokens: int, context: int, gradients: bool,
           progress: Callable[[int, int], None] | None, own: tuple[Tensor, str] | None = None,
           ids: Any = None) -> dict[str, Any]:
    model, device = loaded.model, some_tensor(loaded.model).device
    given = inputs.prepare(model, tokenizer, text, tokens, context, own=own, ids=ids)
    blocks = find_blocks(model)
    short = given.sequences[:1, :16].to(device)
    _run(model, short)
    if given.sequences.shape[1] > short.shape[1]:
        _run(model, given.sequences[:1].to(device), longer=True)
    answers = identify_all(model, blocks, lambda: inputs.forward(model, short))
    collector, attention = Collector(model, answers, gradients, inputs.BATCH_TOKENS), AttentionLogits()
    notes: list[str] = []
    broken, whole = list[int](), Hooks()

    def came_out(module: nn.Module, args: Any, out: Any) -> None:
        broken.append(inputs.nonfinite(out))

    whole.after(model, came_out)
    batches = [b.to(device) for b in given.batches()]
    collector.attach()
    try:
        for i, batch in enumerate(batches):
            with ExitStack() as stack:
                if gradients:
                    attention.restart()
                    stack.enter_context(attention)
                backward = gradients and i == 0
                stack.enter_context(torch.set_grad_enabled(backward))
                if backward:
                    notes += _backward(model, batch, given.real)
                else:
                    _run(model, batch)
            if progress:
                progress(i + 1, len(batches))
    finally:
        collector.detach()
        whole.remove()
    made = record.make(collector, model, loaded.source)
    # Without a tokenizer the note is what was read instead.
    found = [note for note in loaded.notes if note != NO_TOKENIZER]
    notes += [collector.lost] if collector.lost else []
    made |= {"text": given.description, "notes": [*found, *given.notes, *notes]}
    made["nonfinite_outputs"] = sum(broken)
    if gradients:
        made["attention"] = {"largest_logits": attention.largest} if attention.largest else None
        if not attention.largest:
            made["notes"].append("attention does not go through torch's scaled_dot_product_attention: its logits were "
                                 "not measured")
    _try_others(made, model, answers, given, device)
    _name_tokens(made, given.sequences, tokenizer)
    made["findings"] = grade(made)
    return finite(made)


def _run(model: nn.Module, ids: Tensor, longer: bool = False) -> None:
    """Run the model on tokens; UserError where it does not take tokens alone, as models of images and sound do not.

    ``longer``: it has run on fewer.
    """
    try:
        with torch.no_grad():
            inputs.forward(model, ids)
    except MemoryError:
        raise
    except Exception as error:  # the code is another's; the user needs the model, the reason, and no trace
        if longer:
            raise UserError(f"check: MODEL must run on sequences of {ids.shape[1]:,} tokens; {type(model).__name__} "
                            f"raised {told(error)}. Pass a smaller --context (context=).") from error
        raise UserError(f"check: MODEL must run on token ids alone; {type(model).__name__} raised "
                        f"{told(error)}. Observe a run with inputs of your own instead: with "
                        "nonlin.health.watch(model) as health.") from error


def _backward(model: nn.Module, batch: Tensor, real: bool) -> list[str]:
    """Run a loss backward so that the collector sees gradients; no gradient is left on the model."""
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [] if trained else list(model.parameters())
    try:
        for p in frozen:
            p.requires_grad_(True)
        if real and inputs.predicts_next(model):
            loss, notes = inputs.losses(model, batch).mean(), []
        else:
            out = inputs.logits_of(inputs.forward(model, batch))
            assert out is not None
            # A fixed random direction: the square of what a norm puts out would have no gradient.
            direction = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float32,
                                    device="cpu").to(out.device)
            loss = (out.float() * direction).sum(-1).mean()
            notes = ["the model predicts no next token, or the tokens are random: gradients are those of a random "
                     "direction of its output"]
        torch.autograd.grad(loss, trained or frozen, allow_unused=True)
    except MemoryError:
        raise
    except Exception as error:  # the code is another's
        raise UserError(f"check: MODEL must run backward for its gradients; {type(model).__name__} raised "
                        f"{told(error)}. Leave --gradients (gradients=True) out.") from error
    finally:
        for p in frozen:
            p.requires_grad_(False)
    return notes


def _try_others(made: dict[str, Any], model: nn.Module, answers: list[Any], given: inputs.Inputs, device: Any) -> None:
    if not (given.real and inputs.predicts_next(model)):
        made["notes"].append("no loss on text to compare: whether the weights were trained with another activation was "
                             "not tried")
        return
    few = given.sequences[: max(1, _COMPARED // given.sequences.shape[1])].to(device)
    found = alternatives.compare(model, answers, few)
    if isinstance(found, str):
        made["notes"].append(f"other activations were not tried: {found}")
        return
    made["alternatives"], made["loss_nats"] = found | {"frequencies_nats": _entropy(few)}, found["loss_nats"]


def _entropy(tokens: Tensor) -> float:
    """Return what a model that knows nothing but how often each of these tokens occurs pays for one, in nats."""
    counts = torch.bincount(tokens.flatten())
    share = counts[counts > 0].double() / tokens.numel()
    return float(-(share * share.log()).sum())


def _own_text(loaded: Loaded, tokenizer: Any) -> tuple[Tensor, str] | None:
    """Return the tokens that a study judges by, where the model is the one that it exported; None else.

    Another's model may lie beside a study's text, or in the place of its own: its tokenizer tells.
    """
    folder = Path(loaded.source).resolve()
    if folder.name != "model" or not _is_a_study(folder.parent):
        return None
    try:
        data = Dataset(folder.parent / "data")
        tokens: list[int] = data.validation[:_OWN_TOKENS].tolist()
        if not _tokenizes(tokenizer, data, tokens[:_TRIED]):
            return None
    except UserError:  # damaged: any other text will do
        return None
    return torch.tensor(tokens, device="cpu"), f"the study's own text ({data.info['description']})"


def _is_a_study(folder: Path) -> bool:
    try:
        plan: Any = read_json(folder / "plan.json")
    except Unreadable:
        return False
    return isinstance(plan, Mapping) and "arms" in plan


def _tokenizes(tokenizer: Any, data: Dataset, tokens: list[int]) -> bool:
    """Whether a tokenizer, if there is one, makes of a text what the dataset's does."""
    if tokenizer is None:
        return True
    text = data.decode(tokens)
    return token_ids(tokenizer, text, "check", **inputs.AS_THEY_ARE) == data.encode(text)


def _name_tokens(made: dict[str, Any], sequences: Tensor, tokenizer: Any) -> None:
    """Beside the number of each massive activation's token, its place in its sequence, its id and its text."""
    ids, length = sequences.flatten(), sequences.shape[1]
    for block in made["blocks"]:
        for one in block["massive"]:
            token = int(ids[one["token"]])
            one |= {"place": one["token"] % length, "id": token,
                    "text": None if tokenizer is None else text_of(tokenizer, token)}
