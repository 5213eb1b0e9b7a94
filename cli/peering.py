"""Pods and the BGP speaker of their own node: what `felix.peering_address` lets in, said of one flow for `explain`."""

from __future__ import annotations

from typing import TypeAlias

from cli import hops
from core.addr import Address
from core.names import Key
from core.peering import peering_addresses
from core.resources import Node, WorkloadEndpoint
from core.snapshot import Snapshot
from felix.cut import TCP
from felix.endpoints import claims, endpoints
from felix.peering_address import Call, peering
from policy.explain import Explanation

Ends: TypeAlias = tuple[Key | Address, Key | Address]


def near(snapshot: Snapshot, ends: Ends) -> Ends:
    """The ends; for an address on which every node answers its own pods, the node of the pod at the other end."""
    source, destination = ends
    return _near(snapshot, source, destination), _near(snapshot, destination, source)


def _near(snapshot: Snapshot, end: Key | Address, other: Key | Address) -> Key | Address:
    node = hops.place(snapshot, other) if isinstance(other, Key) and other.kind == WorkloadEndpoint.KIND else ""
    found = snapshot.get(Node, node)
    return found.key if found is not None and end in peering_addresses(snapshot, node) else end


def called(snapshot: Snapshot, ends: Ends, found: Explanation) -> bool:
    """Whether it is a pod that calls its node's speaker, as a BGPPeer asks for."""
    if found.protocol != TCP or found.port is None or not hops.to_host(snapshot, ends):
        return False
    node = hops.place(snapshot, ends[1])
    calls = peering(snapshot, node, endpoints(claims(snapshot, node), {})).calls
    return any(Call(each.interface, *found.addresses, found.port) == each for each in calls)
