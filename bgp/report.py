"""A node's answer to a CalicoNodeStatus: its speaker, sessions, routes with the reason for each, adverts. Pure.

    FIB   a route in the kernel, one line a next hop, with the peer it was learnt from
    RIB   a path that a peer tells, one line a peer: used, not the best, refused; with its attributes

An object in the datastore has a bound, and so has a person's patience: the first MOST_ROUTES prefixes are told, fewer
when they take too many bytes, and the answer says of how many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from importlib.metadata import version
from ipaddress import ip_address
from typing import Final

import msgspec

from bgp.adverts import Advert, Told
from bgp.fib import route_key
from bgp.learnt import Learnt
from bgp.model import Attributes, Path, PeerType, Session, Speaker
from core.addr import Address, Network, contains, order
from core.resources.node_status import (
    AdvertStatus,
    AgentStatus,
    BGPStatus,
    CalicoNodeStatusSpec,
    DaemonStatus,
    LearnedFrom,
    NodeStatus,
    PathStatus,
    PeerStatus,
    RoutesStatus,
    RouteStatus,
)
from core.resources.status import SessionState, SpeakerState
from core.values import network_or_address
from linux.model import Facts, Route, RouteKey

MOST_ROUTES: Final = 5000
"""Prefixes of which an answer tells the routes, and adverts that it tells."""

MOST_BYTES: Final = 900_000
"""Of an answer: a value in the datastore may have a mebibyte."""

EXABGP: Final = version("exabgp")

ESTABLISHED: Final = "Established"

USED: Final = "used"
NOT_BEST: Final = "not best"
REFUSED: Final = "refused"
_STANDINGS: Final = (USED, NOT_BEST, REFUSED)

_STATES: Final = {ESTABLISHED: ESTABLISHED, "Blocked": "Blocked"}
_SOURCES: Final = {PeerType.MESH: "NodeMesh"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One path to a prefix, and what became of it: USED, NOT_BEST, REFUSED; and why."""

    session: Session
    path: Path
    state: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Everything an answer is made from. `kernel` are the routes of ours that the kernel has; `booted` and
    `configured` are when ExaBGP was started and last given other sessions, in RFC 3339."""

    speaker: Speaker | None
    state: SpeakerState
    heard: Callable[[Network], Sequence[Heard]] = lambda _: ()
    prefixes: Iterable[Network] = ()
    kernel: Mapping[RouteKey, Route] = field(default_factory=dict)
    wanted: Mapping[Advert, Told] = field(default_factory=dict)
    acknowledged: Mapping[Advert, Told] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    running: bool = False
    booted: str = ""
    configured: str = ""


def report(spec: CalicoNodeStatusSpec, outlook: Outlook) -> NodeStatus:
    """The answer, of a size that the datastore takes."""
    most = MOST_ROUTES
    while True:
        status = _report(spec, outlook, most)
        if most == 1 or len(msgspec.json.encode(status)) <= MOST_BYTES:
            return status
        most //= 2


def _report(spec: CalicoNodeStatusSpec, outlook: Outlook, most: int) -> NodeStatus:
    asked, within = set(spec.classes), network_or_address(spec.prefix) if spec.prefix else None
    cut: list[str] = []
    routes = adverts = None
    if "Routes" in asked:
        routes = _routes(outlook, within, most, cut)
    if "Adverts" in asked:
        adverts = _adverts(outlook, within, most, cut)
    return NodeStatus(
        agent=_agent(outlook) if "Agent" in asked else None,
        bgp=_bgp(outlook.state.sessions) if "BGP" in asked else None,
        routes=routes,
        adverts=adverts,
        reason="; ".join(cut),
    )


def _agent(outlook: Outlook) -> AgentStatus:
    """One speaker carries both families; a family without an address of this node's has none."""
    speaker, state = outlook.speaker, outlook.state
    reason = "; ".join(state.problems[:3]) or ("" if outlook.running else "ExaBGP does not run")
    daemon = DaemonStatus(
        state="Ready" if state.ready else "NotReady",
        version=f"ExaBGP {EXABGP}",
        router_id=str(speaker.router_id) if speaker else "",
        last_boot_time=outlook.booted,
        last_reconfiguration_time=outlook.configured,
        reason="" if state.ready else reason,
    )
    versions = {address.version for address in speaker.addresses} if speaker else {4, 6}
    return AgentStatus(bird_v4=daemon if 4 in versions else None, bird_v6=daemon if 6 in versions else None)


def _bgp(sessions: Sequence[SessionState]) -> BGPStatus:
    peers = {4: [_peer(each) for each in sessions if _version(each.peer) != 6]}
    peers[6] = [_peer(each) for each in sessions if _version(each.peer) == 6]
    up = {family: sum(each.state == ESTABLISHED for each in found) for family, found in peers.items()}
    return BGPStatus(
        number_established_v4=up[4],
        number_not_established_v4=len(peers[4]) - up[4],
        peers_v4=peers[4],
        number_established_v6=up[6],
        number_not_established_v6=len(peers[6]) - up[6],
        peers_v6=peers[6],
    )


def _peer(session: SessionState) -> PeerStatus:
    return PeerStatus(
        peer_ip=session.peer,
        type=session.type,
        state=_STATES.get(session.state, "Active"),
        since=session.since,
        name=session.name,
        as_number=session.as_number or None,
        reason=session.reason,
        received=session.received,
        advertised=session.advertised,
    )


