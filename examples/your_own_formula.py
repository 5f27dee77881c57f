"""Define an activation by a formula; look at it, check its gradients, use it in a block, see who computes it.

    python examples/your_own_formula.py --formula "x*sigmoid(2*x)"
"""

import argparse

import torch

import nonlin
from nonlin.functions import describe
from nonlin.nn import FeedForward


def main() -> None:
    """Everything that a built-in activation has, a formula of one line gets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formula", default="x*sigmoid(2*x)", help="of x, or of gate and up")
    asked = parser.parse_args()

    mine = nonlin.define("mine", asked.formula)
    print("formula:   ", mine.formula)
    for variable in mine.variables:
        print(f"d/d{variable}:".ljust(12), mine.derivative(variable))
    facts = describe(mine)
    print("properties:", {key: facts["properties"][key] for key in ("smoothness", "monotonic", "minimum")
                          if key in facts["properties"]})

    function = nonlin.functional.activation("mine")
    inputs = [torch.randn(64, dtype=torch.float64, requires_grad=True) for _ in mine.variables]
    print("gradcheck: ", torch.autograd.gradcheck(function, inputs))
    print("kernel:    ", nonlin.kernels.explain("mine", *[torch.randn(4, 8) for _ in mine.variables]))

    block = FeedForward(64, activation="mine", memory="minimal")
    y = block(torch.randn(8, 64))
    y.sum().backward()
    print(f"block:      {block.hidden} hidden, output {tuple(y.shape)}; {block.explain()}")


if __name__ == "__main__":
    main()
