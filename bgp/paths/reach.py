"""Routes to peers that are on no link of ours: `reachableBy` of a BGPPeer names the gateway. Pure state.

    sessions, facts ──> {peer/32: through the gateway} ──> the kernel, over whatever is learnt of that prefix
                                                       └──> facts as next hops are resolved by: what the peer tells is
                                                            reached through the same gateway

So a peer's address never depends on a route that was learnt from the peer itself (calico.md 1.4, reachableBy).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from bgp.model import Session
from bgp.paths.decision import UNDECIDED, Decision
from core.addr import host_prefix
from core.prefix import Prefix
from linux.model import Facts, NextHop, Route, Via


class PeerRoutes:
    """The routes there should be to peers behind gateways."""

    def __init__(self) -> None:
        self._ways: dict[Prefix, Via] = {}
        self._dropped: set[Prefix] = set()
        self._unreached: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each gateway that is on no link of ours."""
        return self._unreached

    def find(self, sessions: Iterable[Session], facts: Facts) -> Facts:
        """Take over sessions and facts; the facts with what the routes make reachable."""
        outcomes = list(_ways(sessions, facts))
        ways = {Prefix.of(each.destination): each for each in outcomes if isinstance(each, Via)}
        self._dropped |= self._ways.keys()
        self._dropped -= ways.keys()
        self._ways, self._unreached = ways, tuple(each for each in outcomes if isinstance(each, str))
        return replace(facts, gateways=(*facts.gateways, *ways.values()))

    def over(
        self, changes: Mapping[Prefix, Route | None], learnt: Mapping[Prefix, Decision]
    ) -> Mapping[Prefix, Route | None]:
        """`changes` to the kernel with our routes in them; where one of ours went, what is `learnt` stands again."""
        if not (self._ways or self._dropped):
            return changes
        gone, self._dropped = {prefix: learnt.get(prefix, UNDECIDED).route for prefix in self._dropped}, set()
        ours = {prefix: Route(next_hops=(NextHop(way.device, way.gateway),)) for prefix, way in self._ways.items()}
        return {**gone, **changes, **ours}


def _ways(sessions: Iterable[Session], facts: Facts) -> Iterator[Via | str]:
    for session in sessions:
        if session.gateway is None:
            continue
        link = facts.on_link(session.gateway)
        if link is None:
            yield f"{session.name}: reachableBy {session.gateway} is on no link of this host that is up"
        elif session.gateway != session.peer:
            yield Via(destination=host_prefix(session.peer), gateway=session.gateway, device=link.index)
