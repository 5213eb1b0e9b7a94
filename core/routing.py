"""Who writes the kernel route to another node's block, and at which metric: one table and one pure function that
felix and bgp both read, so that the two writers never meet.

`RTM_NEWROUTE` with replace matches prefix, tos and metric and ignores the protocol: two writers that share a
metric silently take each other's routes. Hence one metric a row. A lower metric wins.

    what                                      protocol   metric   pool mode
    a local pod's /32 or /128                 felix      100      any
    a remote block learnt over BGP            bgp        200      Never, Fallback
    a remote block, same subnet, direct       felix      300      CrossSubnet
    a remote block through the tunnel         felix      400      Always, CrossSubnet, Fallback
    an own block, blackhole                   felix      1000     any

In a Fallback pool both the BGP route and the tunnel route stand; while BGP has the route the kernel prefers it,
and when BGP withdraws it the next packet takes the tunnel. No prober, no controller.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from core.addr import Network, contains
from core.resources import EncapMode, IPPool, Node


class RouteProtocol(IntEnum):
    """The kernel's `rtm_protocol` of our routes; unassigned elsewhere, named in iproute2's rt_protos.d."""

    FELIX = 200
    BGP = 201


class Metric(IntEnum):
    """The kernel's route priority, one per writer and purpose."""

    LOCAL = 100
    BGP = 200
    DIRECT = 300
    TUNNEL = 400
    BLACKHOLE = 1000


class Carrier(Enum):
    """How traffic reaches a remote block."""

    BGP = "bgp"  # whatever next hop BGP learnt
    DIRECT = "direct"  # the remote node itself, on our own subnet
    TUNNEL = "tunnel"  # IP-in-IP to the remote node


def carriers(pool: IPPool, local: Node, remote: Node) -> frozenset[Carrier]:
    """The carriers of `remote`'s blocks of `pool`, seen from `local`; the metrics order them.

    IP-in-IP is IPv4 only: an IPv6 pool is always carried natively.
    """
    mode = pool.spec.ipip_mode
    if pool.spec.network.version == 6 or mode is EncapMode.NEVER:
        return frozenset({Carrier.BGP})
    if mode is EncapMode.FALLBACK:
        return frozenset({Carrier.BGP, Carrier.TUNNEL})
    if mode is EncapMode.CROSS_SUBNET and _share_subnet(local, remote):
        return frozenset({Carrier.DIRECT})
    return frozenset({Carrier.TUNNEL})


def _share_subnet(local: Node, remote: Node) -> bool:
    subnet, address = local.subnet(4), remote.address(4)
    return subnet is not None and address is not None and address in subnet


def pool_of(prefix: Network, pools: list[IPPool]) -> IPPool | None:
    """The pool that holds `prefix`; pools never overlap, so there is at most one."""
    for pool in pools:
        network = pool.spec.network
        if contains(network, prefix):
            return pool
    return None
