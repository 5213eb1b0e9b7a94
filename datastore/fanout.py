"""One watch of the backend, many watchers: each batch of events is encoded once and the same bytes go to all.

    store.watch ──> channel: the last batches of one set of kinds, as bytes      (one a set, while it is watched)
                      │  floor ├──┼──┼──┼──┤ newest
                      │        ^     ^     ^
                      │      slow    │   caught up                               a watcher is an index, no queue
                      │
    store.watch ──> catching up: a watcher's own, from its revision until Synced; then it joins the channel

The channel keeps a bounded window. A watcher that falls out of it is ended with `Compacted`: it lists again, which is
less work for everyone than the history it missed. A watcher that is a few batches behind gets them as one message:
protobuf messages that are concatenated merge, lists end to end and the last revision winning.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final, TypeAlias

import structlog

from core.errors import MuslinError, Unavailable
from core.names import Kind
from datastore.api import Changes, Compacted, Store, Synced, WatchItem

log = structlog.get_logger()

WINDOW: Final = 8 << 20
"""Most that one channel keeps, in bytes."""

MESSAGE: Final = 1 << 20
"""Bytes after which no further batch is joined to a message."""

ROUNDS: Final = 4
"""How often a watcher may catch up before it counts as too slow for the channel."""

Encode: TypeAlias = Callable[[WatchItem], bytes]


class _Channel:
    """The window of one set of kinds: what changed after `floor`, as far as it is known."""

    def __init__(self, floor: int, kinds: frozenset[Kind], encode: Encode, window: int) -> None:
        self.floor, self.kinds = floor, kinds
        self.watchers = 0
        self.over = False
        self.task: asyncio.Task[None] | None = None
        self._failure: MuslinError | None = None
        self._batches: deque[tuple[Changes, bytes]] = deque()
        self._dropped = 0
        self._size = 0
        self._changed = asyncio.Event()
        self._encode, self._window = encode, window

    async def fill(self, store: Store) -> None:
        """Take in what changes until the backend fails or forgets; then every watcher ends."""
        try:
            async with aclosing(store.watch(self.floor, self.kinds)) as items:
                async for item in items:
                    if isinstance(item, Changes):
                        self._append(item)
        except MuslinError as error:
            self._failure = error
        except Exception:
            log.exception("datastore.watch_crashed")
            self._failure = Unavailable("the datastore server failed; its log says why")
        finally:
            self.end(self._failure)

    def end(self, failure: MuslinError | None) -> None:
        """Let every watcher end: with `failure`, or with `Compacted` when there is none."""
        self._failure, self.over = failure, True
        self._wake()

    async def after(self, position: int) -> AsyncGenerator[bytes, None]:
        """Messages with what changed after `position`, as it comes."""
        index = self._dropped
        while True:
            changed = self._changed
            while self._dropped <= index < self._dropped + len(self._batches):
                parts: list[bytes] = []
                size = 0
                while index < self._dropped + len(self._batches) and size < MESSAGE:
                    changes, encoded = self._batches[index - self._dropped]
                    parts.append(self._part(changes, encoded, position))
                    position = max(position, changes.revision)
                    size += len(parts[-1])
                    index += 1
                if size:
                    yield parts[0] if len(parts) == 1 else b"".join(parts)
            if index < self._dropped or (self.over and self._failure is None):
                yield self._encode(Compacted(self.floor))
                return
            if self._failure is not None:
                raise self._failure
            await changed.wait()

    def _part(self, changes: Changes, encoded: bytes, position: int) -> bytes:
        if changes.revision <= position:
            return b""
        if not changes.events or changes.events[0].revision > position:
            return encoded
        events = tuple(event for event in changes.events if event.revision > position)
        return self._encode(Changes(changes.revision, events))

    def _append(self, changes: Changes) -> None:
        encoded = self._encode(changes)
        self._batches.append((changes, encoded))
        self._size += len(encoded)
        while self._size > self._window and len(self._batches) > 1:
            oldest, gone = self._batches.popleft()
            self._size -= len(gone)
            self._dropped += 1
            self.floor = oldest.revision
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Fanout:
    """The watchers of one store. `tasks` is where the channels run; `window` bounds each of them, in bytes."""

    def __init__(self, store: Store, encode: Encode, tasks: asyncio.TaskGroup, window: int = WINDOW) -> None:
        self._store, self._encode, self._tasks, self._window = store, encode, tasks, window
        self._channels: dict[frozenset[Kind], _Channel] = {}
        self._closed = False

    async def watch(self, after: int, kinds: frozenset[Kind]) -> AsyncGenerator[bytes, None]:
        """What `Store.watch` yields, encoded."""
        position, told = after, False
        for _ in range(ROUNDS):
            async with aclosing(self._store.watch(position, kinds)) as items:
                async for item in items:
                    if not isinstance(item, Synced) or not told:
                        yield self._encode(item)
                    if isinstance(item, Compacted):
                        return
                    position = item.revision
                    if isinstance(item, Synced):
                        told = True
                        break
            with self._channel(position, kinds) as channel:
                if channel.floor > position:
                    continue  # the window moved on while this watcher was catching up
                async with aclosing(channel.after(position)) as messages:
                    async for message in messages:
                        yield message
                return
        yield self._encode(Compacted(position))

    def close(self) -> None:
        """End every watcher with `Unavailable`, and take no new one."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.end(Unavailable("the datastore server is stopping"))

    @contextmanager
    def _channel(self, floor: int, kinds: frozenset[Kind]) -> Iterator[_Channel]:
        if self._closed:
            raise Unavailable("the datastore server is stopping")
        channel = self._channels.get(kinds)
        if channel is None or channel.over:
            channel = self._channels[kinds] = _Channel(floor, kinds, self._encode, self._window)
            channel.task = self._tasks.create_task(channel.fill(self._store), name="datastore-watch")
        channel.watchers += 1
        try:
            yield channel
        finally:
            channel.watchers -= 1
            if not channel.watchers:
                if channel.task is not None:
                    channel.task.cancel()
                if self._channels.get(kinds) is channel:
                    del self._channels[kinds]
