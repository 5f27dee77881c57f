"""How Triton runs: the primitives and tiles of the generated kernels, and calling them."""
