"""The edge of IPAM: carries decisions out against a store, many to a transaction, and decides a lost one again.

    assign, release ──> calls ──┬── decide on the books, each on what the one before leaves ──> Group ── txn ──> store
                          ^     │                                                                 │
                          │     └── what wants fresher books: read, again <── Conflict: look at what it names
                          └──────────────── those that came meanwhile go together next ───────────┘

One task does this while there are calls, one transaction at a time, so calls that come while one is under way share the
next. The books are as old as the last time they were read, which does no harm: a step that relies on something old is
refused by the store. What no store would refuse is never said on old books: that there is no address left, that a pool
is not there, that a handle holds what it holds; nor is a block claimed or an address borrowed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, auto
from ipaddress import ip_address, ip_network
from typing import Final, TypeAlias

from core.addr import Address
from core.errors import Conflict, Invalid, MuslinError, on_purpose
from core.resources import BlockAffinity, IPAMBlock, IPAMHandle
from datastore import objects
from datastore.api import ABSENT, At, Operation, Store
from datastore.ipam.block import block_name
from datastore.ipam.books import Books, handle_key
from datastore.ipam.giving.assign import assign
from datastore.ipam.giving.release import release
from datastore.ipam.group import Group
from datastore.ipam.model import Exhausted, Grant, Owner, Request, Step, Write
from datastore.ipam.view import View

ATTEMPTS: Final = 100
"""How many transactions one call may take part in before it is given up."""

BACKOFF_S: Final = 0.002
BACKOFF_MAX_S: Final = 0.25

PATIENCE: Final = 2
"""After how many lost races everything is read, not only what was named."""

RECENT_S: Final = 1.0
"""Age of books on which a block may be claimed or an address borrowed: on older ones the race is likely lost."""

STALE_S: Final = 10.0
"""Age at which pools, reservations and settings are looked at again: a new pool is to serve soon."""

EVERYBODY: Final = 1 << 30

Along: TypeAlias = Callable[[Grant], Sequence[Operation]]
"""What is to be written in the same transaction as the addresses, once they are known: an endpoint, a Node.

