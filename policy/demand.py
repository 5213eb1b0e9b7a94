"""What the programs in force ask about addresses, counted: a question stands as long as one program asks it.

program ── steps ──> of the other side   peers, named ports      these make classes
                └──> of the own side     peers, named ports      these only mark addresses
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from core.resources.policy import Direction
from policy.identity import NamedPort
from policy.model import Match, Peer, Side
from policy.resolve import Program

_T = TypeVar("_T")


def sides(match: Match, direction: Direction) -> tuple[Side, Side]:
    """The other side and the own one."""
    if direction is Direction.INGRESS:
        return match.source, match.destination
    return match.destination, match.source


def named_ports(side: Side, protocol: int | None) -> list[NamedPort]:
    """The named ports that a rule asks of the other side."""
    return [port for _, port in wanted_ports(side, protocol)]


def wanted_ports(side: Side, protocol: int | None) -> list[tuple[bool, NamedPort]]:
    """The same, each with whether the rule wants it (or wants it not: then of whatever has it)."""
    if protocol is None:
        return []
    selector = side.peer.selector if side.peer is not None else None
    wanted = [(True, NamedPort(selector, name, protocol)) for name in (side.ports.names if side.ports else ())]
    unwanted = [(False, NamedPort(None, name, protocol)) for name in (side.not_ports.names if side.not_ports else ())]
    return wanted + unwanted


@dataclass(frozen=True, slots=True)
class Asked:
    """What one program asks: peers and named ports by their text."""

    peers: Mapping[str, Peer]
    own: Mapping[str, Peer]
    named: Mapping[str, NamedPort]
    own_named: Mapping[str, NamedPort]


def asked_by(program: Program) -> Asked:
    """All that the steps of `program` ask."""
    peers: dict[str, Peer] = {}
    own_peers: dict[str, Peer] = {}
    named: dict[str, NamedPort] = {}
    own_named: dict[str, NamedPort] = {}
    for step in program.steps:
        if step.match is None:
            continue
        other, own = sides(step.match, program.direction)
        if other.peer is not None:
            peers[other.peer.text] = other.peer
        if own.peer is not None:
            own_peers[own.peer.text] = own.peer
        named.update((port.text, port) for port in named_ports(other, step.match.protocol))
        own_named.update((port.text, port) for port in named_ports(own, step.match.protocol))
    return Asked(peers, own_peers, named, own_named)


class Counted(Generic[_T]):
    """Things by name, each there as long as somebody holds it."""

    def __init__(self) -> None:
        self.held: dict[str, _T] = {}
        self._count: dict[str, int] = {}

    def take(self, things: Mapping[str, _T]) -> list[tuple[str, _T]]:
        """Hold `things`; returns those that nobody held before."""
        new = []
        for name, thing in things.items():
            count = self._count.get(name, 0)
            self._count[name] = count + 1
            if not count:
                self.held[name] = thing
                new.append((name, thing))
        return new

    def give(self, names: Iterable[str]) -> list[tuple[str, _T]]:
        """Hold these once less; returns those that nobody holds any more."""
        old = []
        for name in names:
            self._count[name] -= 1
            if not self._count[name]:
                del self._count[name]
                old.append((name, self.held.pop(name)))
        return old
