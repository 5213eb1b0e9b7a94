"""Why can this one talk to that one, or why not: both ends' decisions, with the tier, policy and rule of each. Pure.

    pod ── egress ──> its node ──> ... ──> the other's node ── ingress ──> pod

An end that is no pod has no decision of its own, and neither has a pod to which its own node talks: that is not policed
(`felix.filter`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from core.addr import Address
from core.errors import NotFound
from core.names import Key
from core.peering import peering_addresses
from core.resources.network import HostEndpoint, Node, WorkloadEndpoint
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import Compiled, compile
from policy.decide import ICMP_OF_FAMILY
from policy.evaluate import Judgement, Packet, judge
from policy.model import Decision, Verdict

EPHEMERAL_PORT: Final = 49152
"""The source port of the packet in question: the first of those that systems give out."""

ECHO_REQUEST: Final = {4: (8, 0), 6: (128, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`egress` is the source's decision, `ingress` the destination's; None where no workload's policy is asked.

    `pending_egress` and `pending_ingress` are what the staged policies would decide, where that differs. `addresses`
    are the two of which all of it holds.
    """

    source: str
    destination: str
    addresses: tuple[Address, Address]
    protocol: int
    port: int | None
    egress: Decision | None
    ingress: Decision | None
    pending_egress: Decision | None = None
    pending_ingress: Decision | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Allowed when no end denies."""
        return _both(self.egress, self.ingress)

    @property
    def pending(self) -> Verdict | None:
        """The verdict if the staged policies were in force; None when they would change nothing."""
        if not (self.pending_egress or self.pending_ingress):
            return None
        return _both(self.pending_egress or self.egress, self.pending_ingress or self.ingress)

    @property
    def lines(self) -> tuple[str, ...]:
        """In words: one line per decision asked, then the outcome."""
        return (*self._decided(), *([self.note] if self.note else []), *self._would_be(), f"{self.verdict}")

    def _decided(self) -> Iterator[str]:
        for word, end, decision in (
            ("egress of", self.source, self.egress),
            ("ingress of", self.destination, self.ingress),
        ):
            if decision is not None:
                yield f"{word} {end}: {decision.verdict}: {decision.reason}"

    def _would_be(self) -> Iterator[str]:
        for word, end, decision in (
            ("egress of", self.source, self.pending_egress),
            ("ingress of", self.destination, self.pending_ingress),
        ):
            if decision is not None:
                yield f"{word} {end} would be, with what is staged: {decision.verdict}: {decision.reason}"


def _both(*ends: Decision | None) -> Verdict:
    return Verdict.DENY if any(end and end.verdict is Verdict.DENY for end in ends) else Verdict.ALLOW


def explain(
    snapshot: Snapshot,
    source: Key | Address,
    destination: Key | Address,
    protocol: int,
    port: int | None = None,
    meant: tuple[Address | None, Address | None] = (None, None),
) -> Explanation:
    """The fate of a new flow from `source` to `destination`: workload endpoints, nodes or addresses.

    `meant` are the addresses in question where an end has several; else the first two of one family. A node has its
    own, those that its host endpoints expect, and those on which it answers its pods' BGP. Policy of hosts is not
    asked. Raises NotFound for an end that is not there, or when the two have no family in common.
    """
    sources, destinations = (
        tuple(each for each in _addresses(snapshot, end) if asked in (None, each))
        for end, asked in zip((source, destination), meant, strict=True)
    )
    addresses = _common(sources, destinations)
    if addresses is None:
        raise NotFound(f"{source} and {destination} have no addresses of one family: nothing can pass between them")
    egress, ingress, note = _asked(snapshot, source, destination)
    compiled = compile(snapshot, [end for end in (egress, ingress) if end])
    out, back = flow(*addresses, protocol, port)
    sent = _judged(compiled, egress, Direction.EGRESS, out)
    taken = _judged(compiled, ingress, Direction.INGRESS, back)
    return Explanation(
        source=str(source),
        destination=str(destination),
        addresses=addresses,
        protocol=protocol,
        port=port,
        egress=sent.enforced if sent else None,
        ingress=taken.enforced if taken else None,
        pending_egress=sent.pending if sent else None,
        pending_ingress=taken.pending if taken else None,
        note=note,
    )


def flow(source: Address, destination: Address, protocol: int, port: int | None) -> tuple[Packet, Packet]:
    """A new flow's first packet, as the source's egress and as the destination's ingress see it."""
    icmp = ECHO_REQUEST[source.version] if protocol == ICMP_OF_FAMILY[source.version] else None
    sport = None if port is None else EPHEMERAL_PORT
    return (
        Packet(peer=destination, local=source, protocol=protocol, sport=sport, dport=port, icmp=icmp),
        Packet(peer=source, local=destination, protocol=protocol, sport=sport, dport=port, icmp=icmp),
    )


def _asked(snapshot: Snapshot, source: Key | Address, destination: Key | Address) -> tuple[Key | None, Key | None, str]:
    """The endpoints whose policy is asked, at the source and at the destination, and what there is to say of it."""
    if source == destination:
        return None, None, "traffic of a pod to itself never leaves it, so no policy sees it"
    egress, ingress = _workload(source), _workload(destination)
    if ingress and isinstance(source, Key) and source.kind == Node.KIND:
        node = snapshot.of(WorkloadEndpoint)[ingress].spec.node
        if node == source.name:
            return None, None, f"what node {node} itself sends to its own pods is not policed"
    note = "" if egress or ingress else "neither end is a workload endpoint: no policy of workloads applies"
    return egress, ingress, note


def _workload(end: Key | Address) -> Key | None:
    return end if isinstance(end, Key) and end.kind == WorkloadEndpoint.KIND else None


def _judged(compiled: Compiled, endpoint: Key | None, direction: Direction, packet: Packet) -> Judgement | None:
    return judge(compiled, endpoint, direction, packet) if endpoint else None


def _addresses(snapshot: Snapshot, end: Key | Address) -> tuple[Address, ...]:
    if not isinstance(end, Key):
        return (end,)
    if end.kind == Node.KIND:
        node = snapshot.of(Node).get(end)
        if node is None:
            raise NotFound(f"there is no {end}; `muslin get nodes` lists those there are")
        known = [address for version in (4, 6) if (address := node.address(version))]
        more = [
            each
            for found in snapshot.of(HostEndpoint).values()
            if found.spec.node == end.name
            for each in map(ip_address, found.spec.expected_ips)
        ]
        return tuple(dict.fromkeys((*known, *more, *peering_addresses(snapshot, end.name))))
    endpoint = snapshot.of(WorkloadEndpoint).get(end)
    if endpoint is None:
        raise NotFound(f"there is no {end}; `muslin get workloadendpoints` lists those there are")
    return endpoint.spec.addresses


def _common(sources: tuple[Address, ...], destinations: tuple[Address, ...]) -> tuple[Address, Address] | None:
    for source in sources:
        for destination in destinations:
            if source.version == destination.version:
                return source, destination
    return None
