"""The edge of Services' addresses: follows the store, carries out what is planned, and tries again what did not go.

    store ── follow ──> Snapshot ──> plan ──> Give, Take ── Ledger, with the Service's own write ──> store
                           ^                  Spare, ended pools ── transactions that compare ─────────┘
                           └──────────────────────────── every write is heard of again ────────────────┘

It runs in every datastore server, and any number of them may run over one backend: each write compares with what it was
decided on, so of two that do the same one is refused, and goes by what the other has done.

What was done, or did not go, is left alone while the plan for it is the very same object: nothing that it goes by has
changed. What did not go is tried again after a while all the same, and soon when a block of the load balancers changes:
an address may be free. A Service for which the plan is a new one each time, without end, is worked on ever more seldom.
Nothing is decided on a snapshot that is stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import structlog

from core import manifest
from core.errors import Conflict, Invalid, Unavailable
from core.latest import Latest
from core.names import Key
from core.resources import (
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPPool,
    IPReservation,
    KubeControllersConfiguration,
    Resource,
    Service,
)
from core.resources.ipam import LOAD_BALANCER
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import ABSENT, At, Store
from datastore.follow import follow
from datastore.ipam.balancing.plan import Due, Give, Planner, Spare, Take, Unmoved, Wait, ended, revision, spares
from datastore.ipam.balancing.wishes import HANDLE
from datastore.ipam.block import stamp
from datastore.ipam.ledger import Ledger
from datastore.ipam.listing.ending import ending
from datastore.ipam.listing.holders import KINDS, Holdings
from datastore.ipam.model import Exhausted, Grant, Request
from datastore.ipam.writing import operations

FOLLOWED: Final[tuple[type[Resource], ...]] = (
    Service,
    IPPool,
    KubeControllersConfiguration,
    IPAMHandle,
    IPAMBlock,
    BlockAffinity,
    IPReservation,
    IPAMConfiguration,
)

TOGETHER: Final = 64
"""Services that are worked on at once: what the others have done meanwhile is seen between."""

AGAIN_S: Final = 30.0
"""After how many seconds what did not go is tried again at the latest, and what was done and is not to be seen."""

SOON_S: Final = 1.0
"""How soon, at most, who found nothing free is tried again when blocks change."""

RACE_S: Final = 0.05
"""The first wait of who lost a race; each further one is twice as long."""

TURNS: Final = 8
"""Tries for one Service, less than AGAIN_S apart, after which each further one waits twice as long."""

AWAY_S: Final = 3.0
"""How soon a store that was away is tried again."""

IDLE_S: Final = 60.0
"""How long an empty block is kept: the next Service would have to claim it anew."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Tried:
    """What came of the last try, `at` (steady clock), of what is due for a Service.

    The same is due `again`; anything else not before `rest`.
    """

    due: Due
    at: float
    again: float
    rest: float
    turns: int
    failures: int
    why: str


