"""Which host endpoints a new connection meets on the nodes of its ends, and what they say, as far as can be known.

    pod | node ── its node: forward egress | untracked, host egress ──> ... ──┐
                                                                              │  by which interface: the kernel's route,
    pod | node <── the other's: untracked, preDNAT, forward | host ingress <──┘  the tunnel, expectedIPs, or `*` alone

A node's kernel knows by which interface it reaches an address; run there, that is asked. Elsewhere it can only be told
from the datastore, or it cannot, and then the endpoints that may have a say are named instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from cli import hops, peering
from cli.hops import Hop
from cli.kinds import reference
from core.addr import Address
from core.names import IPIP_DEVICE, Key
from core.resources import HostEndpoint, IPPool, Node, WorkloadEndpoint
from core.routing import Carrier
from core.snapshot import Snapshot
from felix import host_frame
from felix.desired import settings_of
from felix.failsafe import failsafes
from felix.guard import Guard, Passage, Said, covering, said
from felix.hosts import Host, hosts, local_keys
from felix.overlay import may_tunnel
from linux.model import Facts
from policy.compile import Compiled, compile
from policy.explain import Explanation, flow
from policy.model import Decision, Plane, Verdict

_UDP: Final = 17
_ANY: Final = "any interface"
_UNSEEN: Final = Facts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What an endpoint says on a node. `how` tells by what it is known that it is the one of this `interface`."""

    node: str
    interface: str
    how: str
    said: Said

    def __str__(self) -> str:
        why = f"{self.decision.reason}" if self.decision else "a failsafe port, which no policy closes"
        return f"{self.where} ({self.interface}, by {self.how}): {self.said.verdict}: {why}"

    @property
    def where(self) -> str:
        """Which plane, direction, endpoint and node."""
        return f"{self.said.plane} {self.said.direction.lower()} of {reference(self.said.endpoint)} on {self.node}"

    @property
    def would_be(self) -> str:
        """In words what staged policies would decide, "" where that is the same."""
        if self.pending is None:
            return ""
        return f"{self.where} would be, with what is staged: {self.pending.verdict}: {self.pending.reason}"

    @property
    def decision(self) -> Decision | None:
        """The rule's, None at a failsafe port."""
        return self.said.judgement.enforced if self.said.judgement else None

    @property
    def pending(self) -> Decision | None:
        """What staged policies would decide, where that differs."""
        return self.said.judgement.pending if self.said.judgement else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What was `met`, in the order asked; and who may have a say besides, of which the datastore does not tell.

    `unanswered` says that it is let in untracked, and its answers are not let out.
    """

    met: tuple[Met, ...] = ()
    unknown: tuple[Key, ...] = ()
    unanswered: tuple[str, ...] = ()

    @property
    def denies(self) -> bool:
        """Whether one of them denies it."""
        return bool(self.unanswered) or any(each.said.verdict is Verdict.DENY for each in self.met)

    @property
    def would_deny(self) -> bool:
        """The same if the staged policies were in force."""
        return bool(self.unanswered) or any(
            (each.pending.verdict if each.pending else each.said.verdict) is Verdict.DENY for each in self.met
        )

    def __or__(self, other: Guards) -> Guards:
        return Guards(
            met=self.met + other.met,
            unknown=self.unknown + other.unknown,
            unanswered=self.unanswered + other.unanswered,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What is known of this very host: its node's name, "" for none; its links; its ways to an address."""

    node: str = ""
    facts: Facts = _UNSEEN
    ways: Callable[[Address], tuple[str, ...]] = lambda _: ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stop:
    """One node on the way: all that is known of the packet there but the interface towards `peer`.

    `own` is the node's own address at which it takes or sends the packet, None where it is forwarded.
    """

    node: str
    passage: Passage
    arrives: bool
    own: Address | None
    carriers: frozenset[Carrier]  # how packets get there, of those that are ours
    near: bool  # the peer is in the cluster

    @property
    def peer(self) -> Address:
        """Who is on the other side of the interface."""
        return self.passage.source if self.arrives else self.passage.destination

    def by(self, interface: str) -> Passage:
        """The packet that comes or goes by `interface`."""
        return replace(self.passage, came_by=interface) if self.arrives else replace(self.passage, leaves_by=interface)


