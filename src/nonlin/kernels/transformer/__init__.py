"""The small language model's own operations: in plain torch and in C++."""
