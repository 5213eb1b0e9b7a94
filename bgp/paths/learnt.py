"""From what peers say to the kernel routes there should be. Pure state: no I/O, no clock.

    events ──> AdjRibIn ──> changed prefixes ──> imports ──> choose ──> next hops ──> Decision ──> changed routes
    sessions, scope ──> everything again, if they decide otherwise; facts ──> what goes through the hops that changed

Prefixes of which the same peers say the same, and which lie alike, share one Decision: a table of a hundred thousand
takes as many look-ups, and as many decisions as there are different things said.

Routes found in the kernel at start are *adopted*: they stand for their prefix until peers have had time to speak
(every session's End-of-RIB, or a bound), so that a restart changes nothing. Until then a route learnt again in part
(one of two racks' routers has spoken) does not narrow an adopted one; a withdrawal ends the adoption at once, and a
peer that takes everything back or is out of reach (BFD) ends it as far as the route goes through that peer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import repeat
from typing import Final, TypeVar

from bgp.exabgp.line import PeerDown, PeerEvent, PeerUp, Update
from bgp.model import Session, Speaker
from bgp.paths import clashes
from bgp.paths.bestpath import Candidate, choose
from bgp.paths.decision import UNDECIDED, Decision, Explanation, explain
from bgp.paths.fib import NOWHERE, Place, Reach, Refusal, Scope, Ways, route
from bgp.paths.filters import Judgement
from bgp.paths.imports import OURS, PATH_DOWN, Us, judged, taken, unsound, us
from bgp.paths.rib import AdjRibIn, Gone, Heard
from core.addr import Address, Network
from core.prefix import Prefix
from linux.model import Facts, Route

MOST_KNOWN: Final = 50_000
"""How many shared decisions are kept at most."""


V = TypeVar("V")


class Learnt:
    """What is learnt, and the routes that follow from it."""

    def __init__(self) -> None:
        self.rib = AdjRibIn()
        self._speaker: Speaker | None = None
        self._sessions: Mapping[Address, Session] = {}
        self._scope: Scope | None = None
        self._facts = Facts()
        self._ways = Ways(self._facts)
        self._us = Us()
        self._reached: dict[Address, Reach | Refusal] = {}
        self._decisions: dict[Prefix, Decision] = {}
        self._known: dict[tuple[object, ...], Decision] = {}
        self._adopted: dict[Prefix, Route] = {}
        self._changed: dict[Prefix, Route | None] = {}
        self._contested: set[Prefix] = set()
        self._chosen: set[Prefix] = set()
        self.follows_best = False
        self.best: Mapping[Network, Candidate] = _View(self._decisions, lambda decision: decision.choice.best)
        """The path that stands for each prefix, live."""
        self.refused: Mapping[Network, str] = _View(self._decisions, lambda each: None if each.route else each.why)
        """Why what somebody speaks of has no route, live."""

    def adopt(self, routes: Mapping[Prefix, Route]) -> None:
        """Take over what an earlier run of ours left in the kernel."""
        self._adopted = dict(routes)
        self._note(self._adopted)

    def settle(self) -> None:
        """Everyone has spoken, or had the time: what nobody confirmed is no longer wanted."""
        adopted, self._adopted = self._adopted, {}
        self._note(adopted)

    @property
    def settled(self) -> bool:
        """Whether nothing is held that no peer has confirmed in this run."""
        return not self._adopted

    def configure(self, speaker: Speaker, scope: Scope, now: float = 0.0) -> None:
        """A new speaker or a new snapshot."""
        before, self._speaker = self._speaker, speaker
        self._sessions = {session.peer: session for session in speaker.sessions}
        lost = self.rib.configure(self._sessions, now)
        same = before is not None and _decides(before) == _decides(speaker)
        moved = scope.moved(self._scope) if same else None
        if moved != frozenset():  # else the one we have decides alike, and what is known of its places stays known
            self._scope = scope
        if moved is None:
            self._us = us(speaker, self._ways.addresses)
            self._again()
        else:
            self._note(_within(moved, self._adopted))
            self._choose({*lost, *_within(moved, self._decisions)})

    def learn_facts(self, facts: Facts) -> bool:
        """The host's links or gateways changed; whether any route may have changed with them."""
        before, self._facts, self._ways = self._ways, facts, Ways(facts)
        self._us = us(self._speaker, self._ways.addresses)
        moved = before.addresses ^ self._ways.addresses
        if not self._ways.same_as(before):
            moved |= {hop for hop, found in self._reached.items() if self._ways.to(hop) != found}
        moved &= self._reached.keys()
        if not moved:
            return False
        for hop in moved:
            del self._reached[hop]
        self._known = {}
        tables = self.rib.tables()
        return self._choose({p for table in tables for p, heard in table.items() if heard.path.next_hop in moved})

    def hear(self, event: PeerEvent, now: float) -> bool:
        """Take a peer's event in; whether any route may have changed."""
        if event.peer not in self._sessions:
            return False  # the last words of a session that was just taken out of the configuration
        if isinstance(event, PeerUp) and self.rib.path_down(event.peer):
            self._known = {}  # whatever was decided while nothing got through to it
        changed = self.rib.fold(event, now)
        if isinstance(event, PeerDown) and changed:
            self._forsake(event.peer)
        if isinstance(event, Update) and self._adopted:
            dropped = [prefix for prefix in event.withdrawn if self._adopted.pop(prefix, None)]
            self._note(dropped)
            changed = {*changed, *dropped}
        return self._choose(changed)

    def expire(self, now: float) -> bool:
        """Drop what is stale for too long; whether any route may have changed."""
        return self._choose(self.rib.expire(now))

    def lose_path(self, peer: Address) -> bool:
        """BFD says that nothing gets through to the peer: its paths are of no use until its session comes up anew."""
        self._known = {}
        forsaken = self._forsake(peer)
        return self._choose(self.rib.lose_path(peer)) or forsaken

    def regain_path(self, peer: Address) -> bool:
        """BFD says that packets get through again, and the session has stood all the while."""
        self._known = {}
        return self._choose(self.rib.regain_path(peer))

    def all_told(self) -> bool:
        """Whether every configured session has sent its End-of-RIB."""
        return all(self.rib.told_all(address) for address in self._sessions)

    def may_conclude(self) -> bool:
        """Whether nobody is waited for before we say that we have told everything. Peers that have just restarted are
        not waited for (RFC 4724, 4.1): they may be waiting for us."""
        return all(self.rib.told_all(each) or self.rib.restarting(each) for each in self._sessions)

    def take_changes(self) -> Mapping[Prefix, Route | None]:
        """What should be in the kernel at each prefix where that has changed since this was last asked."""
        changed, self._changed = self._changed, {}
        return changed

    @property
    def decisions(self) -> Mapping[Prefix, Decision]:
        """What was decided on each prefix that anybody speaks of, live."""
        return self._decisions

    def take_chosen(self) -> Collection[Network]:
        """The prefixes for which another path may stand than when this was last asked, while `follows_best`."""
        chosen, self._chosen = self._chosen, set()
        return [prefix.network for prefix in chosen]

    def explain(self, now: float, prefixes: Iterable[Network] | None = None) -> Iterator[Explanation]:
        """Why each prefix goes where it goes: those given, or all that anybody speaks, or lately spoke, of."""
        gone: dict[Prefix, list[Gone]] = {}
        for each in reversed(self.rib.gone):
            gone.setdefault(each.prefix, []).append(each)
        wanted = map(Prefix.of, prefixes) if prefixes is not None else {**self._decisions, **gone}
        for prefix in wanted:
            decision = self._decisions.get(prefix, UNDECIDED)
            held = self._adopted.get(prefix) if self._holds(prefix) else None
            yield explain(prefix, decision, self.rib, gone.get(prefix, ()), now, held)

    def problems(self) -> Iterator[str]:
        """What a person should know: peers near or over their maximum, and prefixes with two writers."""
        for address, session in self._sessions.items():
            said = self.rib.intake(address).problem(self.rib.count(address))
            if said:
                yield f"{session.name} ({address}): {said}"
        scope = self._scope
        self._contested = {p for p in self._contested if p in self._decisions and scope and scope.place(p).ours}
        for prefix in sorted(self._contested):
            yield from clashes.contested(prefix, self._heard(prefix), self._sessions, self._us)
        yield from clashes.foreign(self._facts, self._wanted)

    def _resolve(self, hop: Address) -> Reach | Refusal:
        found = self._reached.get(hop)
        if found is None:
            found = self._reached[hop] = self._ways.to(hop)
        return found

    def _again(self) -> None:
        self._known, self._reached = {}, {}
        self._note(self._adopted)
        self._choose(self.rib.prefixes() | self._decisions.keys())

    def _choose(self, prefixes: Collection[Prefix]) -> bool:
        """Decide on `prefixes` anew. This is walked a hundred thousand times for a full table."""
        if not prefixes:
            return False
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        known, decisions, changed = self._known, self._decisions, self._changed
        columns = [list(map(table.get, prefixes)) for table in self.rib.tables()]
        spoken_of = any(map(any, columns))  # else it does not matter where they lie
        places = self._scope.places(prefixes) if self._scope and spoken_of else repeat(NOWHERE)
        rows = zip(*columns, strict=True) if columns else repeat(())
        for prefix, place, row in zip(prefixes, places, rows, strict=False):
            decision = known.get((place, row)) or self._decide(prefix, place, row)
            before = decisions.get(prefix, UNDECIDED)
            if decision is before:
                continue
            if decision is UNDECIDED:
                del decisions[prefix]
            else:
                decisions[prefix] = decision
            if self._adopted:
                changed[prefix] = self._wanted(prefix)
            elif decision.route is not before.route and decision.route != before.route:
                changed[prefix] = decision.route
            if place.ours:
                self._contested.add(prefix)
            if self.follows_best:
                self._chosen.add(prefix)
        return True

    def _decide(self, prefix: Prefix, place: Place, row: tuple[Heard | None, ...]) -> Decision:
        """What follows from what each peer says and its session judges; kept for prefixes of which that is alike."""
        said = [heard for heard in row if heard is not None]
        if not said:
            self._known[place, row] = UNDECIDED
            return UNDECIDED
        judgements = [judged(self._sessions[heard.peer], prefix, heard.path, self._resolve) for heard in said]
        alike = (place, row, *judgements) if any(judgements) else (place, row)
        decision = self._known.get(alike)
        if decision is None:
            decision = self._known[alike] = self._decided(place, said, judgements)
        return decision

    def _decided(self, place: Place, said: list[Heard], judgements: list[Judgement | None]) -> Decision:
        eligible: list[Candidate] = []
        refused: list[tuple[Candidate, str]] = []
        for heard, judgement in zip(said, judgements, strict=True):
            candidate = Candidate(self._sessions[heard.peer], heard.path, self.rib.router_id(heard.peer))
            self._resolve(heard.path.next_hop)  # known from now on, so that it is noticed when it changes
            why = OURS if place.ours else self._unsound(heard)
            found = why or taken(candidate, place, judgement, self._resolve)
            if isinstance(found, str):
                refused.append((candidate, found))
            else:
                eligible.append(found)
        choice = choose(eligible, refused)
        outcome = route(choice, place, self._resolve)
        programmed, why_not = (None, outcome) if isinstance(outcome, str) else (outcome, "")
        return Decision(choice, programmed, why_not)

    def _unsound(self, heard: Heard) -> Refusal:
        if self.rib.path_down(heard.peer):
            return PATH_DOWN
        return unsound(self._sessions[heard.peer], heard.path, self._us)

    def _heard(self, prefix: Prefix) -> list[Heard]:
        return [table[prefix] for table in self.rib.tables() if prefix in table]

    def _forsake(self, peer: Address) -> bool:
        """No adopted route goes through the peer any more, whoever has still to speak; whether one did."""
        found = {
            prefix: tuple(hop for hop in adopted.next_hops if hop.gateway != peer)
            for prefix, adopted in self._adopted.items()
            if any(hop.gateway == peer for hop in adopted.next_hops)
        }
        for prefix, hops in found.items():
            adopted = self._adopted.pop(prefix)
            if hops:
                self._adopted[prefix] = replace(adopted, next_hops=hops)
        self._note(found)
        return bool(found)

    def _note(self, prefixes: Iterable[Prefix]) -> None:
        for prefix in prefixes:
            self._changed[prefix] = self._wanted(prefix)

    def _wanted(self, prefix: Prefix) -> Route | None:
        if self._holds(prefix):
            return self._adopted[prefix]
        return self._decisions.get(prefix, UNDECIDED).route

    def _holds(self, prefix: Prefix) -> bool:
        """Whether an adopted route stands for the prefix still."""
        adopted = self._adopted.get(prefix)
        if adopted is None or self._scope is None:
            return adopted is not None
        place = self._scope.place(prefix)
        learnt = self._decisions.get(prefix, UNDECIDED).route
        if place.ours or place.unprogrammed or (not place.pool and not self._filtered):
            return False
        return learnt is None or set(learnt.next_hops) <= set(adopted.next_hops)

    @property
    def _filtered(self) -> bool:
        """Whether any filter might take in what lies outside the pools."""
        return any(session.filters for session in self._sessions.values())


