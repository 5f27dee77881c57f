"""Tokenizers of others: asked through one guard, since any code and any file may stand behind them."""

from typing import Any

from nonlin.errors import UserError, rule, told


def token_ids(tokenizer: Any, text: str, call: str, **options: Any) -> list[int]:
    """Return the token ids that a tokenizer makes of a text; UserError, in the name of ``call``, where it makes none.

    >>> token_ids(lambda text: {"input_ids": [len(text)]}, "abc", "check")
    [3]
    """
    try:
        found = tokenizer(text, **options)["input_ids"]
        ids = [int(one) for one in (found.flatten() if hasattr(found, "flatten") else found)]
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(rule(call, "tokenizer", "make token ids of a text, as those of transformers do",
                             f"{type(tokenizer).__name__}, which raised {told(error)}",
                             "Pass the model's tokenizer, or token ids.")) from error
    return ids


def text_of(tokenizer: Any, token: int) -> str | None:
    """Return the text of a token; None where the tokenizer has none."""
    try:
        return str(tokenizer.decode([token]))
    except Exception:  # it is for people to read, and nothing depends on it
        return None
