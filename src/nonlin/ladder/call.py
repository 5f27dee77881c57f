"""The package as a function: what ``nonlin.ladder(...)`` takes."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nonlin.ladder.design import LONGER, SEEDS, TOKENS_PER_PARAMETER
from nonlin.study import defaults

if TYPE_CHECKING:
    from nonlin.functions import Definition
    from nonlin.study.engines import EngineChoice

Data = str | Path | Sequence[str | Path] | None


class LadderPackage(ModuleType):
    """The package ``nonlin.ladder``, which is also the function that runs a ladder."""

    def __call__(self, target: float | str, data: Data = None,
                 activations: "str | Sequence[str | Definition] | None" = None, *, baseline: str | None = None,
                 sizes: "Sequence[float | str] | None" = None, minutes: float | None = None,
                 budget: float | None = None, tokens_per_parameter: float = TOKENS_PER_PARAMETER, seeds: int = SEEDS,
                 longer: float = LONGER, transfer: str = "completep", match: str = "params",
                 tokenizer: str | int | Path | None = None, weights: Sequence[float] | None = None,
                 validation: Data = None, context: int = defaults.CONTEXT, batch: int = defaults.BATCH,
                 learning_rate: float | None = None, learning_rates: int = defaults.LEARNING_RATES,
                 precision: str = defaults.PRECISION, schedule: str = "linear", model: Any = None,
                 margin: float = defaults.MARGIN_BITS_PER_BYTE, confidence: float = defaults.CONFIDENCE,
                 engine: "str | EngineChoice" = "processes", workers: int | None = None,
                 out: str | Path | None = None, progress: bool = True) -> Any:
        """Compare activations at several sizes and forecast their differences at ``target``; return the ladder.

        Sizes are parameters without embeddings, as numbers or texts ("125M"). Four or more, over at least 30 times
        the compute, each trained on ``tokens_per_parameter`` times its size; ``longer`` times as many at the two
        smallest (0: none). Without ``sizes``, the longest ladder that fits ``minutes`` (two hours), or ``budget``
        floating-point operations. Rates are tuned per activation at the two smallest, carried upward by the rule
        ``transfer``, and checked at a middle size. The forecast of the largest is written down before it runs.
        With ``schedule`` "wsd" a longer run is a branch of the shorter one: at its rate, from where its decay began.

        Every rung is a study in a folder of its own under ``out``/rungs. Finished runs are kept: the same call
        continues; with more ``seeds`` or ``sizes`` it extends the ladder, and old forecasts stay. The other arguments
        are those of :func:`nonlin.compare`.

        ``model`` is an architecture of your own: a config.json of ``transformers`` or a folder with one, a
        configuration, or an architecture's name. Rungs are it at other sizes, in the configuration's ratios of heads,
        key-value heads and feed-forward width.

        Raises UserError for a ladder that could not say anything, with the minutes that it needs. Ctrl-C raises
        Interrupted, a KeyboardInterrupt with the ladder so far as ``found``.
        """
        given = {key: value for key, value in locals().items() if key != "self"}
        # It stands on studies, pages and the comparison, which stand above this package.
        return importlib.import_module("nonlin.calls.ladder_comparison").called(**given)
