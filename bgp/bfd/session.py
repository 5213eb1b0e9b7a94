"""One BFD session in asynchronous mode, as a fold over packets and time (RFC 5880, 6.8). No clock and no I/O: callers
say the time, in seconds of a monotonic clock, and where the jitter falls, between 0 and 1.

             hears Down          hears Init, Up
      Down ────────────> Init ─────────────────> Up          Down ── hears Init ──> Up
       ^                  │                      │
       └── silence ───────┴── silence, hears Down, AdminDown

These functions make the next session of one: `hear` a packet, `expire` when nobody was heard, `due` when it is time to
send, `tune` when other intervals are wanted. `leave` ends it in AdminDown, which no peer takes for a failure.

Intervals change in a Poll Sequence: what we want is `advertised`, and becomes `agreed` with the peer's Final. Until
then we send no slower and expect no faster than before (6.8.3). One change at a time: what is wanted meanwhile waits
for the Final. While the session is not up every packet carries what holds, so there is nothing to negotiate.

`pardon` is for a caller that was not scheduled: what a peer sent meanwhile may not have been delivered yet, so its
silence does not count before it has had one interval more. It is granted once between two packets heard.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from bgp.bfd.model import SLOW_US, Diagnostic, Packet, Remote, Standing, State, Wanted

_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A pair of intervals: how often we send at most, how often we can be sent to."""

    transmit_us: int
    receive_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Our side of a session. `heard_at` is when the peer last spoke, `send_at` when we speak next."""

    wanted: Wanted
    discriminator: int
    state: State = State.DOWN
    diagnostic: Diagnostic = Diagnostic.NONE
    advertised: Pace = field(default_factory=lambda: Pace(transmit_us=SLOW_US, receive_us=SLOW_US))
    agreed: Pace = field(default_factory=lambda: Pace(transmit_us=SLOW_US, receive_us=SLOW_US))
    polling: bool = False
    owes_final: bool = False
    remote: Remote = field(default_factory=Remote)
    heard_at: float | None = None
    send_at: float = 0.0
    sent_at: float = 0.0
    pardoned_until: float | None = None

    @property
    def detection_s(self) -> float:
        """After how long a silence the peer counts as lost (6.8.4); 0 before it has spoken."""
        return self.remote.multiplier * max(self.agreed.receive_us, self.remote.transmit_us) / _US

    @property
    def detect_at(self) -> float | None:
        """When the peer counts as lost; None while there is nothing to lose."""
        if self.heard_at is None:
            return None
        at = self.heard_at + self.detection_s
        return at if self.pardoned_until is None else max(at, self.pardoned_until)

    @property
    def interval_us(self) -> int:
        """How often we send, before jitter (6.8.7)."""
        return max(self.agreed.transmit_us, self.remote.receive_us)

    @property
    def silent(self) -> bool:
        """Whether nothing goes out at intervals: the peer wants nothing, or asks when it wants to know (demand)."""
        if self.remote.receive_us == 0:
            return True
        both_up = self.state is State.UP and self.remote.state is State.UP
        return self.remote.demand and both_up and not self.polling

    @property
    def wake_at(self) -> float:
        """When to call `expire` and `due` next; the past means at once."""
        if self.owes_final:
            return 0.0
        speak_at = float("inf") if self.silent else self.send_at
        return speak_at if self.detect_at is None else min(speak_at, self.detect_at)


def start(wanted: Wanted, discriminator: int, now: float) -> Session:
    """A new session, down, that speaks at once."""
    return _settle(Session(wanted=wanted, discriminator=discriminator, send_at=now, sent_at=now), now)


def resume(wanted: Wanted, standing: Standing, now: float) -> Session:
    """Go on with a session that was up in a process that is gone, before the peer has missed it. A Poll Sequence makes
    sure of the intervals."""
    pace = Pace(transmit_us=wanted.transmit_us, receive_us=wanted.receive_us)
    return Session(
        wanted=wanted,
        discriminator=standing.discriminator,
        state=State.UP,
        advertised=pace,
        agreed=pace,
        polling=True,
        remote=standing.remote,
        heard_at=now,
        send_at=now,
        sent_at=now,
    )


def standing(session: Session) -> Standing | None:
    """What another process needs to go on with the session; None while it is not up."""
    if session.state is not State.UP:
        return None
    return Standing(discriminator=session.discriminator, remote=session.remote)


def hear(session: Session, packet: Packet, at: float) -> Session:
    """Take in a packet that passed all checks and arrived at `at` (6.8.6)."""
    remote = Remote(
        discriminator=packet.mine,
        state=packet.state,
        diagnostic=packet.diagnostic,
        transmit_us=packet.transmit_us,
        receive_us=packet.receive_us,
        multiplier=packet.multiplier,
        demand=packet.demand,
    )
    heard = replace(session, remote=remote, heard_at=max(at, session.heard_at or at), pardoned_until=None)
    if session.state is State.ADMIN_DOWN:
        return heard
    if packet.final and session.polling:
        heard = replace(heard, polling=False, agreed=session.advertised)
    state, diagnostic = _next_state(session, packet.state)
    moved = replace(heard, state=state, diagnostic=diagnostic, owes_final=session.owes_final or packet.poll)
    return _hasten(session, _settle(moved, at), at)


def expire(session: Session, now: float) -> Session:
    """What a silence until `now` makes of it."""
    if session.detect_at is None or now < session.detect_at:
        return session
    forgotten = replace(session, heard_at=None, pardoned_until=None, owes_final=False, remote=Remote())
    if session.state not in (State.INIT, State.UP):
        return forgotten
    lost = replace(forgotten, state=State.DOWN, diagnostic=Diagnostic.TIME_EXPIRED)
    return _hasten(session, _settle(lost, now), now)


def due(session: Session, now: float, chance: float) -> tuple[Session, Packet | None]:
    """The packet to send at `now`, if any; with the Final that is owed there is no waiting (6.8.7)."""
    if session.owes_final:
        return replace(session, owes_final=False), _packet(session, final=True)
    if now < session.send_at or session.silent:
        return session, None
    widest = 0.25 if session.wanted.multiplier > 1 else 0.15
    least = 0.75
    interval = session.interval_us / _US * (least + widest * chance)
    return replace(session, sent_at=now, send_at=now + interval), _packet(session, final=False)


def tune(session: Session, wanted: Wanted, now: float) -> Session:
    """Want other intervals or another multiplier; the session stays as it is."""
    return session if wanted == session.wanted else _hasten(session, _settle(replace(session, wanted=wanted), now), now)


def leave(session: Session, now: float) -> Session:
    """End it on purpose: AdminDown from now on (6.8.16). The pace stays as it was, so that the peer hears of it before
    it would miss us."""
    if session.state is State.ADMIN_DOWN:
        return session
    left = replace(session, state=State.ADMIN_DOWN, diagnostic=Diagnostic.ADMINISTRATIVELY_DOWN, polling=False)
    slow = Pace(transmit_us=max(session.wanted.transmit_us, SLOW_US), receive_us=session.wanted.receive_us)
    return replace(left, advertised=slow, send_at=now, owes_final=False)


def defer(session: Session, until: float) -> Session:
    """Nothing can be sent before `until`."""
    return replace(session, send_at=until, owes_final=False)


def pardon(session: Session, now: float) -> Session:
    """We were not scheduled: let the peer have one interval more. Once between two packets heard."""
    if session.heard_at is None or session.pardoned_until is not None:
        return session
    more = max(session.agreed.receive_us, session.remote.transmit_us) / _US
    return replace(session, pardoned_until=now + more)


def _next_state(session: Session, theirs: State) -> tuple[State, Diagnostic]:
    match session.state, theirs:
        case State.DOWN, State.DOWN:
            return State.INIT, session.diagnostic
        case State.DOWN, State.INIT:
            return State.UP, Diagnostic.NONE
        case State.INIT, State.INIT | State.UP:
            return State.UP, Diagnostic.NONE
        case (State.INIT, State.ADMIN_DOWN) | (State.UP, State.DOWN | State.ADMIN_DOWN):
            return State.DOWN, Diagnostic.NEIGHBOR_SIGNALED_DOWN
        case _:
            return session.state, session.diagnostic


def _settle(session: Session, now: float) -> Session:
    """Bring what is advertised and agreed in line with the state and with what is wanted."""
    up = session.state is State.UP
    fast = session.wanted.transmit_us
    target = Pace(transmit_us=fast if up else max(fast, SLOW_US), receive_us=session.wanted.receive_us)
    if not up:
        return replace(session, advertised=target, agreed=target, polling=False)
    if session.polling or session.advertised == target:
        return session
    agreed = Pace(
        transmit_us=min(session.agreed.transmit_us, target.transmit_us),
        receive_us=max(session.agreed.receive_us, target.receive_us),
    )
    return replace(session, advertised=target, agreed=agreed, polling=True, send_at=now)


def _hasten(before: Session, after: Session, now: float) -> Session:
    """Say at once what has changed, and never wait longer than the interval that now holds."""
    if _packet(before, final=True) != _packet(after, final=True):  # but for the poll bit, which can wait
        return replace(after, send_at=now)
    return replace(after, send_at=min(after.send_at, max(now, after.sent_at + after.interval_us / _US)))


def _packet(session: Session, *, final: bool) -> Packet:
    return Packet(
        state=session.state,
        diagnostic=session.diagnostic,
        mine=session.discriminator,
        yours=session.remote.discriminator,
        multiplier=session.wanted.multiplier,
        transmit_us=session.advertised.transmit_us,
        receive_us=session.advertised.receive_us,
        poll=session.polling and not final,
        final=final,
        independent=True,
    )
