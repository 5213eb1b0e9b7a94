"""The adj-RIB-in: what every peer says now, as a fold over its events.

    up       update       down, with graceful restart    up, updates    end-of-rib, or the deadline
    ─┬───────┬────────────┬──────────────────────────────┬──────────────┬──────────────────────────
     fresh   paths        all its paths are stale        those told     the stale ones are dropped
                          and still used                 are fresh

A peer that goes down with a NOTIFICATION, or that keeps no forwarding state, loses its paths at once. When our own
ExaBGP dies nothing is known about the peers, so every path turns stale until the peer has spoken again. Stale paths
are worth as much as fresh ones (RFC 4724, 4.2). Events of different peers commute. No clock: callers say the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, assert_never

from bgp.line import EndOfRib, PeerDown, PeerEvent, PeerOpen, PeerUp, Update
from bgp.model import Path
from core.addr import Address, Family, Network

RELEARN_S: Final = 120.0
"""How long paths stay without a word of the peer when the loss was ours: the restart time we ask of peers."""

END_OF_RIB_S: Final = 30.0
"""How long a peer that is up may take to its End-of-RIB; one without graceful restart never sends any."""


@dataclass(slots=True)
class _Peer:
    paths: dict[Network, Path] = field(default_factory=dict)
    stale: set[Network] = field(default_factory=set)
    deadline: float | None = None  # when what is stale goes
    up: bool = False
    told_all: bool = False
    restart_s: int = 0
    preserved: frozenset[Family] = frozenset()


class AdjRibIn:
    """Paths by peer and prefix. Every change returns the prefixes whose candidates changed."""

    def __init__(self) -> None:
        self._peers: dict[Address, _Peer] = {}

    def fold(self, event: PeerEvent, now: float) -> frozenset[Network]:
        """Take one event in, at `now` (seconds of any steady clock)."""
        peer = self._peers.setdefault(event.peer, _Peer())
        match event:
            case PeerOpen(_, restart_s, preserved):
                peer.restart_s, peer.preserved = restart_s, preserved
                return frozenset()
            case PeerUp():
                return _up(peer, now)
            case PeerDown():
                return _down(peer, event, now)
            case Update():
                return _update(peer, event)
            case EndOfRib():
                peer.told_all = True
                return _sweep(peer)
            case _:
                assert_never(event)

    def lose_speaker(self, now: float) -> None:
        """Our ExaBGP is gone: every path is stale, none is dropped."""
        for peer in self._peers.values():
            peer.up = peer.told_all = False
            _stale(peer, now + RELEARN_S)

    def expire(self, now: float) -> frozenset[Network]:
        """Drop what has been stale for too long."""
        due = [peer for peer in self._peers.values() if peer.deadline is not None and peer.deadline <= now]
        return frozenset().union(*(_sweep(peer) for peer in due))

    def forget(self, address: Address) -> frozenset[Network]:
        """Drop a peer that is no longer configured."""
        peer = self._peers.pop(address, None)
        return frozenset(peer.paths) if peer else frozenset()

    @property
    def deadline(self) -> float | None:
        """When to call `expire` next; None when nothing is stale."""
        return min((peer.deadline for peer in self._peers.values() if peer.deadline is not None), default=None)

    def candidates(self, prefix: Network) -> Iterator[tuple[Address, Path]]:
        """Who says what about `prefix`."""
        for address, peer in self._peers.items():
            path = peer.paths.get(prefix)
            if path is not None:
                yield address, path

    def prefixes(self) -> frozenset[Network]:
        """Every prefix somebody speaks of."""
        return frozenset().union(*(peer.paths for peer in self._peers.values()))

    def count(self, address: Address) -> int:
        """How many prefixes the peer has told us."""
        peer = self._peers.get(address)
        return len(peer.paths) if peer else 0

    def told_all(self, address: Address) -> bool:
        """Whether the peer is up and has sent its End-of-RIB."""
        peer = self._peers.get(address)
        return peer is not None and peer.told_all


def _up(peer: _Peer, now: float) -> frozenset[Network]:
    peer.up, peer.told_all = True, False
    _stale(peer, now + END_OF_RIB_S)
    return frozenset()


def _down(peer: _Peer, event: PeerDown, now: float) -> frozenset[Network]:
    was_up, peer.up, peer.told_all = peer.up, False, False
    keeps = not event.notified and peer.restart_s > 0 and Family(event.peer.version) in peer.preserved
    if not was_up and peer.stale:
        return frozenset()  # an attempt to come back failed: the deadline that runs stays
    if keeps:
        _stale(peer, now + peer.restart_s)
        return frozenset()
    changed = frozenset(peer.paths)
    peer.paths.clear()
    peer.stale.clear()
    peer.deadline = None
    return changed


def _update(peer: _Peer, event: Update) -> frozenset[Network]:
    changed: set[Network] = set()
    for prefix in event.withdrawn:
        peer.stale.discard(prefix)
        if peer.paths.pop(prefix, None) is not None:
            changed.add(prefix)
    for prefix, path in event.announced:
        peer.stale.discard(prefix)
        if peer.paths.get(prefix) != path:
            peer.paths[prefix] = path
            changed.add(prefix)
    return frozenset(changed)


def _stale(peer: _Peer, deadline: float) -> None:
    peer.stale = set(peer.paths)
    peer.deadline = deadline if peer.stale else None


def _sweep(peer: _Peer) -> frozenset[Network]:
    gone = frozenset(peer.stale)
    for prefix in gone:
        del peer.paths[prefix]
    peer.stale.clear()
    peer.deadline = None
    return gone
