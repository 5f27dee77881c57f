"""The next token's logits of a sequence that grows, by a subject's model that keeps keys and values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nonlin.subject.model import OwnModel
from nonlin.subject.packing import positions

_EQUAL = 1e-3  # of the largest logit, in float32


class Continuing:
    """``logits(tokens)`` of the token after them, (V,), for tokens that grow by one at each call.

    A model of ``transformers`` reads a token once, and keeps its keys and values. When the tokens pass the context, it
    reads the newer half of them anew. The second call compares the logits with those of a model that keeps nothing. A
    model whose logits differ reads all tokens of the context at each call. So does one that keeps nothing, and any
    model of tokens that ``packing``'s rule "documents" divides.
    """

    def __init__(self, model: OwnModel, context: int):
        self.model, self.context = model, context
        self.keeps = bool(model.options)
        self._start, self._read, self._kept = 0, 0, None
        self._proven = False

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits (V,) of the token that follows."""
        if not self.keeps or self.model.end in tokens[1:]:  # keys of another document are to be forgotten
            return self._anew(tokens[-self.context:])
        if len(tokens) - self._start > self.context:
            self._start, self._read, self._kept = len(tokens) - max(1, self.context // 2), 0, None
        window = tokens[self._start:]
        proving = self._kept is not None and not self._proven
        try:
            found = self._step(window)
        except Exception:  # code of any maker, which may keep things of its own kind
            self.keeps = False
            return self._anew(window)
        if proving:
            want = self._anew(window)
            self._proven = self.keeps = bool((found - want).abs().max() <= _EQUAL * want.abs().max())
            return want
        self.keeps = self._kept is not None
        return found

    def _anew(self, window: Sequence[int]) -> Tensor:
        return self.model(torch.tensor([window]))[0, -1]

    def _step(self, window: Sequence[int]) -> Tensor:
        new, where = torch.tensor([window[self._read:]]), {}
        if self.model.end is not None:
            where = {"position_ids": positions(torch.tensor([window]), self.model.end)[:, self._read:]}
        out: Any = self.model.inner(new, past_key_values=self._kept, use_cache=True, **where)
        self._kept, self._read = getattr(out, "past_key_values", None), len(window)
        return out.logits[0, -1]
