"""JSON values with another one at some place, for tests of what reads files from anybody."""

import copy

GONE = object()
"""In place of a value: the key or the entry is left out."""


def places(value, at=()):
    """All places in JSON values; of a long list, its first and last."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from places(value[index], (*at, index))


def changed(values, at, new):
    """The values with another one at a place."""
    values = inner = copy.deepcopy(values)
    for key in at[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return values
