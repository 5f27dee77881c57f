"""The page tests' helpers are modules beside them, and the study tests'."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "study")]
