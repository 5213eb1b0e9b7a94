"""The adj-RIB-out: what each session is told, and why not the rest. Pure, from the speaker and the best paths.

    own prefixes ─┐                      ┌── back to who told it: no ──┐
                  ├── bgp.outbound ──────┤                             ├── at most maxPrefixesOut ──> told
    best paths ───┘   a table for each   └─────────────────────────────┘
                      kind of session      of each session

Sessions that differ in nothing but who is at the other end are alike and share one table; what is kept from one of
them only (a route of its own, more than its maximum) is held by session. So a reflector's change costs its prefixes
times its clients, and not its table. The state is a function of the speaker and the paths: `exports` makes it from
nothing, and any sequence of changes comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from bgp.attributes import Attributes
from bgp.model import Own, Session, Speaker
from bgp.paths.bestpath import Candidate
from bgp.telling.outbound import Kind, kind, outcome, returns
from core.addr import Address, Family, Network, order

WARN_AT: Final = 0.8
"""The share of a maximum from which on it is worth a warning."""

RANKS: Final = {"block": 0, "borrowed": 1, "service": 2}
"""Which own prefixes are told first when not all may be; learnt ones come last."""

Difference: TypeAlias = Mapping[Address, Mapping[Network, Attributes | None]]
"""What to tell each peer anew; None takes a prefix back."""

_Change: TypeAlias = tuple[Attributes | None, Attributes | None]
"""What was said of a prefix, and what is."""


@dataclass(slots=True, eq=False)
class _Table:
    """What sessions of a kind are told of everything."""

    kind: Kind
    said: dict[Network, Attributes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Out:
    """One session's view of the table of its kind: without the prefixes in `back` and `surplus`, both with why."""

    session: Session
    table: _Table
    back: dict[Network, str] = field(default_factory=dict)
    surplus: dict[Network, str] = field(default_factory=dict)

    def wanted(self, prefix: Network) -> Attributes | None:
        """What it would be told of a prefix without a maximum."""
        return None if prefix in self.back else self.table.said.get(prefix)

    @property
    def count(self) -> int:
        """How many prefixes it would be told without a maximum."""
        return len(self.table.said) - len(self.back)

    @property
    def told(self) -> dict[Network, Attributes]:
        said = self.table.said
        if not self.back and not self.surplus:
            return dict(said)
        return {prefix: each for prefix, each in said.items() if prefix not in self.back and prefix not in self.surplus}


def exports(speaker: Speaker, best: Mapping[Network, Candidate]) -> Mapping[Address, Mapping[Network, Attributes]]:
    """What each session is told, by its peer."""
    exporter = Exporter(best)
    exporter.configure(speaker)
    return exporter.exported


