"""References that calls in C give back."""

import gc
import sys


def must_be_given_back(watched, run, times):
    """Assert that ``run(times)`` leaves as many references to each of ``watched``, and as many objects, as before."""
    run(10)
    gc.collect()
    before, count = [sys.getrefcount(o) for o in watched], len(gc.get_objects())
    run(times)
    gc.collect()
    assert [sys.getrefcount(o) for o in watched] == before
    assert len(gc.get_objects()) < count + 100
