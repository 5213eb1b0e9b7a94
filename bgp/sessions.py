"""What each configured session is doing, as a fold over its events; and how often its peer has forgotten us."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bgp.exabgp.line import PeerDown, PeerEvent, PeerOpen, PeerUp
from bgp.model import Blocked, Session
from bgp.telling.adverts import Telling
from core.addr import Address
from core.resources.status import SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class _Life:
    """`answered`: the peer has sent an OPEN under the password that the session has now. `refusal` is the NOTIFICATION
    that last ended it, since it was up: what comes after it, a call that nobody takes, says less."""

    session: Session
    up: bool
    since: str
    reason: str
    telling: Telling
    hold_s: int = 0
    answered: bool = False
    refusal: str = ""
    flaps: int = 0
    last_error: str = ""
    last_error_at: str = ""

    def down(self, reason: str, now: str, *, notified: bool = False) -> _Life:
        """The same session after it went down, or failed to come up."""
        refusal = reason if notified else self.refusal
        told = replace(self, up=False, reason=reason, refusal=refusal)
        if notified or self.up:
            told = replace(told, last_error=reason, last_error_at=now)
        return replace(told, since=now, flaps=self.flaps + 1) if self.up else told

    def configured(self, session: Session) -> _Life:
        """The same on other terms."""
        return replace(self, session=session, answered=self.answered and session.password == self.session.password)

    @property
    def why(self) -> str:
        """Why it is down. What is signed with another password the kernel drops: it looks like silence."""
        reason = self.reason
        if not self.up and self.refusal and self.refusal != reason:
            reason = f"{reason}; before that {self.refusal}"
        silent = not self.up and not self.answered and self.session.password
        return f"{reason}; is the peer there, and has it the same password?" if silent else reason


class Sessions:
    """The configured sessions. Times are RFC 3339 in UTC, given by the caller."""

    def __init__(self) -> None:
        self._lives: dict[Address, _Life] = {}
        self._speaker = 0
        self._opened = 0  # never used twice: a session may be taken out and put back before anybody has seen it

    def configure(self, sessions: Sequence[Session], now: str) -> None:
        """Take over the sessions that should be; those that stay keep their state."""
        kept = {}
        for session in sessions:
            life = self._lives.get(session.peer)
            first = _Life(
                session=session, up=False, since=now, reason="not connected yet", telling=Telling(self._speaker, 0)
            )
            kept[session.peer] = life.configured(session) if life else first
        self._lives = kept

    def hear(self, event: PeerEvent, now: str) -> bool:
        """Take a peer's event in; whether it went up or down."""
        life = self._lives.get(event.peer)
        if life is None:
            return False
        if isinstance(event, PeerUp):
            self._opened += 1
            telling = Telling(self._speaker, self._opened)
            self._lives[event.peer] = replace(life, up=True, since=now, reason="", refusal="", telling=telling)
            return True
        if isinstance(event, PeerDown):
            self._lives[event.peer] = life.down(event.reason, now, notified=event.notified)
            return True
        if isinstance(event, PeerOpen):
            self._lives[event.peer] = replace(life, answered=True, hold_s=min(life.session.hold_s, event.hold_s))
        return False

    def start_speaker(self) -> None:
        """A new ExaBGP runs: whatever was told is told again."""
        self._speaker += 1
        for peer, life in self._lives.items():
            self._lives[peer] = replace(life, telling=Telling(self._speaker, 0))

    def lose_speaker(self, now: str) -> None:
        """ExaBGP is gone, and every session with it."""
        for peer, life in self._lives.items():
            self._lives[peer] = life.down("our speaker is restarting", now)

    @property
    def up(self) -> frozenset[Address]:
        """Peers whose session is established."""
        return frozenset(peer for peer, life in self._lives.items() if life.up)

    @property
    def tellings(self) -> Mapping[Address, Telling]:
        """The current telling of every configured peer."""
        return {peer: life.telling for peer, life in self._lives.items()}

    def states(
        self,
        blocked: Sequence[Blocked],
        received: Callable[[Address], int],
        advertised: Callable[[Address], int] = lambda _: 0,
        pending: Callable[[Address], int] = lambda _: 0,
    ) -> list[SessionState]:
        """For the status: the configured sessions, then those that are blocked. How many prefixes a session has told
        us, is told, and is still to be told, others say."""
        live = [
            SessionState(
                peer=str(peer),
                name=life.session.name,
                as_number=life.session.remote_as,
                state="Established" if life.up else "Down",
                since=life.since,
                reason=life.why,
                received=received(peer),
                advertised=advertised(peer),
                pending=pending(peer),
                type=life.session.type,
                node=life.session.node,
                local_as=life.session.local_as,
                flaps=life.flaps,
                last_error=life.last_error,
                last_error_at=life.last_error_at,
                most_in=life.session.most_in or 0,
                most_out=life.session.most_out or 0,
                hold_s=life.hold_s if life.up else 0,
                families=[f"ipv{life.session.family.value}"] if life.up else [],
            )
            for peer, life in self._lives.items()
        ]
        shut = [
            SessionState(peer=each.peer, name=each.name, as_number=each.remote_as, state="Blocked", reason=each.reason)
            for each in blocked
        ]
        return live + shut
