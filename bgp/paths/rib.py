"""The adj-RIB-in: what every peer says now, as a fold over its events.

    up       update       down, with graceful restart    up, updates    end-of-rib, or the deadline
    ─┬───────┬────────────┬──────────────────────────────┬──────────────┬──────────────────────────
     fresh   paths        all its paths are stale        those told     the stale ones are dropped
                          and still used                 are fresh
                          └── the restart time is over: dropped, or, with `long_lived_s`, a last resort for that long

A peer that goes down with a NOTIFICATION, or that keeps no forwarding state, loses its paths at once. When our own
ExaBGP dies nothing is known about the peers, so every path turns stale until the peer has spoken again. Stale paths
are worth as much as fresh ones (RFC 4724, 4.2); a restart during a restart does not lengthen their time. A last resort
is marked LLGR_STALE, which the choice puts below everything (RFC 9494, 4.3); what carries NO_LLGR never becomes one.
ExaBGP cannot tell peers that we do this, so it is our side's policy alone.

A path is one object wherever its peer says the same, so a table of a hundred thousand prefixes holds few, and whether
something changed is a question of identity. Events of different peers commute. No clock: callers say the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address
from itertools import repeat
from types import MappingProxyType
from typing import Final, NamedTuple, assert_never
from weakref import WeakValueDictionary

from bgp.attributes import Path
from bgp.exabgp.line import EndOfRib, PeerDown, PeerEvent, PeerOpen, PeerUp, Update
from bgp.model import Session
from bgp.paths.bestpath import LLGR_STALE
from bgp.paths.limits import Intake
from core.addr import Address, Family
from core.prefix import Prefix

RELEARN_S: Final = 120.0
"""How long paths stay without a word of the peer when the loss was ours: the restart time we ask of peers."""

END_OF_RIB_S: Final = 30.0
"""How long a peer that is up may take to its End-of-RIB; one without graceful restart never sends any."""

SELECTION_S: Final = 360.0
"""The same for one that has just restarted: it waits for its own peers before it tells anything (RFC 4724, 4.1), and
forwards meanwhile. As long as routers wait for each other."""

REMEMBERED: Final = 1_000
"""How many paths that are gone are remembered, to say when and why they went."""

NO_LLGR: Final = "65535:7"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Heard:
    """A path and the peer that says it."""

    peer: Address
    path: Path


class Gone(NamedTuple):
    """A path that is no longer there, since `at`."""

    prefix: Prefix
    heard: Heard
    session: str
    at: float
    why: str


_GONE: Final[Callable[[Iterable[object]], Gone]] = partial(tuple.__new__, Gone)
"""As `Gone._make`, without a line of Python: a table that goes makes a hundred thousand."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A path that its peer has not confirmed since it went away: since when, and how long it stays."""

    since: float
    until: float
    last_resort: bool


@dataclass(slots=True)
class _Peer:
    session: Session | None
    paths: dict[Prefix, Heard] = field(default_factory=dict)
    stale: dict[Prefix, float] = field(default_factory=dict)  # since when, the oldest first
    last_resort: dict[Prefix, float] = field(default_factory=dict)
    known: WeakValueDictionary[Path, Heard] = field(default_factory=WeakValueDictionary)
    intake: Intake = field(default_factory=Intake)
    up_at: float | None = None
    told_all: bool = False
    path_down: bool = False
    keep_s: float = RELEARN_S
    restart_s: int = 0
    end_of_rib_s: float = END_OF_RIB_S
    preserved: frozenset[Family] = frozenset()
    forgot: bool = False  # it has restarted, and forwards nothing by what it told before
    route_refresh: bool = False  # it may be asked to tell everything again
    router_id: IPv4Address | None = None

    @property
    def can_be_asked(self) -> bool:
        return self.up_at is not None and self.route_refresh


