"""The hidden width of a feed-forward block at equal parameters; no torch."""

from nonlin.errors import UserError, rule


def matched_hidden(dim: int, kind: str, hidden: int | None = None, multiple: int = 8) -> int:
    """Return the width at which a block of this kind has the parameters of a plain one of width ``hidden``.

    A plain block has 2 dim hidden weights, a gated one 3, so that a gated one gets two thirds; both are rounded
    to the nearest ``multiple``. ``hidden`` is 4 dim where it is None. Raises UserError for sizes below 1.

    >>> matched_hidden(768, "pointwise"), matched_hidden(768, "gated"), matched_hidden(128, "gated")
    (3072, 2048, 344)
    """
    for name, size in (("dim", dim), ("multiple", multiple), ("hidden", 1 if hidden is None else hidden)):
        if size < 1:
            raise UserError(rule("matched_hidden", name, "be positive", size, "Pass the model's width."))
    plain = 4 * dim if hidden is None else hidden
    width = plain * 2 / 3 if kind == "gated" else plain
    return max(multiple, int(width / multiple + 0.5) * multiple)
