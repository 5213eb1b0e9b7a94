"""Which addresses are the same to the rules in force, and what number each such class has.

    selectors ──┐                                 pods' addresses ── exact ──┐
                ├── marks on addresses and nets ──                           ├──> the peers that hold ──> class
    nets ───────┘                                 flattened ranges ──────────┘      (a signature)        (a number)

A *mark* is one selector or one list of nets of a rule. Nets that overlap are flattened into disjoint ranges that carry
the marks of every net around them. A *signature* is the family, the peers of rules that hold for those marks, and the
named ports that rules ask for: addresses with one signature cannot be told apart by any rule. World is what no mark is
on; where the peers that hold there hold elsewhere too, elsewhere is world as well and needs no element.

A class's number comes from a hash of its signature, so that a new policy does not renumber addresses it does not mean.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Final, TypeAlias

from core.addr import Address, Family, Network
from core.labels import Unknown
from core.names import MARK_MASK
from core.selector import Selector
from policy.index import LabelIndex
from policy.model import Peer, Range
from policy.ranges import alike

Marks: TypeAlias = frozenset[int]
NO_MARKS: Final[Marks] = frozenset()

CLASS_SHIFT: Final = (MARK_MASK & -MARK_MASK).bit_length() - 1
MOST_CLASSES: Final = (MARK_MASK >> CLASS_SHIFT) - 3
"""Class numbers are 1 to this; 0 is no class, which no table admits, and the three above have other meanings."""

NO_CLASS: Final = 0

BUCKETS: Final = 509
"""Into how many parts the addresses of each family are put. A prime: addresses next to one another spread evenly."""

Bucket: TypeAlias = tuple[int, int]
"""A family, and a number less than BUCKETS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """Something with labels that has addresses: an endpoint or a network set. `ports`: name, protocol, number.

    `unknown` are labels that nobody can tell; without `sure`, neither can anybody tell whether the addresses carry any.
    """

    labels: Mapping[str, str]
    addresses: tuple[Address, ...] = ()
    nets: tuple[Network, ...] = ()
    ports: tuple[tuple[str, int, int], ...] = ()
    unknown: Unknown | None = None
    sure: bool = True

    @property
    def doubtful(self) -> bool:
        """Whether something of it cannot be told."""
        return self.unknown is not None or not self.sure


@dataclass(frozen=True, slots=True)
class NamedPort:
    """What a rule asks of its peer: the port called `name` of `protocol`, of what `selector` matches (None: of all).

    Only what is sure counts: a rule for which more would have to does not ask for names (`policy.doubt`).
    """

    selector: Selector | None
    name: str
    protocol: int

    @property
    def text(self) -> str:
        """Canonical spelling."""
        return f"{self.name}/{self.protocol}@{self.selector.canonical if self.selector else ''}"


