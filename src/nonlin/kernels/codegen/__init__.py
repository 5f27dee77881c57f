"""From a formula to code: statements in C++ and in Triton. Needs neither torch nor Triton."""
