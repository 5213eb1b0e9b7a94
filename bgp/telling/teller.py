"""Telling peers: what is exported to them, and the reconciler that brings ExaBGP up to date with it.

    speaker ───────┐
    best paths ────┴──> Exporter ── what changes ────────────┐
    sessions that come and go ── all that these are told ────┤
    other sessions, a new ExaBGP ── everything ──────────────┴──> Reconciler(adverts) ──> ExaBGP

A change costs what it changes; what a session forgets when it goes, it is told whole when it comes.

A reflector that has just started knows only what clients have told it so far, and theirs from before its restart stays
with each of them until End-of-RIB. So it says that only after it has heard everybody's own (RFC 4724, 4.1), or waited
long enough. Who passes nothing on has nothing to wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from bgp.attributes import Attributes
from bgp.model import Session, Speaker
from bgp.paths.bestpath import Candidate
from bgp.sessions import Sessions
from bgp.telling.adverts import Advert, AdvertDriver, Send, Told, desired_adverts
from bgp.telling.export import Difference, Exporter
from core.addr import Address, Network
from core.reconcile import Reconciler


class Teller:
    """What is told, through `send`. `best` is a live view of the paths in use; `wake` is set when there is work."""

    def __init__(self, send: Send, sessions: Sessions, best: Mapping[Network, Candidate]) -> None:
        self.exporter = Exporter(best)
        self.driver = AdvertDriver(send)
        self.reconciler: Reconciler[Advert, Told] = Reconciler(self.driver)
        self.wake = asyncio.Event()
        self._sessions = sessions
        self._speaker: Speaker | None = None
        self._revision = 0
        self._running = self._concludes = False

    @property
    def wanted(self) -> Mapping[Advert, Told]:
        """What should be told now."""
        return self.reconciler.wanted

    def told(self, peer: Address) -> int:
        """How many prefixes a peer has been told; one whose session is down knows of nothing."""
        return self.driver.counts[peer] if peer in self._sessions.up else 0

    def pending(self, peer: Address) -> int:
        """How many prefixes a peer that is up has too few, or too many."""
        if peer not in self._sessions.up:
            return 0
        return abs(self.exporter.count(peer) - self.driver.counts[peer])

    def own_told(self) -> list[Network]:
        """The node's own prefixes that some peer is told: not those that filters, limits or maintenance keep back."""
        up, own = self._sessions.up, self._speaker.own if self._speaker else {}
        return [prefix for prefix in own if any(self.exporter.tells(peer, prefix) for peer in up)]

    def configure(self, speaker: Speaker, revision: int) -> None:
        """Another speaker, of the snapshot `revision`; its sessions are configured already."""
        before, self._speaker, self._revision = self._speaker, speaker, revision
        self.driver.configured = frozenset(session.peer for session in speaker.sessions)
        difference = self.exporter.configure(speaker)
        if before is None or before.sessions != speaker.sessions:
            self.tell_all()
        else:
            self._tell(difference)

    def advance(self, revision: int) -> None:
        """A later snapshot asks for the same speaker."""
        self._revision = revision
        self._tell({})

    def pass_on(self, prefixes: Collection[Network]) -> None:
        """The best paths of `prefixes` may be others."""
        difference = self.exporter.change(prefixes)
        if difference:
            self._tell(difference)

    def start(self) -> None:
        """A new ExaBGP runs, which has been told nothing."""
        self._running = True
        self.driver.forget()
        self.reconciler.distrust()
        self.tell_all()

    def stop(self) -> None:
        """There is nobody to tell."""
        self._running = False

    def conclude(self) -> None:
        """Peers have told us everything, or had the time: End-of-RIB may be said to those we pass that on to."""
        if not self._concludes:
            self._concludes = True
            self.tell_all()

    def tell(self, peers: Collection[Address]) -> None:
        """The sessions with `peers` have come or gone. Costs what these are told, and not what all are."""
        if self._speaker is None or not self._running:
            return
        sessions = [session for session in self._speaker.sessions if session.peer in peers]
        exported = {session.peer: self.exporter.told(session.peer) for session in sessions}
        nothing = {Advert(peer, prefix): None for peer, told in exported.items() for prefix in (*told, None)}
        self.reconciler.change_desired({**nothing, **self._all(sessions, exported)}, self._revision)
        self.wake.set()

    def tell_all(self) -> None:
        """There are other sessions, or another ExaBGP."""
        if self._speaker is None or not self._running:
            return
        self.reconciler.set_desired(self._all(self._speaker.sessions, self.exporter.exported), self._revision)
        self.wake.set()

    def _all(
        self, sessions: Collection[Session], exported: Mapping[Address, Mapping[Network, Attributes]]
    ) -> Mapping[Advert, Told]:
        """All that some sessions should be told."""
        tellings, up, told = self._sessions.tellings, self._sessions.up, self.driver.told
        conclude = self._concludes or not self.exporter.passes_on
        return desired_adverts(sessions, exported, tellings, up, told, conclude=conclude)

    def _tell(self, difference: Difference) -> None:
        """What has changed for sessions that are up. One that is down keeps what it should still have of what it was
        told, and is told the rest when it comes."""
        if not self._running:
            return
        up, tellings = self._sessions.up, self._sessions.tellings
        changes = {
            Advert(peer, prefix): None if attributes is None else Told(tellings[peer], attributes)
            for peer, said in difference.items()
            for prefix, attributes in said.items()
            if attributes is None or peer in up
        }
        self.reconciler.change_desired(changes, self._revision)
        self.wake.set()