def guards(
    snapshot: Snapshot,
    ends: tuple[Key | Address, Key | Address],
    found: Explanation,
    kernel: Kernel,
    datastore: str = "",
) -> tuple[Guards, Guards]:
    """What is met on the source's node and on the destination's; `datastore` is where felix reaches it."""
    source, destination = (hops.place(snapshot, end) for end in ends)
    first, _ = flow(*found.addresses, found.protocol, found.port)
    packet = Passage(
        source=found.addresses[0],
        destination=found.addresses[1],
        protocol=found.protocol,
        sport=first.sport,
        dport=first.dport,
        icmp=first.icmp,
    )
    if source == destination:
        if hops.to_host(snapshot, ends) != "Return" or peering.called(snapshot, ends, found):
            return Guards(), Guards()
        interface = _interface(snapshot, ends[0])
        judge = _Judge(snapshot, source, kernel, datastore)
        return Guards(), judge.at(replace(packet, came_by=interface), interface, "defaultEndpointToHostAction")
    leaving, arriving = Guards(), Guards()
    if source:
        stop = _leaving(snapshot, ends, source, packet, near=bool(destination))
        leaving = _Judge(snapshot, source, kernel, datastore).stop(stop)
    if destination:
        stop = _arriving(snapshot, ends, destination, packet, near=bool(source))
        arriving = _Judge(snapshot, destination, kernel, datastore).stop(stop)
    return leaving, arriving


def _interface(snapshot: Snapshot, end: Key | Address) -> str:
    """A pod's interface; "" for the node itself."""
    if isinstance(end, Key) and end.kind == WorkloadEndpoint.KIND:
        return snapshot.of(WorkloadEndpoint)[end].spec.interface_name
    return ""


def _leaving(
    snapshot: Snapshot, ends: tuple[Key | Address, Key | Address], node: str, packet: Passage, *, near: bool
) -> _Stop:
    pod = _interface(snapshot, ends[0])
    return _Stop(
        node=node,
        passage=replace(packet, came_by=pod),
        arrives=False,
        own=None if pod else packet.source,
        carriers=_carriers(hops.hops(snapshot, ends, packet.destination, packet.source)),
        near=near,
    )


def _arriving(
    snapshot: Snapshot, ends: tuple[Key | Address, Key | Address], node: str, packet: Passage, *, near: bool
) -> _Stop:
    pod = _interface(snapshot, ends[1])
    seen = hops.seen_as(snapshot, ends[0], packet.source, packet.destination)
    back = hops.hops(snapshot, (ends[1], ends[0]), packet.source, packet.destination, answers=True)
    return _Stop(
        node=node,
        passage=replace(packet, source=seen, leaves_by=pod),
        arrives=True,
        own=None if pod else packet.destination,
        carriers=_carriers(back) if seen == packet.source else frozenset(),
        near=near,
    )


def _carriers(way: Sequence[Hop]) -> frozenset[Carrier]:
    return frozenset(map(Carrier, way[0].carriers)) if way else frozenset()


