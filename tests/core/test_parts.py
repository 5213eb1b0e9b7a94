"""States in parts end where flat ones do, whatever is shared, moved, refused or changed by others; and what is shared
is not looked into. The driver is a dict that refuses now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.parts import Parts
from core.reconcile import Plan, Reconciler, diff

KEYS = "abcdef"
PARTS = "xyz"


class Shelf:
    """A driver over a dict; of the keys in `stuck`, none is written."""

    name = "shelf"

    def __init__(self) -> None:
        self.things: dict[str, int] = {}
        self.stuck: frozenset[str] = frozenset()
        self.reads = 0

    async def read(self) -> Mapping[str, int]:
        self.reads += 1
        return dict(self.things)

    async def apply(self, plan: Plan[str, int]) -> Mapping[str, Exception]:
        failed = {key: OSError(f"{key} is stuck") for key in {*plan.upsert, *plan.delete} & self.stuck}
        assert all(self.things[key] == value for key, value in {**plan.delete, **plan.replace}.items())
        self.things.update({key: value for key, value in plan.upsert.items() if key not in failed})
        for key in plan.delete.keys() - failed.keys():
            del self.things[key]
        return failed


@dataclass(frozen=True)
class Move:
    """The next state: where each key is (a part and a value), and what else happens before the round."""

    keys: Mapping[str, tuple[str, int]]
    stuck: frozenset[str]
    foreign: Mapping[str, int]
    prune: bool
    flat: bool

    def state(self, last: Parts[str, int]) -> Parts[str, int]:
        """In parts, each the one of `last` when it is equal."""
        made: dict[str, dict[str, int]] = {}
        for key, (part, value) in self.keys.items():
            made.setdefault(part, {})[key] = value
        return Parts({n: last.parts[n] if last.parts.get(n) == part else part for n, part in made.items()})


moves = st.builds(
    Move,
    keys=st.dictionaries(st.sampled_from(KEYS), st.tuples(st.sampled_from(PARTS), st.integers(0, 2))),
    stuck=st.frozensets(st.sampled_from(KEYS), max_size=1),
    foreign=st.dictionaries(st.sampled_from(KEYS), st.integers(7, 8), max_size=1),
    prune=st.sampled_from([True, True, False]),
    flat=st.sampled_from([True, False, False]),
)


@given(st.lists(moves, max_size=8))
def test_any_sequence_of_states_in_parts_ends_as_the_flat_one_does(walk: list[Move]) -> None:
    async def run() -> None:
        shelf, other = Shelf(), Shelf()
        parted: Reconciler[str, int] = Reconciler(shelf)
        flat: Reconciler[str, int] = Reconciler(other)
        last: Parts[str, int] = Parts({})
        for revision, move in enumerate(walk, 1):
            last = move.state(last)
            for driver, reconciler in ((shelf, parted), (other, flat)):
                driver.stuck = move.stuck
                if move.foreign:
                    driver.things.update(move.foreign)
                    reconciler.distrust()
            parted.set_desired(last.flat() if move.flat else last, revision, prune=move.prune)
            flat.set_desired(last.flat(), revision, prune=move.prune)
            assert await parted.step() == await flat.step()
            assert shelf.things == other.things
            assert parted.seen == flat.seen
            assert shelf.reads == other.reads
        shelf.stuck = frozenset()
        parted.set_desired(last, len(walk) + 1)
        assert (await parted.step()).healthy
        assert shelf.things == last.flat()

    asyncio.run(run())


class Closed(Mapping[str, int]):
    """A part that nobody may look into."""

    def __getitem__(self, key: str) -> int:
        raise AssertionError(key)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError

    def __len__(self) -> int:
        raise AssertionError


def test_shared_parts_are_not_looked_into() -> None:
    closed = Closed()
    before = Parts({"big": closed, "one": {"a": 1, "b": 2}, "two": {"c": 3}, "three": {"d": 4}})
    after = Parts({"big": closed, "one": {"a": 1}, "two": {"b": 2, "c": 4}, "four": {"e": 5}})
    assert diff(after, before) == Plan({"c": 4, "e": 5}, {"d": 4}, {"c": 3}), "b has only moved"


def test_a_mapping_in_parts_is_a_mapping() -> None:
    parts = Parts({"one": {"a": 1}, "two": {"b": 2}})
    assert dict(parts) == parts.flat() == {"a": 1, "b": 2}
    assert (len(parts), parts["b"], "c" in parts, parts == {"b": 2, "a": 1}) == (2, 2, False, True)
    with pytest.raises(KeyError):
        parts["c"]


def test_a_key_in_two_parts_is_found_out() -> None:
    with pytest.raises(ValueError, match="another part"):
        diff(Parts({"one": {"a": 1}, "two": {"a": 1}}), {})