@dataclass(slots=True)
class _Balancer:
    """The state of one `balance`: what was tried, what is empty since when."""

    store: Store
    ledger: Ledger
    idle_s: float
    planner: Planner = field(default_factory=Planner)
    tried: dict[Key, _Tried] = field(default_factory=dict)
    empty: dict[Key, tuple[int, float]] = field(default_factory=dict)
    supply: Unmoved = field(default_factory=lambda: Unmoved(IPAMBlock, IPReservation, IPAMConfiguration))
    tidied: Unmoved = field(default_factory=lambda: Unmoved(IPAMBlock, BlockAffinity, IPPool, IPAMConfiguration))
    tidy_at: float = 0.0

    async def run(self, latest: Latest[Snapshot]) -> None:
        """Do what is due, for ever."""
        failures = 0
        while True:
            snapshot = latest.peek()
            wait = AGAIN_S
            try:
                if snapshot is not None and not snapshot.stale:
                    wait = await self._round(snapshot)
                failures = 0
            except Unavailable:  # the server says so in the log
                failures += 1
                await asyncio.sleep(AWAY_S)
            except Exception as error:  # whatever it is, Services of tomorrow are to have addresses
                failures += 1
                log.error("balancing.failed", why=str(error), exc_info=error)
                await asyncio.sleep(min(AGAIN_S, 2.0 ** min(failures, 6)))
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await latest.get()

    async def _round(self, snapshot: Snapshot) -> float:
        """Everything that is due now; seconds until more is, if nothing changes."""
        plan = self.planner.plan(snapshot)
        self._forget({each.key for each in plan})
        self._hurry(snapshot)
        now = time.monotonic()
        due = [each for each in plan if self._is_due(each, now)]
        random.shuffle(due)  # not the order of the other servers
        due.sort(key=lambda each: not isinstance(each, Take))  # what is freed first may be given then
        for start in range(0, len(due), TOGETHER):
            async with asyncio.TaskGroup() as tasks:
                for each in due[start : start + TOGETHER]:
                    tasks.create_task(self._try(each))
        if not self.tidied(snapshot) or self.tidy_at <= now:
            self.tidy_at = await self._tidy(snapshot, now)
        times = [*map(self._next, plan), self.tidy_at]
        return max(0.01, min(times) - time.monotonic())

    def _forget(self, there: set[Key]) -> None:
        for key in self.tried.keys() - there:
            del self.tried[key]

    def _hurry(self, snapshot: Snapshot) -> None:
        """Who found nothing is tried soon when what there is to give has changed."""
        if self.supply(snapshot):
            return
        for tried in self.tried.values():
            if tried.why:
                tried.again = min(tried.again, tried.at + SOON_S)

    def _is_due(self, due: Due, now: float) -> bool:
        return self._next(due) <= now

    def _next(self, due: Due) -> float:
        """When it is to be tried."""
        tried = self.tried.get(due.key)
        if tried is None:
            return 0.0
        return tried.again if tried.due is due else tried.rest

    async def _try(self, due: Due) -> None:
        before = self.tried.get(due.key)
        failures = before.failures + 1 if before is not None and before.due is due else 0
        said = before.why if before is not None else ""
        why, wait = "", AGAIN_S
        try:
            match due:
                case Give():
                    await self._give(due)
                case Take():
                    await self._take(due)
                case Wait():
                    why = due.why
        except Conflict:  # somebody was faster: what he did is heard of
            why, wait = said, RACE_S * 2.0 ** min(failures, 6)
        except Unavailable:
            why, wait = said, AWAY_S
        except (Exhausted, Invalid) as error:
            why, wait = str(error), min(AGAIN_S, 2.0 ** min(failures, 6))
        except Exception as error:  # a bug, of which no other Service is to suffer
            why = repr(error)
            log.error("balancing.failed", service=_name(due.key), why=why, exc_info=error)
        if why and why != said:
            log.warning("balancing.waits", service=_name(due.key), why=why)
        self.tried[due.key] = _tried(due, before, wait, failures, why)

    async def _give(self, due: Give) -> None:
        grant = await self._adopt(due) or await self._assign(due, due.request)
        addresses = list(map(str, grant.addresses))
        back = list(map(str, due.request.instead_of))
        log.info("balancing.given", service=_name(due.key), addresses=addresses, instead_of=back)

    async def _adopt(self, due: Give) -> Grant | None:
        if due.adopting is None:
            return None
        try:
            return await self._assign(due, due.adopting)
        except Exhausted:  # they are others' by now
            return None

    async def _assign(self, due: Give, request: Request) -> Grant:
        at = revision(due.service)
        grant, _ = await self.ledger.assign(request, lambda found: [objects.put(due.told(found.addresses), at)])
        return grant

    async def _take(self, due: Take) -> None:
        if due.service is None:
            grant = await self.ledger.release(due.handle, "Service gone", guards=[At(due.key, ABSENT)])
        elif due.told is due.service:
            guards = [At(due.key, revision(due.service))]
            grant = await self.ledger.release(due.handle, "Service asks for none", guards=guards)
        else:
            assert due.told is not None
            along = [objects.put(due.told, revision(due.service))]
            grant = await self.ledger.release(due.handle, "Service asks for none", along)
        log.info("balancing.taken", service=_name(due.key), addresses=list(map(str, grant.addresses)))

    async def _tidy(self, snapshot: Snapshot, now: float) -> float:
        """Remove what nobody needs; when to look again."""
        found = list(spares(snapshot, datetime.now(UTC)))
        self.empty = {each.key: self._empty_since(each, now) for each in found}
        ripe = [each for each in found if each.at_once or self.empty[each.key][1] + self.idle_s <= now]
        for each in ripe:
            with contextlib.suppress(Conflict):  # it is used again
                await self.store.txn(operations(each.step.changes))
                log.info("balancing.block_removed", object=str(each.key))
        ending_pools = ended(snapshot)
        for pool in ending_pools:
            await self._end(pool)
        times = [max(since + self.idle_s, now + SOON_S) for _, since in self.empty.values()]
        return min([*times, now + (AGAIN_S / 6 if ending_pools else AGAIN_S)])

    def _empty_since(self, spare: Spare, now: float) -> tuple[int, float]:
        before = self.empty.get(spare.key)
        return before if before is not None and before[0] == spare.revision else (spare.revision, now)

    async def _end(self, pool: Key) -> None:
        """Remove a pool that was deleted, if that is all that is left of it; else what is left is others' to remove."""
        seen = Holdings(await self.store.list(KINDS))
        held = seen.of(IPPool).get(pool)
        if held is None or set(held.resource.metadata.finalizers) - {IPPool.FINALIZER}:
            return
        end = ending(held, seen, stamp(datetime.now(UTC)))
        if end.over:
            with contextlib.suppress(Conflict):
                await self.store.txn(operations(end.step.changes), end.step.guards)
                log.info("balancing.pool_removed", pool=pool.name)


