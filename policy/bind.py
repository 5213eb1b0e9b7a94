"""A program bound to one endpoint's own side, and asked about classes of the other side.

The own side of a rule (the destination of ingress, the source of egress) is settled here: for each family
the endpoint's addresses either all match it, or none does, or some do. Only the last leaves a test for the packet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, collapse_addresses, ip_network, summarize_address_range
from typing import Final, TypeAlias, cast

from core.addr import Family, Network, host_prefix
from core.resources.network import HostEndpoint, WorkloadEndpoint
from core.resources.policy import Direction
from policy.decide import Live, verdict_of
from policy.demand import Asked, sides, wanted_ports
from policy.entities import ANYWHERE
from policy.identity import Signature
from policy.index import Group
from policy.marks import NO_NUMBERS, Marking, Numbers
from policy.model import ALL_PORTS, Cause, Decision, Peer, Plane, Ports, Range, Side, Step, Tests, Verdict
from policy.place import place_of, readable
from policy.ranges import less
from policy.resolve import Local, Program

Truth: TypeAlias = bool | tuple[Network, ...]
"""Whether the own addresses match: all, none, or those in these prefixes."""


@dataclass(frozen=True, slots=True)
class Own:
    """What a program needs to know of its endpoint, per family: own-side peers by text, named ports by text.

    `at` has the named ports, by text, of single addresses: where a host carries what is for others, the own side is any
    of them.
    """

    truths: Mapping[tuple[str, int], Truth]
    ports: Mapping[tuple[str, int], tuple[int, ...]]
    at: Mapping[int, Mapping[Numbers, tuple[Network, ...]]] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """The same for endpoints that may share a stack."""
        at = [
            f"{family} {sorted(numbers)} {nets}"
            for family, having in sorted(self.at.items())
            for numbers, nets in sorted(having.items(), key=lambda item: sorted(item[0]))
        ]
        truths = [f"{peer} {family} {truth}" for (peer, family), truth in sorted(self.truths.items()) if truth]
        ports = [f"{port} {family} {numbers}" for (port, family), numbers in sorted(self.ports.items()) if numbers]
        return [*truths, "", *ports, *(("", *at) if at else ())]


def own_side(thing: Local, program: Program, asked: Asked, marking: Marking, group: Group) -> Own:
    """An endpoint as `program`, which asks `asked`, sees it; `group` is where it is among its like."""
    if not (asked.own or asked.own_named):
        return NOTHING
    nets = _own_nets(thing, program)
    truths = {
        (text, int(family)): _truth(peer, nets[family], marking)
        for text, peer in asked.own.items()
        for family in Family
    }
    if isinstance(thing, HostEndpoint) and program.plane is not Plane.HOST:
        return Own(truths, {}, _having(frozenset(asked.own_named), marking))
    numbers = {int(family): _numbers_of(thing, family, marking, group) for family in Family}
    ports = {
        (text, family): tuple(sorted(number for name, number in known if name == text))
        for text in asked.own_named
        for family, known in numbers.items()
    }
    return Own(truths, ports)


def _own_nets(thing: Local, program: Program) -> Mapping[int, list[Network]]:
    """What an endpoint's own side may be. A host has addresses that nobody expects, and carries what is for others."""
    nets: dict[int, list[Network]] = {int(family): [] for family in Family}
    if isinstance(thing, WorkloadEndpoint):
        given: list[Network] = [host_prefix(address) for address in thing.spec.addresses]
        if program.direction is Direction.EGRESS:
            given += [ip_network(text, strict=False) for text in thing.spec.allow_spoofed_source_prefixes]
    else:
        given = list(ANYWHERE)
    for net in given:
        nets[net.version].append(net)
    return nets


def _numbers_of(thing: Local, family: Family, marking: Marking, group: Group) -> Numbers:
    """The numbers of the endpoint's named ports; a host's do not hang on its addresses."""
    if isinstance(thing, HostEndpoint):
        return marking.told_of(group)
    cells = (marking.at.get(place_of(each)) for each in thing.spec.addresses if each.version == family)
    return NO_NUMBERS.union(*(cell.ports for cell in cells if cell is not None))


def _having(names: Set[str], marking: Marking) -> Mapping[int, Mapping[Numbers, tuple[Network, ...]]]:
    """Every address that has any of the named ports `names` (texts), by those it has."""
    found: dict[int, dict[Numbers, list[Network]]] = {int(family): {} for family in Family}
    for place, cell in marking.at.items() if names else ():
        having = frozenset(port for port in cell.ports if port[0] in names)
        if having:
            found[cell.family].setdefault(having, []).append(host_prefix(readable(place)))
    return {
        family: {numbers: _collapsed(nets) for numbers, nets in alike.items()}
        for family, alike in found.items()
        if alike
    }


