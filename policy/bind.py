"""A program bound to one endpoint's own side, and asked about classes of the other side.

The own side of a rule (the destination of ingress, the source of egress) is settled here: for each family
the endpoint's addresses either all match it, or none does, or some do. Only the last leaves a test for the packet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, collapse_addresses, ip_network, summarize_address_range
from typing import TypeAlias, cast

from core.addr import Family, Network, host_prefix
from core.resources.network import WorkloadEndpoint
from core.resources.policy import Direction
from policy.decide import Live, verdict_of
from policy.identity import Marked, NamedPort, Signature
from policy.model import ALL_PORTS, Decision, Match, Peer, Ports, Range, Side, Step, Tests
from policy.ranges import less
from policy.resolve import Program

Truth: TypeAlias = bool | tuple[Network, ...]
"""Whether the own addresses match: all, none, or those in these prefixes."""


@dataclass(frozen=True, slots=True)
class Own:
    """What a program needs to know of its endpoint, per family: own-side peers by text, named ports by text."""

    truths: Mapping[tuple[str, int], Truth]
    ports: Mapping[tuple[str, int], tuple[int, ...]]

    def texts(self) -> list[str]:
        """The same for endpoints that may share a stack."""
        truths = [f"{peer} {family} {truth}" for (peer, family), truth in sorted(self.truths.items()) if truth]
        ports = [f"{port} {family} {numbers}" for (port, family), numbers in sorted(self.ports.items()) if numbers]
        return [*truths, "", *ports]


def sides(match: Match, direction: Direction) -> tuple[Side, Side]:
    """The other side and the own one."""
    if direction is Direction.INGRESS:
        return match.source, match.destination
    return match.destination, match.source


def named_ports(side: Side, protocol: int | None) -> list[NamedPort]:
    """The named ports that a rule asks of the other side."""
    return [port for _, port in _named(side, protocol)]


def _named(side: Side, protocol: int | None) -> list[tuple[bool, NamedPort]]:
    """With each, whether the rule wants it (or wants it not: then of whatever has it)."""
    if protocol is None:
        return []
    selector = side.peer.selector if side.peer is not None else None
    wanted = [(True, NamedPort(selector, name, protocol)) for name in (side.ports.names if side.ports else ())]
    unwanted = [(False, NamedPort(None, name, protocol)) for name in (side.not_ports.names if side.not_ports else ())]
    return wanted + unwanted


def own_side(endpoint: WorkloadEndpoint, program: Program, marked: Marked) -> Own:
    """The endpoint as `program` sees it."""
    nets: dict[int, list[Network]] = {int(family): [] for family in Family}
    for address in endpoint.spec.addresses:
        nets[address.version].append(host_prefix(address))
    if program.direction is Direction.EGRESS:
        for text in endpoint.spec.allow_spoofed_source_prefixes:
            net = ip_network(text, strict=False)
            nets[net.version].append(net)
    truths: dict[tuple[str, int], Truth] = {}
    ports: dict[tuple[str, int], tuple[int, ...]] = {}
    for step in program.steps:
        if step.match is None:
            continue
        own = sides(step.match, program.direction)[1]
        for port in named_ports(own, step.match.protocol):
            for family in Family:
                ports[port.text, int(family)] = _numbers_of(port, endpoint, family, marked)
        if own.peer is not None and (own.peer.text, 4) not in truths:
            for family in Family:
                truths[own.peer.text, int(family)] = _truth(own.peer, nets[family], marked)
    return Own(truths, ports)


def _numbers_of(port: NamedPort, endpoint: WorkloadEndpoint, family: Family, marked: Marked) -> tuple[int, ...]:
    own = [address for address in endpoint.spec.addresses if address.version == family]
    found = {number for address in own for text, number in marked.ports.get(address, ()) if text == port.text}
    return tuple(sorted(found))


def _truth(peer: Peer, nets: Sequence[Network], marked: Marked) -> Truth:
    holding: list[Network] = []
    failing = False
    for net in nets:
        make = IPv4Address if net.version == 4 else IPv6Address
        for (first, last), marks in marked.within(net):
            if marked.holds(peer, marks):
                holding.extend(summarize_address_range(make(first), make(last)))
            else:
                failing = True
    return (_collapsed(holding) if failing else True) if holding else False


def _collapsed(nets: Sequence[Network]) -> tuple[Network, ...]:
    # All of one family, which the type of a union cannot say.
    return tuple(collapse_addresses(cast("list[IPv4Network]", nets)))


class Bound:
    """The steps of one program that packets of one family can meet at one own side."""

    def __init__(self, program: Program, own: Own, family: int) -> None:
        self._own = own
        self._ingress = program.direction is Direction.INGRESS
        self._templates: list[tuple[Live, Side]] = []
        self._free: list[int] = []
        self._by_peer: dict[str, list[int]] = defaultdict(list)
        for position, step in enumerate(program.steps):
            live = self._template(position, step, program.direction, family)
            if live is None:
                continue
            other = sides(step.match, program.direction)[0] if step.match else Side()
            self._templates.append((live, other))
            place = len(self._templates) - 1
            if other.peer is None:
                self._free.append(place)
            else:
                self._by_peer[other.peer.text].append(place)

    def _template(self, position: int, step: Step, direction: Direction, family: int) -> Live | None:
        """The step with its own side settled; None when that cannot match."""
        verdict = verdict_of(step.action)
        live = Live(
            position=position,
            tier=step.tier,
            action=step.action,
            reason=step.reason,
            decision=Decision(verdict, step.reason) if verdict else None,
            staged=step.staged,
            outgoing=step.outgoing,
        )
        match = step.match
        if match is None:
            return live
        if match.family not in (None, family):
            return None
        own = sides(match, direction)[1]
        truth: Truth = True if own.peer is None else self._own.truths[own.peer.text, family]
        if truth is False:
            return None
        tests = None if truth is True else Tests(local=truth)
        live = replace(
            live,
            protocol=match.protocol,
            not_protocol=match.not_protocol,
            icmp=match.icmp,
            not_icmp=match.not_icmp,
            tests=tests,
        )
        numbers = {text: found for (text, version), found in self._own.ports.items() if version == family}
        return _with_ports(live, own, numbers, destination=self._ingress)

    def _places(self, signature: Signature) -> list[int]:
        hits = self._by_peer.keys() & signature.peers
        if not hits:
            return self._free
        return sorted(self._free + [place for text in hits for place in self._by_peer[text]])

    def question(self, signature: Signature) -> object:
        """Signatures with equal questions have equal answers."""
        places = tuple(self._places(signature))
        named = any(_has_names(self._templates[place][1]) for place in places) if signature.ports else False
        return id(self), places, signature.ports if named else None

    def steps(self, signature: Signature) -> list[Live]:
        """The steps that can match packets whose other side has this signature, in order."""
        found = []
        numbers: dict[str, list[int]] = defaultdict(list)
        for text, number in signature.ports:
            numbers[text].append(number)
        for place in self._places(signature):
            live, other = self._templates[place]
            resolved = _with_ports(live, other, numbers, destination=not self._ingress)
            if resolved is not None:
                found.append(resolved)
        return found


def _has_names(side: Side) -> bool:
    return any(ports is not None and ports.names for ports in (side.ports, side.not_ports))


def _with_ports(live: Live, side: Side, named: Mapping[str, Sequence[int]], *, destination: bool) -> Live | None:
    """The step with one side's ports as numbers, named ones by their text; None when no port is left."""
    if side.ports is None and side.not_ports is None:
        return live
    found = {(yes, port.name): named.get(port.text, ()) for yes, port in _named(side, live.protocol)}
    positive = (ALL_PORTS,) if side.ports is None else _numbers(side.ports, found, wanted=True)
    negative = () if side.not_ports is None else _numbers(side.not_ports, found, wanted=False)
    ports = less(positive, negative)
    if not ports:
        return None
    if ports == (ALL_PORTS,):
        return live
    if destination:
        return replace(live, dports=ports)
    return replace(live, tests=replace(live.tests or Tests(), sports=ports))


def _numbers(ports: Ports, named: Mapping[tuple[bool, str], Sequence[int]], *, wanted: bool) -> tuple[Range, ...]:
    return (*ports.ranges, *((number, number) for name in ports.names for number in named.get((wanted, name), ())))
