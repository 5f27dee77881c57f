"""Newer reports on activations that decide nothing: without seeds of their own, of whole recipes, or not matched.

A row says no more than its source did as far as it was read; ``None`` where that gave no number.
"""

from nonlin.advice.records import Report

REPORTS = (
    Report(source="nanochat's log, February 2026", compared="swiglu against relu_squared, at matched size",
           found="worse", size="d12 and d24", tokens=None, seeds=None),
    Report(source="nanochat's slowrun, tiny (#16)", compared="swiglu against relu_squared",
           found="3.428 → 3.412, better", size=None, tokens=None, seeds=None),
    Report(source="Marin (#5407)", compared="geglu against swiglu", found="−0.0076 and −0.0041, 2 % slower",
           size="d512 and d768", tokens=None, seeds="one run"),
    Report(source="Marin (#5302)", compared="relu_squared in a gated norm", found="+0.0074, then −0.0047: signs flip",
           size=None, tokens=None, seeds=None),
    Report(source="parameter-golf (#549, #535, #1859)", compared="leaky_relu_squared against relu_squared",
           found="−0.0015 … −0.003 bits per byte; nanochat finds it worse in time", size="16 MB of weights",
           tokens=None, seeds="3, of whole recipes"),
    Report(source="PowLU (arXiv:2605.25704)", compared="powlu against swiglu", found="competitive, by its abstract",
           size="7.9B and 124B in all", tokens=None, seeds=None),
    Report(source="κ-SwiGLU (arXiv:2606.00761)", compared="κ-SwiGLU against swiglu, in mixtures of experts",
           found="a better mean CORE score", size="8 to 28 layers", tokens=None, seeds=None),
    Report(source="PolyGLU (arXiv:2603.13347)", compared="PolyGLU: no matched baseline in its abstract", found=None,
           size="597M", tokens="10B", seeds="one run"),
)
