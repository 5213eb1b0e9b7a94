"""Keep a complete picture of the store: what every agent stands on.

         ┌───────────────────────── Compacted, or a revision that goes back ────────────────────┐
         v                                                                                      │
    ──> list ──> a whole Snapshot ──> watch after its revision ──> next Snapshot, next ... ─────┤
         ^         (built aside,           ^                                                    │
         │          then swapped)          └── list, to compare ┬─ connection lost: stale ──────┤
         │                                                      └─ every few minutes ───────────┘
         └── store away at the start: the snapshot on disk, stale, until the store answers

    to compare:  ours, of revision r ──── changes after r ────┬──> Synced: the same? go on. If not, theirs is true
                 listed, of revision l ── those after l ──────┘

    disk: at most every few seconds and at the end, written aside and renamed

There is never a hole: a reader of `latest` sees the last whole snapshot until the next whole one. A store that has
been restored from a backup, or has forgotten what we missed, is listed anew, and what is gone is gone at once, in
one swap. A restored store may have gone past our revision before we see it: its revisions then look like more of the
history we know. So changes alone are never trusted for long: after every lost connection, and every few minutes, what
they led to is held against a listing. What does not decode is left out and named in `Snapshot.problems`; the rest
stands.

An agent gives its node's name and has `core.breaker` between: `latest` and the disk get what that admits, and what the
store first says is compared with the disk.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog
from msgspec import structs

from core import manifest
from core.breaker import hold
from core.errors import Invalid, MuslinError
from core.latest import Latest
from core.names import Key, Kind
from core.reconcile import Timing
from core.resources import Resource
from core.snapshot import Snapshot
from core.thrift import Decode, Sharing
from datastore import cache as cache_file
from datastore.api import Changes, Compacted, Entry, Event, Listing, Store, Synced

log = structlog.get_logger()

SAVE_EVERY_S: Final = 5.0
"""Seconds between two writes of the cache."""

PATIENCE: Final = Timing(retry_s=0.1, retry_max_s=3.0, resync_s=300.0)
"""How soon a store that is away is tried again, and how often what we hold is compared with a listing."""

NAMED: Final = 5
"""How many objects a log line names at most."""


async def follow(
    store: Store,
    kinds: Sequence[type[Resource]],
    latest: Latest[Snapshot],
    cache: Path | None,
    *,
    node: str = "",
    decode: Decode = manifest.decode,
    revised: bool = False,
    quiet: bool = False,
    timing: Timing = PATIENCE,
    save_every_s: float = SAVE_EVERY_S,
) -> None:
    """Put every complete state of `kinds` into `latest`, until cancelled. Errors of the store are waited out.

    `cache` is where the last snapshot is kept across restarts (None: nowhere). A snapshot is `stale` while the store
    is away: the one from disk at the start, and the last one again when the connection is lost. With `node`, what
    vanishes in masses is held until an operator has looked at that Node. `revised`: each object says in its
    `resource_version` at which revision it was last changed, as one does that a client of Kubernetes reads. `quiet`:
    the log does not say when the store is away, as somebody else of this process says it.
    """
    kept = frozenset(cls.KIND for cls in kinds)
    follower = _Follower(store, kept, latest, cache, node, Sharing(decode, node), timing, revised=revised, quiet=quiet)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.keep_saved(save_every_s), name="datastore-cache")
            await follower.run()
    finally:
        await follower.save()


class _Follower:
    """The state of one `follow`: the last whole snapshot, and whether the store is away."""

    def __init__(
        self,
        store: Store,
        kinds: frozenset[Kind],
        latest: Latest[Snapshot],
        cache: Path | None,
        node: str,
        decode: Decode,
        timing: Timing,
        *,
        revised: bool,
        quiet: bool,
    ) -> None:
        self._store, self._kinds, self._latest = store, kinds, latest
        self._cache, self._node, self._decode, self._timing = cache, node, decode, timing
        self._revised, self._quiet = revised, quiet
        self._snapshot: Snapshot | None = None
        self._accepted: Snapshot | None = None
        self._failures = 0
        self._away = False
        self._set_aside: dict[Key, str] = {}
        self._unsaved = asyncio.Event()
        self._writing: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """List, watch, and begin again, for ever."""
        if self._node:
            self._accepted = await self._on_disk()
        ours: Snapshot | None = None
        while True:
            try:
                listed = await self._list(ours)
                if ours is None:
                    ours = listed
                    self._show(ours)
                if await self._watch(ours, listed):
                    ours = self._snapshot
                    continue
                ours = None
            except MuslinError as error:
                await self._lost(error)
                ours = self._snapshot if ours is not None else None
            self._failures += 1  # until the next Synced
            await asyncio.sleep(self._timing.backoff(self._failures))

    async def _watch(self, snapshot: Snapshot, listed: Snapshot) -> bool:
        """Follow changes after `snapshot` until it takes a new listing to go on. Raises when cut off.

        True when the listing is due only to compare. `listed` is followed beside it until both are of one revision.
        """
        synced, news = False, snapshot.stale
        due = asyncio.timeout(None)
        try:
            async with aclosing(self._store.watch(snapshot.revision, self._kinds)) as items, due:
                async for item in items:
                    match item:
                        case Changes() if item.revision >= snapshot.revision:
                            read = [(event, self._read(event)) for event in item.events]
                            snapshot = _next(snapshot, item.revision, read)
                            listed = listed if synced else _next(listed, item.revision, read)
                            news = news or bool(read)
                        case Synced() if item.revision >= max(snapshot.revision, listed.revision):
                            synced = True
                            self._found()
                            due.reschedule(asyncio.get_running_loop().time() + self._compare_in_s())
                            differing = _differing(snapshot, listed)
                            news = news or bool(differing)
                            snapshot = replace(listed if differing else snapshot, revision=item.revision, stale=False)
                        case Changes() | Synced() | Compacted():
                            log.info("datastore.relist", revision=snapshot.revision, theirs=item.revision)
                            return False
                    if synced and news:
                        self._show(snapshot)
                        news = False
                    elif synced:
                        self._snapshot = snapshot  # only its revision is new: where to resume, nothing for readers
        except TimeoutError:
            return True
        return False

    def _compare_in_s(self) -> float:
        """Not all agents at once, though a server that comes back has them all begin at once."""
        return self._timing.resync_s * random.uniform(1, 1.25)  # noqa: S311 - jitter, not a secret

    async def _lost(self, error: MuslinError) -> None:
        """The store is away: say so once, and let readers know that what they have may be old."""
        if self._away:
            return
        self._away = True
        have = "the last snapshot"
        if self._snapshot is not None:
            self._show(replace(self._snapshot, stale=True))
        elif found := self._accepted or await self._on_disk():
            have = "the snapshot on disk"
            self._latest.put(found)
        else:
            have = "nothing yet"
        if not self._quiet:
            log.warning("datastore.away", why=str(error), have=have)

    async def _on_disk(self) -> Snapshot | None:
        if self._cache is None:
            return None
        return await asyncio.to_thread(cache_file.load, self._cache, self._kinds, self._decode)

    def _found(self) -> None:
        """The store answers, and we have seen all there is."""
        self._failures = 0
        if self._away:
            self._away = False
            if not self._quiet:
                log.info("datastore.back")

    def _show(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._accepted = self._admit(snapshot)
        self._latest.put(self._accepted)
        if not snapshot.stale:
            self._unsaved.set()

    def _admit(self, snapshot: Snapshot) -> Snapshot:
        if not self._node or self._accepted is None:
            return snapshot
        admitted = hold(self._accepted, snapshot, self._node)
        if admitted.held.keys() - self._accepted.held.keys():
            log.error("datastore.held", what=list(admitted.held.values()), node=self._node)
        return admitted

    async def _list(self, ours: Snapshot | None) -> Snapshot:
        """A listing as a snapshot of its own, with a table for every kind.

        Decoded as it arrives. An object that is the same as in `ours` is that very object, so that a comparison does
        not take the memory of a second cluster.
        """
        revision, problems = 0, dict[Key, str]()
        tables: dict[Kind, dict[Key, Resource]] = {kind: {} for kind in self._kinds}
        async with aclosing(self._store.pages(self._kinds)) as pages:
            async for page in pages:
                revision = page.revision
                await asyncio.to_thread(self._take, page, tables, problems, ours.tables if ours else {})
        return Snapshot(
            revision=revision,
            tables=MappingProxyType({kind: MappingProxyType(table) for kind, table in tables.items()}),
            problems=MappingProxyType(problems),
        )

    def _take(
        self,
        page: Listing,
        tables: Mapping[Kind, dict[Key, Resource]],
        problems: dict[Key, str],
        ours: Mapping[Kind, Mapping[Key, Resource]],
    ) -> None:
        """Put what a part of a listing holds where it belongs."""
        for entry in page.entries:
            found = self._read(entry)
            if isinstance(found, str):
                problems[entry.key] = found
            elif found is not None:
                same = ours.get(entry.key.kind, {}).get(entry.key)
                if same is not None and same == found:
                    tables[entry.key.kind][same.key] = same  # whose key's texts are its own
                else:
                    tables[entry.key.kind][entry.key] = found

    def _read(self, said: Entry | Event) -> Resource | str | None:
        if said.value is None:
            return None
        try:
            found = self._decode(said.key, said.value)
        except Invalid as invalid:
            why = str(invalid)
            if self._set_aside.get(said.key) != why:  # else every listing to compare would say it again
                self._set_aside[said.key] = why
                log.warning("datastore.object_set_aside", object=str(said.key), why=why)
            return why
        if found is None or not self._revised:
            return found
        metadata = structs.replace(found.metadata, resource_version=str(said.revision))
        return structs.replace(found, metadata=metadata)

    async def keep_saved(self, every_s: float) -> None:
        """Write the cache when there is something new, at most every so many seconds."""
        while True:
            await self._unsaved.wait()
            await self.save()
            await asyncio.sleep(every_s)

    async def save(self) -> None:
        """Write the last snapshot to the cache, unless it is there already. A thread does it: the disk may be slow."""
        if self._writing is not None:  # a save whose caller was cancelled
            await asyncio.wait([self._writing])
        if self._cache is None or self._accepted is None or not self._unsaved.is_set():
            return
        self._unsaved.clear()
        work = partial(cache_file.save, self._cache, self._accepted, self._kinds)
        self._writing = asyncio.get_running_loop().run_in_executor(None, work)
        await asyncio.wait([self._writing])
        if error := self._writing.exception():
            log.warning("datastore.cache_not_written", file=str(self._cache), why=str(error))


def _next(snapshot: Snapshot, revision: int, read: Sequence[tuple[Event, Resource | str | None]]) -> Snapshot:
    """`snapshot` after those of the events that it does not hold yet; a stale one stays so."""
    news = ((event.key, value) for event, value in read if event.revision > snapshot.revision)
    return replace(snapshot.apply(max(revision, snapshot.revision), news), stale=snapshot.stale)


def _differing(ours: Snapshot, listed: Snapshot) -> Sequence[Key]:
    """The objects that two snapshots of one revision do not agree about, and a word in the log if there are any."""
    if ours.tables == listed.tables and ours.problems == listed.problems:
        return ()
    mine, theirs = _held(ours), _held(listed)
    differing = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    named = [str(key) for key in differing[:NAMED]]
    log.warning("datastore.diverged", revision=ours.revision, objects=len(differing), some=named)
    return differing


def _held(snapshot: Snapshot) -> Mapping[Key, Resource | str]:
    return {key: found for table in snapshot.tables.values() for key, found in table.items()} | dict(snapshot.problems)
