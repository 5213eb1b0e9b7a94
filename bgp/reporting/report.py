"""A node's answer to a CalicoNodeStatus: its speaker, sessions, routes with the reason for each, adverts. Pure.

    FIB   a route in the kernel, one line a next hop, with the peer it was learnt from
    RIB   a path that a peer tells, or told: used, not used, refused, withdrawn; with its attributes, and why

An object in the datastore has a bound, and so has a person's patience: the first MOST_ROUTES prefixes are told, fewer
when they take too many bytes, and the answer says of how many.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from importlib.metadata import version
from ipaddress import ip_address
from typing import Final, TypeAlias

import msgspec

from bgp.attributes import Attributes, Path
from bgp.model import PeerType, Speaker
from bgp.paths.decision import Explanation, Said, Standing
from bgp.telling.adverts import Advert, Told
from core.addr import Address, order
from core.prefix import Prefix
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
from linux.model import Facts, Route

MOST_ROUTES: Final = 5000
"""Prefixes of which an answer tells the routes, and adverts that it tells."""

MOST_BYTES: Final = 900_000
"""Of an answer: a value in the datastore may have a mebibyte."""

EXABGP: Final = version("exabgp")

ESTABLISHED: Final = "Established"


_STATES: Final = {ESTABLISHED: ESTABLISHED, "Blocked": "Blocked"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Everything an answer is made from. `explained` are the prefixes to tell of, in order, of `meant` that were asked
    for; `kernel` are the routes of ours that the kernel has, `withheld` own prefixes that a peer is not told, with why.
    `booted` and `configured` are when ExaBGP was started and last given other sessions, in RFC 3339."""

    speaker: Speaker | None
    state: SpeakerState
    explained: Mapping[Prefix, Explanation] = field(default_factory=dict)
    meant: int = 0
    kernel: Mapping[Prefix, Route] = field(default_factory=dict)
    wanted: Mapping[Advert, Told] = field(default_factory=dict)
    acknowledged: Mapping[Advert, Told] = field(default_factory=dict)
    withheld: Mapping[Advert, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    running: bool = False
    booted: str = ""
    configured: str = ""


def first(known: Collection[Prefix], asked: str) -> tuple[Sequence[Prefix], int]:
    """The prefixes to tell of, and how many are meant: those that hold what is asked for, or lie within it."""
    meant = known
    if asked:
        prefix = Prefix.of(network_or_address(asked))
        meant = [each for each in known if _related(prefix, each)]
    return nsmallest(MOST_ROUTES, meant, key=_place_of), len(meant)


def _related(asked: Prefix, other: Prefix) -> bool:
    """Whether one holds the other: who asks for a pod's address wants its block's route."""
    length = min(asked.length, other.length)
    return asked.version == other.version and asked.cut(length) == other.cut(length)


def _place_of(prefix: Prefix) -> tuple[int, bytes, int]:
    return prefix.version, prefix.packed, prefix.length


def report(spec: CalicoNodeStatusSpec, outlook: Outlook) -> NodeStatus:
    """The answer, of a size that the datastore takes."""
    most = MOST_ROUTES
    while True:
        status = _report(spec, outlook, most)
        if most == 1 or len(msgspec.json.encode(status)) <= MOST_BYTES:
            return status
        most //= 2


def _report(spec: CalicoNodeStatusSpec, outlook: Outlook, most: int) -> NodeStatus:
    asked, cut = set(spec.classes), list[str]()
    return NodeStatus(
        agent=_agent(outlook) if "Agent" in asked else None,
        bgp=_bgp(outlook.state.sessions) if "BGP" in asked else None,
        routes=_routes(outlook, most, cut) if "Routes" in asked else None,
        adverts=_adverts(outlook, spec.prefix, most, cut) if "Adverts" in asked else None,
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


def _routes(outlook: Outlook, most: int, cut: list[str]) -> RoutesStatus:
    chosen = list(outlook.explained.items())[:most]
    if len(chosen) < outlook.meant:
        cut.append(f"these are the routes of the first {len(chosen)} of {outlook.meant} prefixes")
    names = {link.index: name for name, link in outlook.facts.links.items()}
    types = {session.peer: session.type for session in (outlook.speaker.sessions if outlook.speaker else ())}
    found: dict[int, list[RouteStatus]] = {4: [], 6: []}
    for prefix, explained in chosen:
        found[prefix.version] += _in_kernel(explained, outlook.kernel.get(prefix), types, names)
        found[prefix.version] += (_path_of(explained, each, types) for each in explained.said)
    return RoutesStatus(routes_v4=found[4], routes_v6=found[6])


Types: TypeAlias = Mapping[Address, PeerType]
"""Who asked for the session with a peer."""


def _in_kernel(
    explained: Explanation, route: Route | None, types: Types, names: Mapping[int, str]
) -> Iterator[RouteStatus]:
    used = [each for each in explained.said if each.standing in (Standing.BEST, Standing.USED)]
    reason = explained.reason
    if explained.adopted:
        reason = "kept from before bgp started, until the peers have told what they have"
    for hop in route.next_hops if route else ():
        told = [each for each in used if hop.gateway in (each.path.next_hop, each.peer)]
        yield RouteStatus(
            type="FIB",
            destination=str(explained.prefix),
            gateway=str(hop.gateway or ""),
            interface=names.get(hop.device, str(hop.device)),
            learned_from=_source((told or used)[0], types) if used else None,
            reason=reason if explained.route else explained.why_not,
        )


def _path_of(explained: Explanation, said: Said, types: Types) -> RouteStatus:
    return RouteStatus(
        type="RIB",
        destination=str(explained.prefix),
        gateway=str(said.path.next_hop),
        learned_from=_source(said, types),
        state=said.standing,
        reason="; ".join(filter(None, _reasons(explained, said))),
        path=_path(said.path),
    )


def _reasons(explained: Explanation, said: Said) -> Iterator[str]:
    """Why it is used or not; and what else is to be said of it."""
    if said.standing is Standing.WITHDRAWN:
        yield f"{said.why}, {said.ago_s or 0:.0f} s ago"
        return
    used = said.standing in (Standing.BEST, Standing.USED)
    yield explained.reason if used else said.why
    if used and explained.route is None:
        yield explained.why_not
    if said.ago_s is not None:
        yield f"stale for {said.ago_s:.0f} s, dropped in {said.left_s or 0:.0f} s unless the peer tells it again"
    if said.last_resort:
        yield "a last resort"


def _source(said: Said, types: Types) -> LearnedFrom:
    mesh = types.get(said.peer) is PeerType.MESH
    return LearnedFrom(source_type="NodeMesh" if mesh else "BGPPeer", peer_ip=str(said.peer))


def _path(path: Path | Attributes) -> PathStatus:
    return PathStatus(
        next_hop=str(path.next_hop or "self"),
        as_path=list(path.as_path),
        origin=path.origin.name,
        med=path.med,
        local_pref=path.local_pref,
        communities=list(path.communities),
    )


def _adverts(outlook: Outlook, asked: str, most: int, cut: list[str]) -> list[AdvertStatus]:
    every = {**outlook.withheld, **outlook.wanted, **outlook.acknowledged}
    meant = [advert for advert in every if advert.prefix is not None]
    if asked:
        prefix = Prefix.of(network_or_address(asked))
        meant = [advert for advert in meant if advert.prefix and _related(prefix, Prefix.of(advert.prefix))]
    chosen = nsmallest(most, meant, key=_place)
    if len(chosen) < len(meant):
        cut.append(f"these are the first {len(chosen)} of {len(meant)} adverts")
    down = frozenset(each.peer for each in outlook.state.sessions if each.state != ESTABLISHED)
    return [_advert(advert, outlook, down) for advert in chosen]


def _place(advert: Advert) -> tuple[int, int, tuple[int, int, int]]:
    assert advert.prefix is not None
    return advert.peer.version, int(advert.peer), order(advert.prefix)


def _advert(advert: Advert, outlook: Outlook, down: Collection[str]) -> AdvertStatus:
    """ExaBGP acknowledges what it is to tell over a session that is down, too; nobody hears it before that is up."""
    wanted, acknowledged = outlook.wanted.get(advert), outlook.acknowledged.get(advert)
    telling = wanted or acknowledged
    if telling is None:
        why = outlook.withheld[advert]
        return AdvertStatus(peer_ip=str(advert.peer), destination=str(advert.prefix), state="not told", reason=why)
    state = "withdrawing" if wanted is None else "told" if wanted == acknowledged else "pending"
    if str(advert.peer) in down:
        state = "waiting"
    return AdvertStatus(
        peer_ip=str(advert.peer),
        destination=str(advert.prefix),
        state=state,
        path=_path(telling.attributes) if telling.attributes else None,
    )
