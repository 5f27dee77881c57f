"""How documents follow each other in a subject's sequences: the rule, its end token, and the positions that keep them
apart.

Shapes: B batch, T time.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nonlin.errors import UserError, rule
from nonlin.subject.looking import Look

_CALL = "compare"
_CROSSES = 1e-2  # of what a document changes in the next where nothing keeps them apart
_ROUNDING = 1e-5  # of the logits


def chosen(look: Look, asked: str | None, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"rule", "end"}: how documents are packed, and the token that opens each, None for a blank line.

    ``tokenizer`` has "ends", the tokens that may divide documents, and "kind". Without a rule that is asked for, it is
    "end-token" where the model's configuration names a special token of a tokenizer's file, else "stream". Raises
    UserError where there is no such token, and for "documents" in a model whose attention crosses them.
    """
    end = _end(look, tokenizer)
    if asked is None:
        asked = "end-token" if end is not None and tokenizer["kind"] == "file" else "stream"
    if asked == "stream":
        return {"rule": asked, "end": None}
    if end is None:
        raise UserError(rule(_CALL, f"packing {asked}", "come with an eos_token_id in the configuration that is a "
                             "special token of the tokenizer", _named(look), "Correct the configuration, pass its own "
                             "tokenizer.json, or take --packing stream."))
    if asked == "documents":
        _must_stay_apart(look, end)
    return {"rule": asked, "end": end}


def _named(look: Look) -> list[int]:
    text = look.config.get_text_config() if hasattr(look.config, "get_text_config") else look.config
    named = getattr(text, "eos_token_id", None)
    return [one for one in (named if isinstance(named, list) else [named]) if isinstance(one, int)]


def _end(look: Look, tokenizer: Mapping[str, Any]) -> int | None:
    if tokenizer["kind"] != "file":
        return tokenizer["ends"][0]
    return next((one for one in _named(look) if one in tokenizer["ends"]), None)


def positions(tokens_BT: Tensor, end: int) -> Tensor:
    """Return each token's position in its document (B, T), which the end token opens.

    >>> positions(torch.tensor([[5, 6, 0, 7, 0, 0, 8]]), 0).tolist()
    [[0, 1, 0, 1, 0, 0, 1]]
    """
    index = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    return index - torch.where(tokens_BT == end, index, 0).cummax(1).values


def _must_stay_apart(look: Look, end: int) -> None:
    """Raise UserError unless a document's logits are those that it has alone, whatever stands before it.

    What stands before has a gradient of zero then, exactly: what a new model's weights let through may be as small as
    rounding.
    """
    if look.tokens < 2:  # no sequence holds two documents
        return
    tokens = look.draw(look.tokens)
    half = look.tokens // 2
    tokens[tokens == end] = (end + 1) % look.vocabulary
    tokens[:, half] = end
    with torch.no_grad():
        alone, crossing = look.logits(tokens[:, half:]), look.logits(tokens)[:, half:]
    embedded: list[Tensor] = []
    embedding: Any = next((m for m in look.model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        raise _refused(look, "which has no embedding of tokens")
    handle = embedding.register_forward_hook(lambda module, args, out: embedded.append(out))
    try:
        with torch.enable_grad():
            apart = look.logits(tokens, position_ids=positions(tokens, end))[:, half:]
            through, = torch.autograd.grad((apart * apart.detach()).sum(), embedded[0])
    except Exception as error:  # code of any maker
        raise _refused(look, f"which takes no position_ids ({type(error).__name__})") from error
    finally:
        handle.remove()
    apart = apart.detach()
    off, usual = float((apart - alone).abs().max()), float((crossing - alone).abs().max())
    if through[:, :half].any() or off > _CROSSES * usual + _ROUNDING * float(alone.abs().max()):
        raise _refused(look, "whose logits still depend on the document before")


def _refused(look: Look, why: str) -> UserError:
    return UserError(rule(_CALL, "packing documents", "come with a model that keeps documents apart by position_ids",
                          f"{look.own['name']}, {why}", "Take --packing end-token."))
