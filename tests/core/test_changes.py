"""The difference of two tables, however the second came about."""

from __future__ import annotations

from random import Random

import pytest

from core.changes import changes


@pytest.mark.parametrize("seed", range(40))
def test_the_changes_lead_from_one_to_the_other(seed: int) -> None:
    rng = Random(seed)
    before: dict[int, object] = {number: object() for number in range(rng.choice([0, 5, 700]))}
    after = dict(before)
    for _ in range(rng.choice([0, 1, 30])):
        key = rng.randrange(800)
        after.pop(key, None)
        if rng.random() < 0.6:
            after[key] = object()
    if seed % 4 == 3:
        after = dict(rng.sample(list(after.items()), len(after)))
    found = changes(before, after)
    assert dict(found.gone) == {key: each for key, each in before.items() if after.get(key) is not each}
    assert dict(found.come) == {key: each for key, each in after.items() if before.get(key) is not each}
    assert bool(found) is bool({**found.gone, **found.come})


def test_a_table_that_is_the_same_has_no_changes() -> None:
    table = {1: object()}
    assert not changes(table, table)
    assert not changes(table, dict(table))
