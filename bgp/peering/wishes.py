"""Sessions that somebody asks for, and what becomes of each: opened, or blocked with the reason. Pure.

BGPPeer, mesh ──> Wish: who is at the other end ──┐
              ──> Terms: how it is held ──────────┴──> Session | Blocked
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from bgp.model import Blocked, PeerType, Session
from bgp.peering.settings import Settings, settings
from bgp.peering.terms import Terms
from core.addr import Address, Network
from core.peering import DEFAULT_PORT
from core.resources import Node
from core.snapshot import Snapshot

FAMILIES: Final = (4, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The other end of a session. `waits`: it calls us. `cluster` is what it reflects for, if it does; `local` is our
    end where it is not the node's address."""

    name: str
    type: PeerType
    peer: Address
    remote_as: int
    port: int = DEFAULT_PORT
    node: str = ""
    cluster: IPv4Address | None = None
    waits: bool = False
    local: Address | None = None
    within: tuple[Network, ...] = ()


def opened(wish: Wish, terms: Terms, ours: Settings) -> Session | Blocked:
    """The session that is wished for, if this node has an address for it. One that waits to be called has no source to
    choose: it is called at that address, and ExaBGP takes no call for a session whose own it does not know."""
    local = wish.local or ours.address(wish.peer.version)
    if local is None:
        return blocked(wish, f"this node has no IPv{wish.peer.version} address")
    internal, waits = terms.local_as == wish.remote_as, terms.passive or wish.waits
    return Session(
        name=wish.name,
        peer=wish.peer,
        port=wish.port,
        local=None if terms.any_source and wish.local is None and not waits else local,
        local_as=terms.local_as,
        remote_as=wish.remote_as,
        hold_s=terms.hold_s,
        restart_s=terms.restart_s,
        type=wish.type,
        node=wish.node,
        passive=waits,
        ttl_hops=terms.ttl_hops,
        own_as_allowed=terms.own_as_allowed,
        password=terms.password,
        gateway=terms.gateway,
        client=internal and ours.cluster_id is not None and wish.cluster != ours.cluster_id,
        next_hop_mode=terms.next_hop_mode,
        filters=terms.filters,
        most_in=terms.most_in,
        most_out=terms.most_out,
        long_lived_s=terms.long_lived_s,
        bfd=terms.bfd,
        within=wish.within,
    )


def blocked(wish: Wish, reason: str) -> Blocked:
    """A wish that is not granted."""
    return Blocked(name=wish.name, peer=str(wish.peer), remote_as=wish.remote_as, reason=reason)


def with_node(
    name: str, type_: PeerType, snapshot: Snapshot, ours: Settings, other: Node, *, both: bool
) -> Iterator[Wish]:
    """One session a family that both nodes have; when `both` ends know of it, the higher address calls.

    Raises ValueError when the other node's AS number is none.
    """
    theirs = settings(snapshot, other)
    for version in FAMILIES:
        local, remote = ours.address(version), theirs.address(version)
        if local is not None and remote is not None:
            yield Wish(
                name=name,
                type=type_,
                peer=remote,
                remote_as=theirs.as_number,
                port=theirs.port,
                node=other.metadata.name,
                cluster=theirs.cluster_id,
                waits=both and int(local) < int(remote),
            )
