"""What we tell peers, as a driver of the one reconciler.

    key    (peer, prefix), or (peer, None) for the End-of-RIB that follows everything else
    value  the attributes, and the telling: numbers that change when the peer, or ExaBGP itself, has forgotten
    read   what ExaBGP has acknowledged
    apply  withdrawals, then announcements, then End-of-RIBs: one command at a time, each acknowledged; one command
           for all prefixes of the same attributes and all peers that are told them

A peer that comes up has forgotten us, so it is told everything again, and only then End-of-RIB: what a restarted
speaker has not announced by then, the peer drops. While it is down, ExaBGP keeps what it was told and says it again by
itself; so a withdrawal is passed on, and an announcement waits. What flaps while a round lasts is told once, as it is
at the end: the reconciler knows states only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from bgp.attributes import Attributes
from bgp.exabgp.line import Announce, Command, SendEndOfRib, Withdraw, batches
from bgp.model import Session
from core.addr import Address, Family, Network
from core.errors import MuslinError, Unavailable
from core.reconcile import Plan


@dataclass(frozen=True, slots=True)
class Advert:
    """One thing told to one peer; `prefix` None is the End-of-RIB marker."""

    peer: Address
    prefix: Network | None


@dataclass(frozen=True, slots=True)
class Telling:
    """The `session`th session of all (0: none yet), of the `speaker`th ExaBGP."""

    speaker: int
    session: int


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of an advert (nothing, of the End-of-RIB), and in which telling."""

    telling: Telling
    attributes: Attributes | None = None


Send: TypeAlias = Callable[[Command], Awaitable[bool]]
"""Gives ExaBGP a command; whether it was accepted. Raises `Unavailable` when there is no ExaBGP to ask."""

Say: TypeAlias = Callable[[tuple[Address, ...], tuple[Network, ...]], Announce | Withdraw]
"""Makes the command that says something of prefixes to peers."""


def desired_adverts(
    sessions: Iterable[Session],
    exported: Mapping[Address, Mapping[Network, Attributes]],
    tellings: Mapping[Address, Telling],
    up: Collection[Address],
    told: Mapping[Advert, Told] = MappingProxyType({}),
    *,
    conclude: bool = True,
) -> Mapping[Advert, Told]:
    """What `exported` has for every session that is up, and End-of-RIB if all there is to tell is known (`conclude`).
    Of what a session that is down was `told`, what it should still have stays as it is."""
    wanted: dict[Advert, Told] = {}
    for session in sessions:
        telling = tellings[session.peer]
        adverts = {Advert(session.peer, prefix): each for prefix, each in exported.get(session.peer, {}).items()}
        if session.peer in up:
            wanted.update({advert: Told(telling, attributes) for advert, attributes in adverts.items()})
            if conclude:
                wanted[Advert(session.peer, None)] = Told(telling)
        else:
            kept = {advert: told[advert] for advert in adverts.keys() & told.keys()}
            wanted.update({advert: each for advert, each in kept.items() if each.telling.speaker == telling.speaker})
    return wanted


class AdvertDriver:
    """Remembers what was acknowledged. `configured` are the peers ExaBGP knows: nothing is taken back from others."""

    name = "adverts"

    def __init__(self, send: Send) -> None:
        self.configured: frozenset[Address] = frozenset()
        self._send = send
        self._acknowledged: dict[Advert, Told] = {}
        self.counts: Counter[Address] = Counter()
        """How many prefixes each peer has been told."""

    @property
    def told(self) -> Mapping[Advert, Told]:
        """What stands acknowledged, as it is now."""
        return MappingProxyType(self._acknowledged)

    def forget(self) -> None:
        """A new ExaBGP runs: nothing is told."""
        self._acknowledged.clear()
        self.counts.clear()

    async def read(self) -> Mapping[Advert, Told]:
        """What stands acknowledged."""
        return dict(self._acknowledged)

    async def apply(self, plan: Plan[Advert, Told]) -> Mapping[Advert, Exception]:
        """Tell peers the difference; what ExaBGP refuses (a peer it has not loaded yet) is an error of those keys."""
        errors: dict[Advert, Exception] = {}
        gone = [advert for advert in plan.delete if advert.peer in self.configured]
        for (peers, _), prefixes in _alike((advert, None) for advert in gone).items():
            for batch in batches(prefixes):
                errors.update(await self._tell_all(peers, batch, Withdraw))
        for advert in plan.delete.keys() - errors.keys():
            if self._acknowledged.pop(advert, None) is not None and advert.prefix is not None:
                self.counts[advert.peer] -= 1
        new = ((advert, told.attributes) for advert, told in plan.upsert.items())
        for (peers, attributes), prefixes in _alike(new).items():
            for batch in batches(prefixes):
                assert attributes is not None
                say = partial(_announce, attributes)
                errors.update(await self._tell_all(peers, batch, say))
        ends = [advert for advert in plan.upsert if advert.prefix is None]
        errors.update(await self._end(ends, {advert.peer for advert in errors}))
        done = {key: value for key, value in plan.upsert.items() if key not in errors}
        self.counts.update(
            advert.peer for advert in done if advert.prefix is not None and advert not in self._acknowledged
        )
        self._acknowledged.update(done)
        return errors

    async def _end(self, ends: Iterable[Advert], failed: Collection[Address]) -> Mapping[Advert, Exception]:
        errors: dict[Advert, Exception] = {}
        for advert in ends:
            if advert.peer in failed:
                errors[advert] = Unavailable("End-of-RIB waits for the announcements before it")
            else:
                command = SendEndOfRib(advert.peer, Family(advert.peer.version))
                errors.update(await self._tell(command, [advert]))
        return errors

    async def _tell_all(
        self, peers: tuple[Address, ...], prefixes: tuple[Network, ...], say: Say
    ) -> Mapping[Advert, Exception]:
        """One command for all of them; if that is refused, one for each, so that one's trouble is not the others'."""
        errors = await self._tell(say(peers, prefixes), [Advert(peer, each) for peer in peers for each in prefixes])
        if not errors or len(peers) == 1:
            return errors
        alone = [await self._tell_all((peer,), prefixes, say) for peer in peers]
        return {advert: error for each in alone for advert, error in each.items()}

    async def _tell(self, command: Command, about: Iterable[Advert]) -> Mapping[Advert, Exception]:
        try:
            if await self._send(command):
                return {}
            error: MuslinError = Unavailable(
                "ExaBGP has no session with it yet, or the peer does not read what we send"
            )
        except Unavailable as unavailable:
            error = unavailable
        return dict.fromkeys(about, error)


def _announce(attributes: Attributes, peers: tuple[Address, ...], prefixes: tuple[Network, ...]) -> Announce:
    return Announce(peers, attributes, prefixes)


def _alike(
    adverts: Iterable[tuple[Advert, Attributes | None]],
) -> Mapping[tuple[tuple[Address, ...], Attributes | None], list[Network]]:
    """Prefixes by what is said of them and to whom: what one command can say. In the order given."""
    peers: dict[tuple[Network, Attributes | None], list[Address]] = {}
    for advert, attributes in adverts:
        if advert.prefix is not None:
            peers.setdefault((advert.prefix, attributes), []).append(advert.peer)
    grouped: dict[tuple[tuple[Address, ...], Attributes | None], list[Network]] = {}
    for (prefix, attributes), who in peers.items():
        grouped.setdefault((tuple(who), attributes), []).append(prefix)
    return grouped
