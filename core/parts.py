"""A mapping in disjoint parts, so that two states which share most parts are compared at the cost of the others.

    state 1    { frame: A,  stack-1: B,  bucket-7: C }
    state 2    { frame: A,  stack-1: B', bucket-7: C }      compared: B with B'; A and C are the same objects

Whoever makes states makes a part anew only when it changes, and hands out the very object otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Parts(Mapping[K, V]):
    """One mapping made of named `parts`. No key may be in two of them, and none may change once it is in here.

    A key may move from one part to another between two states. Looking up one key asks every part: whoever needs
    many of them asks `flat`.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Mapping[str, Mapping[K, V]]) -> None:
        self.parts = parts

    def __getitem__(self, key: K) -> V:
        for part in self.parts.values():
            if key in part:
                return part[key]
        raise KeyError(key)

    def __iter__(self) -> Iterator[K]:
        for part in self.parts.values():
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __repr__(self) -> str:
        return f"Parts({self.parts!r})"

    def flat(self) -> dict[K, V]:
        """All of it in one dictionary. Raises ValueError when two parts hold the same key."""
        return _joined(self.parts)

    def unlike(self, other: Parts[K, V]) -> tuple[dict[K, V], dict[K, V]]:
        """What our parts that `other` does not share hold, and what the parts of `other` do that we do not share."""
        return _joined(_others(self.parts, other.parts)), _joined(_others(other.parts, self.parts))


def _others(parts: Mapping[str, Mapping[K, V]], shared: Mapping[str, Mapping[K, V]]) -> Mapping[str, Mapping[K, V]]:
    return {name: part for name, part in parts.items() if shared.get(name) is not part}


def _joined(parts: Mapping[str, Mapping[K, V]]) -> dict[K, V]:
    joined: dict[K, V] = {}
    for name, part in parts.items():
        expected = len(joined) + len(part)
        joined.update(part)
        if len(joined) != expected:
            raise ValueError(f"part {name!r} holds a key that another part holds too")
    return joined
