"""What the kernel of this very host knows of a flow, if the host is one of the nodes that it passes: its route, and the
connections that it tracks between the two ends.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice
from types import MappingProxyType
from typing import Final

from cli.guards import Kernel
from core.addr import Address
from core.resources import Node
from core.routing import RouteProtocol
from core.snapshot import Snapshot
from linux.conntrack import Conntrack, Flow, Status
from linux.interfaces import addresses, links
from linux.model import Facts
from linux.netlink import Netlink
from linux.route_query import Way, Ways, way_to

MOST_FLOWS: Final = 50
"""Connections that are named; there may be more."""

_WRITERS: Final = {RouteProtocol.FELIX.value: "felix", RouteProtocol.BGP.value: "bgp", 2: "the kernel", 3: "boot"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What was found here. `node` is this host's; `flows` None when they cannot be read, for the reason in `why`."""

    node: str
    way: Way | None
    flows: tuple[Flow, ...] | None
    why: str = ""


def own_node(snapshot: Snapshot, among: Collection[str]) -> str:
    """Which of the nodes `among` this host is, by its addresses; "" when it is none of them."""
    with Netlink() as netlink:
        ours = {interface.ip for _, interface in addresses(netlink)}
    for name in sorted(among):
        node = snapshot.get(Node, name)
        if node and any(node.address(version) in ours for version in (4, 6)):
            return name
    return ""


def kernel(node: str) -> Kernel:
    """What this host's kernel says of its own links and ways. Raises OSError when it does not answer."""
    with Netlink() as netlink:
        of = defaultdict(list)
        for index, interface in addresses(netlink):
            of[index].append(interface)
        found = {link.name: replace(link, addresses=tuple(of[link.index])) for link in links(netlink)}
    return Kernel(node=node, facts=Facts(links=MappingProxyType(found)), ways=_devices)


def _devices(destination: Address) -> tuple[str, ...]:
    with Ways() as ways:
        return ways.devices(destination)


def look(node: str, source: Address, destination: Address, protocol: int, port: int | None) -> Live:
    """Ask this host's kernel, of which `node` is the name."""
    try:
        way = way_to(destination)
    except OSError:
        way = None
    try:
        return Live(node=node, way=way, flows=tuple(islice(_between(source, destination, protocol, port), MOST_FLOWS)))
    except OSError as refusal:
        remedy = "; run it as root" if refusal.errno in (errno.EPERM, errno.EACCES) else ""
        return Live(node=node, way=way, flows=None, why=f"{refusal}{remedy}")


def _between(source: Address, destination: Address, protocol: int, port: int | None) -> list[Flow]:
    """Those that the source opened. A service's address in front of the destination is as good as its own."""
    with Conntrack() as conntrack:
        found = {
            flow.id: flow
            for flow in conntrack.flows_of({source})
            if flow.original.source == source
            and destination in (flow.original.destination, flow.reply.source)
            and flow.original.protocol == protocol
            and port in (None, flow.original.dport, flow.reply.sport)
        }
    return list(found.values())


def told(way: Way) -> str:
    """A route in words."""
    if not way.device:
        return way.kind
    via = f" via {way.gateway}" if way.gateway else ""
    writer = _WRITERS.get(way.protocol, f"protocol {way.protocol}")
    return f"{way.prefix}{via} dev {way.device}, written by {writer}, metric {way.metric}"


def flow_told(flow: Flow) -> str:
    """A tracked connection in words."""
    state = f" {flow.state}" if flow.state else ""
    answered = "" if flow.status & Status.SEEN_REPLY else ", no answer yet"
    marked = f", mark {flow.mark:#x}" if flow.mark else ""
    where = f", by way of {flow.reply.source}" if flow.reply.source != flow.original.destination else ""
    return f"{flow.original}{state}{where}{answered}, kept for {flow.timeout_s} s more{marked}"
