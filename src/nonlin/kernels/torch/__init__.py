"""The same in plain torch: what no kernel serves, and what kernels are compared with."""
