"""What a node's speaker is and what it hears, as frozen values."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address
from types import MappingProxyType

from bgp.paths.filters import Filter
from core.addr import Address, Family, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Who this speaker is: its node, the datastore's address (`unix:PATH` or `HOST:PORT`), and where it keeps files.

    One agent a node, one node a network namespace; several on one machine have run directories of their own.
    """

    node: str
    datastore: str
    run_dir: pathlib.Path


class PeerType(StrEnum):
    """Who asked for a session, in CalicoNodeStatus' words."""

    MESH = "NodeMesh"
    NODE = "NodePeer"
    GLOBAL = "GlobalPeer"


class NextHopMode(StrEnum):
    """What stands as next hop in routes told on: ours (`Self`), the one heard (`Keep`), or by the kind of session:
    ours to eBGP, the one heard to iBGP (`Auto`)."""

    AUTO = "Auto"
    SELF = "Self"
    KEEP = "Keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bfd:
    """How the path to a peer is watched (RFC 5880): times in milliseconds, lost after `multiplier` missed packets."""

    transmit_ms: int = 300
    receive_ms: int = 300
    multiplier: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One BGP session that may be open.

    `name` says where it comes from (`BGPPeer/rack-1`, `mesh/node-b`), `node` which node is at the other end ("" for a
    router). `local` None lets the kernel pick the source. `passive` waits to be called. `ttl_hops` is the greatest
    distance at which the peer is believed (RFC 5082), None for no check. `restart_s` is the graceful restart time we
    ask for, `long_lived_s` how long a lost peer's routes stay as a last resort after it (RFC 9494). `own_as_allowed`
    is how often our own AS may stand in a received path. `gateway` is where the peer is reached when it is on no link
    of ours. `client` says we reflect to it (RFC 4456). `filters` are asked in order, both ways. `most_in` and
    `most_out` bound the prefixes taken and told. `within`, when there is any, bounds what is imported.
    """

    name: str
    peer: Address
    port: int
    local: Address | None
    local_as: int
    remote_as: int
    hold_s: int
    restart_s: int
    type: PeerType = PeerType.GLOBAL
    node: str = ""
    passive: bool = False
    ttl_hops: int | None = None
    own_as_allowed: int = 0
    password: str = field(default="", repr=False)
    gateway: Address | None = None
    client: bool = False
    next_hop_mode: NextHopMode = NextHopMode.AUTO
    filters: tuple[Filter, ...] = ()
    most_in: int | None = None
    most_out: int | None = None
    long_lived_s: int = 0
    bfd: Bfd | None = None
    within: tuple[Network, ...] = ()

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


class Maintenance(StrEnum):
    """How far a node is drained (`spec.bgp.maintenance` of its Node)."""

    NONE = ""
    GRACEFUL_SHUTDOWN = "GracefulShutdown"
    """Own routes are told with GSHUT (RFC 8326), so that who has another way takes it."""
    WITHDRAWN = "Withdrawn"
    """Nothing is told any more: safe to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What a node says of a prefix of its own. `source` says why it is told: `block`, `borrowed`, `service`.

    `communities` are "64512:1" or, large, "64512:1:2"; `priority` is the route's metric in Calico's sense: lower wins.
    """

    source: str
    communities: tuple[str, ...] = ()
    priority: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """What a node's speaker should be.

    `addresses` are the node's own, `listen` those it answers on. `cluster_id` is set when it reflects (RFC 4456).
    `own` is what this node originates, with what is said of it; `bgp.telling.export` says what each session is told.
    `pools` are the exported pools, of whose prefixes it tells others when it reflects. `maintenance` is what the node
    is being prepared for.
    """

    router_id: IPv4Address
    as_number: int
    port: int
    listen: tuple[Address, ...]
    addresses: tuple[Address, ...] = ()
    sessions: tuple[Session, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    own: Mapping[Network, Own] = field(default_factory=lambda: MappingProxyType({}))
    pools: tuple[Network, ...] = ()
    cluster_id: IPv4Address | None = None
    maintenance: Maintenance = Maintenance.NONE
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
