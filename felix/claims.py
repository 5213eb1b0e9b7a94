"""Whose an address is. An endpoint gets a /32 at the best metric, so it must not name just any address.

    spec.ipNetworks ──> loopback, link-local, multicast, none    nobody's
                    ──> a Node's, in the tunnel or outside       the node's
                    ──> allocated in its IPAMBlock               its handle's: k8s-pod-network.NS.POD (a lab's), or
                    │                                            NETWORK.CONTAINERID (a CNI plugin's)
                    ──> in no IPPool                             not ours to route

Whoever may write endpoints could otherwise draw the traffic of a router, of a node or of another pod to their own
(CVE-2022-28224). What is allocated to the endpoint itself stays its own when the pool is taken away around it. A
handle of no known form, and an address in a pool that nobody has allocated, speak for nobody and against nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from ipaddress import ip_interface, ip_network
from typing import Final

from core.addr import Address, Network, contains
from core.resources import IPAMBlock, IPPool, Node, WorkloadEndpoint
from core.snapshot import Snapshot

_LAB: Final = "k8s-pod-network"
_TUNNEL: Final = "-tunnel-addr-"


class Books:
    """What one snapshot says of addresses; each part is read when it is first asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def objection(self, endpoint: WorkloadEndpoint, address: Address) -> str:
        """Why `endpoint` may not have `address`; "" when it may."""
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            return f"{address} is no address for a pod"
        if node := self._nodes.get(address):
            return f"{address} is an address of Node {node}"
        handle = self._holder(address)
        if handle and _is_of(handle, endpoint):
            return ""
        if "." in handle or _TUNNEL in handle:
            return f"{address} is allocated to {handle}"
        if not any(contains(pool, address) for pool in self._pools):
            return f"{address} lies in no IPPool"
        return ""

    def _holder(self, address: Address) -> str:
        for length in self._lengths[address.version]:
            block = self._blocks.get(ip_network((address, length), strict=False))
            if block and (handle := block.get(str(address))):
                return handle
        return ""

    @cached_property
    def _pools(self) -> tuple[Network, ...]:
        return tuple(pool.spec.network for pool in self._snapshot.of(IPPool).values())

    @cached_property
    def _blocks(self) -> Mapping[Network, Mapping[str, str]]:
        return {block.spec.network: block.spec.allocations for block in self._snapshot.of(IPAMBlock).values()}

    @cached_property
    def _lengths(self) -> Mapping[int, frozenset[int]]:
        return {v: frozenset(each.prefixlen for each in self._blocks if each.version == v) for v in (4, 6)}

    @cached_property
    def _nodes(self) -> Mapping[Address, str]:
        found: dict[Address, str] = {}
        for node in self._snapshot.of(Node).values():
            for text in _addresses(node):
                with contextlib.suppress(ValueError):  # a host name may stand there too
                    found[ip_interface(text).ip] = node.metadata.name
        return found


def _is_of(handle: str, endpoint: WorkloadEndpoint) -> bool:
    container = endpoint.spec.container_id
    if handle == f"{_LAB}.{endpoint.metadata.namespace}.{endpoint.spec.pod}":
        return True
    return bool(container) and handle.endswith(f".{container}")


def _addresses(node: Node) -> Iterator[str]:
    spec = node.spec
    if spec.bgp:
        yield from (spec.bgp.ipv4_address, spec.bgp.ipv6_address, spec.bgp.ipv4_ipip_tunnel_addr)
    yield from (spec.ipv4_vxlan_tunnel_addr, spec.ipv6_vxlan_tunnel_addr)
    if spec.wireguard:
        yield from (spec.wireguard.interface_ipv4_address, spec.wireguard.interface_ipv6_address)
    yield from (each.address for each in spec.addresses)
    yield from (text for each in spec.interfaces for text in each.addresses)
