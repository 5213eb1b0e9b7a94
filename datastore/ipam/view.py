"""What one ledger sees of the store: its books, when they were read, and what it is about to write on top.

    read_all ── list ──> books           all but the handles
    keep_up  ── list ──> pools, reservations, settings: all, if one of them is not as it is known
    look     ── get ───> one object; of a handle also the blocks that it names
    lay      ── a step is laid over the books, at the revisions it compares with ──┬── settle(revision): it was made
                                                                                   └── undo: it was not

Handles are as many as pods, so they are read one at a time, when somebody asks for one, and the oldest are forgotten.
One that is not known is taken for absent: a step then creates it, and the store refuses when it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

import structlog

from core.addr import Family
from core.errors import Invalid
from core.manifest import decode
from core.names import Key, Kind
from core.resources import (
    BY_KIND,
    BlockAffinity,
    IPAMBlock,
    IPAMConfiguration,
    IPAMHandle,
    IPPool,
    IPReservation,
    Namespace,
    Node,
    Resource,
)
from datastore.api import ABSENT, Entry, Operation, Put, Store
from datastore.ipam.block import block_name
from datastore.ipam.books import KINDS, Books, Seen, handle_key
from datastore.ipam.model import Change, Owner, Write

LISTED: Final[frozenset[Kind]] = KINDS - {IPAMHandle.KIND}
"""What is read whole."""

ALONE: Final[frozenset[Kind]] = frozenset(cls.KIND for cls in (IPAMBlock, BlockAffinity, IPAMHandle, Node, Namespace))
"""What may be looked at alone. Pools may not, nor what is guarded as a kind: see `datastore.ipam.books`."""

STEERING: Final[frozenset[Kind]] = frozenset(cls.KIND for cls in (IPPool, IPReservation, IPAMConfiguration))
"""What decides which addresses are given at all: few objects, whose change is to count soon."""

HANDLES: Final = 4096
"""Handles that are remembered: three times what the blocks of a node hold, as they are delivered."""

TURN: Final = 50
"""Objects that are decoded before others have their turn: a block takes a third of a millisecond."""

log = structlog.get_logger()


class View:
    """One ledger's. One task changes it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.distrust()

    def distrust(self) -> None:
        """Forget everything: nobody knows what has been written."""
        self.books = Books()
        self._began: float | None = None
        self._kept_up = 0.0
        self._under: dict[Key, Seen[Resource] | None] = {}
        self._handles: dict[Key, None] = {}

    def is_since(self, moment: float) -> bool:
        """Whether everything was read after `moment` (of `time.monotonic`)."""
        return self._began is not None and self._began >= moment

    async def keep_up(self, moment: float) -> None:
        """See to it that what steers decisions is as it was at `moment` or later."""
        if self._began is None:
            await self.read_all()
        elif max(self._began, self._kept_up) < moment:
            began = time.monotonic()
            listing = await self._store.list(STEERING)
            known = {seen.key: seen.revision for kind in STEERING for seen in self.books.everything(BY_KIND[kind])}
            if {entry.key: entry.revision for entry in listing.entries} != known:
                await self.read_all()
            self._kept_up = began

    async def read_all(self) -> None:
        """Read everything but the handles. What is known at the same revision is not decoded again."""
        began = time.monotonic()
        listing = await self._store.list(LISTED)
        if listing.revision < self.books.revision:  # the store was restored from a backup
            self.distrust()
        there = {entry.key for entry in listing.entries}
        for kind in LISTED:
            for seen in list(self.books.everything(BY_KIND[kind])):
                if seen.key not in there:
                    self.books.see(seen.key, None, ABSENT)
        changed = [entry for entry in listing.entries if self.books.at(entry.key) != entry.revision]
        for number, entry in enumerate(changed, 1):
            self._note(entry)
            if number % TURN == 0:
                await asyncio.sleep(0)
        self.books.caught_up(listing.revision)
        self._began = began

    async def look(self, key: Key) -> None:
        """Read one object again; everything, if it is not of a kind that may be looked at alone."""
        if key.kind not in ALONE:
            await self.read_all()
        elif key.kind == IPAMHandle.KIND:
            await self._look_at_handle(key)
        else:
            await self._get(key)

    async def look_up(self, handle: str, owner: Owner | None) -> None:
        """Read what `handle` holds (its object, then the blocks that this names) and what is not known of its owner."""
        await self._look_at_handle(handle_key(handle))
        for key in self.unknown(owner) if owner is not None else ():
            await self._get(key)

    def unknown(self, owner: Owner) -> list[Key]:
        """The Node and the Namespace of an owner, if some pool asks for labels of such and they are not known."""
        if owner.virtual:
            return []
        keys = [
            Key(Node.KIND, "", owner.node),
            *([Key(Namespace.KIND, "", owner.namespace)] if owner.namespace else []),
        ]
        missing = [key for key in keys if self.books.at(key) == ABSENT]
        if not missing:
            return []
        specs = [pool.spec for family in Family for pool in self.books.pools(family)]
        asked = {Node.KIND: any(spec.node_selector not in ("", "all()") for spec in specs)}
        asked[Namespace.KIND] = any(spec.namespace_selector for spec in specs)
        return [key for key in missing if asked[key.kind]]

    def lay(self, changes: Iterable[Change]) -> None:
        """Lay a step over the books, until `settle` or `undo`."""
        for change in changes:
            resource = change.resource if isinstance(change, Write) else None
            key = change.resource.key if isinstance(change, Write) else change.key
            if key.kind in KINDS:
                self._under.setdefault(key, self.books.find(BY_KIND[key.kind], key))
                self.books.see(key, resource, change.if_revision if resource is not None else ABSENT)

    def undo(self) -> None:
        """The steps were not made."""
        for key, seen in self._under.items():
            self.books.see(key, seen.resource if seen else None, seen.revision if seen else ABSENT)
        self._under.clear()

    def settle(self, revision: int, along: Iterable[Operation]) -> None:
        """The steps, and what callers wrote `along`, were made at `revision`."""
        for key in self._under:
            seen = self.books.find(BY_KIND[key.kind], key)
            if seen is None:
                self._handles.pop(key, None)
            else:
                self.books.see(key, seen.resource, revision)
                self._remember(key)
        self._under.clear()
        if revision == self.books.revision + 1:  # nobody else wrote anything meanwhile
            self.books.caught_up(revision)
        for operation in along:
            if operation.key.kind not in KINDS:
                continue
            if operation.key.kind not in ALONE:
                self._began = None  # to be read with all the others
            elif isinstance(operation, Put):
                self._note(Entry(operation.key, operation.value, revision))
            else:
                self._forget(operation.key)

    async def _look_at_handle(self, key: Key) -> None:
        await self._get(key)
        seen = self.books.find(IPAMHandle, key)
        if seen is not None and seen.resource is not None:
            for block in dict.fromkeys(seen.resource.spec.addresses.values()):
                await self._get(Key(IPAMBlock.KIND, "", block_name(ip_network(block))))

    async def _get(self, key: Key) -> None:
        entry = await self._store.get(key)
        if entry is None:
            self._forget(key)
        elif self.books.at(key) < entry.revision:
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        try:
            resource = decode(entry.key, entry.value)
        except Invalid as invalid:
            log.warning("ipam.object_set_aside", object=str(entry.key), why=str(invalid))
            resource = None
        self.books.see(entry.key, resource, entry.revision)
        self._remember(entry.key)

    def _remember(self, key: Key) -> None:
        """Let the handle go that has been known longest, when there are too many."""
        if key.kind == IPAMHandle.KIND:
            self._handles.pop(key, None)
            self._handles[key] = None
            if len(self._handles) > HANDLES:
                self._forget(next(iter(self._handles)))

    def _forget(self, key: Key) -> None:
        self._handles.pop(key, None)
        self.books.see(key, None, ABSENT)
