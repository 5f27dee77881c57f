"""CompleteP as a ladder's rule of transfer: the models of all rungs are trained by groups, and keep the base's rate."""

from dataclasses import dataclass
from typing import Any

from nonlin.ladder.design import Rung
from nonlin.study import defaults
from nonlin.training.transfer import transfer_of


@dataclass(frozen=True)
class CompleteP:
    """Rates, initial values, epsilon and decay by parameter group; for more tokens a lower rate.

    The rate of the base serves every width and depth; with the tokens T of a run it falls as (T₀/T)^0.3. Weight decay
    takes the share of a step that it has at ``learning_rate``, whatever an arm's own is.
    """

    name: str = "completep"
    source: str = "CompleteP, arXiv:2505.01618; norms of queries and keys, and (T₀/T)^0.3 for more tokens: 2512.22382"
    learning_rate: float = defaults.LEARNING_RATE

    def factor(self, small: Rung, large: Rung) -> float:
        """Return the best rate of ``large`` over that of ``small``."""
        return (small.tokens / large.tokens) ** 0.3

    def training(self, one: Rung, base: Rung) -> dict[str, Any]:
        """Return the transfer of a rung's recipe; ``base`` is the smallest rung."""
        shape = {"layers": base.layers, "dim": base.dim, "heads": base.heads, "kv_heads": base.heads}
        return {"transfer": transfer_of(self.name, shape, self.learning_rate)}
