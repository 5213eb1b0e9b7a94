"""What policy says, as frozen values: one kind of policy and one kind of rule, wherever they came from.

Policy ── rules ──> Rule ── match ──> Match ── source, destination ──> Side ── peer ──> Peer
Decision = verdict + reason        Residual = rules a table cannot settle, then a decision
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from core.addr import Network
from core.names import Key
from core.resources.policy import Action, Direction
from core.selector import Selector
from core.values import protocol_name

Range: TypeAlias = tuple[int, int]
"""First and last, both included: of ports, or of addresses as integers."""

ALL_PORTS: Range = (0, 65535)

MOST_NAMED: Final = 8
"""Policies that a reason names in words; as data it has them all."""


class Plane(StrEnum):
    """Where on a packet's way it is judged (calico.md 1.7, host endpoint variants).

    WORKLOAD    what a pod sends and receives               tiers, profiles, deny
    HOST        what a host's interface carries for itself  tiers, profiles, deny
    FORWARD     what it carries for others                  tiers of applyOnForward policies, then allowed
    PRE_DNAT    what comes in, before it is translated      preDNAT policies, then go on
    UNTRACKED   either way, before it is tracked            doNotTrack policies, then go on
    """

    WORKLOAD = "workload"
    HOST = "host"
    FORWARD = "forward"
    PRE_DNAT = "preDNAT"
    UNTRACKED = "untracked"


class Verdict(StrEnum):
    """What finally happens to a packet in one direction at one endpoint; the last two planes may leave it undecided."""

    ALLOW = "Allow"
    DENY = "Deny"
    CONTINUE = "Continue"


class Cause(StrEnum):
    """The kinds of thing that can decide."""

    RULE = "rule"
    END_OF_TIER = "end of tier"
    PROFILE_RULE = "profile rule"
    NO_PROFILE_RULE = "no profile rule"
    MISSING_PROFILE = "missing profile"
    UNREADABLE = "unreadable header"
    UNREADABLE_POLICY = "unreadable policy"
    UNKNOWN = "unknown address"
    NO_FORWARD_RULE = "no rule for forwarded traffic"
    UNDECIDED = "no rule matched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why: the kind of cause and, as far as it has them, tier, policy (or profile) and the rule's index from 0.

    `match` is what that rule asks for. At the end of a tier, `policies` are those of the tier that apply, in the order
    asked: that they do, and that no rule of theirs matched, is why. `fault` is what is wrong with an unreadable policy.
    None of the three is needed to tell two reasons apart.
    """

    cause: Cause
    direction: Direction
    tier: str = ""
    policy: Key | None = None
    profile: str = ""
    rule: int | None = None
    match: Match | None = field(default=None, compare=False)
    policies: tuple[Key, ...] = field(default=(), compare=False)
    fault: str = field(default="", compare=False)

    def __str__(self) -> str:
        side = self.direction.lower()
        rule = f"{side} rule {self.rule} ({self.match})"
        words = {
            Cause.RULE: f"{self.policy} in tier {self.tier}, {rule}",
            Cause.END_OF_TIER: f"end of tier {self.tier}: no {side} rule matched in {_some(self.policies)}",
            Cause.PROFILE_RULE: f"profile {self.profile}, {rule}",
            Cause.NO_PROFILE_RULE: f"no {side} rule of any profile of the endpoint matched",
            Cause.MISSING_PROFILE: f"profile {self.profile} does not exist or cannot be read",
            Cause.UNREADABLE: "the packet is too short to tell its ports or its ICMP type",
            Cause.UNREADABLE_POLICY: f"{self.policy} cannot be read: {self.fault}; all in its reach is denied",
            Cause.UNKNOWN: "the other address is in no class that a rule admits",
            Cause.NO_FORWARD_RULE: f"no {side} rule for forwarded traffic (applyOnForward) denies it",
            Cause.UNDECIDED: f"no {side} rule matched: other planes decide",
        }
        return words[self.cause]


