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
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_interface
from typing import Final

from core.addr import Address, Network, contains
from core.memo import Memo
from core.names import Key
from core.resources import IPAMBlock, IPPool, Node, WorkloadEndpoint
from core.snapshot import Snapshot

_LAB: Final = "k8s-pod-network"
_TUNNEL: Final = "-tunnel-addr-"


Place = tuple[int, int, int]
"""A prefix: the version, how many bits are the host's, and the number that the others are."""


class Books:
    """What one snapshot says of addresses. `memo` remembers what was read for the one before."""

    def __init__(self, snapshot: Snapshot, memo: Memo) -> None:
        self._memo = memo
        self._blocks = memo(_by_place, memo.each(_block, snapshot.of(IPAMBlock)))
        self._bits = memo.steady(_bits, self._blocks)
        self._pools = memo(_pools, snapshot.of(IPPool))
        self._nodes = memo(_by_address, memo.each(_addresses_of, snapshot.of(Node)))

    def objection(self, endpoint: WorkloadEndpoint, addresses: tuple[Address, ...]) -> str:
        """Why `endpoint` may not have all of `addresses`, none of which is `nobodys`; "" when it may.

        It is worked out anew when a block that they lie in is another, or the nodes or pools are.
        """
        blocks = [found for address in addresses for found in self._around(address)]
        return self._memo(_objection, endpoint, addresses, self._nodes, self._pools, *blocks)

    def _around(self, address: Address) -> Iterator[Mapping[str, str]]:
        version, number = address.version, int(address)
        for bits in self._bits[version]:
            if found := self._blocks.get((version, bits, number >> bits)):
                yield found


def _objection(
    endpoint: WorkloadEndpoint,
    addresses: tuple[Address, ...],
    nodes: Mapping[Address, str],
    pools: tuple[Network, ...],
    *blocks: Mapping[str, str],
) -> str:
    for address in addresses:
        if node := nodes.get(address):
            return f"{address} is an address of Node {node}"
        handle = next(filter(None, (block.get(str(address)) for block in blocks)), "")
        if handle and _is_of(handle, endpoint):
            continue
        if "." in handle or _TUNNEL in handle:
            return f"{address} is allocated to {handle}"
        if not any(contains(pool, address) for pool in pools):
            return f"{address} lies in no IPPool"
    return ""


def nobodys(address: Address) -> str:
    """Why no endpoint may have `address`, whatever the books say; "" when one may."""
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        return f"{address} is no address for a pod"
    return ""


def _block(block: IPAMBlock) -> tuple[Place, Mapping[str, str]]:
    network = block.spec.network
    bits = network.max_prefixlen - network.prefixlen
    return (network.version, bits, int(network.network_address) >> bits), block.spec.allocations


def _by_place(blocks: Mapping[Key, tuple[Place, Mapping[str, str]]]) -> Mapping[Place, Mapping[str, str]]:
    return dict(blocks.values())


def _bits(blocks: Iterable[Place]) -> Mapping[int, tuple[int, ...]]:
    return {v: tuple(sorted({bits for version, bits, _ in blocks if version == v})) for v in (4, 6)}


def _pools(pools: Mapping[Key, IPPool]) -> tuple[Network, ...]:
    return tuple(pool.spec.network for pool in pools.values())


def _addresses_of(node: Node) -> tuple[str, tuple[Address, ...]]:
    found: list[Address] = []
    for text in _addresses(node):
        with contextlib.suppress(ValueError):  # a host name may stand there too
            found.append(ip_interface(text).ip)
    return node.metadata.name, tuple(found)


def _by_address(nodes: Mapping[Key, tuple[str, tuple[Address, ...]]]) -> Mapping[Address, str]:
    return {address: name for name, addresses in nodes.values() for address in addresses}


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
