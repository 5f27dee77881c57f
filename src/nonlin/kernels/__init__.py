"""How activations and the model's operations are computed: torch, and our C++ for one CPU thread."""
