"""From chosen paths to kernel routes: which prefixes may be imported, and through which device their next hops lie.

A prefix is imported when it lies in a pool, is not ours, and its pool is carried by BGP from here (core.routing).
Anything else a peer tells us is its own business: a rack's router must not be able to move a node's other traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from bgp.bestpath import Choice
from core.addr import Address, Network, contains
from core.resources import IPAMBlock, IPPool, Node
from core.routing import Carrier, Metric, carriers, pool_of
from core.snapshot import Snapshot
from linux.model import Facts, NextHop, Route, RouteKey

Refusal: TypeAlias = str
"""Why there is no route, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What of a snapshot decides on import: pools, who owns which block, the nodes."""

    node: str
    pools: tuple[IPPool, ...] = ()
    owners: Mapping[Network, str] = field(default_factory=lambda: MappingProxyType({}))
    nodes: Mapping[str, Node] = field(default_factory=lambda: MappingProxyType({}))

    def refusal(self, prefix: Network) -> Refusal:
        """Why `prefix` may not be imported; "" when it may."""
        local = self.nodes.get(self.node)
        pool = pool_of(prefix, list(self.pools))
        if local is None:
            return f"there is no Node {self.node}"
        if pool is None:
            return "in no IPPool"
        owner = self._owner(prefix, pool)
        if owner == self.node:
            return "ours"
        # No mode's use of BGP depends on where the owner is, so any node stands for an unknown one.
        if Carrier.BGP not in carriers(pool, local, self.nodes.get(owner, local)):
            return f"IPPool {pool.metadata.name} is not carried by BGP (ipipMode {pool.spec.ipip_mode})"
        return ""

    def _owner(self, prefix: Network, pool: IPPool) -> str:
        length = pool.spec.block_length
        block = prefix.supernet(new_prefix=length) if prefix.prefixlen > length else prefix
        return self.owners.get(block, "")


def scope(snapshot: Snapshot, node: str) -> Scope:
    """The scope of import on `node`."""
    return Scope(
        node=node,
        pools=tuple(snapshot.of(IPPool).values()),
        owners={block.spec.network: block.spec.node for block in snapshot.of(IPAMBlock).values()},
        nodes={key.name: value for key, value in snapshot.of(Node).items()},
    )


def route_key(prefix: Network) -> RouteKey:
    """The kernel's name of the route to `prefix`."""
    return RouteKey(prefix, Metric.BGP)


def route(choice: Choice, facts: Facts) -> Route | Refusal:
    """The kernel route of a choice, over every used path whose next hop can be reached."""
    if not choice.used:
        return "; ".join(f"{candidate.session.peer}: {why}" for candidate, why in choice.refused) or "no path"
    hops: set[NextHop] = set()
    lost: list[Refusal] = []
    for candidate in choice.used:
        found = resolve(candidate.path.next_hop, facts)
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
