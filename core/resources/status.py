"""What the agents report: one object per node and agent, so that one place shows the whole cluster.

These are muslin's own (`muslin.io/v1`). They are written by the node's agents, never by users, and nobody compiles
from them, so a status never causes work elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from core.names import Kind
from core.resources.base import Base, Resource

REPORT_EVERY_S: Final = 15.0
"""An agent writes its status this often (seconds) even when nothing in it has changed."""

SILENT_AFTER_S: Final = 60.0
"""An agent that has not written its status for this long (seconds) is taken to be dead."""


class EndpointState(Base, frozen=True, kw_only=True):
    """One workload endpoint: `up` (routes and policy in the kernel), `pending` (no such interface yet) or `error`.

    `link` is the index of the interface that its routes lead to (0: none).
    """

    state: str
    reason: str = ""
    link: int = 0


class FelixState(Base, frozen=True, kw_only=True):
    """What felix has made of the datastore. `programmed` is the newest revision wholly in the kernel.

    `stale` says the datastore is away and felix works from its last snapshot. `endpoints` is by
    "namespace/name" and speaks of the revision `decided`, which may be newer than `programmed`: trouble elsewhere holds
    that back. `problems` name objects that were set aside, with the reason. `since` is when `ready` last
    changed, `reported` when this was written, by the node's own clock. Times are RFC 3339 in UTC.
    """

    programmed: int = 0
    decided: int = 0
    stale: bool = False
    ready: bool = False
    since: str = ""
    reported: str = ""
    endpoints: Mapping[str, EndpointState] = {}
    routes: int = 0
    problems: list[str] = []


class FelixStatus(Resource, frozen=True, kw_only=True):
    """Felix on one node, named as the node."""

    KIND: ClassVar[Kind] = Kind("muslin.io", "felixstatuses", "FelixStatus", "v1", False)
    status: FelixState


class SessionState(Base, frozen=True, kw_only=True):
    """One BGP session, by the peer's address. `state` is `Established`, `Down` or `Blocked` with the reason.

    `name` says where it comes from (`BGPPeer/rack-1`, `mesh/node-b`), `type` in CalicoNodeStatus' words, `node` which
    node is at the other end ("": none of ours). `since` is when `state` last changed, `flaps` how often it went down
    since the agent started, `last_error` why it last did and `last_error_at` when; they stay when it comes up again.

    Prefixes: the peer tells `received`, of which `accepted` may be used and the others are refused, by cause in
    `refused`; we tell `advertised` and have `pending` that are not acknowledged yet. `most_in` and `most_out` are the
    limits (0: none), `warnings` what a person should see although the session stands. `hold_s` is the hold time that
    was agreed on, in seconds (0: none, or not connected), `bfd` the state of BFD ("": off), `bfd_flaps` how often it
    lost the peer.
    """

    peer: str
    name: str
    as_number: int
    state: str
    since: str = ""
    reason: str = ""
    received: int = 0
    advertised: int = 0
    type: str = ""
    node: str = ""
    local_as: int = 0
    flaps: int = 0
    last_error: str = ""
    last_error_at: str = ""
    accepted: int = 0
    refused: Mapping[str, int] = {}
    pending: int = 0
    most_in: int = 0
    most_out: int = 0
    warnings: list[str] = []
    hold_s: int = 0
    families: list[str] = []
    bfd: str = ""
    bfd_flaps: int = 0


class Difference(Base, frozen=True, kw_only=True):
    """A prefix that is not where it should be, and has not been for some seconds.

    `stage` says how far it came: `told` (own, and `peer` has not been told), `heard` (of `node`, and no peer tells us,
    or it is refused), `kernel` (to be routed, and the kernel's route is missing, another, or one that should be gone).
    """

    stage: str
    prefix: str
    peer: str = ""
    node: str = ""
    why: str = ""


class SpeakerState(Base, frozen=True, kw_only=True):
    """What bgp has made of the datastore: sessions, routes from peers in the kernel, own prefixes that peers are told.

    `since` and `reported` are as in `FelixState`. `told` is the newest revision of which everything has been told to
    peers (ExaBGP has acknowledged it), `maintenance` what of the node's `spec.bgp.maintenance` that includes. `heard`
    counts the prefixes that peers speak of, `pending` adverts that are not acknowledged, `restarts` how often ExaBGP
    was started again. `differences` are the first of `different` in all.
    """

    programmed: int = 0
    stale: bool = False
    ready: bool = False
    since: str = ""
    reported: str = ""
    as_number: int = 0
    sessions: list[SessionState] = []
    routes_in: int = 0
    routes_out: list[str] = []
    problems: list[str] = []
    told: int = 0
    maintenance: str = ""
    heard: int = 0
    pending: int = 0
    restarts: int = 0
    different: int = 0
    differences: list[Difference] = []


class SpeakerStatus(Resource, frozen=True, kw_only=True):
    """bgp on one node, named as the node."""

    KIND: ClassVar[Kind] = Kind("muslin.io", "speakerstatuses", "SpeakerStatus", "v1", False)
    status: SpeakerState
