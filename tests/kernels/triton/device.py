"""Where the files ``device_*.py`` compute: on a GPU, or in Triton's interpreter, which then rounds as a GPU does."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from tests.kernels.triton import as_on_a_gpu

    as_on_a_gpu.install()


class Launches:
    """In the interpreter, a kernel whose launches can be made again, as those that Triton compiled on a GPU."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        def call(*args, **options):
            self.function[grid](*args, **options)
            return self

        return call
