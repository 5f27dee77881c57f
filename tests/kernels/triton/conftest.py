"""What needs Triton is collected only where a test asks for it: in its interpreter, or on a GPU."""

import os

import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available() else [
    "device_*.py", "device.py", "as_on_a_gpu.py"]
