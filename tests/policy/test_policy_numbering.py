"""Numbers kept while things come and go are those of counting them anew."""

from __future__ import annotations

import hashlib
from random import Random

import pytest

from policy.numbering import Numbers, numbered


def digest(thing: int) -> bytes:
    return hashlib.sha256(str(thing).encode()).digest()


@pytest.mark.parametrize("seed", range(60))
def test_the_order_in_which_things_came_leaves_no_trace(seed: int) -> None:
    rng = Random(seed)
    most = rng.choice([5, 12, 40, 1000])
    numbers: Numbers[int] = Numbers(most)
    there: set[int] = set()
    for _ in range(30):
        gone = set(rng.sample(sorted(there), rng.randint(0, len(there))))
        come = {thing for thing in (rng.randrange(60) for _ in range(rng.randint(0, 8))) if thing not in there}
        before = dict(numbers.of)
        moved = numbers.change(gone, {thing: digest(thing) for thing in come})
        there = there - gone | come
        after = numbered({thing: digest(thing) for thing in there}, most)
        assert numbers.of == after
        assert moved == {thing for thing in before.keys() | after.keys() if before.get(thing) != after.get(thing)}
