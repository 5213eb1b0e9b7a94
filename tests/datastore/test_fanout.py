"""Many watchers of one store: shared bytes, joined batches, and an end to the slow."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from core.names import Key
from core.resources import IPPool, Node
from datastore import codec
from datastore.api import (
    Changes,
    Compacted,
    Event,
    Put,
    Synced,
    WatchItem,
)
from datastore.client import GrpcStore
from datastore.fanout import Fanout
from proto.v1 import datastore_pb2 as pb

POOL, NODE = IPPool.KIND, Node.KIND


def key(name: str) -> Key:
    return Key(POOL, "", name)


def encode(item: WatchItem) -> bytes:
    return codec.item_to(item).SerializeToString()


def decode(message: bytes) -> WatchItem:
    return codec.item_from(pb.WatchResponse.FromString(message))


async def test_watchers_of_the_same_kinds_share_the_very_same_bytes(sqlite_store) -> None:
    async with asyncio.TaskGroup() as tasks:
        fanout = Fanout(sqlite_store, encode, tasks)
        watchers = [fanout.watch(1, frozenset({POOL})) for _ in range(5)]
        for watcher in watchers:
            assert decode(await anext(watcher)) == Synced(1)
        waiting = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
        revision = await sqlite_store.txn([Put(key("a"), b"1")])
        messages = await asyncio.gather(*waiting)
        assert decode(messages[0]) == Changes(revision, (Event(key("a"), b"1", revision),))
        assert len({id(message) for message in messages}) == 1
        for watcher in watchers:
            await watcher.aclose()
    assert len(tasks._tasks) == 0  # type: ignore[attr-defined]


async def test_a_watcher_that_is_behind_gets_what_it_missed_in_few_messages(sqlite_store) -> None:
    async with asyncio.TaskGroup() as tasks:
        fanout = Fanout(sqlite_store, encode, tasks)
        quick, late = fanout.watch(1, frozenset({POOL})), fanout.watch(1, frozenset({POOL}))
        assert decode(await anext(quick)) == decode(await anext(late)) == Synced(1)
        first = asyncio.ensure_future(anext(late))
        for number in range(50):
            revision = await sqlite_store.txn([Put(key(f"p{number}"), b"%d" % number)])
            item = decode(await anext(quick))
            assert isinstance(item, Changes)
            assert item.revision == revision
        events: list[Event] = []
        messages = 0
        message = await first
        while True:
            item = decode(message)
            assert isinstance(item, Changes)
            events += item.events
            messages += 1
            if item.revision == revision:
                break
            message = await anext(late)
        assert [event.key.name for event in events] == [f"p{number}" for number in range(50)]
        assert messages <= 3
        await quick.aclose()
        await late.aclose()


async def test_a_slow_watcher_is_ended_and_what_is_kept_for_it_is_bounded(sqlite_store) -> None:
    async with asyncio.TaskGroup() as tasks:
        fanout = Fanout(sqlite_store, encode, tasks, window=20_000)
        quick, slow = fanout.watch(1, frozenset({POOL})), fanout.watch(1, frozenset({POOL}))
        assert decode(await anext(quick)) == decode(await anext(slow)) == Synced(1)
        first = asyncio.ensure_future(anext(slow))
        for _ in range(60):
            revision = await sqlite_store.txn([Put(key("a"), b"x" * 1000)])
            assert decode(await anext(quick)).revision == revision
            (channel,) = fanout._channels.values()
            assert channel._size <= 20_000
        rest = [decode(await first), *[decode(message) async for message in slow]]
        assert isinstance(rest[-1], Compacted)
        assert sum(len(item.events) for item in rest if isinstance(item, Changes)) < 60
        assert 1 < rest[-1].revision < revision
        await quick.aclose()


async def test_a_slow_client_is_ended_over_the_wire_and_lists_again(sqlite_store, serve) -> None:
    async with serve(sqlite_store, window=1 << 20) as addresses:
        client = GrpcStore(addresses[0])
        async with aclosing(client.watch(1, {POOL})) as items:
            assert await anext(items) == Synced(1)
            for number in range(120):
                await sqlite_store.txn([Put(key(f"p{number % 3}"), b"%d" % number * 50_000)])
            async with asyncio.timeout(20):
                rest = [item async for item in items]
        assert isinstance(rest[-1], Compacted)
        assert len((await client.list({POOL})).entries) == 3
        await client.close()


async def test_a_watcher_that_joins_while_others_watch_misses_nothing(sqlite_store, serve) -> None:
    async with serve(sqlite_store) as addresses:
        client = GrpcStore(addresses[0])

        async def writer() -> None:
            for number in range(300):
                await sqlite_store.txn([Put(key("a"), b"%d" % number), Put(Key(NODE, "", "n"), b"%d" % number)])

        async def watcher(after: int) -> list[int]:
            seen: list[int] = []
            async with aclosing(client.watch(after, {POOL})) as items:
                async for item in items:
                    assert not isinstance(item, Compacted)
                    if isinstance(item, Changes):
                        seen += [event.revision for event in item.events]
                        if item.revision == 301:
                            break
            return seen

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(writer())
            joining = []
            for _ in range(10):
                revision = (await client.list({POOL})).revision
                joining.append((revision, tasks.create_task(watcher(revision))))
        for revision, task in joining:
            assert task.result() == list(range(revision + 1, 302))
        await client.close()
