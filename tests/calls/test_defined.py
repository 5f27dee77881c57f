"""What compare trains has a value and a derivative near zero, whichever input moves."""

import pytest

from nonlin.calls.comparison import check_defined
from nonlin.errors import UserError
from nonlin.functions import Definition, get, names
from nonlin.functions.grammar import parse


@pytest.mark.parametrize("text, at", [("gate/up", "up = 0"), ("gate*sqrt(up)", "up = -8"), ("up/gate", "gate = 0"),
                                      ("gate*log1p(up)", "up = -8"), ("gate/(up - 2)", "up = 2")])
def test_compare_asks_for_a_value_at_every_gate_and_every_up(text, at):
    with pytest.raises(UserError, match=f"has none at {at}"):
        check_defined(Definition("any", "gated", parse(text)))


def test_compare_takes_the_whole_catalog():
    for name in names():
        if not get(name).user_defined:
            check_defined(get(name))
