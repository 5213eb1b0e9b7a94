"""Policy as tables: what rules in order mean, looked up instead of walked.

    manifests ──convert──> policies ──resolve──> programs (steps in order, per set of policies and profiles)
                                                     │
    addresses ──identity──> classes ────────────┐    │ bind: the endpoint's own side of each rule is settled
                                                v    v
                               decide: for each class, the steps that can match it
                                                │
              any[class]    proto[class, protocol]    port | ranges[class, protocol, ports]    otherwise: deny
                                                │
                         Allow (why)     Deny (why)     Residual (rules still undecided)

The theory. A rule's conditions are about five things: the other side's address, the own side's address, the protocol,
the destination port, and the rest (source port, ICMP type). Rules in force can tell only finitely many kinds of address
apart: those kinds are the classes. The own side is fixed when the endpoint is known. So for one endpoint and one
direction the ordered rules are a function of (class, protocol, port) that can be worked out beforehand: tiers,
orders, Pass, end of tier and profiles leave no trace in it but the reason kept with each answer. Only "the rest" has
to wait for the packet, and then only the rules it decides are left: a residual.

A *stack* is a program bound to one own side. Its name is a hash of the names of policies and profiles in order and of
what its own side matches, never of rules' content: editing a rule changes elements of maps and leaves chains alone.
A class whose answers all equal `otherwise` has no element.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from core import labels
from core.addr import Address, Family
from core.names import Key
from core.resources.network import HostEndpoint, WorkloadEndpoint
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.bind import Bound, Own, named_ports, own_side, sides
from policy.convert import Converted, convert
from policy.decide import SPREAD, Decided, decide
from policy.doubt import Doubt
from policy.entities import entities
from policy.holders import claims
from policy.identity import Identity, Marked, NamedPort, identify
from policy.model import Cause, Decision, Outcome, Peer, Reason, Table, Verdict
from policy.problems import problems
from policy.resolve import Program, Resolver

DIRECTIONS = (Direction.INGRESS, Direction.EGRESS)
PORTED = frozenset({WorkloadEndpoint.KIND, HostEndpoint.KIND})
"""Kinds that have named ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the endpoints' packets are asked. `chains`: the names of each endpoint's ingress and egress chain.

    `addresses` are the endpoints' own. `problems` says per object what cannot be enforced as written: it was
    closed, or has no effect yet; `lost` counts kinds of address that found no class number and are denied.
    """

    identity: Identity
    tables: Mapping[str, Table] = field(default_factory=dict)
    chains: Mapping[Key, tuple[str, str]] = field(default_factory=dict)
    addresses: Mapping[Key, tuple[Address, ...]] = field(default_factory=dict)
    problems: Mapping[Key, str] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Kinds of address beyond the number of classes the packet mark can tell apart."""
        return self.identity.lost


def compile(snapshot: Snapshot, endpoints: Iterable[Key]) -> Compiled:
    """Tables for the workload endpoints named; one that the snapshot lacks gets none, and so stays closed."""
    claimed = claims(snapshot)
    things = entities(snapshot, claimed)
    converted = convert(snapshot, Doubt(things, ports=any(key.kind in PORTED for key in snapshot.problems)))
    known = snapshot.of(WorkloadEndpoint)
    local = {key: known[key] for key in sorted(set(endpoints)) if key in known}
    resolver = _resolver(snapshot, converted, list(local.values()))
    programs = {
        (key, direction): resolver.program(position, endpoint.spec.profiles, direction)
        for position, (key, endpoint) in enumerate(local.items())
        for direction in DIRECTIONS
    }
    asked = _Asked.of(programs.values())
    marked = Marked(things, asked.every_peer, asked.every_name)
    identity = identify(marked, asked.peers, asked.named)
    tables: dict[str, Table] = {}
    chains: dict[Key, tuple[str, str]] = {}
    for key, endpoint in local.items():
        names = []
        for direction in DIRECTIONS:
            program = programs[key, direction]
            own = own_side(endpoint, program, marked)
            name = stack_name(program, own)
            if name not in tables:
                tables[name] = _table(name, program, own, identity)
            names.append(name)
        chains[key] = (names[0], names[1])
    return Compiled(
        identity=identity,
        tables=MappingProxyType(dict(sorted(tables.items()))),
        chains=MappingProxyType(chains),
        addresses=MappingProxyType({key: endpoint.spec.addresses for key, endpoint in local.items()}),
        problems=problems(snapshot, converted.problems, claimed.problems),
    )