It may be called more than once, with other addresses, before one transaction is made.
"""


class _Wants(Enum):
    """What must be read before a call can be decided."""

    NOTHING = auto()
    HANDLE = auto()
    EVERYTHING = auto()


@dataclass(slots=True, eq=False)
class _Call:
    """Somebody who waits for what `handle` gets, or for its end.

    `owner` is None when no addresses are asked for; `company` is how many may share a transaction with it.
    """

    handle: str
    decide: Callable[[Books], Step]
    along: Along | None
    guards: Sequence[At]
    owner: Owner | None
    done: asyncio.Future[tuple[Grant, int]]
    began: float = field(default_factory=time.monotonic)
    wants: _Wants = _Wants.NOTHING
    looked: bool = False
    attempts: int = 0
    company: int = EVERYBODY
    grant: Grant | None = None

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def finish(self, grant: Grant, revision: int) -> None:
        if not self.done.done():
            self.done.set_result((grant, revision))


class Ledger:
    """One process's hand in the cluster's addresses. Keeps books, so that most decisions need no read.

    Calls may be made at once and share transactions; calls for one handle are done in the order in which they were
    made. Safe beside any number of other ledgers. Belongs to one event loop; there is nothing to close.

    A caller that is cancelled while its transaction is under way does not hear whether it was made; nor does one that
    gets `Unavailable`. Either it was not, or the handle holds the addresses: `release` of the handle frees them, and
    `assign` finds them. Those who share the transaction notice nothing of a cancelled one. A release that ended so may
    be made late, even after an `assign` that found the addresses; one with `along` rules that out, as it writes.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._view = store, View(store)
        self._calls: list[_Call] = []
        self._work: asyncio.Task[None] | None = None

    async def assign(
        self, request: Request, along: Along | None = None, guards: Sequence[At] = ()
    ) -> tuple[Grant, int]:
        """The addresses of `request.handle`, given now if it has none, and the revision at which that stood.

        What it has already is kept. With `along` the handle is written each time, with what it returns, while the
        `guards` hold, which are of objects that are not IPAM's: what the request was made from. Raises `Exhausted`,
        `Invalid` (a pool asked for is not there), `Unavailable`, or `Conflict` when too many races were lost or
        something in `along` or `guards` is not at its revision.
        """
        return await self._ask(
            request.handle, lambda books: assign(books, request, datetime.now(UTC)), along, guards, request.owner
        )

    async def release(
        self, handle: str, why: str, along: Sequence[Operation] = (), guards: Sequence[At] = (), *, node: str = ""
    ) -> Grant:
        """Free all that `handle` holds on `node` ("": anywhere), and write `along` with it, while the `guards` hold;
        what it held. None is a success.

        `why` goes into the addresses' records. Raises `Unavailable` or `Conflict`, as `assign`.
        """
        grant, _ = await self._ask(
            handle,
            lambda books: release(books, handle, why, datetime.now(UTC), node),
            (lambda _: along) if along else None,
            guards,
        )
        return grant

    async def held_by(self, handle: str) -> Grant:
        """What `handle` holds, as the store has it now. Raises `Unavailable`, or `Invalid` when it cannot be read."""
        return await held_by(self._store, handle)

    async def _ask(
        self,
        handle: str,
        decide: Callable[[Books], Step],
        along: Along | None,
        guards: Sequence[At] = (),
        owner: Owner | None = None,
    ) -> tuple[Grant, int]:
        call = _Call(handle, decide, along, guards, owner, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run(), name="ipam-ledger")
        return await call.done

    async def _run(self) -> None:
        """Do what there is to do. Whatever happens, nobody is left waiting."""
        try:
            while self._calls:
                await self._round()
                self._calls = [call for call in self._calls if not call.done.done()]
        except asyncio.CancelledError:  # the event loop ends
            self._view.distrust()
            for call in self._calls:
                call.done.cancel()
            raise
        except Exception as error:  # a bug: its callers report it
            self._view.distrust()
            for call in self._calls:
                call.fail(error)

    async def _round(self) -> None:
        """Read what is wanted, decide for as many as go together, and carry that out."""
        waiting = list(self._calls)
        try:
            await self._read(waiting)
        except MuslinError as error:
            self._view.distrust()
            for call in waiting:
                call.fail(error)
            return
        group: Group[_Call] = Group()
        self._decide(group)
        if group.callers:
            await self._carry_out(group)

    async def _read(self, waiting: Sequence[_Call]) -> None:
        if any(call.wants is _Wants.EVERYTHING for call in waiting):
            await self._view.read_all()
        await self._view.keep_up(time.monotonic() - STALE_S)
        unknown = [call for call in waiting if call.wants is _Wants.HANDLE]
        try:
            async with asyncio.TaskGroup() as looks:
                for call in unknown:
                    looks.create_task(self._view.look_up(call.handle, call.owner))
        except BaseExceptionGroup as errors:
            raise next(iter(on_purpose(errors)), errors) from None
        for call in waiting:
            call.looked = call.looked or call.wants is _Wants.HANDLE
            call.wants = _Wants.NOTHING

    def _decide(self, group: Group[_Call]) -> None:
        """Fill the group: for each handle the call that came first, until one does not go with the others."""
        handles: set[str] = set()
        most = EVERYBODY
        for call in self._calls:
            if call.done.done() or call.handle in handles:
                continue
            handles.add(call.handle)
            most = min(most, call.company)
            if len(group.callers) >= most:
                return
            try:
                if not self._join(call, group):
                    return
            except (Exhausted, Invalid) as error:
                if not call.looked:
                    call.wants = _Wants.HANDLE  # it may have what it asks for
                    continue
                if not self._view.is_since(call.began):
                    call.wants = _Wants.EVERYTHING
                    return
                if not group.callers:  # else it may be otherwise when what the group does is not made
                    call.fail(error)
            except Exception as error:  # a fault in the caller's own `along`
                call.fail(error)

    def _join(self, call: _Call, group: Group[_Call]) -> bool:
        """Decide for one caller; False when nobody else goes into the group."""
        books = self._view.books
        if call.owner is None:
            unknown = books.at(handle_key(call.handle)) == ABSENT
        else:
            unknown = bool(self._view.unknown(call.owner))
        if unknown and not call.looked:
            call.wants = _Wants.HANDLE
            return True
        step = call.decide(books)
        if _reaches_out(step, call.owner) and not self._view.is_since(min(call.began, time.monotonic() - RECENT_S)):
            call.wants = _Wants.EVERYTHING
            return False  # most likely the others would have to reach out too
        if step.grant is not None and not step.changes:
            if not call.looked:
                call.wants = _Wants.HANDLE
                return True
            if call.along is None:
                call.finish(step.grant, books.at(handle_key(call.handle)))
                return True
        along: Sequence[Operation] = ()
        if step.grant is not None and call.along is not None:
            along = call.along(step.grant)
            if call.owner is not None:
                step = self._handle_written(call, step)
        if not group.add(call, step, along, call.guards):
            return False
        call.grant = step.grant
        self._view.lay(step.changes)
        return step.grant is not None

    def _handle_written(self, call: _Call, step: Step) -> Step:
        """`step`, with a write of the handle if it leaves it as it is: its revision is the number of the last ADD."""
        key = handle_key(call.handle)
        seen = self._view.books.handle(call.handle)
        touched = any((each.resource.key if isinstance(each, Write) else each.key) == key for each in step.changes)
        if touched or seen is None or seen.resource is None:
            return step
        return replace(step, changes=(*step.changes, Write(seen.resource, seen.revision)))

    async def _carry_out(self, group: Group[_Call]) -> None:
        try:
            revision = await self._store.txn(group.operations, group.guards)
        except Conflict as conflict:
            self._view.undo()
            await self._lost(group, conflict)
        except Invalid as error:
            self._view.undo()
            _refused(group.callers, error)
        except MuslinError as error:  # whether it was made is not known
            self._view.distrust()
            for call in group.callers:
                call.fail(error)
        else:
            self._view.settle(revision, group.along())
            for call in group.callers:
                if call.grant is not None:
                    call.finish(call.grant, revision)
                else:
                    _count(call)

    async def _lost(self, group: Group[_Call], conflict: Conflict) -> None:
        """A race was lost: see what is there now, and let the callers be decided again."""
        if callers := group.to_blame(conflict):
            for call in callers:
                call.fail(conflict)
            return
        for call in group.callers:
            _count(call)
        attempts = max(call.attempts for call in group.callers)
        key = group.about(conflict)
        try:
            if key is not None and key.kind == IPAMHandle.KIND:  # and so, maybe, are others' handles
                for call in group.callers:
                    call.wants = _Wants.HANDLE
            elif key is None or attempts > PATIENCE or (key.kind == IPAMBlock.KIND and conflict.expected == ABSENT):
                await self._view.read_all()
            else:
                await self._view.look(key)
        except MuslinError:
            self._view.distrust()  # the next round reads all, and says why it cannot
        if attempts > 1:
            bound = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(attempts, 10))
            await asyncio.sleep(random.random() * bound)  # noqa: S311 - jitter, not a secret