class _View(Mapping[Network, V]):
    """What decisions have that is not None, by prefix in the usual form."""

    def __init__(self, decisions: Mapping[Prefix, Decision], shown: Callable[[Decision], V | None]) -> None:
        self._decisions, self._shown = decisions, shown

    def __getitem__(self, prefix: Network) -> V:
        found = self._shown(self._decisions.get(Prefix.of(prefix), UNDECIDED))
        if found is None or Prefix.of(prefix) not in self._decisions:
            raise KeyError(prefix)
        return found

    def __iter__(self) -> Iterator[Network]:
        return (prefix.network for prefix, each in self._decisions.items() if self._shown(each) is not None)

    def __len__(self) -> int:
        return sum(self._shown(each) is not None for each in self._decisions.values())


def _within(blocks: frozenset[Prefix], prefixes: Collection[Prefix]) -> list[Prefix]:
    """Those of `prefixes` that are one of `blocks` or lie in one."""
    if not blocks:
        return []
    lengths = sorted({block[0] for block in blocks})
    return [
        prefix
        for prefix in prefixes
        if prefix in blocks
        or (prefix[0] > lengths[0] and any(prefix.cut(n) in blocks for n in lengths if n < prefix[0]))
    ]


def _decides(speaker: Speaker) -> tuple[object, ...]:
    """What of a speaker decides on paths."""
    return speaker.sessions, speaker.router_id, speaker.cluster_id, speaker.addresses
