"""How this node reaches the other nodes' blocks where BGP does not (or not alone): by the tunnel, or directly.

    pool's mode       remote block                                    own block
    Never             nothing (BGP's business)                        blackhole, metric 1000: an address that no
    Always            via the node, through muslin.ipip, metric 400   pod holds must not go back to the router
    CrossSubnet       same subnet: via the node, metric 300; else as Always
    Fallback          as Always; BGP's better route wins while it stands

An address that a pod of another node holds ("borrowed") is a block of one address of that node: /32 or /128, longer
than the block it lies in and than its owner's blackhole, and a blackhole of its own where it was borrowed to, lest the
owner and the borrower send packets for a pod that is no more to and fro.

`core.routing.carriers` decides; this module only writes it down. A tunnel route needs the device: where the kernel
has no ipip the routes are left out, the status says so, and everything else works.

The tunnel's `rp_filter` is 2 (loose): in a Fallback pool the two directions of a flow may travel differently, and
the kernel takes the greater of the device's value and the host's, so that 0 would not undo a strict host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, ip_network
from typing import Final

from core.addr import Address, Network, contains
from core.names import IPIP_DEVICE, Key
from core.resources import EncapMode, IPAMBlock, IPPool, Node
from core.routing import Carrier, Metric, carriers, pool_of
from core.snapshot import Snapshot
from linux.model import Facts, NextHop, Route, RouteKey, RouteType
from linux.tunnels import OVERHEAD, Tunnel

DEFAULT_MTU: Final = 1500
"""Bytes; taken for the uplink while it cannot be told which link that is."""

BLACKHOLE: Final = Route(type=RouteType.BLACKHOLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A block, the node that routes it ("": none), and its addresses that pods of other nodes hold, with the node."""

    network: Network
    node: str
    borrowed: tuple[tuple[Network, str], ...] = ()


@dataclass(slots=True, kw_only=True)
class Overlay:
    """What is desired, and what stands in the way."""

    routes: dict[RouteKey, Route] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def may_tunnel(pool: IPPool) -> bool:
    """Whether some block of `pool` may travel in IP-in-IP."""
    return pool.spec.network.version == 4 and pool.spec.ipip_mode is not EncapMode.NEVER


def tunnels(snapshot: Snapshot, facts: Facts, local: Node | None, mtu: int | None) -> Mapping[str, Tunnel]:
    """The IP-in-IP device, while some pool may tunnel and the node has an IPv4 address to tunnel from.

    `mtu` is the configured one; None takes the uplink's less the outer header.
    """
    outer = local.address(4) if local else None
    if not isinstance(outer, IPv4Address) or not any(map(may_tunnel, snapshot.of(IPPool).values())):
        return {}
    inner = tunnel_address(local)
    return {
        IPIP_DEVICE: Tunnel(
            local=outer,
            mtu=mtu or uplink_mtu(facts, outer) - OVERHEAD,
            addresses=(IPv4Interface(inner),) if inner else (),
        )
    }


def tunnel_address(node: Node | None) -> IPv4Address | None:
    """The address of the node's own end of the tunnel, once it is allocated."""
    address = node.spec.bgp.tunnel_address if node and node.spec.bgp else None
    return address if isinstance(address, IPv4Address) else None


def uplink_mtu(facts: Facts, address: Address) -> int:
    """The MTU, in bytes, of the link that carries the node's traffic to other nodes.

    That is the one with the node's address, or, where the address is a loopback's, the default route's.
    """
    for link in facts.links.values():
        if link.name != "lo" and any(interface.ip == address for interface in link.addresses):
            return link.mtu
    default = {via.device for via in facts.gateways if via.destination.prefixlen == 0}
    return min((link.mtu for link in facts.links.values() if link.index in default), default=DEFAULT_MTU)


def sysctls(device: str) -> Mapping[str, str]:
    """What the tunnel's device needs."""
    return {f"net/ipv4/conf/{device}/rp_filter": "2", f"net/ipv4/conf/{device}/forwarding": "1"}


def placed(block: IPAMBlock) -> Placed:
    """Where a block is: what stays when an address of it is given or freed on the block's own node."""
    spec = block.spec
    network, borrowed = spec.network, list[tuple[Network, str]]()
    for address, node in spec.borrowers.items():
        prefix = ip_network(address)
        if contains(network, prefix) and node not in ("", spec.node):  # another block's address is not its to lend
            borrowed.append((prefix, node))
    return Placed(network=network, node=spec.node, borrowed=tuple(borrowed))


def overlay(blocks: Mapping[Key, Placed], snapshot: Snapshot, facts: Facts, local: Node | None, node: str) -> Overlay:
    """The cluster routes of the node called `node`, whose own object (if it has one) is `local`."""
    found = Overlay()
    pools = sorted(snapshot.of(IPPool).values(), key=lambda pool: pool.key)
    _vxlan(found, pools)
    for _, block in sorted(blocks.items()):
        network = block.network
        if block.node == node and network.prefixlen < network.max_prefixlen:
            found.routes[RouteKey(network, Metric.BLACKHOLE)] = BLACKHOLE
        mine = [address for address, borrower in block.borrowed if borrower == node]
        found.routes.update((RouteKey(address, Metric.BLACKHOLE), BLACKHOLE) for address in mine)
        pool = pool_of(network, pools) if local else None
        if pool is None or local is None:
            continue
        if block.node not in ("", node):
            _remote(found, facts, (pool, network), local, snapshot.get(Node, block.node) or block.node)
        for address, borrower in block.borrowed:
            if borrower != node:
                _remote(found, facts, (pool, address), local, snapshot.get(Node, borrower) or borrower)
    return found


def _vxlan(found: Overlay, pools: list[IPPool]) -> None:
    found.problems += [
        f"{pool.key}: spec.vxlanMode {pool.spec.vxlan_mode} is not carried; use ipipMode, or let BGP carry the pool"
        for pool in pools
        if pool.spec.vxlan_mode is not EncapMode.NEVER
    ]


def _remote(found: Overlay, facts: Facts, block: tuple[IPPool, Network], local: Node, remote: Node | str) -> None:
    pool, network = block
    if isinstance(remote, str):
        if may_tunnel(pool):
            found.problems.append(f"block {network} belongs to node {remote}, which the datastore does not know")
        return
    ways = carriers(pool, local, remote) - {Carrier.BGP}
    gateway = remote.address(4)
    if ways and gateway is None:
        found.problems.append(
            f"block {network}: node {remote.metadata.name} has no spec.bgp.ipv4Address to reach it by"
        )
        return
    if Carrier.DIRECT in ways and gateway:
        link = facts.on_link(gateway)
        if link:
            found.routes[RouteKey(network, Metric.DIRECT)] = Route(next_hops=(NextHop(link.index, gateway),))
        else:
            found.problems.append(f"block {network}: no link of this host reaches {gateway} directly")
    device = facts.links.get(IPIP_DEVICE)
    if Carrier.TUNNEL in ways and device and device.up:
        found.routes[RouteKey(network, Metric.TUNNEL)] = Route(next_hops=(NextHop(device.index, gateway, onlink=True),))