def _truth(peer: Peer, nets: Sequence[Network], marking: Marking) -> Truth:
    holding: list[Network] = []
    failing = False
    for net in nets:
        make = IPv4Address if net.version == 4 else IPv6Address
        for (first, last), marks in marking.within(net):
            if marking.holds(peer, marks):
                holding.extend(summarize_address_range(make(first), make(last)))
            else:
                failing = True
    return (_collapsed(holding) if failing else True) if holding else False


def _collapsed(nets: Sequence[Network]) -> tuple[Network, ...]:
    # All of one family, which the type of a union cannot say.
    return tuple(collapse_addresses(cast("list[IPv4Network]", nets)))


NOTHING: Final = Own({}, {})


class Bound:
    """The steps of one program that packets of one family can meet at one own side."""

    def __init__(self, program: Program, own: Own, family: int) -> None:
        self._own = own
        self._ingress = program.direction is Direction.INGRESS
        self._templates: list[tuple[Live, Side]] = []
        self._free: list[int] = []
        self._by_peer: dict[str, list[int]] = defaultdict(list)
        for position, step in enumerate(program.steps):
            other = sides(step.match, program.direction)[0] if step.match else Side()
            for live in self._lives(position, step, program.direction, family):
                self._templates.append((live, other))
                place = len(self._templates) - 1
                if other.peer is None:
                    self._free.append(place)
                else:
                    self._by_peer[other.peer.text].append(place)

    def _lives(self, position: int, step: Step, direction: Direction, family: int) -> list[Live]:
        """The step with its own side settled: none when that cannot match, one for each part that differs in ports."""
        undecided = step.reason.cause is Cause.UNDECIDED
        verdict = Verdict.CONTINUE if undecided else verdict_of(step.action)
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
            return [live]
        if match.family not in (None, family):
            return []
        own = sides(match, direction)[1]
        truth: Truth = True if own.peer is None else self._own.truths[own.peer.text, family]
        if truth is False:
            return []
        tests = None if truth is True else Tests(local=truth)
        live = replace(
            live,
            protocol=match.protocol,
            not_protocol=match.not_protocol,
            icmp=match.icmp,
            not_icmp=match.not_icmp,
            tests=tests,
        )
        parts = _by_address(live, self._own.at.get(family, {}), family) if _has_names(own) else [(live, NO_NUMBERS)]
        found = []
        for part, having in parts:
            numbers = {text: found for (text, version), found in self._own.ports.items() if version == family}
            for text, number in sorted(having):
                numbers[text] = (*numbers.get(text, ()), number)
            found.append(_with_ports(part, own, numbers, destination=self._ingress))
        return [each for each in found if each is not None]

    @property
    def peers(self) -> frozenset[str]:
        """The peers, by text, that any step asks about."""
        return frozenset(self._by_peer)

    @property
    def asks_names(self) -> bool:
        """Whether any step asks for a named port of the other side."""
        return any(_has_names(other) for _, other in self._templates)

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


def _by_address(live: Live, at: Mapping[Numbers, tuple[Network, ...]], family: int) -> list[tuple[Live, Numbers]]:
    """The step for each set of named ports that own addresses have, and for the rest, which have none."""
    if not at:
        return [(live, NO_NUMBERS)]
    local = live.tests.local if live.tests is not None else None
    rest: tuple[Range, ...] = tuple(map(_range, local if local is not None else (ANYWHERE[family == Family.V6],)))
    parts: list[tuple[tuple[Range, ...], Numbers]] = []
    for having, nets in sorted(at.items(), key=lambda item: sorted(item[0])):
        left = less(rest, map(_range, nets))
        parts.append((less(rest, left), having))
        rest = left
    return [
        (replace(live, tests=replace(live.tests or Tests(), local=_prefixes(ranges, family))), having)
        for ranges, having in (*parts, (rest, NO_NUMBERS))
        if ranges
    ]


def _range(net: Network) -> Range:
    return int(net.network_address), int(net.broadcast_address)


def _prefixes(ranges: Sequence[Range], family: int) -> tuple[Network, ...]:
    make = IPv4Address if family == Family.V4 else IPv6Address
    return tuple(net for first, last in ranges for net in summarize_address_range(make(first), make(last)))


def _has_names(side: Side) -> bool:
    return any(ports is not None and ports.names for ports in (side.ports, side.not_ports))


def _with_ports(live: Live, side: Side, named: Mapping[str, Sequence[int]], *, destination: bool) -> Live | None:
    """The step with one side's ports as numbers, named ones by their text; None when no port is left."""
    if side.ports is None and side.not_ports is None:
        return live
    found = {(yes, port.name): named.get(port.text, ()) for yes, port in wanted_ports(side, live.protocol)}
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
