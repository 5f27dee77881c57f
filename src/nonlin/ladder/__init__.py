"""A ladder of model sizes: its rungs, the forecast of paired differences, and simulations of both. Loads no torch."""