class _Judge:
    """The host endpoints of one node."""

    def __init__(self, snapshot: Snapshot, node: str, kernel: Kernel, datastore: str) -> None:
        self._snapshot, self._node, self._kernel = snapshot, node, kernel
        keys = local_keys(snapshot, node)
        self._here = node == kernel.node
        local = hosts(snapshot, kernel.facts if self._here else _UNSEEN, node).local
        self._hosts = local if self._here else tuple(_assumed(snapshot, host) for host in local)
        compiled = compile(snapshot, [], keys) if keys else None
        self._compiled: Compiled | None = replace(compiled, hosts=host_frame.stacks(compiled)) if compiled else None
        settings = settings_of(snapshot, node)
        self._guard = Guard(
            hosts=self._hosts,
            failsafes=failsafes(settings, datastore),
            nodes=_nodes(snapshot),
            to_host=settings.default_endpoint_to_host_action or "Drop",
        )

    def stop(self, stop: _Stop) -> Guards:
        """What is met there, if it can be known by whom; else who may have a say."""
        if not self._hosts:
            return Guards()
        interfaces, how = self._towards(stop)
        owners = {host.key if host else None for host in (covering(self._hosts, each) for each in interfaces)}
        if how and len(owners) <= 1:
            return self.at(stop.by(interfaces[0]), interfaces[0], how)
        may = {each.said.endpoint for name in interfaces for each in self.at(stop.by(name), name, how).met}
        return Guards(unknown=tuple(sorted(may)))

    def at(self, passage: Passage, interface: str, how: str) -> Guards:
        """What is met by this interface."""
        if self._compiled is None:
            return Guards()
        found = tuple(said(self._guard, self._compiled, passage))
        return Guards(
            met=tuple(Met(node=self._node, interface=interface, how=how, said=each) for each in found),
            unanswered=self._unanswered(self._compiled, passage, found),
        )

    def _unanswered(self, compiled: Compiled, passage: Passage, found: Sequence[Said]) -> tuple[str, ...]:
        """What is let in or out untracked needs an untracked answer, or its answer fits no connection.

        Of UDP that is not so: its answer begins a connection, which is judged like any other.
        """
        if passage.protocol == _UDP or not any(map(_untracked, found)):
            return ()
        if any(map(_untracked, said(self._guard, compiled, passage.answer))):
            return ()
        return (
            f"its answer on {self._node}: Deny: what was allowed untracked needs an untracked rule for answers, too",
        )

    def _towards(self, stop: _Stop) -> tuple[tuple[str, ...], str]:
        """The interface towards the peer, and by what it is known: all that it may be, and "", if it is not."""
        if self._here and (ways := self._kernel.ways(stop.peer)):
            return ways, f"the route to {stop.peer}"
        if stop.carriers == {Carrier.TUNNEL}:
            return (IPIP_DEVICE,), "the tunnel"
        if name := self._expecting(stop):
            return (name, *([IPIP_DEVICE] if Carrier.TUNNEL in stop.carriers else [])), "expectedIPs"
        if all(host.everywhere for host in self._hosts):
            return (_ANY,), "interfaceName '*'"
        return (*(name for host in self._hosts for name in host.interfaces), _ANY), ""

    def _expecting(self, stop: _Stop) -> str:
        """The interface that should have the address by which the node and the peer know each other."""
        node = self._snapshot.get(Node, self._node)
        address = stop.own or (node.address(stop.peer.version) if node and stop.near else None)
        known = self._snapshot.of(HostEndpoint)
        for host in self._hosts:
            if address is not None and address in map(ip_address, known[host.key].spec.expected_ips):
                return next(iter(host.interfaces), "")
        return ""


def _untracked(each: Said) -> bool:
    return each.plane is Plane.UNTRACKED and each.verdict is Verdict.ALLOW


def _assumed(snapshot: Snapshot, host: Host) -> Host:
    """An endpoint of another node: if its interface has no name, call it by its addresses."""
    expected = snapshot.of(HostEndpoint)[host.key].spec.expected_ips
    if host.interfaces or host.everywhere or not expected:
        return host
    return replace(host, interfaces=(f"the one with {expected[0]}",))


def _nodes(snapshot: Snapshot) -> frozenset[Address]:
    """Who may always send each other IP-in-IP: nobody, where no pool asks for the tunnel."""
    if not any(map(may_tunnel, snapshot.of(IPPool).values())):
        return frozenset()
    return frozenset(address for node in snapshot.of(Node).values() if (address := node.address(4)))


def documents(
    met: Sequence[Met], decided: Callable[[Decision | None], dict[str, Any] | None]
) -> Iterator[dict[str, Any]]:
    """For programs; `decided` is how a decision is written."""
    for each in met:
        yield {
            "node": each.node,
            "endpoint": reference(each.said.endpoint),
            "interface": each.interface,
            "knownBy": each.how,
            "plane": each.said.plane.value,
            "direction": each.said.direction.value,
            "verdict": each.said.verdict.value,
            "failsafe": each.decision is None,
            "decision": decided(each.decision),
            "pending": decided(each.pending),
        }
