"""What a node's host endpoints say of a connection, in the order in which the kernel asks them. Pure.

    Passage: comes in by an interface, or is sent here ── the planes on its way ──> Said, Said, ...
             leaves by one, or is taken here                 │
                                                 whose interface it is; failsafe ports; the compiled table

What `felix.host_frame` has the kernel do with a first packet, done with a value: for live connections (`felix.cut`) and
for people (`muslin explain`). A workload's own policy is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from core.addr import Address
from core.names import Key
from core.resources.policy import Direction
from felix.failsafe import Failsafes, covers, covers_either
from felix.hosts import LOOPBACK, Host, is_workloads
from felix.peering_address import Call
from policy.compile import Compiled
from policy.evaluate import Judgement, Packet, judge_by
from policy.model import Plane, Verdict

Slot: TypeAlias = tuple[Plane, Direction]

IPIP: Final = 4
"""The protocol number of IP-in-IP."""

_IN, _OUT = Direction.INGRESS, Direction.EGRESS
_EARLY: Final = frozenset({Plane.UNTRACKED, Plane.PRE_DNAT})
_TAKEN: Final[tuple[Slot, ...]] = ((Plane.UNTRACKED, _IN), (Plane.PRE_DNAT, _IN), (Plane.HOST, _IN))
_SENT: Final[tuple[Slot, ...]] = ((Plane.UNTRACKED, _OUT), (Plane.HOST, _OUT))
_FORWARDED: Final[tuple[Slot, ...]] = (
    *((Plane.UNTRACKED, _IN), (Plane.PRE_DNAT, _IN)),
    *((Plane.FORWARD, _IN), (Plane.FORWARD, _OUT)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What judges the interfaces of one node, besides the tables. `nodes` may always send each other IP-in-IP, and
    `to_host` is `defaultEndpointToHostAction`, whatever which `calls` are accepted.
    """

    hosts: tuple[Host, ...] = ()
    failsafes: Failsafes = field(default_factory=Failsafes)
    nodes: frozenset[Address] = frozenset()
    to_host: str = "Drop"
    calls: frozenset[Call] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A connection's first packet on its way through one node. `asked` is the address and port that the client asked
    for, before NAT; `came_by` "" means that the node sends it, `leaves_by` "" that the node takes it.
    """

    source: Address
    destination: Address
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None
    asked: tuple[Address, int | None] | None = None
    came_by: str = ""
    leaves_by: str = ""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The planes that it meets, in order; none where it never leaves the node."""
        if self.came_by:
            return _FORWARDED if self.leaves_by else _TAKEN
        return _SENT if self.leaves_by else ()

    @property
    def answer(self) -> Passage:
        """What comes back. ICMP's types do not: they are the request's."""
        return replace(
            self,
            source=self.destination,
            destination=self.source,
            sport=self.dport,
            dport=self.sport,
            asked=None,
            came_by=self.leaves_by,
            leaves_by=self.came_by,
        )

    def interface(self, direction: Direction) -> str:
        """The interface that judges it in that direction."""
        return self.came_by if direction is _IN else self.leaves_by

    def seen(self, plane: Plane, direction: Direction) -> Packet:
        """As one plane sees it."""
        to, dport = (self.destination, self.dport)
        if plane in _EARLY and direction is _IN and self.asked is not None:
            to, dport = self.asked
        peer, local = (self.source, to) if direction is _IN else (to, self.source)
        return Packet(peer=peer, local=local, protocol=self.protocol, sport=self.sport, dport=dport, icmp=self.icmp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one endpoint says in one plane and direction. `judgement` None: it is a failsafe port, and not asked."""

    endpoint: Key
    plane: Plane
    direction: Direction
    judgement: Judgement | None = None

    def __str__(self) -> str:
        return f"{self.plane} {self.direction.lower()} of {self.endpoint}"

    @property
    def verdict(self) -> Verdict:
        """What comes of it: at a failsafe port, the early planes leave it to the later ones."""
        if self.judgement is not None:
            return self.judgement.enforced.verdict
        return Verdict.CONTINUE if self.plane in _EARLY else Verdict.ALLOW

    @property
    def final(self) -> bool:
        """Whether no later plane of a host endpoint is asked any more."""
        return self.verdict is Verdict.DENY or (self.plane in _EARLY and self.verdict is Verdict.ALLOW)


def covering(hosts: Iterable[Host], interface: str) -> Host | None:
    """The endpoint that covers an interface: the one that has it, else `*`."""
    every = None
    for host in hosts:
        if interface in host.interfaces:
            return host
        if host.everywhere:
            every = host
    return None if interface in ("", LOOPBACK) else every


def said(guard: Guard, compiled: Compiled, passage: Passage) -> Iterator[Said]:
    """What the host endpoints on its way say, in order, until one of them settles it.

    `compiled` holds the tables of all `guard.hosts`; a plane in which an endpoint has none has nothing to ask.
    """
    for plane, direction in passage.slots:
        host = _judge(guard, plane, passage.interface(direction))
        table = compiled.tables.get(compiled.hosts.get((host.key, plane, direction), "")) if host else None
        if host is None or table is None:
            continue
        packet = passage.seen(plane, direction)
        if plane is Plane.HOST and packet.protocol == IPIP and packet.peer in guard.nodes:
            return
        judgement = None
        if not _failsafe(guard.failsafes, plane, direction, packet):
            judgement = judge_by(table, compiled.identity.of(packet.peer), packet, packet.local)
        found = Said(endpoint=host.key, plane=plane, direction=direction, judgement=judgement)
        yield found
        if found.final:
            return


def _judge(guard: Guard, plane: Plane, interface: str) -> Host | None:
    """Who is asked there. What a workload sends the node meets `*`, if that is what becomes of it."""
    host = covering(guard.hosts, interface)
    if host is None or (host.everywhere and plane is Plane.UNTRACKED):
        return None
    if is_workloads(interface):
        return host if plane is Plane.HOST and guard.to_host == "Return" else None
    return host


def _failsafe(given: Failsafes, plane: Plane, direction: Direction, packet: Packet) -> bool:
    match plane:
        case Plane.FORWARD:
            return False
        case Plane.UNTRACKED:
            return covers_either(given, direction, packet.protocol, (packet.sport, packet.dport), packet.peer)
    return covers(given, direction, packet.protocol, packet.dport, packet.peer)
