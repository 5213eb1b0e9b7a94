"""Every session of the child: datagrams in, datagrams out, and what is to be said of them.

A round is always the same: read the sockets empty, and only then ask whose time is over. So what arrived while we were
not scheduled is counted, with the kernel's time of arrival, before anybody is taken for dead.

Who is believed (RFC 5880, 6.8.6; RFC 5881, 4 to 6): a packet with 255 hops left, well formed, from the address of a
configured peer, to the session's own address, by the interface that the session came up on.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bgp.bfd import session as fold
from bgp.bfd.codec import Malformed, decode, encode
from bgp.bfd.lines import Order, Report
from bgp.bfd.model import Arrived, Diagnostic, Packet, Standing, State, Wanted
from bgp.bfd.session import Session
from bgp.bfd.sockets import HOPS, PORT, drain, listen, random_number, speak

MOST: Final = 8192
"""Datagrams read in one round: more than the kernel keeps for us."""

RETRY_S: Final = 1.0
"""How long to wait after a port or an address could not be had; and between two reports of a mere problem."""

TAKEN: Final = (
    f"UDP port {PORT} is taken by another program, most likely FRR's bfdd or BIRD: two BFDs on one host take each "
    f"other's packets; stop its BFD or do without muslin's (`ss -ulpn sport = :{PORT}` shows which it is)"
)

_US: Final = 1_000_000


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A session and what belongs to it here. `unsent` is why the last packet could not be sent, `unheard` why the last
    one that came was not believed. `gone_at` is when its farewell is over, once it has been said."""

    peer: str
    local: str
    session: Session
    since: float
    speaker: socket.socket | None = None
    device: int = 0
    came_up: bool = False
    lost: bool = False
    losses: int = 0
    unsent: str = ""
    unheard: str = ""
    gone_at: float | None = None
    told: Report | None = None
    told_at: float = 0.0


