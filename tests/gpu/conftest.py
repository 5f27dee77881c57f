"""The folder's own helpers are importable, and kernels are written to a folder of the tests' own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
