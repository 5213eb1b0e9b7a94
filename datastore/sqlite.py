"""The embedded store: one SQLite file, in the server's own process.

    txn ──> writing thread ─┬──> objects   the present: path, value, revision of its last change
                            ├──> history   every event of the last `keep` revisions, for watchers who are behind
                            │       │
    watch <── reading thread ───────┘
          <── recent <──────┘              the last few commits, in memory, for all others

WAL and synchronous=FULL: what was acknowledged survives a kill and a power cut. SQLite's calls block, so they run
in two threads of their own, one that writes and one that reads. The file belongs to one process at a time (a lock
beside it says so), which is what lets an in-process event be enough to wake the watchers.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from core.errors import Unavailable
from core.names import Key, Kind
from datastore import sqlite_file as file
from datastore.api import (
    PROGRESS,
    Changes,
    Compacted,
    Entry,
    Event,
    Guard,
    Listing,
    Operation,
    Synced,
    WatchItem,
    check,
    full,
    replay,
)

RECENT: Final = 64
"""Commits that are kept in memory, at most."""

T = TypeVar("T")


class SqliteStore:
    """A `Store` in one file. Made by `open`; belongs to the event loop that opened it."""

    def __init__(self, path: Path, opened: file.Opened, keep: int) -> None:
        self._path, self._opened, self._keep = path, opened, keep
        self._writing = ThreadPoolExecutor(1, "datastore-write")
        self._reading = ThreadPoolExecutor(1, "datastore-read")
        self._loop = asyncio.get_running_loop()
        self._recent = _Recent(min(keep, RECENT))
        self._changed = asyncio.Event()
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, keep: int = 10_000) -> SqliteStore:
        """Open or create the file; `keep` bounds the history, in revisions.

        Raises `Invalid` when it is not a sound datastore of this version, or another process has it.
        """
        return cls(path, await asyncio.to_thread(file.open_file, path), keep)

    async def get(self, key: Key) -> Entry | None:
        """The entry of `key`; None when there is none."""
        return await self._read(lambda connection: file.get(connection, key))

    async def list(self, kinds: AbstractSet[Kind]) -> Listing:
        """Every entry of `kinds`, ordered by path."""
        return await self._read(lambda connection: file.list_entries(connection, kinds))

    async def pages(self, kinds: AbstractSet[Kind]) -> AsyncGenerator[Listing, None]:
        """`list`, in one part."""
        yield await self.list(kinds)

    async def txn(self, operations: Sequence[Operation], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations or none; the new revision."""
        check(operations, guards)

        def apply(connection: sqlite3.Connection) -> int:
            revision, events = file.apply(connection, operations, guards, self._keep)
            if events:  # told from here, so that a cancelled caller tells them too
                self._loop.call_soon_threadsafe(self._committed, revision, events)
            return revision

        return await self._run(self._writing, self._opened.writer, apply)

    async def watch(self, after: int, kinds: AbstractSet[Kind]) -> AsyncGenerator[WatchItem, None]:
        """Changes of `kinds` after revision `after`."""
        synced = after == 0
        if synced:
            listing = await self.list(kinds)
            for changes in replay(listing):
                yield changes
            after = listing.revision
            yield Synced(after)
        told, target = after, None
        while True:
            changed = self._changed
            past = self._recent.past(after, kinds) or await self._past(after, kinds)
            if not past.floor <= after <= past.current:
                yield Compacted(past.floor)
                return
            target = past.current if target is None else target
            after = past.revision
            if past.events or after - told >= PROGRESS:
                told = after
                yield Changes(after, past.events)
            if not synced and after >= target:
                synced = True
                yield Synced(after)
            if after == past.current:
                await changed.wait()

    async def compact(self, before: int) -> None:
        """Forget history older than revision `before`; present values stay."""
        await self._run(self._writing, self._opened.writer, lambda connection: file.compact(connection, before))
        self._recent.forget()

    async def close(self) -> None:
        """Close the file; watchers end with `Unavailable`."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        for thread in (self._reading, self._writing):
            await asyncio.to_thread(thread.shutdown)
        self._opened.close()

    async def _past(self, after: int, kinds: AbstractSet[Kind]) -> file.Past:
        return await self._read(lambda connection: file.past(connection, after, kinds))

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._run(self._reading, self._opened.reader, work)

    async def _run(
        self, thread: ThreadPoolExecutor, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]
    ) -> T:
        if self._closed:
            raise Unavailable(f"the datastore {self._path} is closed")
        try:
            return await self._loop.run_in_executor(thread, work, connection)
        except sqlite3.Error as error:
            raise Unavailable(f"the datastore {self._path} failed: {error}") from error

    def _committed(self, revision: int, events: tuple[Event, ...]) -> None:
        self._recent.add(revision, events)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _Recent:
    """What happened in the last commits, at most `most` of them and about a batch: revision by revision, no hole."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._commits: deque[tuple[int, tuple[Event, ...]]] = deque()
        self._events = self._bytes = 0

    def add(self, revision: int, events: tuple[Event, ...]) -> None:
        """The newest commit."""
        self._commits.append((revision, events))
        self._count(events, 1)
        while len(self._commits) > self._most or (len(self._commits) > 1 and full(self._events, self._bytes)):
            self._count(self._commits.popleft()[1], -1)

    def _count(self, events: tuple[Event, ...], sign: int) -> None:
        self._events += sign * len(events)
        self._bytes += sign * sum(len(each.value or b"") for each in events)

    def forget(self) -> None:
        """Whoever is behind is to read."""
        self._commits.clear()
        self._events = self._bytes = 0

    def past(self, after: int, kinds: AbstractSet[Kind]) -> file.Past | None:
        """What happened of `kinds` after revision `after`; None when it is not all known here."""
        if not self._commits or not self._commits[0][0] - 1 <= after <= self._commits[-1][0]:
            return None
        current = self._commits[-1][0]
        news = [
            event
            for revision, events in self._commits
            if revision > after
            for event in events
            if event.key.kind in kinds
        ]
        return file.Past(floor=after, current=current, revision=current, events=tuple(news))
