"""What is said of prefixes, by peers and by us."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

from core.addr import Address


class Origin(IntEnum):
    """The ORIGIN attribute; a lower one is preferred."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What one peer says of one prefix.

    `as_path` is flat, for reading and for finding loops; `as_path_length` counts a set as one (RFC 4271, 9.1.2.2).
    `med` absent is 0 and `local_pref` absent is 100, as in every implementation the racks run. `communities` are
    standard and large ones ("64512:1", "64512:1:2"). `originator` and `clusters` are a reflected route's (RFC 4456).
    """

    next_hop: Address
    as_path: tuple[int, ...] = ()
    as_path_length: int = 0
    origin: Origin = Origin.IGP
    med: int = 0
    local_pref: int = 100
    communities: tuple[str, ...] = ()
    originator: IPv4Address | None = None
    clusters: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What a peer is told with a prefix. `next_hop` None is ourselves. `as_path` is what stands on the wire, our own AS
    with it; `local_pref` is for iBGP only."""

    next_hop: Address | None = None
    as_path: tuple[int, ...] = ()
    origin: Origin = Origin.IGP
    med: int | None = None
    local_pref: int | None = None
    communities: tuple[str, ...] = ()
    originator: IPv4Address | None = None
    clusters: tuple[IPv4Address, ...] = ()
