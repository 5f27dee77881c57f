"""A training step captured as a CUDA graph and replayed: a small model's kernels are shorter than their launches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 3  # steps that compile kernels and take memory, which a capture may not


class StepGraph:
    """A step of tensors (inputs, targets) on a GPU, captured after its first calls and replayed from then on.

    The step must do the same work on tensors of the same shapes at every call, and read nothing back from the GPU.
    Each call is one step, whichever way it is computed; the tensors returned are overwritten by the next call.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.stream = torch.cuda.Stream()  # warm-up and capture share one: backward runs where forward did
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Callable[[Tensor, Tensor], Any], inputs: Tensor, targets: Tensor) -> Any:
        """Do the step, the same at every call. It is not kept: a run that holds its graph is freed as any other."""
        self.calls += 1
        if self.calls <= _WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                out = step(inputs, targets)
            torch.cuda.current_stream().wait_stream(self.stream)
            return out
        if self.graph is None:
            self.places, self.graph = (inputs.clone(), targets.clone()), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.out = step(*self.places)
        for place, value in zip(self.places, (inputs, targets), strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.out
