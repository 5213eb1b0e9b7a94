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

A *stack* is a program bound to one own side. Its name is a hash of what its rules say and of what its own side matches:
editing a rule makes another stack beside the one there is, and endpoints change over to it. So the answer to one
question never changes in a stack: all that comes and goes are classes. A packet asks several maps of a stack, one after
the other; were they edited in place, it could miss the old answer in one and find the new in the next, and be allowed
what neither the old rules nor the new ones allow. A class whose answers all equal `otherwise` has no element.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from core.addr import Address
from core.memo import Memo
from core.names import Key
from core.resources.network import HostEndpoint, WorkloadEndpoint
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.bind import Own, own_side
from policy.classes import Classes, Moved
from policy.convert import Conversion
from policy.demand import Asked, asked_by
from policy.doubt import Doubt
from policy.entities import SOURCES, Placement
from policy.identity import Identity
from policy.model import Plane, Table
from policy.problems import problems
from policy.resolve import Local, Program, Resolver
from policy.stacks import Roll, Stack

PORTED: Final = frozenset({WorkloadEndpoint.KIND, HostEndpoint.KIND})
"""Kinds that have named ports."""


_IN: Final = (Direction.INGRESS, Plane.WORKLOAD)
_OUT: Final = (Direction.EGRESS, Plane.WORKLOAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the endpoints' packets are asked. `chains`: the names of each workload's ingress and egress chain.

    `hosts` names the chains of host endpoints, by plane and direction. `addresses` are the workloads' own. `problems`
    says per object what cannot be enforced as written: it was closed, or has no effect yet; `lost` counts kinds of
    address that found no class number and are denied. What a compiler finds unchanged is the same object: a table, all
    tables, all chains, a bucket of the identity. While it is not `settled` some class has a borrowed number
    (`policy.numbering`), and compiling the same again gives it its own.
    """

    identity: Identity
    tables: Mapping[str, Table] = field(default_factory=dict)
    chains: Mapping[Key, tuple[str, str]] = field(default_factory=dict)
    hosts: Mapping[tuple[Key, Plane, Direction], str] = field(default_factory=dict)
    addresses: Mapping[Key, tuple[Address, ...]] = field(default_factory=dict)
    problems: Mapping[Key, str] = field(default_factory=dict)
    settled: bool = True

    @property
    def lost(self) -> int:
        """Kinds of address beyond the number of classes the packet mark can tell apart."""
        return self.identity.lost


def compile(snapshot: Snapshot, endpoints: Iterable[Key], hosts: Iterable[Key] = ()) -> Compiled:
    """Tables for the endpoints named, of workloads and of hosts; who is not there gets none."""
    return Compiler().compile(snapshot, endpoints, hosts)


class Compiler:
    """Compiles snapshot after snapshot, each at the cost of what changed.

    What comes out, once it is settled, depends on the last snapshot alone.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._placement = Placement()
        self._conversion = Conversion()
        self._doubts: object = None
        self._doubt = Doubt((), ports=False)
        self._resolver = Resolver(in_doubt=False)
        self._classes = Classes(self._placement, in_doubt=False)
        self._asked: dict[Program, Asked] = {}
        self._stacks: dict[str, Stack] = {}
        self._names: dict[Program, str] = {}
        self._contents: dict[Program, str] = {}
        self._tables: Mapping[str, Table] = {}
        self._chains: Mapping[Key, tuple[str, str]] = {}
        self._memo = Memo()

    def compile(self, snapshot: Snapshot, endpoints: Iterable[Key], hosts: Iterable[Key] = ()) -> Compiled:
        """As the function of that name; what is unchanged since the last call is shared."""
        try:
            return self._compile(snapshot, endpoints, hosts)
        except BaseException:
            self._begin()  # half of this state and half of that would be neither
            raise

    def _compile(self, snapshot: Snapshot, endpoints: Iterable[Key], hosts: Iterable[Key]) -> Compiled:
        self._placement.follow(snapshot)
        self._weigh(snapshot)
        converted = self._conversion.convert(snapshot, self._doubt)
        pods, interfaces = snapshot.of(WorkloadEndpoint), snapshot.of(HostEndpoint)
        wanted: dict[Key, Local] = {key: pods[key] for key in endpoints if key in pods}
        wanted.update((key, interfaces[key]) for key in hosts if key in interfaces)
        self._resolver.follow(snapshot, converted, wanted)
        programs = {key: self._resolver.programs(key) for key in wanted}
        self._ask({program for each in programs.values() for program in each.values()})
        moved = self._classes.refresh()
        named = {
            key: {place: self._stack(key, thing, program) for place, program in programs[key].items()}
            for key, thing in wanted.items()
        }
        self._answer({name for names in named.values() for name in names.values()}, moved)
        chains = {
            key: (names[_IN], names[_OUT]) for key, names in named.items() if isinstance(wanted[key], WorkloadEndpoint)
        }
        if chains != self._chains:
            self._chains = MappingProxyType(chains)
        compiled = Compiled(
            identity=self._classes.identity,
            tables=self._tables,
            chains=self._chains,
            hosts=MappingProxyType(
                {
                    (key, plane, direction): name
                    for key, names in named.items()
                    if not isinstance(wanted[key], WorkloadEndpoint)
                    for (direction, plane), name in names.items()
                }
            ),
            addresses=MappingProxyType(
                {
                    key: self._memo(_addresses, thing)
                    for key, thing in wanted.items()
                    if isinstance(thing, WorkloadEndpoint)
                }
            ),
            problems=problems(
                snapshot, converted.problems, self._placement.contested, self._placement.asking_more.values()
            ),
            settled=self._classes.numbers.settled,
        )
        self._memo.forget()
        return compiled

    def _weigh(self, snapshot: Snapshot) -> None:
        """Find what is in doubt; where doubt begins or ends, selectors have other readings, and all are asked anew."""
        doubtful = self._placement.index.doubtful
        ports = any(key.kind in PORTED for key in snapshot.problems)
        told = frozenset((frozenset(g.labels.items()), g.unknown, g.ports, g.sure) for g in doubtful), ports
        if told != self._doubts:
            before, self._doubt, self._doubts = self._doubt, Doubt(doubtful, ports=ports), told
            if bool(before) is not bool(self._doubt):
                self._classes.close()
                self._classes = Classes(self._placement, in_doubt=bool(self._doubt))
                self._asked, self._stacks, self._names = {}, {}, {}
        unread = any(key.kind in SOURCES for key in snapshot.problems)
        if unread is not self._resolver.in_doubt:
            self._resolver = Resolver(in_doubt=unread)

    def _ask(self, live: Collection[Program]) -> None:
        """Have classes tell apart what the `live` programs ask about, and no more."""
        for program in live:
            if program not in self._asked:
                self._asked[program] = asked_by(program)
                self._classes.take(self._asked[program])
        for program in [program for program in self._asked if program not in live]:
            self._classes.give(self._asked.pop(program))
            self._names.pop(program, None)
            self._contents.pop(program, None)

    def _stack(self, key: Key, thing: Local, program: Program) -> str:
        """The name of the stack that judges an endpoint; it is there afterwards."""
        asked = self._asked[program]
        if not (asked.own or asked.own_named) and program in self._names:
            return self._names[program]
        own = own_side(thing, program, asked, self._classes.marking, self._resolver.group(key))
        if program not in self._contents:
            self._contents[program] = program.content()
        name = stack_name(program, self._contents[program], own)
        if name not in self._stacks:
            self._stacks[name] = Stack(name, program, own)
        self._names[program] = name
        return name

    def _answer(self, names: Collection[str], moved: Moved) -> None:
        """Bring the tables of the stacks `names` up to date, and forget the others."""
        self._stacks = {name: stack for name, stack in self._stacks.items() if name in names}
        classes = self._classes
        roll = Roll(classes.numbers.of, classes.world, classes.identity.lost > 0)
        tables = {name: self._stacks[name].table(roll, moved) for name in sorted(names)}
        if not _same(tables, self._tables):
            self._tables = MappingProxyType(tables)


def _same(ours: Mapping[str, Table], theirs: Mapping[str, Table]) -> bool:
    return ours.keys() == theirs.keys() and all(theirs[name] is table for name, table in ours.items())


def _addresses(endpoint: WorkloadEndpoint) -> tuple[Address, ...]:
    return endpoint.spec.addresses


def stack_name(program: Program, content: str, own: Own) -> str:
    """The name of a stack's chain: `in-` or `out-` and a hash of plane, content of the rules, and own side."""
    text = "\n".join((program.plane, program.direction, content, *own.texts()))
    prefix = "in" if program.direction is Direction.INGRESS else "out"
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
