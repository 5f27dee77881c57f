"""How C++ runs: the catalog's kernels, their primitives and loops, compiling, calling."""