class AdjRibIn:
    """Paths by peer and prefix. Every change returns the prefixes whose candidates changed."""

    def __init__(self) -> None:
        self._peers: dict[Address, _Peer] = {}
        self.gone: deque[Gone] = deque(maxlen=REMEMBERED)

    def configure(self, sessions: Mapping[Address, Session], now: float = 0.0) -> Collection[Prefix]:
        """The sessions that may be; a peer that is no longer among them is forgotten."""
        changed: set[Prefix] = set()
        for address in self._peers.keys() - sessions.keys():
            peer = self._peers.pop(address)
            changed.update(peer.paths)
            self._remember(peer, list(peer.paths), now, "the session was taken out of the configuration")
        for address, session in sessions.items():
            peer = self._peers.setdefault(address, _Peer(session))
            peer.session = session
            changed.update(self._drop(peer, peer.intake.bound(session.most_in, peer.paths), now, "over maxPrefixesIn"))
        return changed

    def fold(self, event: PeerEvent, now: float) -> Collection[Prefix]:
        """Take one event in, at `now` (seconds of any steady clock)."""
        peer = self._peers.setdefault(event.peer, _Peer(None))
        match event:
            case PeerOpen():
                if event.router_id != peer.router_id:
                    peer.known = WeakValueDictionary()  # what it says from now on is another router's word
                peer.restart_s, peer.preserved, peer.router_id = event.restart_s, event.preserved, event.router_id
                peer.route_refresh = event.route_refresh
                peer.end_of_rib_s = SELECTION_S if event.restarting else END_OF_RIB_S
                peer.forgot = event.restarting and Family(event.peer.version) not in event.kept
                return ()
            case PeerUp():
                changed = _up(peer, now)
                return self._sweep(peer, now, "lost in its peer's restart") if peer.forgot else changed
            case PeerDown():
                return self._down(peer, event, now)
            case Update():
                return self._update(peer, event, now)
            case EndOfRib():
                peer.told_all = True
                return self._sweep(peer, now, "not told again after a restart")
            case _:
                assert_never(event)

    def lose_speaker(self, now: float) -> None:
        """Our ExaBGP is gone: every path is stale, none is dropped."""
        for peer in self._peers.values():
            peer.up_at, peer.told_all, peer.keep_s = None, False, RELEARN_S
            _make_stale(peer, now)

    def lose_path(self, address: Address) -> Collection[Prefix]:
        """Nothing gets through to the peer any more (BFD says so): its paths stay, of no use until it comes up anew."""
        return self._mark_path(address, down=True)

    def regain_path(self, address: Address) -> Collection[Prefix]:
        """Packets get through to the peer again, and its session never noticed."""
        return self._mark_path(address, down=False)

    def _mark_path(self, address: Address, *, down: bool) -> Collection[Prefix]:
        peer = self._peers.get(address)
        if peer is None or peer.path_down is down:
            return ()
        peer.path_down = down
        return list(peer.paths)

    def expire(self, now: float) -> Collection[Prefix]:
        """Drop, or keep as a last resort, what has been stale for too long."""
        changed: set[Prefix] = set()
        for peer in self._peers.values():
            if peer.up_at is not None:
                if now >= peer.up_at + peer.end_of_rib_s:
                    changed.update(self._sweep(peer, now, "not told again after a restart"))
                continue
            long_lived = _long_lived(peer)
            due = _due(peer.last_resort, now - long_lived)
            changed.update(self._drop(peer, due, now, "the long-lived restart time is over"))
            due = _due(peer.stale, now - peer.keep_s)
            if long_lived:
                changed.update(due)
                due = _last_resort(peer, due, now)
            changed.update(self._drop(peer, due, now, "the restart time is over"))
        return changed

    @property
    def deadline(self) -> float | None:
        """When to call `expire` and `refreshes` next; None when nothing is to come."""
        due = [_deadline(peer) for peer in self._peers.values()]
        due += [peer.intake.due(len(peer.paths)) for peer in self._peers.values() if peer.can_be_asked]
        return min((at for at in due if at is not None), default=None)

    def refreshes(self, now: float) -> Sequence[Address]:
        """Peers that refused prefixes should be asked for again, because there is room now; told once. One that has not
        offered to be asked would end the session for it (RFC 2918, 3)."""
        return [
            address
            for address, peer in self._peers.items()
            if peer.can_be_asked and peer.intake.wants_refresh(len(peer.paths), now)
        ]

    def tables(self) -> tuple[Mapping[Prefix, Heard], ...]:
        """What each peer says, live."""
        return tuple(peer.paths for peer in self._peers.values())

    def prefixes(self) -> frozenset[Prefix]:
        """Every prefix somebody speaks of."""
        return frozenset().union(*(peer.paths for peer in self._peers.values()))

    def told_by(self, address: Address) -> Mapping[Prefix, Heard]:
        """What one peer says."""
        peer = self._peers.get(address)
        return MappingProxyType(peer.paths) if peer else MappingProxyType({})

    def count(self, address: Address) -> int:
        """How many prefixes the peer has told us."""
        return len(self.told_by(address))

    def intake(self, address: Address) -> Intake:
        """How the peer stands to its maximum."""
        peer = self._peers.get(address)
        return peer.intake if peer else Intake()

    def router_id(self, address: Address) -> IPv4Address | None:
        """The peer's BGP identifier, once it has opened a session."""
        peer = self._peers.get(address)
        return peer.router_id if peer else None

    def path_down(self, address: Address) -> bool:
        """Whether nothing gets through to the peer."""
        peer = self._peers.get(address)
        return peer is not None and peer.path_down

    def told_all(self, address: Address) -> bool:
        """Whether the peer is up and has sent its End-of-RIB."""
        peer = self._peers.get(address)
        return peer is not None and peer.told_all

    def restarting(self, address: Address) -> bool:
        """Whether the peer is up and had just restarted when it came: it waits for others before it tells all."""
        peer = self._peers.get(address)
        return peer is not None and peer.up_at is not None and peer.end_of_rib_s == SELECTION_S

    def stale(self, address: Address, prefix: Prefix) -> Stale | None:
        """Since when a path is stale; None when it is fresh."""
        peer = self._peers.get(address)
        for last_resort in (False, True):
            since = (peer.last_resort if last_resort else peer.stale).get(prefix) if peer else None
            if peer and since is not None:
                lasts = since + (_long_lived(peer) if last_resort else peer.keep_s)
                return Stale(since, lasts if peer.up_at is None else peer.up_at + peer.end_of_rib_s, last_resort)
        return None

    def _down(self, peer: _Peer, event: PeerDown, now: float) -> Collection[Prefix]:
        was_up, peer.up_at, peer.told_all = peer.up_at is not None, None, False
        if not was_up and (peer.stale or peer.last_resort):
            return ()  # an attempt to come back failed: the deadline that runs stays
        if not event.notified and peer.restart_s > 0 and Family(event.peer.version) in peer.preserved:
            peer.keep_s = peer.restart_s
            _make_stale(peer, now)
            return ()
        peer.intake.start()
        return self._drop(peer, list(peer.paths), now, f"the session went down: {event.reason}")

    def _update(self, peer: _Peer, event: Update, now: float) -> Collection[Prefix]:
        gone = [prefix for prefix in dict.fromkeys(event.withdrawn) if prefix in peer.paths]
        changed = list(self._drop(peer, gone, now, "withdrawn"))
        for path, prefixes in event.announced:
            heard = _known(peer, event.peer, path)
            if peer.stale or peer.last_resort:
                _freshen(peer, prefixes)
            before = map(peer.paths.get, prefixes)
            told = [prefix for prefix, known in zip(prefixes, before, strict=True) if known is not heard]
            taken = peer.intake.take(told, peer.paths)
            peer.paths.update(dict.fromkeys(taken, heard))
            changed += taken
        return changed

    def _sweep(self, peer: _Peer, now: float, why: str) -> Collection[Prefix]:
        return self._drop(peer, [*peer.stale, *peer.last_resort], now, why)

    def _drop(self, peer: _Peer, prefixes: Sequence[Prefix], now: float, why: str) -> Sequence[Prefix]:
        if not prefixes:
            return ()
        self._remember(peer, prefixes, now, why)
        if len(prefixes) == len(peer.paths):
            peer.paths.clear()
        else:
            for prefix in prefixes:
                del peer.paths[prefix]
        _freshen(peer, prefixes)
        return prefixes

    def _remember(self, peer: _Peer, prefixes: Sequence[Prefix], now: float, why: str) -> None:
        session = peer.session.name if peer.session else ""
        last = prefixes[-REMEMBERED:]
        heard = map(peer.paths.__getitem__, last)
        said = zip(last, heard, repeat(session), repeat(now), repeat(why), strict=False)
        self.gone.extend(map(_GONE, said))


