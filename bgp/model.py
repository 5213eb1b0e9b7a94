"""What a node's speaker is and what it hears, as frozen values."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from core.addr import Address, Family, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Who this speaker is: its node, the datastore's address (`unix:PATH` or `HOST:PORT`), and where it keeps files.

    One agent a node, one node a network namespace; several on one machine have run directories of their own.
    """

    node: str
    datastore: str
    run_dir: pathlib.Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One BGP session that may be open.

    `name` says where it comes from (`BGPPeer/rack-1`, `mesh/node-b`). `local` None lets the kernel pick the source.
    `passive` waits to be called. `ttl_hops` is the greatest distance at which the peer is believed (RFC 5082), None
    for no check. `restart_s` is the graceful restart time we ask for. `own_as_allowed` is how often our own AS may
    stand in a received path.
    """

    name: str
    peer: Address
    port: int
    local: Address | None
    local_as: int
    remote_as: int
    hold_s: int
    restart_s: int
    passive: bool = False
    ttl_hops: int | None = None
    own_as_allowed: int = 0

    @property
    def family(self) -> Family:
        """The one family whose prefixes the session carries: that of its own addresses."""
        return Family(self.peer.version)

    @property
    def internal(self) -> bool:
        """Whether it is iBGP."""
        return self.local_as == self.remote_as


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A session that somebody asked for and that must not be opened; `peer` is the address as far as it is known."""

    name: str
    peer: str
    remote_as: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """What a node's speaker should be.

    `addresses` are the node's own, `listen` those it answers on; `adverts` go to every session.
    """

    router_id: IPv4Address
    as_number: int
    port: int
    listen: tuple[Address, ...]
    addresses: tuple[Address, ...] = ()
    sessions: tuple[Session, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    adverts: tuple[Network, ...] = ()
    problems: tuple[str, ...] = ()


class Origin(IntEnum):
    """The ORIGIN attribute; a lower one is preferred."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What one peer says of one prefix.

    `as_path` is flat, for reading and for finding loops; `as_path_length` counts a set as one (RFC 4271, 9.1.2.2).
    `med` absent is 0 and `local_pref` absent is 100, as in every implementation the racks run.
    """

    next_hop: Address
    as_path: tuple[int, ...] = ()
    as_path_length: int = 0
    origin: Origin = Origin.IGP
    med: int = 0
    local_pref: int = 100
    communities: tuple[str, ...] = ()