class Exporter:
    """What every session is told, kept up to date.

    `best` is a live view of the paths in use, read for the prefixes that `change` names; whole when the sessions
    change and `passes_on` is true.
    """

    def __init__(self, best: Mapping[Network, Candidate]) -> None:
        self._best = best
        self._speaker: Speaker | None = None
        self._tables: dict[Kind, _Table] = {}
        self._outs: dict[Address, _Out] = {}
        self._kept: dict[Network, frozenset[Address]] = {}  # from whom a prefix is kept back

    @property
    def passes_on(self) -> bool:
        """Whether anything learnt may be told to anybody: if not, there is no need to say that paths changed."""
        speaker = self._speaker
        return speaker is not None and (speaker.cluster_id is not None or any(each.asks for each in self._tables))

    @property
    def exported(self) -> Mapping[Address, Mapping[Network, Attributes]]:
        """What each session is told, by its peer."""
        return {peer: out.told for peer, out in self._outs.items()}

    def told(self, peer: Address) -> Mapping[Network, Attributes]:
        """What one session is told."""
        out = self._outs.get(peer)
        return out.told if out else {}

    def count(self, peer: Address) -> int:
        """How many prefixes a session is told."""
        out = self._outs.get(peer)
        return out.count - len(out.surplus) if out else 0

    def tells(self, peer: Address, prefix: Network) -> bool:
        """Whether a session is told of a prefix."""
        out = self._outs.get(peer)
        return out is not None and prefix not in out.surplus and out.wanted(prefix) is not None

    def configure(self, speaker: Speaker) -> Difference:
        """Another speaker, perhaps the same; what changes by it."""
        before, self._speaker = self._speaker, speaker
        if before is not None and _frame(before) == _frame(speaker):
            prefixes = before.own.keys() | speaker.own.keys()
            return self._again([prefix for prefix in prefixes if before.own.get(prefix) != speaker.own.get(prefix)])
        exported = self.exported
        self._tables = {each: _Table(each) for each in map(kind, speaker.sessions)}
        self._outs = {session.peer: _Out(session, self._tables[kind(session)]) for session in speaker.sessions}
        self._kept = {}
        self._again({*speaker.own, *(self._best if self.passes_on else ())})
        told = self.exported
        peers = exported.keys() | told.keys()
        found = {peer: _difference(exported.get(peer, {}), told.get(peer, {})) for peer in peers}
        return {peer: changed for peer, changed in found.items() if changed}

    def change(self, prefixes: Collection[Network]) -> Difference:
        """The best paths of `prefixes` are others, or gone; what changes by it."""
        return self._again(prefixes) if self.passes_on else {}

    def refusals(self, peer: Address, prefixes: Collection[Network]) -> Mapping[Network, str]:
        """Those of `prefixes` that we could tell `peer` and do not, each with why."""
        out, speaker = self._outs.get(peer), self._speaker
        if out is None or speaker is None:
            return {}
        to = out.table.kind
        said = {
            prefix: out.back.get(prefix)
            or out.surplus.get(prefix)
            or outcome(speaker, to, prefix, self._best.get(prefix))
            for prefix in prefixes
            if prefix.version == to.family
        }
        return {prefix: why for prefix, why in said.items() if isinstance(why, str)}

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each session that is near its maximum or over it."""
        return tuple(_warnings(self._outs.values()))

    def _again(self, prefixes: Collection[Network]) -> Difference:
        speaker = self._speaker
        found: dict[Address, Mapping[Network, Attributes | None]] = {}
        for family in Family:
            concerned = [prefix for prefix in prefixes if prefix.version == family]
            if speaker is not None and concerned:
                found.update(self._again_in(speaker, family, concerned))
        return found

    def _again_in(self, speaker: Speaker, family: Family, prefixes: list[Network]) -> Difference:
        apart: dict[Address, dict[Network, str]] = {}  # what is, or was until now, kept back: "" is no longer
        for prefix in prefixes:
            for peer in self._kept.pop(prefix, ()):
                apart.setdefault(peer, {})[prefix] = ""
        said: dict[_Table, dict[Network, Attributes | None]] = {}
        for table in self._tables.values():
            if table.kind.family is family:
                said[table] = {prefix: self._outcome(speaker, table, prefix, apart) for prefix in prefixes}
        before = {peer: {prefix: self._outs[peer].wanted(prefix) for prefix in those} for peer, those in apart.items()}
        changes = {table: _replace(table.said, outcomes) for table, outcomes in said.items()}
        found: dict[Address, Mapping[Network, Attributes | None]] = {}
        for peer, out in self._outs.items():
            if out.table in changes:
                _set(out.back, apart.get(peer, {}))
                special = {prefix: (then, out.wanted(prefix)) for prefix, then in before.get(peer, {}).items()}
                changed = _told_anew(speaker, out, {**changes[out.table], **special})
                if changed:
                    found[peer] = changed
        return found

    def _outcome(
        self, speaker: Speaker, table: _Table, prefix: Network, apart: dict[Address, dict[Network, str]]
    ) -> Attributes | None:
        """What is said of a prefix; which sessions of this table do not hear of it is noted in `apart`."""
        candidate = self._best.get(prefix)
        found = outcome(speaker, table.kind, prefix, candidate)
        if isinstance(found, str):
            return None
        for peer, why in returns(found, candidate) if candidate is not None and prefix not in speaker.own else ():
            out = self._outs.get(peer)
            if out is not None and out.table is table:
                those = apart.setdefault(peer, {})
                those[prefix] = those.get(prefix) or why
                self._kept[prefix] = self._kept.get(prefix, frozenset()) | {peer}
        return found


def _replace(
    said: dict[Network, Attributes], outcomes: Mapping[Network, Attributes | None]
) -> Mapping[Network, _Change]:
    """Put what is said now in place of what was; what differs."""
    changes: dict[Network, _Change] = {}
    for prefix, now in outcomes.items():
        then = said.get(prefix)
        if now is None:
            said.pop(prefix, None)
        elif now is not then:
            said[prefix] = now
        if now is not then and now != then:
            changes[prefix] = then, now
    return changes


def _set(back: dict[Network, str], reasons: Mapping[Network, str]) -> None:
    for prefix, why in reasons.items():
        if why:
            back[prefix] = why
        else:
            back.pop(prefix, None)


def _told_anew(speaker: Speaker, out: _Out, changes: Mapping[Network, _Change]) -> dict[Network, Attributes | None]:
    """What a session is told after its maximum has had its say, of `changes` to what it would be told without."""
    before = out.surplus
    _limit(speaker, out)
    if not before and not out.surplus:
        return {prefix: now for prefix, (then, now) in changes.items() if now is not then and now != then}
    found: dict[Network, Attributes | None] = {}
    for prefix, (then, now) in changes.items():
        was, is_now = None if prefix in before else then, None if prefix in out.surplus else now
        if was != is_now:
            found[prefix] = is_now
    for prefix in (before.keys() ^ out.surplus.keys()) - changes.keys():
        found[prefix] = None if prefix in out.surplus else out.wanted(prefix)
    return found


def _limit(speaker: Speaker, out: _Out) -> None:
    """Choose what is too much for a session."""
    most = out.session.most_out
    if most is None or out.count <= most:
        out.surplus = {}
        return
    wanted = sorted((prefix for prefix in out.table.said if prefix not in out.back), key=_rank(speaker.own))
    out.surplus = dict.fromkeys(wanted[most:], f"maxPrefixesOut is {most} and {len(wanted)} would be told")


def _frame(speaker: Speaker) -> tuple[object, ...]:
    """All of a speaker that export depends on beside its own prefixes."""
    return speaker.sessions, speaker.cluster_id, speaker.pools, speaker.maintenance


def _difference(
    before: Mapping[Network, Attributes], after: Mapping[Network, Attributes]
) -> Mapping[Network, Attributes | None]:
    if not before:
        return after
    new = {prefix: said for prefix, said in after.items() if before.get(prefix) != said}
    return {**new, **dict.fromkeys(before.keys() - after.keys())}


def _rank(own: Mapping[Network, Own]) -> Callable[[Network], tuple[int, int, int, int]]:
    def rank(prefix: Network) -> tuple[int, int, int, int]:
        said = own.get(prefix)
        return (len(RANKS) if said is None else RANKS.get(said.source, len(RANKS) - 1), *order(prefix))

    return rank


def _warnings(outs: Iterable[_Out]) -> Iterator[str]:
    for out in outs:
        most, count = out.session.most_out, out.count
        who = f"{out.session.name} ({out.session.peer})"
        if most is not None and count > most:
            yield f"{who}: maxPrefixesOut is {most}, so {count - most} of {count} prefixes are not told"
        elif most is not None and count >= WARN_AT * most and count:
            yield f"{who}: {count} prefixes are told of at most {most} (maxPrefixesOut)"
