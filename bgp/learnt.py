"""From what peers say to the kernel routes there should be. Pure state: no I/O, no clock.

    events ──> AdjRibIn ──> changed prefixes ──> choose ──> import? ──> next hops ──> routes
    sessions, scope, facts: everything again

Routes found in the kernel at start are *adopted*: they stand for their prefix until peers have had time to speak
(every session's End-of-RIB, or a bound), so that a restart changes nothing. Until then a route learnt again in part
(one of two racks' routers has spoken) does not narrow an adopted one; a withdrawal ends the adoption at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from bgp.bestpath import Candidate, Choice, choose
from bgp.fib import Resolve, Scope, resolve, route, route_key
from bgp.line import PeerEvent, Update
from bgp.model import Session
from bgp.rib import AdjRibIn
from core.addr import Address, Network
from linux.model import Facts, Route, RouteKey


class Learnt:
    """What is learnt, and the routes that follow from it."""

    def __init__(self) -> None:
        self.rib = AdjRibIn()
        self.refused: dict[Network, str] = {}
        self._sessions: Mapping[Address, Session] = {}
        self._scope: Scope | None = None
        self._resolve = _resolver(Facts())
        self._choices: dict[Network, Choice] = {}
        self._routes: dict[RouteKey, Route] = {}
        self._adopted: dict[RouteKey, Route] = {}

    def adopt(self, routes: Mapping[RouteKey, Route]) -> None:
        """Take over what an earlier run of ours left in the kernel."""
        self._adopted = dict(routes)

    def settle(self) -> None:
        """Everyone has spoken, or had the time: what nobody confirmed is no longer wanted."""
        self._adopted = {}

    @property
    def settled(self) -> bool:
        """Whether nothing is held that no peer has confirmed in this run."""
        return not self._adopted

    def configure(self, sessions: Sequence[Session], scope: Scope) -> None:
        """New sessions or a new snapshot."""
        before = self._sessions
        self._sessions, self._scope = {session.peer: session for session in sessions}, scope
        for address in before.keys() - self._sessions.keys():
            self.rib.forget(address)
        self._again()

    def learn_facts(self, facts: Facts) -> None:
        """The host's links or gateways changed."""
        self._resolve = _resolver(facts)
        self._again()

    def hear(self, event: PeerEvent, now: float) -> bool:
        """Take a peer's event in; whether any route may have changed."""
        if event.peer not in self._sessions:
            return False  # the last words of a session that was just taken out of the configuration
        changed = self.rib.fold(event, now)
        if isinstance(event, Update):
            for prefix in event.withdrawn:
                self._adopted.pop(route_key(prefix), None)
        self._choose(changed)
        return bool(changed)

    def expire(self, now: float) -> bool:
        """Drop what is stale for too long; whether any route may have changed."""
        changed = self.rib.expire(now)
        self._choose(changed)
        return bool(changed)

    def all_told(self) -> bool:
        """Whether every configured session has sent its End-of-RIB."""
        return all(self.rib.told_all(address) for address in self._sessions)

    def routes(self) -> Mapping[RouteKey, Route]:
        """What should be in the kernel."""
        if not self._adopted:
            return dict(self._routes)
        kept = {key: value for key, value in self._adopted.items() if self._holds(key, value)}
        return {**self._routes, **kept}

    def choice(self, prefix: Network) -> Choice | None:
        """How the path to `prefix` was chosen."""
        return self._choices.get(prefix)

    def _holds(self, key: RouteKey, adopted: Route) -> bool:
        if self._scope is None or self._scope.refusal(key.destination):
            return False
        learnt = self._routes.get(key)
        return learnt is None or set(learnt.next_hops) <= set(adopted.next_hops)

    def _again(self) -> None:
        self._choices, self._routes, self.refused = {}, {}, {}
        self._choose(self.rib.prefixes())

    def _choose(self, prefixes: frozenset[Network]) -> None:
        for prefix in prefixes:
            key = route_key(prefix)
            self._routes.pop(key, None)
            self.refused.pop(prefix, None)
            choice = choose(
                Candidate(self._sessions[address], path)
                for address, path in self.rib.candidates(prefix)
                if address in self._sessions
            )
            if not choice.used and not choice.refused:
                self._choices.pop(prefix, None)
                continue
            self._choices[prefix] = choice
            outcome = self._outcome(prefix, choice)
            if isinstance(outcome, str):
                self.refused[prefix] = outcome
            else:
                self._routes[key] = outcome

    def _outcome(self, prefix: Network, choice: Choice) -> Route | str:
        why = self._scope.refusal(prefix) if self._scope else "no snapshot yet"
        return why or route(choice, self._resolve)


def _resolver(facts: Facts) -> Resolve:
    """Next hops as `facts` have them, each found once: a peer's table names few."""
    return cache(lambda address: resolve(address, facts))
