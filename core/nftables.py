"""What an nftables table should hold, as frozen values: the seam between policy and felix (who write it) and
`linux.nft` (which makes it so). Pure text and tuples; nothing here talks to the kernel.

Element keys have one canonical spelling so that desired and read-back compare by value:

    concatenations   parts joined by " . "                 327680 . 6 . 80
    numbers          decimal: marks, protocols, ports      6   80   80-90 (a range, never a one-port range)
    addresses        str() of the ipaddress value          10.0.0.1   fd00::1
    intervals        a prefix when it is one, else a-b     10.0.0.0/8   10.0.0.1-10.0.0.6
    interface names  quoted                                "musab12cd34ef5"

A map's values likewise, by `Set.value`:

    verdict          as nft prints it: accept, drop, return, goto NAME, jump NAME
    mark             decimal                               327680
    counter          the name of a counter object, which `Ruleset.counters` must hold
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where a base chain hangs. `priority` is nft's number (raw -300, filter 0, srcnat 100). Policy is accept."""

    type: str
    hook: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain and its rules in order, each the text that follows `add rule inet muslin NAME`."""

    rules: tuple[str, ...] = ()
    hook: Hook | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """A named set (`value` empty) or map (`value` "verdict", "mark" or "counter").

    `key` is the nft type of its elements, one part per item of a concatenation (("mark", "inet_proto",
    "inet_service")). `counter` gives every element a packet counter.
    """

    key: tuple[str, ...]
    value: str = ""
    interval: bool = False
    counter: bool = False


class Element(msgspec.Struct, frozen=True, order=True, gc=False):
    """The name of one element: its set and its key in canonical spelling.

    A struct, as there are as many as addresses in the cluster: it is small, and made and compared without Python.
    """

    set: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """A whole table, or one part of it. Every set, chain and counter that something names must be in the whole.

    `elements` maps to the value of a map's element, "" for a plain set's. `counters` are named counter objects: they
    count from when they are first made until no state wants them, whatever else changes.
    """

    chains: Mapping[str, Chain] = field(default_factory=lambda: MappingProxyType({}))
    sets: Mapping[str, Set] = field(default_factory=lambda: MappingProxyType({}))
    elements: Mapping[Element, str] = field(default_factory=lambda: MappingProxyType({}))
    counters: frozenset[str] = frozenset()


def join(*rulesets: Ruleset) -> Ruleset:
    """One of several parts, which must be disjoint."""
    chains: dict[str, Chain] = {}
    sets: dict[str, Set] = {}
    elements: dict[Element, str] = {}
    counters: set[str] = set()
    for each in rulesets:
        twice = (chains.keys() & each.chains.keys()) | (sets.keys() & each.sets.keys()) | (counters & each.counters)
        assert not twice, f"two parts of the table define {sorted(twice)}"
        chains.update(each.chains)
        sets.update(each.sets)
        elements.update(each.elements)
        counters |= each.counters
    return Ruleset(
        chains=MappingProxyType(chains),
        sets=MappingProxyType(sets),
        elements=MappingProxyType(elements),
        counters=frozenset(counters),
    )
