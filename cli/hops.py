"""How packets get from one end to another: which node sends them where, by which kind of route, wrapped in what.

    pod ── node 1 ── natively | directly | through the tunnel ──> node 2 ── interface ──> pod

What is said is what the datastore asks for (`core.routing`); a kernel may lag behind, or others may have put routes of
their own into it. On one of the nodes its kernel is asked as well (`cli.here`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from core.addr import Address, contains
from core.names import IPIP_DEVICE, Key
from core.resources import (
    FelixConfiguration,
    IPAMBlock,
    IPPool,
    Node,
    WorkloadEndpoint,
)
from core.routing import Carrier, Metric, carriers, pool_of
from core.snapshot import Snapshot

_WORDS: Final = {
    Carrier.BGP: "natively, by what BGP learns",
    Carrier.DIRECT: "directly on the nodes' subnet",
    Carrier.TUNNEL: f"in IP-in-IP through {IPIP_DEVICE}",
}
_METRICS: Final = {Carrier.BGP: Metric.BGP, Carrier.DIRECT: Metric.DIRECT, Carrier.TUNNEL: Metric.TUNNEL}
_PREFERRED: Final = (Carrier.BGP, Carrier.DIRECT, Carrier.TUNNEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """What one node does with packets to `destination`.

    `carriers` are the ways in order of preference ("" for none of ours), `interface` and `gateway` where they go as far
    as that is known, `encapsulation` "ipip", "ipip while BGP has no route" or "".
    """

    node: str
    destination: Address
    text: str
    carriers: tuple[str, ...] = ()
    interface: str = ""
    gateway: Address | None = None
    encapsulation: str = ""


def place(snapshot: Snapshot, end: Key | Address) -> str:
    """The node that an end is on, or is; "" for an address outside."""
    if isinstance(end, Key):
        return end.name if end.kind == Node.KIND else snapshot.of(WorkloadEndpoint)[end].spec.node
    return ""


def hops(
    snapshot: Snapshot,
    ends: tuple[Key | Address, Key | Address],
    to: Address,
    source: Address,
    *,
    answers: bool = False,
) -> list[Hop]:
    """The way from the first end to the second, whose address is `to`; nothing is said of nodes we do not know.

    `answers` go back as conntrack knows their connection: natOutgoing is for the first packet of one.
    """
    here, there = place(snapshot, ends[0]), place(snapshot, ends[1])
    found = []
    if here and here != there:
        found.append(_leaving(snapshot, here, to, None if answers else source))
    if there:
        found.append(_arriving(snapshot, ends[1], there, to))
    return found


def _arriving(snapshot: Snapshot, end: Key | Address, node: str, to: Address) -> Hop:
    if isinstance(end, Key) and end.kind == WorkloadEndpoint.KIND:
        interface = snapshot.of(WorkloadEndpoint)[end].spec.interface_name
        text = f"to the pod's interface {interface} (metric {Metric.LOCAL})"
        return Hop(node=node, destination=to, text=text, interface=interface)
    return Hop(node=node, destination=to, text="the node itself takes it")


def _leaving(snapshot: Snapshot, node: str, to: Address, source: Address | None) -> Hop:
    pools = sorted(snapshot.of(IPPool).values(), key=lambda pool: pool.key)
    block = next((each for each in snapshot.of(IPAMBlock).values() if contains(each.spec.network, to)), None)
    pool = pool_of(block.spec.network, pools) if block else None
    local = snapshot.get(Node, node)
    remote = snapshot.get(Node, block.spec.node) if block and block.spec.node else None
    if not (block and pool and local and remote):
        masked = source is not None and _masked(snapshot, node, to, source)
        nat = ", as the node's own address (natOutgoing)" if masked else ""
        return Hop(node=node, destination=to, text=f"by the host's own routes{nat}")
    ways = [way for way in _PREFERRED if way in carriers(pool, local, remote)]
    gateway = remote.address(4) if set(ways) & {Carrier.DIRECT, Carrier.TUNNEL} else None
    words = ", else ".join(f"{_WORDS[way]} (metric {_METRICS[way]})" for way in ways)
    end = f" to {remote.metadata.name}" + (f" at {gateway}" if gateway else "")
    return Hop(
        node=node,
        destination=to,
        text=f"block {block.spec.network} of pool {pool.metadata.name}{end}: {words}",
        carriers=tuple(way.value for way in ways),
        interface=IPIP_DEVICE if ways == [Carrier.TUNNEL] else "",
        gateway=gateway,
        encapsulation=_wrapped(ways),
    )


def _wrapped(ways: list[Carrier]) -> str:
    if Carrier.TUNNEL not in ways:
        return ""
    return "ipip" if len(ways) == 1 else "ipip while BGP has no route"


def _masked(snapshot: Snapshot, node: str, to: Address, source: Address) -> bool:
    """Whether natOutgoing applies."""
    pools = snapshot.of(IPPool).values()
    if any(contains(pool.spec.network, to) for pool in pools):
        return False
    spared = next(_settings(snapshot, node, "nat_outgoing_exclusions"), "") == "IPPoolsAndHostIPs"
    if spared and any(each.address(to.version) == to for each in snapshot.of(Node).values()):
        return False
    return any(pool.spec.nat_outgoing and contains(pool.spec.network, source) for pool in pools)


def seen_as(snapshot: Snapshot, end: Key | Address, source: Address, to: Address) -> Address:
    """The address that `to` sees of an end whose own is `source`: its node's, where natOutgoing applies."""
    node = snapshot.get(Node, place(snapshot, end))
    if node is None or node.key == end or not _masked(snapshot, node.metadata.name, to, source):
        return source
    return node.address(source.version) or source


def to_host(snapshot: Snapshot, ends: tuple[Key | Address, Key | Address]) -> str:
    """What `defaultEndpointToHostAction` says where a pod talks to its own node; "" elsewhere."""
    source, destination = ends
    if not (isinstance(source, Key) and isinstance(destination, Key)):
        return ""
    if source.kind != WorkloadEndpoint.KIND or destination.kind != Node.KIND:
        return ""
    if snapshot.of(WorkloadEndpoint)[source].spec.node != destination.name:
        return ""
    return next(_settings(snapshot, destination.name, "default_endpoint_to_host_action"), "Drop")


def _settings(snapshot: Snapshot, node: str, field: str) -> Iterator[str]:
    """What FelixConfiguration says of a field: the node's own first."""
    for name in (f"node.{node}", "default"):
        settings = snapshot.get(FelixConfiguration, name)
        if settings and (found := getattr(settings.spec, field)):
            yield found
