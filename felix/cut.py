"""Which live connections end when policy or endpoints change. Pure.

    ruling before ─┐
                   ├─ look ──> addresses whose flows may be judged otherwise now ──> their flows, from conntrack
    ruling after ──┘                                                                            │
                                                            judge each as its first packet ─────┴──> Cut: why

What conntrack knows is accepted without asking policy again, so a new Deny reaches only new connections; to make it
reach one that lives, its entry is deleted, and its next packet is judged as a new flow's. That alone is not the end:
the other end's next packet is a new flow too, in the other direction, which policy may allow, and the answers to that
one would be accepted as such. So the reverse tuple of a connection that is cut is *fenced*: TCP that does not begin
with SYN, and UDP, may not begin a flow with it (`felix.fence`). ICMP answers never begin a flow.

A flow is judged by what policy sees in forward: the source before, the destination after translation; before NAT by
what the client asked for. Which interface of the host judged it, conntrack does not keep: it is the one by which the
host reaches that end. Where several may be, a flow ends only if it would have by each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from typing import Final, TypeAlias

from core.addr import Address, Network
from core.names import Key
from core.resources.policy import Direction
from felix.guard import Guard, Passage, said
from felix.peering_address import Call
from linux.conntrack import Flow, Status
from policy.compile import Compiled
from policy.evaluate import Packet, lookup
from policy.identity import Identity
from policy.model import Decision, Verdict

Owner: TypeAlias = tuple[Key, str, str]
"""Who has an address: the endpoint, its interface and its container; another of these is another pod."""

Ways: TypeAlias = Callable[[Address], tuple[str, ...]]
"""By which interfaces this host reaches an address: "" for its own and for those it listens to with others; none where
there is no way."""

TCP: Final = 6
UDP: Final = 17
PORTED: Final = frozenset({TCP, UDP, 33, 132, 136})
"""Protocols whose conntrack entries have ports (DCCP, SCTP and UDP-Lite besides)."""

_OPEN: Final = frozenset({"Accept", "Return"})
"""What a workload may be told when it talks to its host; anything else is Drop (`felix.filter`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What is in force on this host: the tables, who has which local address, the host's own, and its blocks.

    `interfaces` are those of workloads that the host has, also of those whose endpoint is gone. `guard` judges the
    host's own. `enabled` false: connections that policy would deny by now live on.
    """

    compiled: Compiled
    owners: Mapping[Address, Owner]
    host: frozenset[Address] = frozenset()
    blocks: tuple[Network, ...] = ()
    interfaces: frozenset[str] = frozenset()
    guard: Guard = field(default_factory=Guard)
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Look:
    """Whose flows to look at: those of `judged` addresses are judged anew, those of `gone` ones end.

    With `everything` all others are judged anew, too: a host's interface carries those of anyone.
    """

    judged: frozenset[Address] = frozenset()
    gone: frozenset[Address] = frozenset()
    everything: bool = False

    def __or__(self, other: Look) -> Look:
        return Look(self.judged | other.judged, self.gone | other.gone, self.everything or other.everything)

    def __bool__(self) -> bool:
        return bool(self.judged or self.gone or self.everything)

    @property
    def addresses(self) -> AbstractSet[Address]:
        """All of them."""
        return self.judged | self.gone


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection to end, and why. `decision` is None where an end is no longer who it was, and where it is not policy
    that denies. `fenced` keeps its reverse from beginning anew.
    """

    flow: Flow
    why: str
    decision: Decision | None = None
    fenced: bool = True

    @property
    def ends(self) -> tuple[Address, Address]:
        """Between whom it is, as policy sees it."""
        return self.flow.original.source, self.flow.reply.source


def look(before: Ruling | None, after: Ruling) -> Look:
    """Whose flows may be denied now and were not; empty when nothing that matters changed.

    `before` None: nobody knows what was in force, so every local flow is looked at, and every flow of an address in
    one of the host's blocks that nobody has.
    """
    guarded = after.enabled and bool(after.guard.hosts)
    if before is None:
        nobodys = frozenset(each for block in after.blocks for each in block if each not in after.owners)
        return Look(frozenset(after.owners) if after.enabled else frozenset(), nobodys - after.host, guarded)
    gone = frozenset(each for each, owner in before.owners.items() if after.owners.get(each) != owner)
    if not after.enabled:
        return Look(gone=gone)
    if not before.enabled or _reaches_all(before.compiled.identity, after.compiled.identity):
        return Look(frozenset(after.owners), gone, guarded)
    judged = {each for each, owner in after.owners.items() if _stacks(before, owner[0]) != _stacks(after, owner[0])}
    if before.guard.to_host != after.guard.to_host:
        judged.update(after.owners)
    judged.update(call.source for call in before.guard.calls - after.guard.calls)
    moved = _moved(before.compiled.identity, after.compiled.identity)
    return Look(frozenset(judged | moved), gone, guarded and _guarding(before) != _guarding(after))


def _stacks(ruling: Ruling, endpoint: Key) -> tuple[object, ...]:
    """The tables that judge an endpoint. Equal when they are the same objects, without looking into them."""
    names = ruling.compiled.chains.get(endpoint, ())
    return tuple(ruling.compiled.tables[name] for name in names)


def _guarding(ruling: Ruling) -> tuple[object, ...]:
    """All that judges the host's own interfaces; not what an endpoint still waits for."""
    guard, compiled = ruling.guard, ruling.compiled
    hosts = tuple(replace(each, pending="") for each in guard.hosts)
    return replace(guard, hosts=hosts), {slot: compiled.tables[name] for slot, name in compiled.hosts.items()}


def _reaches_all(before: Identity, after: Identity) -> bool:
    """Whether classes changed otherwise than address by address."""
    return before is not after and (before.world != after.world or before.ranges != after.ranges)


def _moved(before: Identity, after: Identity) -> set[Address]:
    """The addresses of another class than before, as long as prefixes have the same."""
    found: set[Address] = set()
    for bucket in () if before is after else before.exact.keys() | after.exact.keys():
        old, new = before.exact.get(bucket, {}), after.exact.get(bucket, {})
        if old is not new:
            make = IPv4Address if bucket[0] == 4 else IPv6Address
            found.update(make(each) for each in old.keys() | new.keys() if old.get(each) != new.get(each))
    return found


def nowhere(_: Address) -> tuple[str, ...]:
    """The ways of a host of whose interfaces nothing is known: its endpoints judge nothing."""
    return ()


def cuts(asked: Look, ruling: Ruling, flows: Iterable[Flow], ways: Ways = nowhere) -> Iterator[Cut]:
    """Those of `flows` that end, each with the reason."""
    for flow in flows:
        found = _cut(asked, ruling, flow, ways)
        if found is not None:
            yield found


def _cut(asked: Look, ruling: Ruling, flow: Flow, ways: Ways) -> Cut | None:
    source, destination = flow.original.source, flow.reply.source
    for end in (source, destination):
        if end in asked.gone:
            now = ruling.owners.get(end)
            why = f"now that of {now[0]}" if now else "no longer the address of an endpoint"
            return Cut(flow, f"{end} is {why}", fenced=False)
    # What a helper announced is part of a connection that was allowed, and is accepted as such.
    if not ruling.enabled or flow.status & Status.EXPECTED:
        return None
    denied = _denied(ruling, flow, source, destination, Direction.EGRESS)
    if denied is None and source not in ruling.host:  # the host to its own workloads is not policed
        denied = _denied(ruling, flow, destination, source, Direction.INGRESS)
    return denied or _kept_out(ruling, flow, ways)


def _kept_out(ruling: Ruling, flow: Flow, ways: Ways) -> Cut | None:
    """What the host makes of it, by whichever of its interfaces it may have come and gone."""
    own = flow.original.source in ruling.owners and flow.reply.source in ruling.host
    if own and _calls(ruling, flow):
        return None
    if own and ruling.guard.to_host not in _OPEN:
        return Cut(flow, f"defaultEndpointToHostAction is {ruling.guard.to_host}")
    if not ruling.guard.hosts:
        return None
    came, to = _ways(ruling, flow.original.source, ways), flow.reply.source
    heard = to.is_multicast and came != ("",)  # the host listens, whatever its route for sending there is
    leaves = ("",) if heard else _ways(ruling, to, ways)
    found = [_denying(ruling, flow, *each) for each in product(came, leaves)]
    denied = [Cut(flow, f"{where}: {decision.reason}", decision) for where, decision in filter(None, found)]
    return denied[0] if denied and len(denied) == len(found) else None


def _calls(ruling: Ruling, flow: Flow) -> bool:
    """Whether a workload may call its node's speaker with it."""
    source, to = flow.original.source, flow.reply
    call = Call(ruling.owners[source][1], source, to.source, to.sport)
    return flow.original.protocol == TCP and call in ruling.guard.calls


def _ways(ruling: Ruling, end: Address, ways: Ways) -> tuple[str, ...]:
    if end in ruling.host:
        return ("",)
    owner = ruling.owners.get(end)
    return (owner[1],) if owner else ways(end)


def _denying(ruling: Ruling, flow: Flow, came_by: str, leaves_by: str) -> tuple[str, Decision] | None:
    there, back, ported = flow.original, flow.reply, flow.original.protocol in PORTED
    passage = Passage(
        source=there.source,
        destination=back.source,
        protocol=there.protocol,
        sport=there.sport if ported else None,
        dport=back.sport if ported else None,
        icmp=there.icmp[1:] if there.icmp else None,
        asked=(there.destination, there.dport if ported else None),
        came_by=came_by,
        leaves_by=leaves_by,
    )
    for each in said(ruling.guard, ruling.compiled, passage):
        if each.judgement is not None and each.verdict is Verdict.DENY:
            return f"{each}", each.judgement.enforced
    return None


def _denied(ruling: Ruling, flow: Flow, local: Address, peer: Address, direction: Direction) -> Cut | None:
    owner = ruling.owners.get(local)
    if owner is None:
        return None
    endpoint = owner[0]
    if endpoint not in ruling.compiled.chains:
        return Cut(flow, f"{endpoint} is cut off", fenced=False)
    ported = flow.original.protocol in PORTED
    packet = Packet(
        peer=peer,
        local=local,
        protocol=flow.original.protocol,
        sport=flow.original.sport if ported else None,
        dport=flow.reply.sport if ported else None,
        icmp=flow.original.icmp[1:] if flow.original.icmp else None,
    )
    decision = lookup(ruling.compiled, endpoint, direction, packet)
    if decision.verdict is not Verdict.DENY:
        return None
    return Cut(flow, f"{direction.lower()} of {endpoint}: {decision.reason}", decision)
