"""What we tell peers, as a driver of the one reconciler.

    key    (peer, prefix), or (peer, None) for the End-of-RIB that follows everything else
    value  the attributes, and the telling: numbers that change when the peer, or ExaBGP itself, has forgotten
    read   what ExaBGP has acknowledged
    apply  withdrawals, then announcements, then End-of-RIBs: one command at a time, each acknowledged

A peer that comes up has forgotten us, so it is told everything again, and only then End-of-RIB: what a restarted
speaker has not announced by then, the peer drops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bgp.line import Announce, Command, SendEndOfRib, Withdraw, batches
from bgp.model import Attributes, Session
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
    """The `session`th session with a peer, of the `speaker`th ExaBGP."""

    speaker: int
    session: int


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of an advert (nothing, of the End-of-RIB), and in which telling."""

    telling: Telling
    attributes: Attributes | None = None


Send: TypeAlias = Callable[[Command], Awaitable[bool]]
"""Gives ExaBGP a command; whether it was accepted. Raises `Unavailable` when there is no ExaBGP to ask."""


def desired_adverts(
    sessions: Iterable[Session],
    exported: Mapping[Address, Mapping[Network, Attributes]],
    tellings: Mapping[Address, Telling],
    up: Collection[Address],
) -> Mapping[Advert, Told]:
    """What `exported` has for every session, up or not (ExaBGP remembers), and End-of-RIB to those up."""
    wanted: dict[Advert, Told] = {}
    for session in sessions:
        telling = tellings[session.peer]
        for prefix, attributes in exported.get(session.peer, {}).items():
            wanted[Advert(session.peer, prefix)] = Told(telling, attributes)
        if session.peer in up:
            wanted[Advert(session.peer, None)] = Told(telling)
    return wanted


class AdvertDriver:
    """Remembers what was acknowledged. `configured` are the peers ExaBGP knows: nothing is taken back from others."""

    name = "adverts"

    def __init__(self, send: Send) -> None:
        self.configured: frozenset[Address] = frozenset()
        self._send = send
        self._acknowledged: dict[Advert, Told] = {}

    async def read(self) -> Mapping[Advert, Told]:
        """What stands acknowledged."""
        return dict(self._acknowledged)

    async def apply(self, plan: Plan[Advert, Told]) -> Mapping[Advert, Exception]:
        """Tell peers the difference; what ExaBGP refuses (a peer it has not loaded yet) is an error of those keys."""
        errors: dict[Advert, Exception] = {}
        for peer, told in _by_peer(plan.delete).items():
            for batch in batches(told if peer in self.configured else []):
                errors.update(await self._tell(Withdraw(peer, batch), peer, batch))
        for advert in plan.delete.keys() - errors.keys():
            self._acknowledged.pop(advert, None)
        for (peer, attributes), untold in _alike(plan.upsert).items():
            for batch in batches(untold):
                errors.update(await self._tell(Announce(peer, attributes, batch), peer, batch))
        failed = {advert.peer for advert in errors}
        for advert in plan.upsert:
            if advert.prefix is None and advert.peer not in failed:
                command = SendEndOfRib(advert.peer, Family(advert.peer.version))
                errors.update(await self._tell(command, advert.peer, (None,)))
            elif advert.prefix is None:
                errors[advert] = Unavailable("End-of-RIB waits for the announcements before it")
        self._acknowledged.update({key: value for key, value in plan.upsert.items() if key not in errors})
        return errors

    async def _tell(
        self, command: Command, peer: Address, about: Iterable[Network | None]
    ) -> Mapping[Advert, Exception]:
        try:
            if await self._send(command):
                return {}
            error: MuslinError = Unavailable(f"ExaBGP does not know a session with {peer} yet")
        except Unavailable as unavailable:
            error = unavailable
        return {Advert(peer, prefix): error for prefix in about}


def _by_peer(adverts: Iterable[Advert]) -> Mapping[Address, list[Network]]:
    grouped: dict[Address, list[Network]] = {}
    for advert in adverts:
        if advert.prefix is not None:
            grouped.setdefault(advert.peer, []).append(advert.prefix)
    return grouped


def _alike(adverts: Mapping[Advert, Told]) -> Mapping[tuple[Address, Attributes], list[Network]]:
    """Prefixes by peer and attributes: what one command can say."""
    grouped: dict[tuple[Address, Attributes], list[Network]] = {}
    for advert, told in adverts.items():
        if advert.prefix is not None and told.attributes is not None:
            grouped.setdefault((advert.peer, told.attributes), []).append(advert.prefix)
    return grouped
