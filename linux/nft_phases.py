"""A batch in phases, so that every packet meets the table as it was or as it is to be, and nothing in between.

One transaction is not enough for that. A packet asks one map after the other, and what it was told by the first may be
gone when it asks the second: the kernel looks at the generation anew each time, and a packet can be held up in the
middle. Sets of intervals change somewhat later than the rest of their transaction. So what nobody can see yet is done
before, and what nobody can see any more is taken away afterwards:

    ahead     new sets with what is in them, new counters, new chains with their rules,
              elements whose mark no map mentions: no packet can have it
    switch    all that packets see: one transaction
    after     sets, counters and chains that nothing names any more, elements whose mark no map mentions any more

That is right because marks are numbers that maps hand to maps: one that stands in none, neither as a key nor as a
value, is nobody's. Whoever writes the table sees to it that a number that a rule writes stands in a map too. Large sets
are filled ahead piece by piece: libnftables takes a KiB of memory and some microseconds for each element and keeps the
kernel's tables locked meanwhile, so many elements do not go through it. If a phase fails, the next read finds what the
others did and goes on from there. A table without chains is made in one transaction: it must close what it is there
for. So is a change of a set's type: what asks it can only change with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final, TypeAlias

from core.nftables import Element, Set
from core.reconcile import Plan
from linux.nft_objects import ChainBody, ChainName, CounterName, Object, SetName, Value

LARGE: Final = 1000
"""How many elements of a new set are worth transactions of their own."""

PART: Final = 20_000
"""How many elements go into one transaction at most; packed, they take some MiB."""

_DATA: Final = frozenset({"", "mark", "counter"})


Find: TypeAlias = Callable[[str], Set | None]
"""Finds a set by its name."""


class Marks:
    """How often each mark is mentioned in the elements of the table, as a key or as a value."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def learn(self, table: Mapping[Object, Value]) -> None:
        """Forget what was, and learn all that a table holds."""
        find = _finder(table)
        self._count = Counter(mark for key, value in table.items() for mark in _marks(key, value, find))

    def follow(self, change: Mapping[str, int]) -> None:
        """A plan has been carried out, of which `changes` said this."""
        for mark, more in change.items():
            self._count[mark] += more
            if not self._count[mark]:
                del self._count[mark]

    def mentions(self, mark: str) -> int:
        """How many elements do."""
        return self._count[mark]


def changes(plan: Plan[Object, Value], shape: Mapping[Object, Value]) -> Counter[str]:
    """How many mentions of each mark more, or fewer, there are when `plan` is carried out."""
    find, found = _finder(shape, plan.upsert), Counter[str]()
    for old in (plan.delete, plan.replace):
        found.subtract(mark for key, value in old.items() for mark in _marks(key, value, find))
    found.update(mark for key, value in plan.upsert.items() for mark in _marks(key, value, find))
    return found


def _finder(*tables: Mapping[Object, Value]) -> Find:
    known: dict[str, Set | None] = {}

    def find(name: str) -> Set | None:
        if name not in known:
            made = next((table[SetName(name)] for table in tables if SetName(name) in table), None)
            known[name] = made if isinstance(made, Set) else None
        return known[name]

    return find


def _marks(key: Object, value: Value, find: Find) -> Iterator[str]:
    made = find(key.set) if isinstance(key, Element) else None
    if made is not None and isinstance(key, Element):
        if made.key[0] == "mark":
            yield key.key.partition(" ")[0]
        if made.value == "mark" and isinstance(value, str):
            yield value


def phases(plan: Plan[Object, Value], shape: Mapping[Object, Value], marks: Marks) -> Iterator[Plan[Object, Value]]:
    """The transactions that carry out `plan`, in order. `shape` has the table's chains, sets and counters."""
    remade = any(isinstance(key, SetName) and key in shape for key in plan.upsert)
    if remade or not any(isinstance(key, ChainName) for key in shape):
        yield plan
        return
    find, more = _finder(shape, plan.upsert), changes(plan, shape)

    def unseen(key: Object, value: Value) -> bool:
        """Whether no packet can meet it while the rest of the batch is not there."""
        match key:
            case SetName() | CounterName():
                return key not in shape
            case ChainName():
                return key not in shape and isinstance(value, ChainBody) and value.hook is None
        mark = _asked_by(key, find)
        return SetName(key.set) not in shape or (mark is not None and not marks.mentions(mark))

    def unasked(key: Object, value: Value) -> bool:
        """Whether no packet can meet it any more once the rest of the batch is done."""
        match key:
            case SetName() | CounterName():
                return True
            case ChainName():
                return isinstance(value, ChainBody) and value.hook is None
        mark = _asked_by(key, find)
        return SetName(key.set) in plan.delete or (mark is not None and not marks.mentions(mark) + more[mark])

    ahead = {key: value for key, value in plan.upsert.items() if unseen(key, value)}
    late = {key: value for key, value in plan.delete.items() if unasked(key, value)}
    yield from _in_pieces(ahead, shape)
    yield Plan(
        upsert={key: value for key, value in plan.upsert.items() if key not in ahead},
        delete={key: value for key, value in plan.delete.items() if key not in late},
        replace=plan.replace,
    )
    yield Plan(upsert={}, delete=late)


def _asked_by(key: Element, find: Find) -> str | None:
    """The mark that a packet must have to find an element; None when it needs none."""
    made = find(key.set)
    return key.key.partition(" ")[0] if made is not None and made.key[0] == "mark" else None


def _in_pieces(ahead: Mapping[Object, Value], shape: Mapping[Object, Value]) -> Iterator[Plan[Object, Value]]:
    """What is done ahead: large new sets of data first, empty and then in parts; then the rest, with its chains."""
    counts = Counter(key.set for key in ahead if isinstance(key, Element))
    large = {name for name, count in counts.items() if count >= LARGE and _new_data(ahead.get(SetName(name)))}
    elements: dict[Object, Value] = {
        key: value for key, value in ahead.items() if isinstance(key, Element) and key.set in large
    }
    named = {CounterName(value) for value in elements.values() if isinstance(value, str)}
    made: dict[Object, Value] = {
        key: value
        for key, value in ahead.items()
        if (isinstance(key, SetName) and key.name in large) or (key in named and key not in shape)
    }
    yield Plan(made, {})
    left = iter(elements.items())
    while part := dict(islice(left, PART)):
        yield Plan(part, {})
    yield Plan({key: value for key, value in ahead.items() if key not in made and key not in elements}, {})


def _new_data(made: Value | None) -> bool:
    return isinstance(made, Set) and made.value in _DATA
