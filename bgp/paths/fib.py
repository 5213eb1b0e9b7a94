"""From chosen paths to kernel routes: where a prefix lies, and through which device next hops are reached.

A prefix is imported when it lies in a pool and is not ours, and programmed when its pool is carried by BGP from here
(core.routing). Anything else a peer tells us is its own business: a rack's router must not be able to move a node's
other traffic, unless a filter of its session says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple, TypeAlias

from bgp.paths.bestpath import Choice
from core.addr import Address, contains, host_prefix
from core.prefix import Prefix
from core.resources import IPAMBlock, IPPool, Node
from core.routing import Carrier, carriers
from core.snapshot import Snapshot
from linux.model import Facts, NextHop, Route

Refusal: TypeAlias = str
"""Why something is not so, for a person."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a prefix lies, one object for all that lie alike: in which pool ("" for none), whether in a block of ours,
    and why the pool's prefixes are not programmed from BGP ("" when they are)."""

    pool: str
    ours: bool = False
    unprogrammed: Refusal = ""


NOWHERE: Final = Place("")


@lru_cache(maxsize=4096)
def _place(pool: str, ours: bool, unprogrammed: Refusal) -> Place:
    """The one object, in this snapshot and the next: what was decided on prefixes that lie there stays known."""
    return Place(pool, ours, unprogrammed)


class _Range(NamedTuple):
    """A pool as bytes: a full table asks for its pool a hundred thousand times."""

    pool: str
    length: int
    first: bytes
    last: bytes
    block_length: int
    theirs: Place
    ours: Place


class Scope:
    """What of a snapshot decides on import at `node`: pools, which blocks and borrowed addresses are ours, the node."""

    def __init__(self, snapshot: Snapshot, node: str) -> None:
        local = snapshot.get(Node, node)
        blocks = [block.spec for block in snapshot.of(IPAMBlock).values()]
        self._pools = {pool.metadata.name: pool for pool in snapshot.of(IPPool).values()}
        self._local = local
        self._ours = frozenset(Prefix.of(spec.network) for spec in blocks if spec.node == node)
        self._borrowed = {
            Prefix.of(host_prefix(ip_address(address))): borrower == node
            for spec in blocks
            for address, borrower in spec.borrowers.items()
        }
        ranges = [_range(pool, node, local) for pool in self._pools.values()]
        self._ranges = {width: [each for each in ranges if len(each.first) == width] for width in (4, 16)}

    def moved(self, other: Scope | None) -> frozenset[Prefix] | None:
        """The blocks and addresses that are ours in one of both and not in the other; None when more than that differs.

        Most changes of a cluster are none to this node, and most of the rest are one block, more or less.
        """
        if other is None or (self._pools, self._local) != (other._pools, other._local):
            return None
        return self._ours ^ other._ours | {prefix for prefix, _ in self._borrowed.items() ^ other._borrowed.items()}

    def place(self, prefix: Prefix) -> Place:
        """Where it lies."""
        return self.places((prefix,))[0]

    def places(self, prefixes: Collection[Prefix]) -> list[Place]:
        """Where each of them lies."""
        found = []
        ours, borrowed, ranges = self._ours, self._borrowed, self._ranges
        for prefix in prefixes:
            address = prefix[1:]
            for _, length, first, last, block_length, other, mine in ranges[len(address)]:
                if first <= address <= last and prefix[0] >= length:
                    block = prefix if prefix[0] <= block_length else prefix.cut(block_length)
                    found.append(mine if borrowed.get(prefix, block in ours) else other)
                    break
            else:
                found.append(NOWHERE)
        return found


def _range(pool: IPPool, node: str, local: Node | None) -> _Range:
    name, network = pool.metadata.name, pool.spec.network
    if local is None:
        why = f"there is no Node {node}"
    # No mode's use of BGP depends on where the owner is, so any node stands for it.
    elif Carrier.BGP not in carriers(pool, local, local):
        why = f"IPPool {name} is not carried by BGP (ipipMode {pool.spec.ipip_mode})"
    else:
        why = ""
    return _Range(
        pool=name,
        length=network.prefixlen,
        first=network.network_address.packed,
        last=network.broadcast_address.packed,
        block_length=pool.spec.block_length,
        theirs=_place(name, False, why),
        ours=_place(name, True, why),
    )


@dataclass(frozen=True, slots=True)
class Reach:
    """How a BGP next hop is reached: by these hops, the first of which leaves by `device`."""

    hops: tuple[NextHop, ...]
    device: str


Resolve: TypeAlias = Callable[[Address], Reach | Refusal]


def route(choice: Choice, place: Place, resolve: Resolve) -> Route | Refusal:
    """The kernel route of a choice, over every used path."""
    if not choice.used:
        return _refusals(choice)
    if place.unprogrammed:
        return place.unprogrammed
    reached = [resolve(candidate.path.next_hop) for candidate in choice.used]
    hops = {hop for each in reached if isinstance(each, Reach) for hop in each.hops}
    return Route(next_hops=tuple(hops)) if hops else "; ".join(each for each in reached if isinstance(each, str))


def _refusals(choice: Choice) -> Refusal:
    reasons = {why for _, why in choice.refused}
    if len(reasons) < 2:
        return "".join(reasons) or "no path"
    return "; ".join(f"{candidate.session.peer}: {why}" for candidate, why in choice.refused)


class Ways:
    """How BGP next hops are reached: on-link, or through the gateways of the longest matching route that is not ours.

    Links without an address that could be a next hop's neighbour (pods' ends above all) make no difference.
    """

    def __init__(self, facts: Facts) -> None:
        addresses = [
            (each, link) for link in facts.links.values() for each in link.addresses if not each.ip.is_link_local
        ]
        self.addresses = frozenset(each.ip for each, _ in addresses)
        linked = {(each.network, link.index, link.name) for each, link in addresses if link.up}
        self._linked = sorted(linked, key=lambda each: (-each[0].prefixlen, each[1]))
        self._gateways = facts.gateways
        self._names = {via.device: "" for via in facts.gateways}
        self._names |= {link.index: link.name for link in facts.links.values() if link.index in self._names}

    def same_as(self, other: Ways) -> bool:
        """Whether all next hops are reached alike."""
        return (self._linked, self._gateways, self._names) == (other._linked, other._gateways, other._names)

    def to(self, address: Address) -> Reach | Refusal:
        """How one is reached, or why it is not."""
        if address.is_link_local:
            return f"next hop {address} is link-local and names no device"
        for network, index, name in self._linked:
            if contains(network, address):
                return Reach((NextHop(index, address),), name)
        matching = [via for via in self._gateways if contains(via.destination, address)]
        longest = max((via.destination.prefixlen for via in matching), default=-1)
        hops = tuple(NextHop(via.device, via.gateway) for via in matching if via.destination.prefixlen == longest)
        if not hops:
            return f"next hop {address} is on no link and no route leads to it"
        return Reach(hops, self._names[hops[0].device])
