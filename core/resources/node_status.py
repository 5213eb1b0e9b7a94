"""CalicoNodeStatus: what one node's speaker is asked to say of itself, and its answer. calico.md 1.4.

    a person ── spec {node, classes, period} ──> datastore ──> that node's bgp ── status ──> datastore ──> anyone

Times are RFC 3339 in UTC. What Calico does not have is muslin's own, and optional: it says why.
"""

from __future__ import annotations

from typing import ClassVar, Final

from msgspec import field

from core.names import Kind
from core.resources.base import Base, Resource, calico

CLASSES: Final = ("Agent", "BGP", "Routes", "Adverts")
"""What may be asked for; `Adverts` is muslin's own."""

DEFAULT_PERIOD_S: Final = 10
LONGEST_PERIOD_S: Final = 86400


class CalicoNodeStatusSpec(Base, frozen=True, kw_only=True):
    """Which node is asked, for what, and how often it answers (seconds; 0: once).

    `prefix` is muslin's own: only routes to it, to a part of it, or to what holds it are told.
    """

    node: str = ""
    classes: list[str] = []
    update_period_seconds: int | None = None
    prefix: str = ""

    @property
    def period_s(self) -> int:
        """Seconds between two answers; 0 is one answer only."""
        return DEFAULT_PERIOD_S if self.update_period_seconds is None else self.update_period_seconds


class DaemonStatus(Base, frozen=True, kw_only=True):
    """A speaker of one family: `Ready` or `NotReady`, since when it runs and has had its configuration."""

    state: str = ""
    version: str = ""
    router_id: str = field(default="", name="routerID")
    last_boot_time: str = ""
    last_reconfiguration_time: str = ""
    reason: str = ""


class AgentStatus(Base, frozen=True, kw_only=True):
    """The speaker, by family."""

    bird_v4: DaemonStatus | None = None
    bird_v6: DaemonStatus | None = None


class PeerStatus(Base, frozen=True, kw_only=True):
    """One session. `type` is NodeMesh, NodePeer or GlobalPeer; `state` a BGP state's name, or `Blocked`.

    muslin's own: `name` is what asked for it, `asNumber` the peer's; `reason` says why it is not up.
    """

    peer_ip: str = field(name="peerIP")
    type: str = ""
    state: str = ""
    since: str = ""
    name: str = ""
    as_number: int | None = None
    reason: str = ""
    received: int | None = None
    advertised: int | None = None


class BGPStatus(Base, frozen=True, kw_only=True):
    """The sessions, by family."""

    number_established_v4: int = 0
    number_not_established_v4: int = 0
    peers_v4: list[PeerStatus] = []
    number_established_v6: int = 0
    number_not_established_v6: int = 0
    peers_v6: list[PeerStatus] = []


class LearnedFrom(Base, frozen=True, kw_only=True):
    """Where a route comes from: `Kernel`, `Static`, `Direct`, `NodeMesh` or `BGPPeer`, and from whom."""

    source_type: str = ""
    peer_ip: str = field(default="", name="peerIP")


class PathStatus(Base, frozen=True, kw_only=True):
    """The attributes of a path, as heard or as told (muslin's own). What is None is not told."""

    next_hop: str = ""
    as_path: list[int] = []
    origin: str = ""
    med: int | None = None
    local_pref: int | None = None
    communities: list[str] = []


class RouteStatus(Base, frozen=True, kw_only=True):
    """One route: `FIB` (in the kernel) or `RIB` (a path that a peer tells, used or not).

    muslin's own: `state` says what became of a path (`used`, `not best`, `refused`, `stale`, `withdrawn`), `reason`
    why, `path` has its attributes.
    """

    type: str
    destination: str
    gateway: str = ""
    interface: str = ""
    learned_from: LearnedFrom | None = None
    reason: str = ""
    state: str = ""
    path: PathStatus | None = None


class AdvertStatus(Base, frozen=True, kw_only=True):
    """One prefix that a peer is told (muslin's own): `told`, or `pending` or `withdrawing` while ExaBGP has not
    acknowledged that, or `waiting` while the session is down. An own prefix that it is not told is `not told`, with the
    reason."""

    peer_ip: str = field(name="peerIP")
    destination: str
    state: str = ""
    reason: str = ""
    path: PathStatus | None = None


class RoutesStatus(Base, frozen=True, kw_only=True):
    """The routes, by family."""

    routes_v4: list[RouteStatus] = []
    routes_v6: list[RouteStatus] = []


class NodeStatus(Base, frozen=True, kw_only=True):
    """The node's answer, with each class that was asked for. `reason` is muslin's own: what is left out, and why."""

    last_updated: str = ""
    agent: AgentStatus | None = None
    bgp: BGPStatus | None = None
    routes: RoutesStatus | None = None
    adverts: list[AdvertStatus] | None = None
    reason: str = ""


class CalicoNodeStatus(Resource, frozen=True, kw_only=True):
    """A question to one node's speaker, and its answer."""

    KIND: ClassVar[Kind] = calico("caliconodestatuses", "CalicoNodeStatus")
    spec: CalicoNodeStatusSpec = CalicoNodeStatusSpec()
    status: NodeStatus | None = None
