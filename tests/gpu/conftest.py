"""The folder's own helpers are importable; what needs Triton's interpreter is collected only where that is on."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted_*.py", "as_on_a_gpu.py"]
