"""What a node's speaker is, as frozen values."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
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
