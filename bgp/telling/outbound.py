"""What is said of one prefix to sessions that are alike, or why nothing is. Pure.

    own prefixes ── export filters ── nobody rejects ─────────────────────────┐
                                                                              ├──> attributes
    best paths ── NO_EXPORT and its kin ─┬─ an export filter accepts ─────────┤
                                         └─ we reflect, it lies in a pool, ───┘
                                            no filter rejects
    heard over iBGP, told over iBGP: by a reflector only, whatever a filter says

Nothing that was learnt is told on unless somebody wrote that it should be: a node is no transit by accident.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from bgp.attributes import Attributes, Path
from bgp.model import Maintenance, NextHopMode, Own, Session, Speaker
from bgp.paths.bestpath import Candidate
from bgp.paths.filters import Action, Context, Direction, Filter, judge
from bgp.paths.priority import local_pref
from bgp.paths.reflection import reflects
from core.addr import Address, Family, Network, contains

NO_EXPORT: Final = "65535:65281"
NO_ADVERTISE: Final = "65535:65282"
NO_EXPORT_SUBCONFED: Final = "65535:65283"
GRACEFUL_SHUTDOWN: Final = "65535:0"
"""Well-known communities (RFC 1997, RFC 8326)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """All of a session that matters to what it may be told, but for who is at the other end."""

    family: Family
    internal: bool
    client: bool
    local_as: int
    mode: NextHopMode
    filters: tuple[Filter, ...]

    @property
    def asks(self) -> bool:
        """Whether its filters have anything to say of what is told."""
        return any(each.rules(Direction.EXPORT, self.family) for each in self.filters)


def kind(session: Session) -> Kind:
    """The kind of a session."""
    return Kind(
        family=session.family,
        internal=session.internal,
        client=session.client,
        local_as=session.local_as,
        mode=session.next_hop_mode,
        filters=session.filters,
    )


def outcome(speaker: Speaker, to: Kind, prefix: Network, best: Candidate | None) -> Attributes | str:
    """What sessions of a kind are told of a prefix, or why they are told nothing. What is ours is told as ours,
    whoever else tells it."""
    if speaker.maintenance is Maintenance.WITHDRAWN:
        return "everything is withdrawn: Node spec.bgp.maintenance is Withdrawn"
    own = speaker.own.get(prefix)
    leaving = speaker.maintenance is Maintenance.GRACEFUL_SHUTDOWN
    if own is not None:
        return _own(to, prefix, own, leaving=leaving)
    if best is None:
        return "there is no path to it"
    return _learnt(speaker, to, prefix, best, leaving=leaving)


def returns(said: Attributes, best: Candidate) -> Iterator[tuple[Address, str]]:
    """The peers that a learnt prefix is kept from although others of their kind are told, each with why."""
    yield best.session.peer, "the peer told it to us"
    if said.originator is not None:
        yield said.originator, "the peer told it first (ORIGINATOR_ID)"
    if said.next_hop is not None:
        yield said.next_hop, "the peer itself is its next hop"


def _own(to: Kind, prefix: Network, own: Own, *, leaving: bool) -> Attributes | str:
    context = Context(internal=to.internal, learnt=False, heard_internal=True)
    judgement = judge(to.filters, Direction.EXPORT, prefix, _own_path(own, prefix.version), context)
    if judgement.action is Action.REJECT:
        return f"{judgement.reason} rejects it"
    return _attributes(to.internal, to.local_as, None, judgement.path, None, leaving)


@lru_cache(maxsize=1024)
def _own_path(own: Own, version: int) -> Path:
    """What we say of a prefix, in the terms of what others say: filters judge both. Our next hop has no address yet."""
    nowhere = IPv4Address(0) if version == 4 else IPv6Address(0)
    preference = local_pref(own.priority, internal=True)
    return Path(next_hop=nowhere, local_pref=preference, communities=own.communities)


def _learnt(speaker: Speaker, to: Kind, prefix: Network, candidate: Candidate, *, leaving: bool) -> Attributes | str:
    source, path = candidate.session, candidate.path
    within = source.internal and to.internal
    why = _well_known(path, to) or (_unreflected(speaker, to, candidate) if within else "")
    if why:
        return why
    context = Context(internal=to.internal, heard_internal=source.internal, device=candidate.device)
    judgement = judge(to.filters, Direction.EXPORT, prefix, path, context)
    if judgement.action is Action.REJECT:
        return f"{judgement.reason} rejects it"
    if judgement.action is None and not within:
        return "it was learnt, and no export filter accepts it"
    if judgement.action is None and not any(contains(pool, prefix) for pool in speaker.pools):
        return "it lies in no exported IPPool, and no export filter accepts it"
    heard = path.next_hop if to.mode is NextHopMode.KEEP or (to.internal and to.mode is NextHopMode.AUTO) else None
    marks = (path.originator or candidate.router_id, speaker.cluster_id, *path.clusters) if within else None
    return _attributes(to.internal, to.local_as, heard, judgement.path, marks, leaving)


def _well_known(path: Path, to: Kind) -> str:
    """Why a path's own communities forbid to tell it on. We have no confederation, so its borders are the AS's."""
    if NO_ADVERTISE in path.communities:
        return "it was told with NO_ADVERTISE"
    limits = {NO_EXPORT: "NO_EXPORT", NO_EXPORT_SUBCONFED: "NO_EXPORT_SUBCONFED"}
    found = next((limits[each] for each in path.communities if each in limits), "")
    return f"it was told with {found}" if found and not to.internal else ""


def _unreflected(speaker: Speaker, to: Kind, candidate: Candidate) -> str:
    """Why what was heard over iBGP is not told over iBGP; "" when we reflect it, which is a matter within one AS."""
    if candidate.session.local_as != to.local_as:
        return (
            f"it was learnt over iBGP of AS {candidate.session.local_as}, and this session is one of AS {to.local_as}"
        )
    if speaker.cluster_id is None:
        return "it was learnt over iBGP, and this node is no route reflector"
    if not reflects(from_client=candidate.session.client, to_client=to.client):
        return "neither the peer that told it nor this one is a client of ours"
    if candidate.path.originator is None and candidate.router_id is None:
        return f"the router id of {candidate.session.peer}, which has to go with it, is not known"
    return ""


@lru_cache(maxsize=16384)
def _attributes(
    internal: bool,
    local_as: int,
    next_hop: Address | None,
    path: Path,
    marks: tuple[IPv4Address | None, ...] | None,
    leaving: bool,
) -> Attributes:
    """What goes on the wire; prefixes that are told alike share one value. `marks` are a reflected route's originator
    and clusters. MED is for the AS it was told to (RFC 4271, 5.1.4), so it goes no further than iBGP."""
    communities = path.communities
    if leaving and GRACEFUL_SHUTDOWN not in communities:
        communities = (*communities, GRACEFUL_SHUTDOWN)
    originator, *clusters = marks or (None,)
    return Attributes(
        next_hop=next_hop,
        as_path=path.as_path if internal else (local_as, *path.as_path),
        origin=path.origin,
        med=(path.med or None) if internal else None,
        local_pref=(0 if leaving else path.local_pref) if internal else None,
        communities=communities,
        originator=originator,
        clusters=tuple(each for each in clusters if each is not None),
    )
