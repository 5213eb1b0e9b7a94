"""What would change between two states: which pairs of ends may talk that might not, or the other way about.

    before ── compile ──> rows ─┐
                                ├── kinds of ends, pair by pair ──> flips ──> grouped for people
    after ─── compile ──> rows ─┘
    connections ── looked up in both ──────────────────────────────> cuts

Ends that policy does not tell apart, before and after, are one kind (`policy.whatif.ends`), so the work grows with the
number of kinds of ends and not with the number of pods. A pair is looked at only where a row that it asks has changed
its verdict; what is asked of it then are regions of traffic (`policy.whatif.rows`), so nothing is sampled. An end that
is only there before, or only after, has no verdict to flip: it is named, no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeAlias

from core.addr import Address
from core.names import Key
from core.resources import WorkloadEndpoint
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import Compiler
from policy.evaluate import Packet, lookup
from policy.model import Cause, Decision, Reason, Verdict
from policy.whatif.ends import Kind, Member, View, kinds
from policy.whatif.plan_hosts import concerned
from policy.whatif.rows import Book, Decisions, Row, regions
from policy.whatif.traffic import Traffic, joined

MOST_PAIRS: Final = 4_000_000
"""Pairs of kinds that are looked at; what is beyond is counted and said. A plan of that size takes about a minute."""

LONG: Final = 1_000
"""From so many endpoints on, it is said what is being done."""

NAMESPACE_PROFILE: Final = "kns."

Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A live connection as policy saw its first packet: after its destination was translated, before its source was."""

    source: Address
    destination: Address
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None

    def __str__(self) -> str:
        traffic = Traffic(protocol=self.protocol, icmp=self.icmp)
        if self.dport is None:
            return f"{self.source} -> {self.destination} {traffic}"
        return f"{_end(self.source, self.sport or 0)} -> {_end(self.destination, self.dport)} {traffic}"


