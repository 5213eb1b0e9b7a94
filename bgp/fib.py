"""From chosen paths to kernel routes: which prefixes may be imported, and through which device their next hops lie.

A prefix is imported when it lies in a pool, is not ours, and its pool is carried by BGP from here (core.routing).
Anything else a peer tells us is its own business: a rack's router must not be able to move a node's other traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from bgp.bestpath import Choice
from core.addr import Address, Network, contains
from core.resources import IPAMBlock, IPPool, Node
from core.routing import Carrier, Metric, carriers
from core.snapshot import Snapshot
from linux.model import Facts, NextHop, Route, RouteKey

Refusal: TypeAlias = str
"""Why there is no route, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """A pool as numbers: a full table asks for its pool a hundred thousand times."""

    pool: IPPool
    version: int
    length: int
    first: int
    last: int
    block_length: int


class Scope:
    """What of a snapshot decides on import at `node`: pools, who owns which block, the nodes."""

    def __init__(self, snapshot: Snapshot, node: str) -> None:
        self._node = node
        self._ranges = [_range(pool) for pool in snapshot.of(IPPool).values()]
        self._owners = {block.spec.network: block.spec.node for block in snapshot.of(IPAMBlock).values()}
        self._nodes = {key.name: value for key, value in snapshot.of(Node).items()}
        self._verdicts: dict[tuple[str, str], Refusal] = {}  # by pool and owner: all that it depends on

    def refusal(self, prefix: Network) -> Refusal:
        """Why `prefix` may not be imported; "" when it may."""
        first = int(prefix.network_address)
        for each in self._ranges:
            if each.version == prefix.version and each.first <= first <= each.last and prefix.prefixlen >= each.length:
                break
        else:
            return "in no IPPool"
        block = prefix if prefix.prefixlen <= each.block_length else prefix.supernet(new_prefix=each.block_length)
        key = (each.pool.metadata.name, self._owners.get(block, ""))
        if key not in self._verdicts:
            self._verdicts[key] = self._judge(each.pool, key[1])
        return self._verdicts[key]

    def _judge(self, pool: IPPool, owner: str) -> Refusal:
        local = self._nodes.get(self._node)
        if local is None:
            return f"there is no Node {self._node}"
        if owner == self._node:
            return "ours"
        # No mode's use of BGP depends on where the owner is, so any node stands for an unknown one.
        if Carrier.BGP not in carriers(pool, local, self._nodes.get(owner, local)):
            return f"IPPool {pool.metadata.name} is not carried by BGP (ipipMode {pool.spec.ipip_mode})"
        return ""


def _range(pool: IPPool) -> _Range:
    network = pool.spec.network
    return _Range(
        pool=pool,
        version=network.version,
        length=network.prefixlen,
        first=int(network.network_address),
        last=int(network.broadcast_address),
        block_length=pool.spec.block_length,
    )


def route_key(prefix: Network) -> RouteKey:
    """The kernel's name of the route to `prefix`."""
    return RouteKey(prefix, Metric.BGP)


Resolve: TypeAlias = Callable[[Address], tuple[NextHop, ...] | Refusal]


def route(choice: Choice, resolved: Resolve) -> Route | Refusal:
    """The kernel route of a choice, over every used path whose next hop can be reached."""
    if not choice.used:
        return "; ".join(f"{candidate.session.peer}: {why}" for candidate, why in choice.refused) or "no path"
    hops: set[NextHop] = set()
    lost: list[Refusal] = []
    for candidate in choice.used:
        found = resolved(candidate.path.next_hop)
        if isinstance(found, str):
            lost.append(found)
        else:
            hops.update(found)
    return Route(next_hops=tuple(hops)) if hops else "; ".join(lost)


def resolve(address: Address, facts: Facts) -> tuple[NextHop, ...] | Refusal:
    """How to reach a BGP next hop: on-link, or through the gateways of the longest matching route that is not ours."""
    if address.is_link_local:
        return f"next hop {address} is link-local and names no device"
    link = facts.on_link(address)
    if link is not None:
        return (NextHop(link.index, address),)
    matching = [via for via in facts.gateways if contains(via.destination, address)]
    longest = max((via.destination.prefixlen for via in matching), default=-1)
    hops = tuple(NextHop(via.device, via.gateway) for via in matching if via.destination.prefixlen == longest)
    return hops or f"next hop {address} is on no link and no route leads to it"
