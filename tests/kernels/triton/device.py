"""Where the files ``device_*.py`` compute: on a GPU, or in Triton's interpreter, which then rounds as a GPU does."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from tests.kernels.triton import as_on_a_gpu

    as_on_a_gpu.install()
