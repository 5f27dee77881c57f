"""Read a finished study with pandas: runs by learning rate, paired differences, cost.

    python examples/read_a_study_with_pandas.py runs/default
"""

import argparse

import pandas

import nonlin


def rates(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Mean bits per byte of the tuning runs, one row per learning rate, one column per activation."""
    return runs[runs.purpose == "tune"].pivot_table("bits_per_byte", "learning_rate", "activation")


def paired(runs: pandas.DataFrame, baseline: str) -> pandas.DataFrame:
    """Difference to the baseline on each judged seed, in bits per byte."""
    judged = runs[runs.purpose == "judge"].pivot_table("bits_per_byte", "seed", "activation")
    return judged.sub(judged[baseline], axis=0).drop(columns=baseline)


def cost(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Speed, memory and dead units of the judged runs, by activation."""
    columns = ["tokens_per_second", "peak_memory_bytes", "dead_share", "sparsity"]
    return runs[runs.purpose == "judge"].groupby("activation")[columns].mean()


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a folder of nonlin compare")
    asked = parser.parse_args()

    study = nonlin.load_study(asked.study)
    runs = study.to_pandas()
    print(f"{len(runs)} runs, status {study.status}\n")
    print("Bits per byte by learning rate (tuning runs):", rates(runs).round(3), sep="\n", end="\n\n")
    print("Paired differences by seed:", paired(runs, study.results.baseline).round(4), sep="\n", end="\n\n")
    print("Cost:", cost(runs).round(3), sep="\n")


if __name__ == "__main__":
    main()
