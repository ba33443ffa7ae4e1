"""The order in which candidates take turns."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from boxwright.bench.launch import turns


@pytest.mark.parametrize("names", ["AB", "ABC", "ABCD", "ABCDE"])
def test_everyone_is_at_every_place_and_ahead_of_everyone_else_equally_often(names: str) -> None:
    orders = [turns(names, index) for index in range(2 * len(names))]
    assert all(sorted(order) == sorted(names) for order in orders)
    places = Counter((place, name) for order in orders for place, name in enumerate(order))
    assert set(places.values()) == {2} and len(places) == len(names) ** 2
    followers = Counter(pair for order in orders for pair in pairwise(order))
    ahead = Counter((one, other) for order in orders for place, one in enumerate(order) for other in order[place + 1 :])
    assert len(set(ahead.values())) == 1 and len(ahead) == len(names) * (len(names) - 1)
    for one in names:
        for other in names:
            assert followers[one, other] == followers[other, one]


def test_of_one_or_none() -> None:
    assert turns("A", 5) == ["A"]
    assert turns("", 3) == []
