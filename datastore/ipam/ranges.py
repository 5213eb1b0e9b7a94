"""Named prefixes, and which of them lie around, within or over another: few comparisons, however many there are.

By family and length: `starts[26]` has the first address of every /26, sorted. What contains an address is found by
masking it to each length there is (a cluster has one or two), what lies within a prefix by bisecting. Prefixes may
overlap, though those of a healthy cluster do not.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from core.addr import Address, Network

_BITS: Final[dict[int, int]] = {4: 32, 6: 128}


@dataclass(slots=True)
class _Length:
    """The prefixes of one length."""

    starts: list[int] = field(default_factory=list)
    names: dict[int, set[str]] = field(default_factory=dict)


class Ranges:
    """A changing set of (prefix, name)."""

    def __init__(self) -> None:
        self._lengths: dict[tuple[int, int], _Length] = {}

    def add(self, network: Network, name: str) -> None:
        """Put a prefix in."""
        length = self._lengths.setdefault((network.version, network.prefixlen), _Length())
        start = int(network.network_address)
        if start not in length.names:
            insort(length.starts, start)
            length.names[start] = set()
        length.names[start].add(name)

    def remove(self, network: Network, name: str) -> None:
        """Take out what was put in."""
        length = self._lengths[network.version, network.prefixlen]
        start = int(network.network_address)
        length.names[start].discard(name)
        if not length.names[start]:
            del length.names[start]
            del length.starts[bisect_left(length.starts, start)]
            if not length.starts:
                del self._lengths[network.version, network.prefixlen]

    def around(self, inner: Network | Address) -> list[str]:
        """The names of those that contain all of `inner`, the widest first."""
        version, bits = inner.version, _BITS[inner.version]
        most: int = bits if isinstance(inner, Address) else inner.prefixlen
        start = int(inner) if isinstance(inner, Address) else int(inner.network_address)
        found: list[str] = []
        for kind, prefixlen in sorted(self._lengths):
            if kind == version and prefixlen <= most:
                shift = bits - prefixlen
                found += self._lengths[kind, prefixlen].names.get(start >> shift << shift, ())
        return found

    def within(self, outer: Network) -> Iterator[str]:
        """The names of those that lie in `outer`, by address (those of one length together)."""
        for length, first, last in self._within(outer):
            for start in length.starts[first:last]:
                yield from sorted(length.names[start])

    def shuffled_within(self, outer: Network, random: Random) -> Iterator[str]:
        """As `within`, in random order. Each costs the same however many there are: the rest is not looked at."""
        spans = list(self._within(outer))
        count = sum(last - first for _, first, last in spans)
        moved: dict[int, int] = {}  # a shuffle of 0..count that keeps only what is not in its place
        for end in range(count - 1, -1, -1):
            chosen = random.randint(0, end)
            index = moved.get(chosen, chosen)
            moved[chosen] = moved.pop(end, end)
            for length, first, last in spans:
                if index < last - first:
                    yield from sorted(length.names[length.starts[first + index]])
                    break
                index -= last - first

    def count_within(self, outer: Network) -> int:
        """How many addresses of `outer` those within it take, if none overlaps another."""
        bits = _BITS[outer.version]
        return sum(
            (last - first) << (bits - prefixlen)
            for (kind, prefixlen), length in self._lengths.items()
            if kind == outer.version and prefixlen >= outer.prefixlen
            for first, last in (_span(length, outer),)
        )

    def count(self, network: Network) -> int:
        """How many contain it or lie within it; itself twice, if it is there under two names."""
        narrower = self._within(network, network.prefixlen + 1)
        return len(self.around(network)) + sum(last - first for _, first, last in narrower)

    def overlap(self, network: Network) -> bool:
        """Whether any contains it or lies within it."""
        return bool(self.around(network)) or any(first < last for _, first, last in self._within(network))

    def _within(self, outer: Network, least: int = 0) -> Iterator[tuple[_Length, int, int]]:
        for (kind, prefixlen), length in sorted(self._lengths.items(), key=lambda item: item[0]):
            if kind == outer.version and prefixlen >= max(outer.prefixlen, least):
                yield length, *_span(length, outer)


def _span(length: _Length, outer: Network) -> tuple[int, int]:
    first = int(outer.network_address)
    return bisect_left(length.starts, first), bisect_left(length.starts, first + outer.num_addresses)
