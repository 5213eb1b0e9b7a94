"""What of a batch can be done before it, because nobody sees it: new sets, and what is in them.

    batch     new map identity4, 100,000 elements, chains that ask it, elements that lead to those chains
    ahead     [the map, empty] [its elements, in bytes] [more of them] ...
    then      [chains, rules, what leads to them]            packets see a change now, and all of it

A set that no rule asks is nothing to a packet. libnftables takes a KiB of memory and some microseconds for each
element of a transaction and keeps the kernel's tables locked meanwhile; so many elements do not go through it. Verdicts
wait, since their chains do. If the rest fails, the next read finds the sets and goes on from there. Nothing is done
ahead on a table without chains: one that is there must close what it is there for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Final

from core.nftables import Element, Set
from core.reconcile import Plan
from linux.nft_objects import ChainName, CounterName, Object, SetName, Value

LARGE: Final = 1000
"""How many elements of a new set are worth a transaction of their own."""

PART: Final = 20_000
"""How many elements go into one transaction at most; packed, they take some MiB."""

_DATA: Final = frozenset({"", "mark", "counter"})


def ahead(plan: Plan[Object, Value], shape: Mapping[Object, Value]) -> Iterator[Plan[Object, Value]]:
    """Plans to carry out first, in order; none unless there are large new sets. `shape` is the table's."""
    counts = Counter(key.set for key in plan.upsert if isinstance(key, Element)) if _chained(shape) else Counter[str]()
    large = {
        name for name, count in counts.items() if count >= LARGE and _new(plan.upsert.get(SetName(name)), name, shape)
    }
    if not large:
        return
    elements: dict[Object, Value] = {
        key: value for key, value in plan.upsert.items() if isinstance(key, Element) and key.set in large
    }
    named = {CounterName(value) for value in elements.values() if isinstance(value, str)}
    made: dict[Object, Value] = {
        key: value
        for key, value in plan.upsert.items()
        if (isinstance(key, SetName) and key.name in large) or (key in named and key not in shape)
    }
    yield Plan(made, {})
    left = iter(elements.items())
    while part := dict(islice(left, PART)):
        yield Plan(part, {})


def without(plan: Plan[Object, Value], done: Container[Object]) -> Plan[Object, Value]:
    """`plan` less what was done ahead of it."""
    return replace(plan, upsert={key: value for key, value in plan.upsert.items() if key not in done})


def _chained(shape: Mapping[Object, Value]) -> bool:
    return any(isinstance(key, ChainName) for key in shape)


def _new(made: Value | None, name: str, shape: Mapping[Object, Value]) -> bool:
    return isinstance(made, Set) and made.value in _DATA and SetName(name) not in shape
