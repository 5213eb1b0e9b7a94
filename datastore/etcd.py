"""The store on a real etcd v3 cluster. Paths are etcd's keys; etcd's revisions are ours.

    txn      one etcd transaction: mod_revision compares, for a guard over the kind's whole range
    list     one etcd transaction of ranges: every kind at one revision
    watch    (after, now] ── a watch of every key, until etcd's revision `now` is seen ──> Synced
             (now, ...)   ── a watch of /muslin/ ──> each response holds whole revisions, whatever the kinds

The first watch is of every key, because each revision of etcd changes some key, maybe not one of ours: it is how to
tell that history has been read up to `now`. (A progress request would be shorter, but etcd before 3.4.25 answers it
before it has sent the history.) Both watches begin one revision early and drop it: etcd then refuses to watch from a
revision that it has compacted, whose deletions are gone.

`aetcd` brings etcd's messages and stubs. Its own watcher queues without bound and takes revisions apart, so the
streams are read here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing, contextmanager
from typing import Any, Final

import grpc
import structlog
from aetcd import rpc

from core.errors import Conflict, Invalid, MuslinError, Problem, Unavailable
from core.names import ROOT, Key, Kind
from core.resources import parse_path
from datastore import link
from datastore.api import (
    ABSENT,
    PROGRESS,
    At,
    Changes,
    Compacted,
    Entry,
    Event,
    Guard,
    Listing,
    Operation,
    Put,
    Synced,
    WatchItem,
    addressable,
    check,
    replay,
)

log = structlog.get_logger()

EVERY_KEY: Final = (b"\0", b"\0")
OUR_KEYS: Final = (ROOT.encode(), ROOT[:-1].encode() + b"0")  # "0" follows "/"

HAS_LEADER: Final = (("hasleader", "true"),)
"""Metadata that makes etcd end a watch on a member cut off from its cluster, instead of leaving it silent."""


class EtcdStore:
    """A `Store` on etcd at `endpoints` (`HOST:PORT`). Made inside an event loop.

    One endpoint is used until it fails; the next call then goes to the next. `timeout_s` bounds each call but `watch`;
    a connection that is silent for `keepalive_s` is pinged, and given up when as much again passes.
    """

    def __init__(self, endpoints: Sequence[str], *, timeout_s: float = 10.0, keepalive_s: float = 10.0) -> None:
        if not endpoints:
            raise Invalid([Problem(what="etcd", why="name at least one endpoint: etcd:HOST:PORT")])
        self._endpoints, self._timeout = tuple(endpoints), timeout_s
        options = [*link.noticing(keepalive_s), *link.returning(), *link.bounded(-1)]
        self._channels = [rpc.insecure_channel(each, options=options) for each in endpoints]
        self._current = 0
        self._closing = asyncio.Event()

    async def get(self, key: Key) -> Entry | None:
        """The entry of `key`; None when there is none."""
        with self._errors():
            response = await self._kv().Range(rpc.RangeRequest(key=key.path.encode()), timeout=self._timeout)
        return Entry(key, response.kvs[0].value, response.kvs[0].mod_revision) if response.kvs else None

    async def list(self, kinds: AbstractSet[Kind]) -> Listing:
        """Every entry of `kinds`, ordered by path."""
        request = rpc.TxnRequest(success=[_read(*_range(kind)) for kind in sorted(kinds)])
        with self._errors():
            response = await self._kv().Txn(request, timeout=self._timeout)
        found = [
            Entry(key, kv.value, kv.mod_revision)
            for each in response.responses
            for kv in each.response_range.kvs
            if (key := _key(kv.key)) is not None
        ]
        return Listing(response.header.revision, tuple(sorted(found, key=lambda entry: entry.key.path)))

    async def pages(self, kinds: AbstractSet[Kind]) -> AsyncGenerator[Listing, None]:
        """`list`, in one part."""
        yield await self.list(kinds)

    async def txn(self, operations: Sequence[Operation], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations or none; the new revision."""
        check(operations, guards)
        compared = [operation for operation in operations if operation.if_revision is not None]
        request = rpc.TxnRequest(
            compare=[*(_is_at(each.key, each.if_revision) for each in compared), *map(_hold, guards)],
            success=[_write(operation) for operation in operations],
            failure=[
                *(_read(operation.key.path.encode()) for operation in compared),
                *map(_read_guarded, guards),
            ],
        )
        with self._errors():
            response = await self._kv().Txn(request, timeout=self._timeout)
        if not response.succeeded:
            raise _conflict(compared, guards, response.responses)
        return int(response.header.revision)

    async def watch(self, after: int, kinds: AbstractSet[Kind]) -> AsyncGenerator[WatchItem, None]:
        """Changes of `kinds` after revision `after`."""
        if after == 0:
            listing = await self.list(kinds)
            for changes in replay(listing):
                yield changes
            after = listing.revision
        else:
            now = await self._revision()
            if after > now:
                yield Compacted(now)
                return
            async for item in self._stream(EVERY_KEY, after, kinds, until=now):
                yield item
                if isinstance(item, Compacted):
                    return
            after = now
        yield Synced(after)
        async for item in self._stream(OUR_KEYS, after, kinds):
            yield item

    async def compact(self, before: int) -> None:
        """Forget history older than revision `before`; present values stay."""
        if before <= 1:
            return
        try:
            with self._errors():
                await self._kv().Compact(rpc.CompactionRequest(revision=before - 1), timeout=self._timeout)
        except _Forgotten:
            return

    async def close(self) -> None:
        """Close the connections; calls in progress end with `Unavailable`."""
        self._closing.set()
        for channel in self._channels:
            await channel.close()

    def _kv(self) -> Any:
        return rpc.KVStub(self._channels[self._current])

    async def _revision(self) -> int:
        request = rpc.RangeRequest(key=OUR_KEYS[0], count_only=True)
        with self._errors():
            response = await self._kv().Range(request, timeout=self._timeout)
        return int(response.header.revision)

    async def _stream(
        self, keys: tuple[bytes, bytes], after: int, kinds: AbstractSet[Kind], until: int | None = None
    ) -> AsyncGenerator[WatchItem, None]:
        """Changes in (after, until], or without end, from one etcd watch."""
        if after == until:
            return
        told = after
        async with aclosing(self._responses(keys, after)) as responses:
            async for response in responses:
                if response.compact_revision:
                    yield Compacted(response.compact_revision)
                    return
                reached = max((event.kv.mod_revision for event in response.events), default=response.header.revision)
                if not response.events and until is not None:
                    continue
                reached = reached if until is None else min(reached, until)
                events = tuple(_events(response.events, after, reached, kinds))
                if events or reached - told >= PROGRESS:
                    told = reached
                    yield Changes(reached, events)
                if reached == until:
                    return

    async def _responses(self, keys: tuple[bytes, bytes], start: int) -> AsyncGenerator[Any, None]:
        create = rpc.WatchCreateRequest(key=keys[0], range_end=keys[1], start_revision=start, progress_notify=True)
        ended = asyncio.Event()

        async def requests() -> AsyncIterator[Any]:
            yield rpc.WatchRequest(create_request=create)
            await ended.wait()

        with self._errors():
            call = rpc.WatchStub(self._channels[self._current]).Watch(requests(), metadata=HAS_LEADER)
            try:
                async for response in call:
                    if response.canceled and not response.compact_revision:
                        raise Unavailable(f"etcd ended the watch: {response.cancel_reason or 'no reason given'}")
                    if response.compact_revision or not response.created:
                        yield response
            finally:
                ended.set()
                call.cancel()
            raise Unavailable("etcd ended the watch; watch again")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what etcd says into what muslin raises."""
        used = self._current
        if self._closing.is_set():
            raise self._away("the connection is closed", used)
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._meaning(error, used) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closing.is_set() and task is not None and not task.cancelling():
                raise self._away("the connection is closed", used) from None
            raise

    def _meaning(self, error: grpc.aio.AioRpcError, used: int) -> MuslinError:
        said = error.details() or error.code().name
        if "required revision has been compacted" in said:
            return _Forgotten(said)
        if "future revision" in said:
            return Invalid([Problem(where="etcd", why=f"cannot forget history that is not there yet ({said})")])
        if "too many operations" in said:
            return _refused(f"{said}: write fewer objects at once, or start etcd with a larger --max-txn-ops")
        if "request is too large" in said or error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _refused(f"{said}: write less at once, or start etcd with larger --max-request-bytes or --quota")
        return self._away(said, used)

    def _away(self, said: str, used: int) -> Unavailable:
        if self._current == used:  # else another call has moved on already
            self._current = (used + 1) % len(self._endpoints)
        return Unavailable(f"etcd at {self._endpoints[used]} is away: {said}")


class _Forgotten(MuslinError):
    """etcd has forgotten the revision already."""


def _refused(why: str) -> Invalid:
    return Invalid([Problem(where="etcd", why=why)])


def _range(kind: Kind) -> tuple[bytes, bytes]:
    return kind.prefix.encode(), kind.prefix[:-1].encode() + b"0"


def _key(path: bytes) -> Key | None:
    """The key at `path`; None (and a word in the log) when somebody else put something there."""
    try:
        key = parse_path(path.decode())
        if addressable(key):
            return key
    except ValueError:
        pass
    log.warning("etcd.foreign_key", path=repr(path))
    return None


def _events(found: Sequence[Any], after: int, until: int, kinds: AbstractSet[Kind]) -> Iterator[Event]:
    prefixes = tuple(kind.prefix.encode() for kind in kinds)
    for event in found:
        revision = event.kv.mod_revision
        if after < revision <= until and event.kv.key.startswith(prefixes) and (key := _key(event.kv.key)) is not None:
            deleted = event.type == rpc.Event.DELETE
            yield Event(key, None if deleted else event.kv.value, revision)


def _read(key: bytes, range_end: bytes = b"") -> Any:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, range_end=range_end))


def _read_guarded(guard: Guard) -> Any:
    """What `guard` is about: its key, or the newest of its kind."""
    if isinstance(guard, At):
        return _read(guard.key.path.encode())
    key, end = _range(guard.kind)
    return rpc.RequestOp(
        request_range=rpc.RangeRequest(
            key=key,
            range_end=end,
            limit=1,
            keys_only=True,
            sort_order=rpc.RangeRequest.DESCEND,
            sort_target=rpc.RangeRequest.MOD,
        )
    )


def _write(operation: Operation) -> Any:
    path = operation.key.path.encode()
    if isinstance(operation, Put):
        return rpc.RequestOp(request_put=rpc.PutRequest(key=path, value=operation.value))
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=path))


def _is_at(key: Key, revision: int | None) -> Any:
    """The key's last change was at `revision`; etcd says 0 of a key that is not there, as we do."""
    path = key.path.encode()
    return rpc.Compare(key=path, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision)


def _hold(guard: Guard) -> Any:
    """Of a kind: every key was last changed at or before `since`; true of a kind that has none."""
    if isinstance(guard, At):
        return _is_at(guard.key, guard.revision)
    key, end = _range(guard.kind)
    return rpc.Compare(
        key=key, range_end=end, target=rpc.Compare.MOD, result=rpc.Compare.LESS, mod_revision=guard.since + 1
    )


def _conflict(compared: Sequence[Operation], guards: Sequence[Guard], found: Sequence[Any]) -> Conflict:
    """The first compare that did not hold, from what etcd read as it failed."""
    actual = [each.response_range.kvs[0].mod_revision if each.response_range.kvs else ABSENT for each in found]
    for operation, revision in zip(compared, actual, strict=False):
        if operation.if_revision != revision:
            return Conflict(str(operation.key), operation.if_revision, revision or None)
    for guard, revision in zip(guards, actual[len(compared) :], strict=True):
        if isinstance(guard, At):
            if revision != guard.revision:
                return Conflict(str(guard), guard.revision, revision or None)
        elif revision > guard.since:
            return Conflict(str(guard), guard.since, revision)
    raise AssertionError("etcd refused a transaction whose compares hold")
