"""What needs Triton's interpreter is collected only where that is on."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted_*.py", "as_on_a_gpu.py"]
