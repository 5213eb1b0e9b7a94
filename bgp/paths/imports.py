"""Which of a peer's paths may be used, and as what: the guard rails, a session's filters, the marks of RFCs.

    path of a peer ── sound? ── not ours? ── within what the session may? ── filters ──> Reject: refused, with the rule
                                                                            ├──> Accept: taken, as the rule changes it
                                                                            └──> nothing: taken if it lies in a pool
    taken ── GSHUT over eBGP: local preference 0 ── reached? ──> Candidate

A path that is refused stays where it is, with why (`muslin bgp routes --why`). Nothing here raises on what a peer says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final

from bgp.attributes import Path
from bgp.model import Session, Speaker
from bgp.paths.bestpath import Candidate
from bgp.paths.fib import Place, Refusal, Resolve
from bgp.paths.filters import Action, Context, Direction, Judgement, decide
from core.addr import Address, contains
from core.prefix import Prefix

GSHUT: Final = "65535:0"
"""GRACEFUL_SHUTDOWN (RFC 8326): its sender is about to go."""

PATH_DOWN: Final = "BFD says the path is down"


OURS: Final = "ours"
"""Why nobody is believed about a prefix of our own: what a router echoes, too."""


@dataclass(frozen=True, slots=True)
class Us:
    """What of our own a path must not hold."""

    router_id: IPv4Address | None = None
    cluster_id: IPv4Address | None = None
    addresses: frozenset[Address] = frozenset()


def us(speaker: Speaker | None, addresses: Collection[Address]) -> Us:
    """Ourselves: what the speaker is, as far as that is known, and every address that the host has."""
    if speaker is None:
        return Us(addresses=frozenset(addresses))
    return Us(speaker.router_id, speaker.cluster_id, frozenset((*speaker.addresses, *addresses)))


def unsound(session: Session, path: Path, ours: Us) -> Refusal:
    """Why a path may not be used for any prefix; "" when it may."""
    if path.as_path.count(session.local_as) > session.own_as_allowed:
        return f"our AS {session.local_as} stands in the path: a loop (BGPPeer numAllowedLocalASNumbers allows it)"
    if 0 in path.as_path:
        return "AS 0 stands in the path (RFC 7607)"
    if not session.internal and not path.as_path:
        return "an eBGP peer must put its AS number into the path (RFC 4271, 5.1.2)"
    if path.originator is not None and path.originator == ours.router_id:
        return "we are its originator: it was reflected back (RFC 4456)"
    if ours.cluster_id is not None and ours.cluster_id in path.clusters:
        return f"our cluster {ours.cluster_id} stands in its cluster list: a loop (RFC 4456)"
    return _martian(session, path.next_hop, ours)


def _martian(session: Session, hop: Address, ours: Us) -> Refusal:
    if hop == session.local or hop in ours.addresses:
        return "we are the next hop"
    if hop.version != session.peer.version:
        return f"next hop {hop} is not of the prefix's family"
    for bad, kind in (
        (hop.is_unspecified, "no address"),
        (hop.is_multicast, "a multicast group"),
        (hop.is_loopback, "a loopback address"),
        (hop.version == 4 and hop.is_reserved, "in no network (240.0.0.0/4)"),
    ):
        if bad:
            return f"next hop {hop} is {kind}"
    return ""


def judged(session: Session, prefix: Prefix, path: Path, resolve: Resolve) -> Judgement | None:
    """What a session that judges prefix by prefix says of this one; None when it judges by the path alone."""
    if session.within and not any(contains(each, prefix.network) for each in session.within):
        return Judgement(Action.REJECT, path, f"outside what {session.name} may import")
    if not session.filters:
        return Judgement(None, path) if session.within else None
    reached = resolve(path.next_hop)
    device = "" if isinstance(reached, str) else reached.device
    context = Context(internal=session.internal, heard_internal=session.internal, device=device)
    found = decide(session.filters, Direction.IMPORT, prefix.packed, prefix.length, path, context)
    if found.action is Action.REJECT:
        return Judgement(found.action, path, f"rejected by {found.reason}")
    return Judgement(found.action, found.path)


def taken(candidate: Candidate, place: Place, judgement: Judgement | None, resolve: Resolve) -> Candidate | Refusal:
    """A sound path as it is used for a prefix that lies in `place`, or why it is not."""
    if place.ours:
        return OURS
    verdict = judgement or Judgement(None, candidate.path)
    if verdict.action is Action.REJECT:
        return verdict.reason
    if verdict.action is None and not place.pool:
        return "in no IPPool"
    path, reached = verdict.path, resolve(candidate.path.next_hop)
    if isinstance(reached, str):
        return reached
    if GSHUT in path.communities and not candidate.session.internal:
        path = replace(path, local_pref=0)
    return replace(candidate, path=path, device=reached.device)