def _end(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """From each of `sources` to each of `destinations`, `traffic` is decided otherwise.

    `pairs` counts them. Both decisions are of the end that denies, before or after.
    """

    sources: tuple[Member, ...]
    destinations: tuple[Member, ...]
    families: tuple[int, ...]
    pairs: int
    traffic: tuple[Traffic, ...]
    before: Decision
    after: Decision


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that was allowed and would be denied, and by what."""

    connection: Connection
    before: Decision
    after: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that would change. `left_out` pairs of kinds were too many to look at.

    `problems` are those of objects that had none, or another, before. `hosts` are the host endpoints whose policy is
    concerned: what they decide is not compared, so that nobody can say that nothing flips.
    """

    flips: tuple[Flip, ...] = ()
    cuts: tuple[Cut, ...] = ()
    added: tuple[Key, ...] = ()
    removed: tuple[Key, ...] = ()
    problems: Mapping[Key, str] = field(default_factory=lambda: MappingProxyType({}))
    left_out: int = 0
    hosts: tuple[Key, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether no verdict flips, for sure."""
        return not (self.flips or self.cuts or self.left_out or self.hosts)


def cause(reason: Reason) -> str:
    """A reason in few words: `default/shop/lockdown ingress rule 0`."""
    side = reason.direction.lower()
    if reason.cause is Cause.RULE and reason.policy is not None:
        return f"{_path(reason.tier, reason.policy)} {side} rule {reason.rule}"
    if reason.cause is Cause.END_OF_TIER:
        paths = ", ".join(_path(reason.tier, key) for key in reason.policies[:2])
        more = f" and {len(reason.policies) - 2} more" if len(reason.policies) > 2 else ""
        return f"the end of tier {reason.tier}, {side} (of {paths}{more})"
    if reason.cause is Cause.PROFILE_RULE:
        return f"profile {reason.profile} {side} rule {reason.rule}"
    return str(reason)


def _path(tier: str, policy: Key) -> str:
    return "/".join(part for part in (tier, policy.namespace, policy.name) if part)


def plan(before: Snapshot, after: Snapshot, flows: Iterable[Connection] = (), tell: Tell = lambda _: None) -> Plan:
    """What `after` would change. `flows` are live connections, read if any could be cut; `tell` hears of long work."""
    compiler = Compiler()  # the second state costs what differs from the first
    views = []
    for snapshot, when in ((before, "as it is"), (after, "as it would be")):
        endpoints = snapshot.of(WorkloadEndpoint)
        if len(endpoints) >= LONG:
            tell(f"compiling the policy of {len(endpoints)} endpoints, {when}")
        compiled = compiler.compile(snapshot, endpoints)
        views.append(View(snapshot, compiled, Book(compiled.tables)))
    was, becomes = views
    comparison = _Comparison(was, becomes, tell)
    flips = comparison.flips()
    closing = comparison.left_out or any(flip.after.verdict is Verdict.DENY for flip in flips)
    old, new = before.of(WorkloadEndpoint).keys(), after.of(WorkloadEndpoint).keys()
    then, now = was.compiled.problems, becomes.compiled.problems
    return Plan(
        flips=tuple(flips),
        cuts=tuple(_cuts(was, becomes, flows)) if closing else (),
        added=tuple(sorted(new - old)),
        removed=tuple(sorted(old - new)),
        hosts=concerned(before, after),
        problems=MappingProxyType({key: why for key, why in now.items() if then.get(key) != why}),
        left_out=comparison.left_out,
    )


@dataclass(frozen=True, slots=True)
class _Change:
    before: Decision
    after: Decision
    traffic: tuple[Traffic, ...]


_Rows: TypeAlias = tuple[Row | None, Row | None]
_Related: TypeAlias = dict[tuple[int, _Change, bool, bool], dict[int, list[int]]]
"""By family, change, and whether source and destination lie outside: which kinds, by place, to which others."""


class _Comparison:
    """Both states at once. Rows are compared once, however many ends have them."""

    def __init__(self, before: View, after: View, tell: Tell) -> None:
        self._books = before.book, after.book
        self._kinds = kinds(before, after)
        self._tell = tell
        self._flipped: dict[tuple[int, int], bool] = {}
        self._joint: dict[tuple[int, int, int, int], tuple[_Change, ...]] = {}
        self.left_out = 0

    def flips(self) -> list[Flip]:
        """Everything that flips, what is closed before what is opened, the most pairs first."""
        related: _Related = defaultdict(lambda: defaultdict(list))
        for source, destination in self._candidates():
            one, other = self._kinds[source], self._kinds[destination]
            for change in self._changes(one, other):
                related[one.family, change, one.outside, other.outside][source].append(destination)
        return sorted(self._grouped(related), key=_most_first)

    def _grouped(self, related: _Related) -> Iterator[Flip]:
        """Sources with the same destinations together, both families together, all that is outside together."""
        found: dict[object, tuple[_Change, set[int], set[Member], set[Member]]] = {}
        for (family, change, from_outside, to_outside), relation in related.items():
            together: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for source, destinations in relation.items():
                together[tuple(destinations)].append(source)
            for reached, sources in together.items():
                mine, theirs = self._members(sources), self._members(reached)
                key = (change, None if from_outside else mine, None if to_outside else theirs)
                entry = found.setdefault(key, (change, set(), set(), set()))
                entry[1].add(family)
                entry[2].update(mine)
                entry[3].update(theirs)
        for change, families, ours, others in found.values():
            yield Flip(
                sources=_sorted(ours),
                destinations=_sorted(others),
                families=tuple(sorted(families)),
                pairs=len(ours) * len(others) - len(ours & others),
                traffic=change.traffic,
                before=change.before,
                after=change.after,
            )

    def _members(self, places: Iterable[int]) -> frozenset[Member]:
        return frozenset(member for place in places for member in self._kinds[place].members)

    def _candidates(self) -> Iterator[tuple[int, int]]:
        """Pairs of kinds, by place, one of whose rows has another verdict somewhere."""
        outgoing = self._turned(lambda kind: kind.egress)
        incoming = self._turned(lambda kind: kind.ingress)
        of_class: dict[tuple[int, tuple[int, int]], list[int]] = defaultdict(list)
        reached: dict[tuple[int, tuple[int, int]], list[int]] = defaultdict(list)
        for place, kind in enumerate(self._kinds):
            of_class[kind.family, kind.classes].append(place)
            for classes in incoming.get(_asked(kind, kind.ingress), ()):
                reached[kind.family, classes].append(place)
        looked = 0
        for place, kind in enumerate(self._kinds):
            hit = {
                other
                for classes in outgoing.get(_asked(kind, kind.egress), ())
                for other in of_class[kind.family, classes]
            }
            hit.update(reached.get((kind.family, kind.classes), ()))
            if len(kind.members) == 1:
                hit.difference_update(each for each in tuple(hit) if self._kinds[each].members == kind.members)
            if looked // 1_000_000 != (looked + len(hit)) // 1_000_000:
                self._tell(f"comparing: {looked + len(hit)} pairs of kinds of ends so far")
            looked += len(hit)
            if looked > MOST_PAIRS:
                self.left_out += len(hit)
                continue
            yield from ((place, other) for other in sorted(hit))

    def _turned(self, tables: Callable[[Kind], tuple[str, str] | None]) -> dict[object, set[tuple[int, int]]]:
        """By stack (before and after): the classes of the other side for which a verdict of it turns."""
        classes: dict[int, set[tuple[int, int]]] = defaultdict(set)
        asking: dict[object, Kind] = {}
        for kind in self._kinds:
            classes[kind.family].add(kind.classes)
            if tables(kind) is not None:
                asking.setdefault(_asked(kind, tables(kind)), kind)
        found: dict[object, set[tuple[int, int]]] = {}
        for asked, kind in asking.items():
            turned = {each for each in classes[kind.family] if self._turns(*self._rows(kind, tables(kind), each))}
            if turned:
                found[asked] = turned
        return found

    def _rows(self, kind: Kind, tables: tuple[str, str] | None, classes: tuple[int, int]) -> _Rows:
        if tables is None or kind.local is None:
            return None, None
        return (
            self._books[0].row(tables[0], classes[0], kind.local[0]),
            self._books[1].row(tables[1], classes[1], kind.local[1]),
        )

    def _turns(self, before: Row | None, after: Row | None) -> bool:
        if before is None or after is None:
            return False
        key = (id(before), id(after))
        found = self._flipped.get(key)
        if found is None:
            found = self._flipped[key] = any(
                was is not None and becomes is not None and was.verdict is not becomes.verdict
                for _, (was, becomes) in regions((before, after))
            )
        return found

    def _changes(self, source: Kind, destination: Kind) -> tuple[_Change, ...]:
        out = self._rows(source, source.egress, destination.classes)
        into = self._rows(destination, destination.ingress, source.classes)
        key = (id(out[0]), id(out[1]), id(into[0]), id(into[1]))
        found = self._joint.get(key)
        if found is None:
            found = self._joint[key] = tuple(_compared(out, into))
        return found


def _asked(kind: Kind, tables: tuple[str, str] | None) -> object:
    return kind.family, tables, kind.local if kind.minds_local else None


def _compared(out: _Rows, into: _Rows) -> Iterator[_Change]:
    """What both ends together decide otherwise, traffic with the same two reasons put together."""
    pieces = list(regions((out[0], into[0], out[1], into[1])))
    whole = [traffic for traffic, _ in pieces]
    flipped: dict[tuple[Decision, Decision], list[Traffic]] = defaultdict(list)
    for traffic, decisions in pieces:
        turned = _turned(decisions)
        if turned is not None:
            flipped[turned].append(traffic)
    for (was, becomes), traffics in flipped.items():
        yield _Change(_of_any_namespace(was), _of_any_namespace(becomes), joined(traffics, whole))


def _of_any_namespace(decision: Decision) -> Decision:
    """The profiles that namespaces give all say the same: pods of many can be told together."""
    if not decision.reason.profile.startswith(NAMESPACE_PROFILE):
        return decision
    return replace(decision, reason=replace(decision.reason, profile=f"{NAMESPACE_PROFILE}*"))


def _turned(decisions: Decisions) -> tuple[Decision, Decision] | None:
    """The decision that turns the whole, before and after; None when the whole stays."""
    (was_out, was_in, out, into) = decisions
    denied, denies = _denial(was_out, was_in), _denial(out, into)
    if (denied is None) == (denies is None):
        return None
    denial = denied or denies
    assert denial is not None
    mine = (was_out, out) if denial.reason.direction is Direction.EGRESS else (was_in, into)
    assert mine[0] is not None
    assert mine[1] is not None
    return mine[0], mine[1]


def _denial(egress: Decision | None, ingress: Decision | None) -> Decision | None:
    return next((each for each in (egress, ingress) if each is not None and each.verdict is Verdict.DENY), None)


def _sorted(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda each: (not isinstance(each, Key), str(each))))


def _most_first(flip: Flip) -> tuple[bool, int, str, str]:
    return flip.after.verdict is Verdict.ALLOW, -flip.pairs, str(flip.sources[0]), str(flip.destinations[0])


def _cuts(before: View, after: View, flows: Iterable[Connection]) -> Iterator[Cut]:
    """Connections that are allowed as things are and would not be."""
    owners = [
        {address: key for key, addresses in view.compiled.addresses.items() for address in addresses}
        for view in (before, after)
    ]
    for flow in flows:
        asked = [_judged(view, owner, flow) for view, owner in zip((before, after), owners, strict=True)]
        turned = _turned((*asked[0], *asked[1])) if _same_ends(owners[0], owners[1], flow) else None
        if turned is not None and turned[1].verdict is Verdict.DENY:
            yield Cut(flow, *turned)


def _same_ends(then: Mapping[Address, Key], now: Mapping[Address, Key], flow: Connection) -> bool:
    """A connection of a pod that goes is not cut by policy."""
    return all(then.get(address) == now.get(address) for address in (flow.source, flow.destination))


def _judged(view: View, owners: Mapping[Address, Key], flow: Connection) -> tuple[Decision | None, Decision | None]:
    ends: list[Decision | None] = []
    for own, other, direction in (
        (flow.source, flow.destination, Direction.EGRESS),
        (flow.destination, flow.source, Direction.INGRESS),
    ):
        key = owners.get(own)
        packet = Packet(
            peer=other, local=own, protocol=flow.protocol, sport=flow.sport, dport=flow.dport, icmp=flow.icmp
        )
        ends.append(None if key is None else lookup(view.compiled, key, direction, packet))
    return ends[0], ends[1]
