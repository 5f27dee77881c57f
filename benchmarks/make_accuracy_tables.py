"""Write tests/tables/NAME.json: value and derivatives of every activation at 50 digits, rounded to float64.

For each of float32, bfloat16 and float16: inputs that the dtype holds exactly, and for the value and each derivative
[what it is, its largest term]. The second number is where cancellation begins: the largest of the terms that are
added, and equal to the first where nothing is. Learnable parameters are at their start.

    python benchmarks/make_accuracy_tables.py [--check]

--check writes nothing and exits with 1 where a table is not what the definitions give now.
"""

import argparse
import json
import sys
from pathlib import Path

import mpmath
import numpy as np
import torch

from nonlin.functions import get, names
from nonlin.functions.expression import fold
from nonlin.functions.reference import TABLE

FOLDER = Path(__file__).parents[1] / "tests" / "tables"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGEST = {"float32": 1e30, "bfloat16": 1e30, "float16": 6e4}
DIGITS = 50


def points(dtype):
    """Return inputs of that dtype as float64: zero, the tiny, kinks and their neighbours, the tails, the far ends."""
    random = np.random.default_rng(7)
    grid = [0.0, 1e-40, 1e-30, 1e-8, 1e-4, 0.01, 0.3, 0.5, 0.75, 1.0, 1.2784645, 1.702, 3.0, 6.0, 7.0, 10.0,
            14.0, 20.0, 30.0, 45.0, 60.0, 87.0, 89.0, 104.0, 1e3, 1e4, 6e4, 1e10, 1e30]
    grid += [np.nextafter(np.float32(v), np.float32(9e9)) for v in (0.01, 1, 3, 6, 7, 10)]
    values = [s * float(v) for v in grid if v <= LARGEST[dtype] for s in (1, -1)] + list(random.uniform(-12, 12, 40))
    exact = torch.tensor(values, dtype=torch.float64).to(DTYPES[dtype]).double()
    return sorted(set(exact.tolist()))


def inputs(definition, dtype):
    """Return the input tuples of a definition: every point, or for gated ones pairs that meet at random."""
    ones = points(dtype)
    if definition.kind != "gated":
        return [(x,) for x in ones]
    random = np.random.default_rng(8)
    small = [p for p in ones if abs(p) <= 100]
    pairs = list(zip(random.permutation(ones), random.choice(small, len(ones)), strict=True))
    return [(float(g), float(u)) for g, u in pairs]


def scaled_table():
    """Return the reference's primitives over pairs (value, largest term)."""
    def function(name):
        def call(*args):
            value = TABLE[name](*(a[0] for a in args))
            return value, abs(value)
        return call

    def chosen(better):
        return lambda a, b: a if better(a[0], b[0]) else b

    def power(a, n):
        value = TABLE["pow"](a[0], n)
        return value, abs(value) if n.is_negative else TABLE["pow"](a[1], n)

    made = {name: function(name) for name in TABLE}
    made["number"] = lambda e: (TABLE["number"](e), abs(TABLE["number"](e)))
    made |= {"add": lambda a, b: (a[0] + b[0], max(a[1], b[1])), "mul": lambda a, b: (a[0] * b[0], a[1] * b[1]),
             "pow": power, "max": chosen(lambda a, b: a >= b), "min": chosen(lambda a, b: a <= b)}
    return made


def table(definition):
    """Return one activation's table."""
    made = {"variables": list(definition.variables), "digits": DIGITS, "dtypes": {}}
    exprs = {"value": definition.expr} | {name: definition.derivative(name) for name in definition.variables}
    primitives = scaled_table()
    with mpmath.workdps(DIGITS):
        fixed = {q.name: (mpmath.mpf(q.initial), abs(mpmath.mpf(q.initial))) for q in definition.parameters}
        for dtype in DTYPES:
            rows = []
            for point in inputs(definition, dtype):
                leaves = fixed | {v: (mpmath.mpf(x), abs(mpmath.mpf(x)))
                                  for v, x in zip(definition.variables, point, strict=True)}
                outs = [fold(expr, leaves, primitives) for expr in exprs.values()]
                rows.append([list(point), *([float(v), float(mpmath.nstr(s, 4))] for v, s in outs)])
            made["dtypes"][dtype] = rows
    return made


def text(made):
    """Return the table as JSON, one point a line."""
    parts = [f'"{dtype}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]"
             for dtype, rows in made["dtypes"].items()]
    head = f'{{"variables": {json.dumps(made["variables"])}, "digits": {made["digits"]}, "dtypes": {{\n'
    return head + ",\n".join(parts) + "\n}}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = []
    for name in names():
        definition = get(name)
        if definition.expr is None:
            continue
        path, made = FOLDER / f"{name}.json", text(table(definition))
        if check and (not path.exists() or path.read_text() != made):
            stale.append(name)
        elif not check:
            path.write_text(made)
    if stale:
        sys.exit(f"tables that differ from the definitions: {', '.join(stale)}; run make tables")


if __name__ == "__main__":
    main()