def _count(call: _Call) -> None:
    call.attempts += 1
    if call.attempts >= ATTEMPTS:
        call.fail(Conflict(f"addresses of {call.handle}", None, None))


def _refused(calls: Sequence[_Call], error: Invalid) -> None:
    """The store takes no such transaction, for one caller's sake or because it is too large: halve it."""
    for call in calls:
        if len(calls) == 1:
            call.fail(error)
        call.company = max(1, len(calls) // 2)


def _reaches_out(step: Step, owner: Owner | None) -> bool:
    """Whether a block or a claim to one is made, or an address borrowed: by what others have, not what the node has."""
    if owner is None:
        return False
    written = (change for change in step.changes if isinstance(change, Write))
    return any(
        isinstance(each.resource, IPAMBlock | BlockAffinity)
        and (
            each.if_revision == ABSENT
            or (isinstance(each.resource, IPAMBlock) and each.resource.spec.owner != owner.node)
        )
        for each in written
    )


async def held_by(store: Store, handle: str) -> Grant:
    """What `handle` holds in `store` now. Raises `Unavailable`, or `Invalid` when it cannot be read."""
    found = await objects.read(store, IPAMHandle, handle_key(handle).name)
    held: list[Address] = []
    for block in dict.fromkeys(found[0].spec.addresses.values()) if found else ():
        inside = await objects.read(store, IPAMBlock, block_name(ip_network(block)))
        if inside:
            held += [ip_address(text) for text, holder in inside[0].spec.allocations.items() if holder == handle]
    return Grant(handle=handle, addresses=tuple(sorted(held, key=lambda each: (each.version, int(each)))))