def _up(peer: _Peer, now: float) -> Collection[Prefix]:
    lost, peer.path_down = peer.path_down, False
    peer.up_at, peer.told_all = now, False
    peer.intake.start()
    _make_stale(peer, now)
    return list(peer.paths) if lost else ()


def _known(peer: _Peer, address: Address, path: Path) -> Heard:
    """The one object for that path of that peer."""
    heard = peer.known.get(path)
    if heard is None:
        heard = peer.known[path] = Heard(address, path)
    return heard


def _make_stale(peer: _Peer, now: float) -> None:
    if peer.stale or peer.last_resort:
        for prefix in peer.paths:
            if prefix not in peer.last_resort:
                peer.stale.setdefault(prefix, now)
    else:
        peer.stale = dict.fromkeys(peer.paths, now)


def _freshen(peer: _Peer, prefixes: Sequence[Prefix]) -> None:
    for table in (peer.stale, peer.last_resort):
        if table:
            for prefix in prefixes:
                table.pop(prefix, None)


def _last_resort(peer: _Peer, prefixes: Sequence[Prefix], now: float) -> list[Prefix]:
    """Mark stale paths as a last resort; the ones that may not become one."""
    unwilling = []
    for prefix in prefixes:
        heard = peer.paths[prefix]
        if NO_LLGR in heard.path.communities:
            unwilling.append(prefix)
            continue
        marked = dict.fromkeys((*heard.path.communities, LLGR_STALE))
        peer.paths[prefix] = _known(peer, heard.peer, replace(heard.path, communities=tuple(marked)))
        peer.last_resort[prefix] = now
        del peer.stale[prefix]
    return unwilling


def _long_lived(peer: _Peer) -> int:
    return peer.session.long_lived_s if peer.session else 0


def _due(stale: Mapping[Prefix, float], before: float) -> list[Prefix]:
    due = []
    for prefix, since in stale.items():
        if since > before:
            break  # the oldest come first
        due.append(prefix)
    return due


def _deadline(peer: _Peer) -> float | None:
    if not peer.stale and not peer.last_resort:
        return None
    if peer.up_at is not None:
        return peer.up_at + peer.end_of_rib_s
    oldest: Iterator[float] = (
        next(iter(table.values())) + lasts
        for table, lasts in ((peer.stale, peer.keep_s), (peer.last_resort, _long_lived(peer)))
        if table
    )
    return min(oldest)
