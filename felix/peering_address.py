"""The address on which a node answers its own pods' BGP: BGPConfiguration's localWorkloadPeeringIPV4 and IPV6. Pure.

    pod ── default gateway ──> its interface ── its egress policy ──> defaultEndpointToHostAction: Drop
                                                     └── TCP, from an address of a pod that a BGPPeer selects,
                                                         to the peering address and listenPort ──> accept

Every node has the same address on `lo`; nobody routes to it, and no packet between a pod and its node is NATed. Whom a
BGPPeer selects may call this address and port and nothing else of the host: to ask for a session is to ask for its
TCP connection, as it is with calico.md 1.6's failsafe port 179. Whom none selects is told what any pod is told.

An address that is a node's, or that a pod could be given, is not taken: packets to that node or pod would end here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface
from types import MappingProxyType
from typing import Final

from core import labels
from core.addr import Address, Interface, contains
from core.names import Key
from core.nftables import Element, Ruleset, Set
from core.peering import applies, listen_port, peering_address, taken
from core.resources import BGPConfiguration, BGPPeer, IPPool, Node, WorkloadEndpoint
from core.snapshot import Snapshot
from felix.endpoints import Endpoint, Endpoints

CALLS: Final = {4: "peers4", 6: "peers6"}
"""The sets of (interface, source, destination, TCP port) with which a workload may call its node's speaker."""

_TYPES: Final = {4: "ipv4_addr", 6: "ipv6_addr"}


@dataclass(frozen=True, slots=True)
class Call:
    """What a selected pod may begin: TCP from an address of its own, by its interface."""

    interface: str
    source: Address
    destination: Address
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peering:
    """What `lo` should have, and who may call it. `certain` false: the configuration cannot be read, so that nothing is
    taken away. `problems` are sentences."""

    addresses: Mapping[Interface, bool] = field(default_factory=lambda: MappingProxyType({}))
    calls: frozenset[Call] = frozenset()
    certain: bool = True
    problems: tuple[str, ...] = ()


def peering(snapshot: Snapshot, node: str, ours: Endpoints) -> Peering:
    """The peering of `node` with its own pods."""
    found: dict[int, Address] = {}
    problems: list[str] = []
    for version in (4, 6):
        try:
            address = peering_address(snapshot, node, version)
            if address is not None:
                _check(snapshot, node, address)
                found[version] = address
        except ValueError as error:
            problems.append(f"localWorkloadPeeringIPV{version} of BGPConfiguration: {error}")
    local = snapshot.get(Node, node)
    hosts_own = {local.address(version) for version in (4, 6)} if local else set()
    port = listen_port(snapshot, node)
    calls = (
        Call(interface=each.interface, source=source, destination=found[source.version], port=port)
        for each in (_selected(snapshot, local, ours) if found and local else ())
        for source in each.addresses
        if source.version in found
    )
    return Peering(
        addresses=MappingProxyType({ip_interface(each): True for each in found.values() if each not in hosts_own}),
        calls=frozenset(calls),
        certain=not any(Key(BGPConfiguration.KIND, "", name) in snapshot.problems for name in _names(node)),
        problems=tuple(problems),
    )


def _names(node: str) -> tuple[str, str]:
    return "default", f"node.{node}"


def _check(snapshot: Snapshot, node: str, address: Address) -> None:
    """Raises ValueError when the host cannot answer on an address, or another does."""
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        raise ValueError(f"{address} is no address that a pod can call")
    if address.version == 6 and address.is_link_local:
        raise ValueError(f"{address} is link-local, and so known on one link only; take one of fd00::/8")
    for each in snapshot.of(Node).values():
        if each.metadata.name != node and each.address(address.version) == address:
            raise ValueError(
                f"{address} is an address of Node {each.metadata.name}, which could not be reached from here"
            )
    for pool in snapshot.of(IPPool).values():
        if contains(pool.spec.network, address):
            raise ValueError(f"{address} lies in IPPool {pool.metadata.name}, and a pod may be given it; take another")


def _selected(snapshot: Snapshot, node: Node, ours: Endpoints) -> Iterator[Endpoint]:
    """The endpoints that have a session with their node: surely, so not those whose labels cannot all be read."""
    known = snapshot.of(WorkloadEndpoint)
    sure = [each.key for each in ours.local if labels.unknown(snapshot, known[each.key]) is None]
    selected: set[Key] = set()
    for _, peer in sorted(snapshot.of(BGPPeer).items()):
        try:
            if applies(peer.spec, node):
                selected.update(each.key for each in taken(peer.spec, snapshot, (known[key] for key in sure)))
        except ValueError:  # a selector that is none: bgp blocks the session, and says so
            continue
    return (each for each in ours.local if each.key in selected)


def rules(calls: frozenset[Call]) -> Ruleset:
    """The sets and their elements, a part of our table."""
    return Ruleset(
        sets=MappingProxyType(
            {CALLS[version]: Set(key=("ifname", each, each, "inet_service")) for version, each in _TYPES.items()}
        ),
        elements=MappingProxyType(
            {
                Element(
                    CALLS[call.source.version],
                    f'"{call.interface}" . {call.source} . {call.destination} . {call.port}',
                ): ""
                for call in calls
            }
        ),
    )
