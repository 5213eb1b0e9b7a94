"""On what terms sessions are held: what a BGPPeer, or the mesh, asks for beyond who the peer is. Pure.

Terms are for all sessions of one BGPPeer. A filter or a password that is named and cannot be had is a ValueError which
says what, and none of those sessions is opened: in its place would stand one that is open where somebody asked for
closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from bgp.model import Bfd, NextHopMode
from bgp.paths.filters import Filter, compiled
from bgp.peering.secrets import password
from bgp.peering.settings import DEFAULT_HOLD_S, DEFAULT_RESTART_S, MAX_HOLD_S, MAX_RESTART_S, Settings, asked_as
from core.addr import Address
from core.names import Key
from core.resources import BGPFilter
from core.resources.bgp import BGPConfigurationSpec, BGPPeerSpec
from core.snapshot import Snapshot
from core.values import address, duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """As in `bgp.model.Session`; `any_source` lets the kernel pick our address."""

    local_as: int
    hold_s: int = DEFAULT_HOLD_S
    restart_s: int = DEFAULT_RESTART_S
    any_source: bool = False
    passive: bool = False
    ttl_hops: int | None = None
    own_as_allowed: int = 0
    password: str = field(default="", repr=False)
    gateway: Address | None = None
    next_hop_mode: NextHopMode = NextHopMode.AUTO
    filters: tuple[Filter, ...] = ()
    most_in: int | None = None
    most_out: int | None = None
    long_lived_s: int = 0
    bfd: Bfd | None = None


def of_peer(spec: BGPPeerSpec, snapshot: Snapshot, ours: Settings) -> Terms:
    """The terms of a BGPPeer's sessions."""
    return Terms(
        local_as=asked_as(spec.local_as_number) or ours.as_number,
        hold_s=_hold(spec),
        restart_s=_restart(spec.max_restart_time),
        any_source=spec.source_address == "None",
        passive=spec.passive,
        ttl_hops=None if spec.ttl_security is None else max(1, spec.ttl_security),
        own_as_allowed=spec.num_allowed_local_as_numbers or 0,
        password=password(snapshot, spec.password),
        gateway=address(spec.reachable_by) if spec.reachable_by else None,
        next_hop_mode=_next_hop_mode(spec),
        filters=tuple(_filter(snapshot, name) for name in spec.filters),
        most_in=spec.max_prefixes_in,
        most_out=spec.max_prefixes_out,
        long_lived_s=int(duration(spec.long_lived_restart_time)) if spec.long_lived_restart_time else 0,
        bfd=_bfd(spec),
    )


def of_mesh(spec: BGPConfigurationSpec | None, snapshot: Snapshot, ours: Settings) -> Terms:
    """The terms of the mesh's sessions: no filters, as in Calico."""
    return Terms(
        local_as=ours.as_number,
        restart_s=_restart(spec.node_mesh_max_restart_time if spec else None),
        password=password(snapshot, spec.node_mesh_password if spec else None),
    )


def _hold(spec: BGPPeerSpec) -> int:
    """`holdTime`, else three times `keepaliveTime`. A session tells its peer every third of it that it lives."""
    if spec.hold_time:
        hold = int(duration(spec.hold_time))
    elif spec.keepalive_time:
        hold = 3 * int(duration(spec.keepalive_time))
    else:
        hold = DEFAULT_HOLD_S
    return min(MAX_HOLD_S, max(3, hold))


def _restart(time: str | None) -> int:
    return min(MAX_RESTART_S, ceil(duration(time))) if time else DEFAULT_RESTART_S


def _next_hop_mode(spec: BGPPeerSpec) -> NextHopMode:
    if spec.keep_original_next_hop:
        return NextHopMode.KEEP
    return NextHopMode(spec.next_hop_mode) if spec.next_hop_mode else NextHopMode.AUTO


def _filter(snapshot: Snapshot, name: str) -> Filter:
    found = snapshot.get(BGPFilter, name)
    if found is None:
        unread = snapshot.problems.get(Key(BGPFilter.KIND, "", name))
        raise ValueError(f"BGPFilter {name} cannot be read: {unread}" if unread else f"there is no BGPFilter {name}")
    try:
        return compiled(found)
    except ValueError as error:
        raise ValueError(f"BGPFilter {name}: {error}") from None


def _bfd(spec: BGPPeerSpec) -> Bfd | None:
    given = spec.bfd
    if given is None:
        return Bfd() if spec.failure_detection_mode == "BFDIfDirectlyConnected" else None
    return Bfd(
        transmit_ms=_milliseconds(given.minimum_send_interval),
        receive_ms=_milliseconds(given.minimum_recv_interval),
        multiplier=given.multiplier,
    )


def _milliseconds(text: str) -> int:
    return round(1000 * duration(text))
