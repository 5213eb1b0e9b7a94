"""Numbers kept while things come and go are those of counting them anew, and none changes hands at once."""

from __future__ import annotations

import hashlib
from random import Random

import pytest

from policy.numbering import Handed, Numbers, numbered


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


@pytest.mark.parametrize("seed", range(60))
def test_no_number_means_one_thing_in_one_state_and_another_in_the_next(seed: int) -> None:
    rng = Random(seed)
    most = rng.choice([20, 40, 1000])
    numbers: Handed[int] = Handed(most)
    there: set[int] = set()
    borrowed = 0
    for _ in range(60):
        gone = set(rng.sample(sorted(there), rng.randint(0, len(there))))
        come = {thing for thing in (rng.randrange(60) for _ in range(rng.randint(0, 4))) if thing not in there}
        if len(there - gone | come) > most // 2:
            come = set()
        before = dict(numbers.of)
        moved = numbers.change(gone, {thing: digest(thing) for thing in come})
        there = there - gone | come
        assert moved == {thing for thing in before.keys() | there if before.get(thing) != numbers.of.get(thing)}
        assert len(set(numbers.of.values())) == len(numbers.of) == len(there)
        meant = {number: thing for thing, number in before.items()}
        assert all(meant.get(number, thing) == thing for thing, number in numbers.of.items())
        borrowed += not numbers.settled
        if not numbers.settled and rng.random() < 0.5:
            earlier = {number: thing for thing, number in numbers.of.items()}
            numbers.change((), {})
            assert numbers.settled
            assert all(earlier.get(number, thing) == thing for thing, number in numbers.of.items())
            assert numbers.of == numbered({thing: digest(thing) for thing in there}, most)
    assert borrowed or most == 1000