@dataclass(frozen=True, slots=True)
class Signature:
    """What tells addresses apart: family, texts of the peers that hold, and numbers of named ports by their text."""

    family: int
    peers: frozenset[str] = frozenset()
    ports: frozenset[tuple[str, int]] = frozenset()

    def digest(self) -> bytes:
        """The same for the same signature, in every process."""
        parts = [str(self.family), *sorted(self.peers), "", *(f"{text}={port}" for text, port in sorted(self.ports))]
        return hashlib.sha256("\n".join(parts).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The classes and where they lie. Addresses are integers. Ranges are disjoint and in order; between them is world.

    `exact` has, by bucket (`bucket_of`), the class of each address that differs from its range's. Between two
    compilations by one compiler, a bucket, or a family's ranges, in which nothing changed is the same object.
    """

    exact: Mapping[Bucket, Mapping[int, int]] = field(default_factory=dict)
    ranges: Mapping[int, Sequence[tuple[Range, int]]] = field(default_factory=dict)
    world: Mapping[int, int] = field(default_factory=dict)
    signatures: Mapping[int, Signature] = field(default_factory=dict)
    lost: int = 0

    def of(self, address: Address) -> int:
        """The class of an address."""
        found = self.exact.get(bucket_of(address.version, int(address)), {}).get(int(address))
        return self.around(address.version, int(address)) if found is None else found

    def around(self, family: int, address: int) -> int:
        """The class of an address that `exact` does not have."""
        ranges = self.ranges[family]
        at = bisect_right(ranges, address, key=lambda piece: piece[0][0]) - 1
        return ranges[at][1] if at >= 0 and ranges[at][0][1] >= address else self.world[family]


def bucket_of(family: int, address: int) -> Bucket:
    """Where `Identity.exact` has an address."""
    return family, address % BUCKETS


class Marked:
    """Marks on every address that any of the given peers and named ports can tell from another."""

    def __init__(self, entities: Sequence[Entity], peers: Iterable[Peer], named: Iterable[NamedPort]) -> None:
        self._selectors: dict[tuple[str, bool], int] = {}
        self._in_doubt = any(each.doubtful for each in entities)
        self._nets: dict[tuple[Network, ...], int] = {}
        self.ports: dict[Address, set[tuple[str, int]]] = defaultdict(set)
        self.pods: dict[Address, set[int]] = {address: set() for each in entities for address in each.addresses}
        on_nets: dict[Network, set[int]] = defaultdict(set)
        unknown = {position: each.unknown for position, each in enumerate(entities) if each.unknown is not None}
        index = LabelIndex([each.labels for each in entities], unknown)
        for peer in peers:
            for selector, possibly in ((peer.selector, peer.possibly), (peer.not_selector, not peer.possibly)):
                if selector is None or self._reading(selector, possibly=possibly) in self._selectors:
                    continue
                mark = self._selectors[self._reading(selector, possibly=possibly)] = self._fresh()
                for position in index.matching(selector, possibly=possibly):
                    if possibly or entities[position].sure:
                        for address in entities[position].addresses:
                            self.pods[address].add(mark)
                        for net in entities[position].nets:
                            on_nets[net].add(mark)
            for nets in (peer.nets, peer.not_nets):
                if nets and nets not in self._nets:
                    mark = self._nets[nets] = self._fresh()
                    for net in nets:
                        on_nets[net].add(mark)
        self._name_ports(entities, index, named)
        self.ranges = {family: _flatten(family, on_nets) for family in Family}
        for address, marks in self.pods.items():
            marks |= self._around(address)

    def _reading(self, selector: Selector, *, possibly: bool) -> tuple[str, bool]:
        """The two readings of a selector are one where nothing is in doubt."""
        return selector.canonical, possibly and self._in_doubt

    def _fresh(self) -> int:
        return len(self._selectors) + len(self._nets)

    def _name_ports(self, entities: Sequence[Entity], index: LabelIndex, named: Iterable[NamedPort]) -> None:
        having = [each for each in entities if each.ports and each.sure]
        for port in named:
            matched = [entities[at] for at in index.matching(port.selector)] if port.selector is not None else having
            for entity in (each for each in matched if each.sure):
                for name, protocol, number in entity.ports:
                    if (name, protocol) == (port.name, port.protocol):
                        for address in entity.addresses:
                            self.ports[address].add((port.text, number))

    def _around(self, address: Address) -> Marks:
        ranges = self.ranges[Family(address.version)]
        at = bisect_right(ranges, int(address), key=lambda piece: piece[0][0]) - 1
        return ranges[at][1] if at >= 0 and ranges[at][0][1] >= int(address) else NO_MARKS

    def of(self, address: Address) -> Marks:
        """The marks on one address."""
        found = self.pods.get(address)
        return frozenset(found) if found is not None else self._around(address)

    def within(self, net: Network) -> list[tuple[Range, Marks]]:
        """The marks on a whole prefix, in disjoint ranges that cover it."""
        first, last = int(net.network_address), int(net.broadcast_address)
        make = IPv4Address if net.version == 4 else IPv6Address
        cuts = {first, last + 1}
        for (low, high), _ in self.ranges[Family(net.version)]:
            cuts.update(edge for edge in (low, high + 1) if first < edge <= last)
        for address in self.pods:
            if address.version == net.version and first <= int(address) <= last:
                cuts.update((int(address), int(address) + 1))
        return [((low, end - 1), self.of(make(low))) for low, end in pairwise(sorted(cuts))]

    def holds(self, peer: Peer, marks: Marks) -> bool:
        """Whether an address with these marks is one that `peer` means."""
        if peer.selector is not None and self._mark(peer.selector, possibly=peer.possibly) not in marks:
            return False
        if peer.not_selector is not None and self._mark(peer.not_selector, possibly=not peer.possibly) in marks:
            return False
        if peer.nets is not None and self._nets.get(peer.nets) not in marks:
            return False
        return not peer.not_nets or self._nets[peer.not_nets] not in marks

    def _mark(self, selector: Selector, *, possibly: bool) -> int:
        return self._selectors[self._reading(selector, possibly=possibly)]

    def anchor(self, peer: Peer) -> int | None:
        """A mark that must be there for `peer` to hold; None when it can hold without any."""
        if peer.selector is not None:
            return self._mark(peer.selector, possibly=peer.possibly)
        return None if peer.nets is None else self._nets.get(peer.nets, -1)


def _flatten(family: Family, on_nets: Mapping[Network, set[int]]) -> list[tuple[Range, Marks]]:
    """Overlapping nets as disjoint ranges in order, each with the marks of all the nets around it."""
    starts: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, list[int]] = defaultdict(list)
    for net, marks in on_nets.items():
        if net.version == family:
            starts[int(net.network_address)].extend(marks)
            ends[int(net.broadcast_address) + 1].extend(marks)
    depth: dict[int, int] = {}
    pieces: list[tuple[Range, Marks]] = []
    for here, after in pairwise(sorted({*starts, *ends})):
        for mark in starts.get(here, ()):
            depth[mark] = depth.get(mark, 0) + 1
        for mark in ends.get(here, ()):
            depth[mark] -= 1
            if not depth[mark]:
                del depth[mark]
        if depth:
            pieces.append(((here, after - 1), frozenset(depth)))
    return pieces


def identify(marked: Marked, peers: Mapping[str, Peer], named: Collection[str]) -> Identity:
    """Classes of all addresses, as `peers` (by text) and ports `named` (texts) tell them apart."""
    signer = _Signer(marked, peers)
    world = {int(family): signer.sign(family, NO_MARKS) for family in Family}
    ranges = {
        int(family): [(span, signer.sign(family, marks)) for span, marks in marked.ranges[family]] for family in Family
    }
    pods = {
        address: signer.sign(
            address.version,
            frozenset(marks),
            frozenset(port for port in marked.ports.get(address, ()) if port[0] in named),
        )
        for address, marks in marked.pods.items()
    }
    numbers = number_classes({*world.values(), *pods.values(), *(s for each in ranges.values() for _, s in each)})
    worlds = {family: numbers.get(signature, NO_CLASS) for family, signature in world.items()}
    plain = Identity(
        ranges={
            family: alike((span, numbers.get(signature, NO_CLASS)) for span, signature in each)
            for family, each in ranges.items()
        },
        world=worlds,
    )
    kept = {
        family: [(span, number) for span, number in each if number != worlds[family]]
        for family, each in plain.ranges.items()
    }
    exact: dict[Bucket, dict[int, int]] = defaultdict(dict)
    for address, signature in pods.items():
        family, value = address.version, int(address)
        number = numbers.get(signature, NO_CLASS)
        if number != plain.around(family, value):
            exact[bucket_of(family, value)][value] = number
    return Identity(
        exact=exact,
        ranges=kept,
        world=worlds,
        signatures={number: signature for signature, number in sorted(numbers.items(), key=lambda item: item[1])},
        lost=sum(signature not in numbers for signature in signer.known.values()),
    )


class _Signer:
    """From marks to signatures, each set of marks worked out once."""

    def __init__(self, marked: Marked, peers: Mapping[str, Peer]) -> None:
        self._marked = marked
        self._anchored: dict[int | None, list[Peer]] = defaultdict(list)
        for peer in peers.values():
            self._anchored[marked.anchor(peer)].append(peer)
        self.known: dict[tuple[int, Marks, frozenset[tuple[str, int]]], Signature] = {}

    def sign(self, family: int, marks: Marks, ports: frozenset[tuple[str, int]] = frozenset()) -> Signature:
        found = self.known.get((family, marks, ports))
        if found is None:
            candidates = [peer for mark in (None, *marks) for peer in self._anchored.get(mark, ())]
            held = frozenset(peer.text for peer in candidates if self._marked.holds(peer, marks))
            found = self.known[family, marks, ports] = Signature(family, held, ports)
        return found


def number_classes(signatures: Iterable[Signature]) -> Mapping[Signature, int]:
    """A number for each signature: the same set gives the same numbers, and most survive a change of the set.

    Two that hash to one number are told apart by the order of their digests, the later taking the next free number.
    What finds no number is left out: it is in no class, and so denied.
    """
    numbers: dict[Signature, int] = {}
    taken: set[int] = set()
    for digest, signature in sorted(((each.digest(), each) for each in signatures), key=lambda item: item[0]):
        if len(taken) >= MOST_CLASSES:
            break
        number = int.from_bytes(digest[:8], "big") % MOST_CLASSES + 1
        while number in taken:
            number = number % MOST_CLASSES + 1
        taken.add(number)
        numbers[signature] = number
    return numbers