def _tried(due: Due, before: _Tried | None, wait: float, failures: int, why: str) -> _Tried:
    now = time.monotonic()
    turns = before.turns + 1 if before is not None and now - before.at < AGAIN_S else 0
    rest = min(AGAIN_S, 0.1 * 2.0 ** min(turns - TURNS, 10)) if turns > TURNS else 0.0
    wait = max(rest, wait)
    # Who lost a race steps aside; those who wait for an address ask together: each reading of the store is for all.
    again = (now // wait + 1) * wait if why else now + wait * random.uniform(1, 1.25)  # noqa: S311
    return _Tried(due, now, again, now + rest, turns, failures, why)


async def balance(store: Store, *, idle_s: float = IDLE_S) -> None:
    """Give Services of type LoadBalancer their addresses, until cancelled. Whatever happens is survived and logged.

    `idle_s` is how long an empty block is kept.
    """
    while True:
        try:
            latest: Latest[Snapshot] = Latest()
            async with asyncio.TaskGroup() as tasks:
                heard = follow(store, FOLLOWED, latest, None, decode=_decode, revised=True, quiet=True)
                tasks.create_task(heard, name="balancing-follow")
                await _Balancer(store, Ledger(store), idle_s).run(latest)
        except Exception as error:  # a bug: what was given stays, and it begins anew
            log.error("balancing.began_anew", why=repr(error), exc_info=error)
            await asyncio.sleep(AGAIN_S)


_MARK: Final = LOAD_BALANCER.encode()


def _decode(key: Key, value: bytes) -> Resource | None:
    """What is the load balancers'; pods' handles and nodes' blocks are not even read."""
    if key.kind == IPAMHandle.KIND and not key.name.startswith(HANDLE):
        return None
    if key.kind == IPAMBlock.KIND and _MARK not in value:
        return None
    if key.kind == BlockAffinity.KIND and b'"virtual"' not in value:
        return None
    return manifest.decode(key, value)


def _name(key: Key) -> str:
    return f"{key.namespace}/{key.name}"
