"""Compare activations from Python and act on the verdict.

    python examples/compare_from_python.py --data my_corpus/ --minutes 10
"""

import argparse

import nonlin


def main() -> None:
    """Run a study (or continue it), print its verdicts, and write text with the winner's model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", help="a file or a folder; may be repeated")
    parser.add_argument("--activations", nargs="+", default=["gelu", "swiglu", "mine=x*sigmoid(2*x)"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--small", action="store_true", help="a study of seconds, which decides nothing")
    parser.add_argument("--out", default="runs/from-python")
    asked = parser.parse_args()

    small = {"steps": 8, "seeds": 4, "learning_rates": 2, "layers": 1, "dim": 16, "heads": 2, "context": 16, "batch": 4}
    study = nonlin.compare(asked.data, asked.activations, minutes=asked.minutes, out=asked.out,
                           **(small if asked.small else {}))
    print(study)  # in a notebook, `study` alone shows the table and the curves
    for name, verdict in study.verdicts.items():
        d = verdict.difference
        shown = "" if d is None else f"{d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f}) bits per byte"
        print(f"{name}: {verdict.verdict} {shown}")

    model = study.model(study.winner)  # an ordinary torch module
    print(f"winner {study.winner}: {sum(p.numel() for p in model.parameters()):,} parameters, in {study.directory}")


if __name__ == "__main__":
    main()