def _resolver(snapshot: Snapshot, converted: Converted, endpoints: Sequence[WorkloadEndpoint]) -> Resolver:
    unknown = {
        position: found
        for position, each in enumerate(endpoints)
        if snapshot.problems and (found := labels.unknown(snapshot, each)) is not None
    }
    return Resolver(converted, [labels.workload(snapshot, each) for each in endpoints], unknown)


def stack_name(program: Program, own: Own) -> str:
    """The name of a stack's chain: `in-` or `out-` and a hash of names and of the own side."""
    text = "\n".join((program.direction, *program.names, "", *own.texts()))
    prefix = "in" if program.direction is Direction.INGRESS else "out"
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(slots=True)
class _Asked:
    """What programs ask about addresses: of the other side (which makes classes), and of the own one."""

    peers: dict[str, Peer]
    own: dict[str, Peer]
    named: dict[str, NamedPort]
    own_named: dict[str, NamedPort]

    @classmethod
    def of(cls, programs: Iterable[Program]) -> _Asked:
        asked = cls({}, {}, {}, {})
        for program in {id(each): each for each in programs}.values():
            for step in program.steps:
                if step.match is None:
                    continue
                other, own = sides(step.match, program.direction)
                if other.peer is not None:
                    asked.peers[other.peer.text] = other.peer
                if own.peer is not None:
                    asked.own[own.peer.text] = own.peer
                asked.named |= {port.text: port for port in named_ports(other, step.match.protocol)}
                asked.own_named |= {port.text: port for port in named_ports(own, step.match.protocol)}
        return asked

    @property
    def every_peer(self) -> list[Peer]:
        """Of both sides."""
        return list({**self.peers, **self.own}.values())

    @property
    def every_name(self) -> list[NamedPort]:
        """Of both sides."""
        return list({**self.named, **self.own_named}.values())


def _table(name: str, program: Program, own: Own, identity: Identity) -> Table:
    """All the answers of one stack."""
    bound = {int(family): Bound(program, own, family) for family in Family}
    known: dict[object, Decided] = {}
    decided: dict[int, Decided] = {}
    for number, signature in identity.signatures.items():
        question = bound[signature.family].question(signature)
        answer = known.get(question)
        if answer is None:
            steps = bound[signature.family].steps(signature)
            answer = known[question] = decide(steps, signature.family)
        decided[number] = answer
    first = next(iter(known.values()))
    same = all(each.any == first.any and not each.proto and not each.ports for each in known.values())
    # An address that found no class must meet a look-up that fails, so then nothing is said without one.
    if same and not identity.lost:
        return Table(name=name, direction=program.direction, constant=first.any, otherwise=_unknown(program.direction))
    return _filled(name, program.direction, decided, decided.get(identity.world[4], first).any)


def _filled(name: str, direction: Direction, decided: Mapping[int, Decided], usual: Outcome) -> Table:
    closed = isinstance(usual, Decision) and usual.verdict is Verdict.DENY
    otherwise = usual if closed and isinstance(usual, Decision) else _unknown(direction)
    table = Table(name=name, direction=direction, otherwise=otherwise)
    for number, answer in decided.items():
        if answer.any != otherwise:
            table.any[number] = answer.any
        for protocol, outcome in answer.proto.items():
            table.proto[number, protocol] = outcome
        for (protocol, first, last), outcome in answer.ports.items():
            if last - first < SPREAD:
                for port in range(first, last + 1):
                    table.port[number, protocol, port] = outcome
            else:
                table.ranges[number, protocol, first, last] = outcome
    return table


def _unknown(direction: Direction) -> Decision:
    return Decision(Verdict.DENY, Reason(cause=Cause.UNKNOWN, direction=direction))