def _some(keys: Sequence[Key]) -> str:
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return ", ".join(map(str, keys[:MOST_NAMED])) + more


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and why."""

    verdict: Verdict
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Which addresses one side of a rule means; all that is set must hold.

    `nets` None means any, empty means none. `text` is the canonical spelling and the identity: two peers with the
    same text match the same addresses. Where labels cannot be told, only what surely matches is meant; with
    `possibly`, all that possibly does (`policy.doubt`).
    """

    selector: Selector | None = None
    not_selector: Selector | None = None
    nets: tuple[Network, ...] | None = None
    not_nets: tuple[Network, ...] = ()
    text: str = ""
    possibly: bool = False

    def __str__(self) -> str:
        parts = ["what is possibly"] if self.possibly else []
        parts += [str(self.selector)] if self.selector is not None else []
        if self.not_selector is not None:
            parts.append(f"not ({self.not_selector})")
        if self.nets is not None:
            parts.append(f"within {', '.join(map(str, self.nets)) or 'nothing'}")
        if self.not_nets:
            parts.append(f"outside {', '.join(map(str, self.not_nets))}")
        return ", ".join(parts).replace("what is possibly,", "what is possibly")


@dataclass(frozen=True, slots=True)
class Ports:
    """Port numbers as ranges, and names that each endpoint resolves for itself."""

    ranges: tuple[Range, ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        numbers = [str(first) if first == last else f"{first}-{last}" for first, last in self.ranges]
        return ", ".join((*numbers, *self.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One end of a packet, as a rule sees it. None is no condition."""

    peer: Peer | None = None
    ports: Ports | None = None
    not_ports: Ports | None = None

    def __str__(self) -> str:
        parts = [str(self.peer)] if self.peer is not None else []
        if self.ports is not None:
            parts.append(f"port {self.ports}")
        if self.not_ports is not None:
            parts.append(f"any port but {self.not_ports}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class ICMPMatch:
    """An ICMP type and, unless None, a code."""

    type: int
    code: int | None = None

    def __str__(self) -> str:
        return f"type {self.type}" if self.code is None else f"type {self.type} code {self.code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a rule matches. Ports and ICMP come only with the protocol they need: conversion sees to that."""

    family: int | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: ICMPMatch | None = None
    not_icmp: ICMPMatch | None = None
    source: Side = Side()
    destination: Side = Side()

    def __str__(self) -> str:
        parts = {
            f"IPv{self.family}": self.family is not None,
            protocol_name(self.protocol or 0): self.protocol is not None,
            f"anything but {protocol_name(self.not_protocol or 0)}": self.not_protocol is not None,
            f"{self.icmp}": self.icmp is not None,
            f"any type but {self.not_icmp}": self.not_icmp is not None,
            f"from {self.source}": self.source != Side(),
            f"to {self.destination}": self.destination != Side(),
        }
        return " ".join(text for text, said in parts.items() if said) or "all traffic"


@dataclass(frozen=True, slots=True)
class Rule:
    """`index` is the rule's place in the manifest, from 0."""

    index: int
    action: Action
    match: Match


@dataclass(frozen=True, slots=True, kw_only=True)
class Directed:
    """Rules of both directions, each in order."""

    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """The rules of one direction."""
        return self.ingress if direction is Direction.INGRESS else self.egress


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Directed):
    """A policy of any kind. `selector` says which endpoints it applies to, its namespace included.

    `planes` are those in which it is asked. A `staged` one is never enforced: what it would do is only told. An
    `outgoing` one is enforced, and would not be if the staged were. `fault` says why it could not be read: then it
    denies. `perhaps` marks one of which nobody can tell whether it applies, closed accordingly.
    """

    key: Key
    kind: str
    tier: str
    order: float
    selector: Selector
    types: frozenset[Direction]
    planes: frozenset[Plane] = frozenset({Plane.WORKLOAD})
    staged: bool = False
    outgoing: bool = False
    fault: str = ""
    perhaps: bool = False

    @property
    def sort_key(self) -> tuple[float, str]:
        """Where it stands in its tier: by order, then by name, namespace and kind as one string."""
        return self.order, f"{self.key.name}/{self.key.namespace}/{self.kind}"


@dataclass(frozen=True, slots=True)
class TierOrder:
    """A tier: when it is asked, and what its end does (Deny or Pass). A missing one comes after all others.

    An unreadable one comes before: its policies may deny, but what they allow the tiers after it decide, as nobody can
    tell which of those would have been asked first.
    """

    name: str
    order: float
    default: Action
    missing: bool = False
    unreadable: bool = False

    @property
    def sort_key(self) -> tuple[bool, bool, float, str]:
        """Where it stands among the tiers."""
        return not self.unreadable, self.missing, self.order, self.name


@dataclass(frozen=True, slots=True)
class ProfileRules(Directed):
    """A profile's rules; `exists` false is a profile that is named and not there, which denies."""

    name: str
    exists: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a program: a rule, the end of a tier or the end of the profiles (`match` None matches all).

    `tier` numbers the tiers of the program; Pass goes on at the first step of the next one. A `staged` step counts only
    where it is asked what would be if the staged policies were in force, an `outgoing` one only where it is not.
    """

    tier: int
    action: Action
    match: Match | None
    reason: Reason
    staged: bool = False
    outgoing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """What is still open once class, protocol and destination port are known; all that is set must hold.

    `local` are the prefixes of the endpoint's own side that the rule means; `sports` source ports. ICMP tests carry
    the family whose ICMP they read.
    """

    local: tuple[Network, ...] | None = None
    sports: tuple[Range, ...] | None = None
    icmp: ICMPMatch | None = None
    not_icmp: ICMPMatch | None = None
    family: int = 4

    @property
    def reads_payload(self) -> bool:
        """Whether the transport header has to be there to tell."""
        return self.sports is not None or self.icmp is not None or self.not_icmp is not None


@dataclass(frozen=True, slots=True)
class Logged:
    """What a Log rule does: note the packet and go on."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Line:
    """If `tests` hold (None: always), then `then`."""

    tests: Tests | None
    then: Logged | Settled


@dataclass(frozen=True, slots=True)
class Residual:
    """The rules still undecided, in order, and what happens when none of them matches."""

    lines: tuple[Line, ...]
    final: Decision


Settled: TypeAlias = Decision | Residual


@dataclass(frozen=True, slots=True)
class Watched:
    """What is done, and what would be if the staged policies were in force: that is counted, never done."""

    enforced: Settled
    pending: Settled


Outcome: TypeAlias = Settled | Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One stack's decisions in one direction, asked in the order port, proto, any, otherwise.

    `constant` is set when nothing about the packet matters. Keys: class; class and protocol; class, protocol and
    range of destination ports. `otherwise` always denies.
    """

    name: str
    direction: Direction
    otherwise: Decision
    plane: Plane = Plane.WORKLOAD
    constant: Outcome | None = None
    any: dict[int, Outcome] = field(default_factory=dict)
    proto: dict[tuple[int, int], Outcome] = field(default_factory=dict)
    port: dict[tuple[int, int, int], Outcome] = field(default_factory=dict)
    ranges: dict[tuple[int, int, int, int], Outcome] = field(default_factory=dict)

    @property
    def outcomes(self) -> Iterator[Outcome]:
        """Every outcome in it, one as often as it stands there."""
        yield self.otherwise
        if self.constant is not None:
            yield self.constant
        for answers in (self.any, self.proto, self.port, self.ranges):
            yield from answers.values()

    @property
    def port_protocols(self) -> tuple[int, ...]:
        """The protocols whose ports matter here."""
        return tuple(sorted({key[1] for key in self.port} | {key[1] for key in self.ranges}))