def _version(peer: str) -> int:
    try:
        return ip_address(peer).version
    except ValueError:  # a blocked session: its address may be what is wrong with it
        return 4


def _routes(outlook: Outlook, within: Network | None, most: int, cut: list[str]) -> RoutesStatus:
    known = {*outlook.prefixes, *(key.destination for key in outlook.kernel)}
    meant = known if within is None else {prefix for prefix in known if _related(within, prefix)}
    chosen = nsmallest(most, meant, key=order)
    if len(chosen) < len(meant):
        cut.append(f"these are the routes of the first {len(chosen)} of {len(meant)} prefixes")
    names = {link.index: name for name, link in outlook.facts.links.items()}
    found: dict[int, list[RouteStatus]] = {4: [], 6: []}
    for prefix in chosen:
        heard = outlook.heard(prefix)
        found[prefix.version] += _in_kernel(prefix, outlook, heard, names)
        found[prefix.version] += (_path_of(prefix, each) for each in heard)
    return RoutesStatus(routes_v4=found[4], routes_v6=found[6])


def _related(asked: Network, prefix: Network) -> bool:
    """Whether one holds the other: who asks for a pod's address wants its block's route."""
    return contains(asked, prefix) or contains(prefix, asked)


def _in_kernel(
    prefix: Network, outlook: Outlook, heard: Sequence[Heard], names: Mapping[int, str]
) -> Iterator[RouteStatus]:
    route = outlook.kernel.get(route_key(prefix))
    used = [each for each in heard if each.state == USED]
    for hop in route.next_hops if route else ():
        told = [each for each in used if hop.gateway in (each.path.next_hop, each.session.peer)]
        yield RouteStatus(
            type="FIB",
            destination=str(prefix),
            gateway=str(hop.gateway or ""),
            interface=names.get(hop.device, str(hop.device)),
            learned_from=_source((told or used)[0].session) if used else None,
            reason="" if used else "kept from before bgp started: no peer has confirmed it yet",
        )


def _path_of(prefix: Network, heard: Heard) -> RouteStatus:
    return RouteStatus(
        type="RIB",
        destination=str(prefix),
        gateway=str(heard.path.next_hop),
        learned_from=_source(heard.session),
        state=heard.state,
        reason=heard.why,
        path=_path(heard.path),
    )


def _source(session: Session) -> LearnedFrom:
    return LearnedFrom(source_type=_SOURCES.get(session.type, "BGPPeer"), peer_ip=str(session.peer))


def _path(path: Path | Attributes) -> PathStatus:
    return PathStatus(
        next_hop=str(path.next_hop or "self"),
        as_path=list(path.as_path),
        origin=path.origin.name,
        med=path.med,
        local_pref=path.local_pref,
        communities=list(path.communities),
    )


def _adverts(outlook: Outlook, within: Network | None, most: int, cut: list[str]) -> list[AdvertStatus]:
    meant = [
        advert
        for advert in outlook.wanted.keys() | outlook.acknowledged.keys()
        if advert.prefix is not None and (within is None or _related(within, advert.prefix))
    ]
    chosen = nsmallest(most, meant, key=_place)
    if len(chosen) < len(meant):
        cut.append(f"these are the first {len(chosen)} of {len(meant)} adverts")
    return [_advert(advert, outlook) for advert in chosen]


def _place(advert: Advert) -> tuple[int, int, tuple[int, int, int]]:
    assert advert.prefix is not None
    return advert.peer.version, int(advert.peer), order(advert.prefix)


def _advert(advert: Advert, outlook: Outlook) -> AdvertStatus:
    wanted, acknowledged = outlook.wanted.get(advert), outlook.acknowledged.get(advert)
    telling = wanted or acknowledged
    assert telling is not None
    return AdvertStatus(
        peer_ip=str(advert.peer),
        destination=str(advert.prefix),
        state="withdrawing" if wanted is None else "told" if wanted == acknowledged else "pending",
        path=_path(telling.attributes) if telling.attributes else None,
    )


def heard(learnt: Learnt, sessions: Mapping[Address, Session], prefix: Network) -> Sequence[Heard]:
    """Every path to `prefix` that is known, the used ones first, each with why it is used or not."""
    choice = learnt.choice(prefix)
    if choice is None:
        return ()
    used = {each.session.peer for each in choice.used}
    unfit = {each.session.peer: why for each, why in choice.refused}
    refusal = learnt.refused.get(prefix, "")
    found: list[Heard] = []
    for peer, path in learnt.rib.candidates(prefix):
        session = sessions.get(peer)
        if session is None:
            continue
        if peer in unfit:
            found.append(Heard(session=session, path=path, state=REFUSED, why=unfit[peer]))
        elif refusal:
            found.append(Heard(session=session, path=path, state=REFUSED, why=refusal))
        elif peer in used:
            found.append(Heard(session=session, path=path, state=USED, why=choice.reason))
        else:
            best = f" of {choice.best.session.peer}" if choice.best else ""
            found.append(Heard(session=session, path=path, state=NOT_BEST, why=f"{choice.reason}{best}"))
    return sorted(found, key=lambda each: (_STANDINGS.index(each.state), int(each.session.peer)))
