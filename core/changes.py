"""What changed between two tables of which one was made from the other.

before   a b c d e           A walk side by side: what changed or went is missing on the way, what came or is another
after    a b d e c' f        now stands at the end. So most entries are compared by identity, without a look-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

STRIDE: Final = 32
"""How many entries are compared in one go where nothing changed."""


@dataclass(frozen=True, slots=True)
class Changes(Generic[K, V]):
    """`gone`: entries of the first table that the second has not, or has with another value; `come`, the reverse."""

    gone: Mapping[K, V]
    come: Mapping[K, V]

    def __bool__(self) -> bool:
        return bool(self.gone or self.come)


def changes(before: Mapping[K, V], after: Mapping[K, V]) -> Changes[K, V]:
    """The difference of two tables; a value is the same when it is the same object."""
    if before is after:
        return Changes({}, {})
    gone, come = _apart(list(before), list(before.values()), list(after), list(after.values()))
    for key in [key for key, value in gone.items() if come.get(key) is value]:
        del gone[key], come[key]  # it only stands elsewhere
    return Changes(gone, come)


def _apart(
    keys: Sequence[K], values: Sequence[V], new_keys: Sequence[K], new_values: Sequence[V]
) -> tuple[dict[K, V], dict[K, V]]:
    gone: dict[K, V] = {}
    come: dict[K, V] = {}
    here = there = 0
    while here < len(values) and there < len(new_values):
        ours, theirs = values[here : here + STRIDE], new_values[there : there + STRIDE]
        if all(map(is_, ours, theirs)):
            alike = min(len(ours), len(theirs))
            here, there = here + alike, there + alike
            continue
        until = here + len(ours)
        while here < until and there < len(new_values):
            if values[here] is not new_values[there]:
                gone[keys[here]] = values[here]
                if keys[here] == new_keys[there]:
                    come[new_keys[there]] = new_values[there]
                    there += 1
            else:
                there += 1
            here += 1
    gone.update(zip(keys[here:], values[here:], strict=True))
    come.update(zip(new_keys[there:], new_values[there:], strict=True))
    return gone, come
