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
    """One workload endpoint: `up` (routes and policy in the kernel), `pending` (no such interface yet) or `error`."""

    state: str
    reason: str = ""


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
    """One BGP session, by the peer's address. `state` is `Established`, `Down` or `Blocked` with the reason."""

    peer: str
    name: str
    as_number: int
    state: str
    since: str = ""
    reason: str = ""
    received: int = 0
    advertised: int = 0


class SpeakerState(Base, frozen=True, kw_only=True):
    """What bgp has made of the datastore: sessions, routes from peers in the kernel, own blocks advertised.

    `since` and `reported` are as in `FelixState`.
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


class SpeakerStatus(Resource, frozen=True, kw_only=True):
    """bgp on one node, named as the node."""

    KIND: ClassVar[Kind] = Kind("muslin.io", "speakerstatuses", "SpeakerStatus", "v1", False)
    status: SpeakerState