class Keeper:
    """The sessions. `tell` hears of each when it changes."""

    def __init__(self, tell: Callable[[Report], None]) -> None:
        self._tell = tell
        self._watched: dict[str, _Watched] = {}
        self._by_discriminator: dict[int, _Watched] = {}
        self._listening: dict[int, socket.socket] = {}
        self._refused: dict[int, str] = {}  # by family: why we cannot listen
        self._retry_at = 0.0

    def configure(self, order: Order, now: float) -> None:
        """Keep what `order` wants: sessions that stay are not touched, those that go say so."""
        for peer, each in self._watched.items():
            if peer not in order.sessions or order.sessions[peer][0] != each.local:
                _leave(each, now)
        for peer, (local, wanted) in order.sessions.items():
            kept = self._watched.get(peer)
            if kept is not None and kept.local == local and kept.gone_at is None:
                self._move(kept, fold.tune(kept.session, wanted, now), now)
            else:
                self._start(peer, local, wanted, order.resume.get(peer), now)
        self._listen(now)

    def leave(self, now: float) -> None:
        """Say farewell to every peer; `empty` once all have had time to hear it."""
        for each in self._watched.values():
            _leave(each, now)

    @property
    def empty(self) -> bool:
        """Whether there is no session, not even one that is ending."""
        return not self._watched

    @property
    def listening(self) -> tuple[socket.socket, ...]:
        """What to wait for datagrams on."""
        return tuple(self._listening.values())

    @property
    def wake_at(self) -> float:
        """When `work` is due next, whatever arrives."""
        times = [_wake_at(each) for each in self._watched.values()]
        if self._refused:
            times.append(self._retry_at)
        return min(times, default=float("inf"))

    def pardon(self, late_s: float, now: float) -> bool:
        """We woke `late_s` too late; whether that was longer than we should be silent to any peer."""
        late = [each for each in self._watched.values() if each.session.interval_us < late_s * _US]
        for each in late:
            each.session = fold.pardon(each.session, now)
        return bool(late)

    def drain(self) -> None:
        """Take in what has arrived."""
        for opened in self._listening.values():
            for arrived in drain(opened, MOST):
                self._take(arrived)

    def work(self, now: float) -> None:
        """Do what is due: lost peers, packets to send, farewells that are over, ports to try again, reports. Whoever
        polls many times at once is answered once."""
        if self._refused and now >= self._retry_at:
            self._listen(now)
        for each in list(self._watched.values()):
            if each.gone_at is not None and now >= each.gone_at:
                self._drop(each)
                continue
            if now >= _wake_at(each):
                self._move(each, fold.expire(each.session, now), now)
                self._send(each, now)
                self._report(each, now)

    def reports(self) -> Iterator[Report]:
        """Every session as it is, for an agent that has just come."""
        for each in self._watched.values():
            if each.gone_at is None:
                yield self._state(each)

    def close(self) -> None:
        """Close every socket."""
        for each in list(self._watched.values()):
            self._drop(each)
        for opened in self._listening.values():
            opened.close()

    def _start(self, peer: str, local: str, wanted: Wanted, standing: Standing | None, now: float) -> None:
        if peer in self._watched:
            self._drop(self._watched[peer])
        if standing is not None and standing.discriminator not in self._by_discriminator:
            session = fold.resume(wanted, standing, now)
        else:
            session = fold.start(wanted, self._new_discriminator(), now)
        up = session.state is State.UP
        each = _Watched(peer=peer, local=local, session=session, since=time.time(), came_up=up)
        self._watched[peer] = self._by_discriminator[session.discriminator] = each

    def _new_discriminator(self) -> int:
        while True:
            drawn = random_number()
            if drawn and drawn not in self._by_discriminator:
                return drawn

    def _drop(self, each: _Watched) -> None:
        del self._watched[each.peer], self._by_discriminator[each.session.discriminator]
        if each.speaker is not None:
            each.speaker.close()

    def _listen(self, now: float) -> None:
        """Have a receiving socket for each family in use, and none for others."""
        families = {_family(peer) for peer in self._watched}
        for family in self._listening.keys() - families:
            self._listening.pop(family).close()
        self._refused.clear()
        for family in families - self._listening.keys():
            try:
                self._listening[family] = listen(family)
            except OSError as refusal:
                self._refused[family] = (
                    TAKEN if refusal.errno == errno.EADDRINUSE else f"UDP port {PORT}: {refusal.strerror}"
                )
        self._retry_at = now + RETRY_S

    def _take(self, arrived: Arrived) -> None:
        each = self._watched.get(arrived.source)
        if arrived.hops != HOPS:
            _blame(
                each, f"its packets come with {arrived.hops} hops left instead of {HOPS}: it is more than a hop away"
            )
            return
        try:
            packet = decode(arrived.data)
        except Malformed as why:
            _blame(each, f"it sends what is no BFD packet for us: {why}")
            return
        refusal = self._refusal(each, packet, arrived)
        if each is None or refusal:
            _blame(each, refusal)
            return
        each.device = arrived.device
        self._move(each, fold.hear(each.session, packet, arrived.at), arrived.at)
        each.unheard = ""

    def _refusal(self, each: _Watched | None, packet: Packet, arrived: Arrived) -> str:
        if each is None:
            return "it is nobody's peer"
        if packet.yours not in (0, each.session.discriminator):
            return f"it answers to discriminator {packet.yours:#x}, which is not this session's"
        if each.local not in ("", arrived.to):
            return f"it sends to {arrived.to} instead of {each.local}"
        if each.session.state is State.UP and each.device not in (0, arrived.device):
            return "its packets come by two interfaces"
        return ""

    def _move(self, each: _Watched, after: Session, now: float) -> None:
        before, each.session = each.session, after
        if after.remote.state is State.ADMIN_DOWN:
            each.lost = False
        if after.state is before.state:
            return
        each.since = time.time() - max(0.0, time.monotonic() - now)
        if after.state is State.UP:
            each.came_up, each.lost = True, False
        elif before.state is State.UP and each.gone_at is None and _failed(after):
            each.lost, each.losses = True, each.losses + 1
        self._report(each, now)

    def _send(self, each: _Watched, now: float) -> None:
        """Send what is due. A packet that cannot go is one that the peer misses, as on the wire."""
        if each.speaker is None and not self._speak(each, now):
            return
        assert each.speaker is not None
        while True:
            chance = random_number() / 0xFFFFFFFF
            each.session, packet = fold.due(each.session, now, chance)
            if packet is None:
                return
            try:
                each.speaker.sendto(encode(packet), (each.peer, PORT))
                each.unsent = ""
            except OSError as refusal:
                each.unsent = f"packets to it cannot be sent: {refusal.strerror}"
                if refusal.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
                    each.speaker.close()
                    each.speaker = None
                    each.session = fold.defer(each.session, now + RETRY_S)
                    return

    def _speak(self, each: _Watched, now: float) -> bool:
        """Have a socket to send with; later, when it cannot be had or when nobody's answer could be heard."""
        if _family(each.peer) not in self._refused:
            try:
                each.speaker = speak(each.local, each.peer, random_number())
                return True
            except OSError as refusal:
                each.unsent = f"no packet can be sent from {each.local}: {os.strerror(refusal.errno or 0)}"
        each.session = fold.defer(each.session, now + RETRY_S)
        return False

    def _report(self, each: _Watched, now: float) -> None:
        """Say what has changed: another state at once, anything else now and then."""
        if each.gone_at is not None:
            return
        state = self._state(each)
        if state == each.told:
            return
        urgent = each.told is None or (state.state, state.lost) != (each.told.state, each.told.lost)
        if urgent or now >= each.told_at + RETRY_S:
            each.told, each.told_at = state, now
            self._tell(state)

    def _state(self, each: _Watched) -> Report:
        session = each.session
        return Report(
            peer=each.peer,
            state=session.state,
            remote_state=session.remote.state,
            diagnostic=session.diagnostic,
            remote_diagnostic=session.remote.diagnostic,
            since=each.since,
            interval_us=session.interval_us,
            detection_us=round(session.detection_s * _US),
            came_up=each.came_up,
            lost=each.lost,
            losses=each.losses,
            problem=self._refused.get(_family(each.peer)) or each.unsent or each.unheard,
            standing=fold.standing(session),
        )


def _wake_at(each: _Watched) -> float:
    at = each.session.wake_at
    return at if each.gone_at is None else min(at, each.gone_at)


def _leave(each: _Watched, now: float) -> None:
    """AdminDown, said as often as the peer may miss before it would have missed us."""
    if each.gone_at is not None:
        return
    interval_s = each.session.interval_us / _US
    heard = each.session.state in (State.INIT, State.UP)
    each.gone_at = now + interval_s * each.session.wanted.multiplier if heard else now
    each.session = fold.leave(each.session, now)


def _failed(session: Session) -> bool:
    """Whether a session that has left Up did so because the path failed: in silence, or by the peer's word for it."""
    said = Diagnostic(session.remote.diagnostic).path_failed and session.remote.state is not State.ADMIN_DOWN
    return session.diagnostic is Diagnostic.TIME_EXPIRED or said


def _blame(each: _Watched | None, problem: str) -> None:
    if each is not None and each.session.state is not State.UP:
        each.unheard = problem


def _family(peer: str) -> int:
    return socket.AF_INET6 if ":" in peer else socket.AF_INET
