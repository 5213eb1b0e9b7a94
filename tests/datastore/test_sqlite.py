"""The embedded store's file: what survives, what is refused, what is bounded."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import aclosing
from pathlib import Path

import pytest

from core.errors import Invalid, Unavailable, Unsupported
from core.names import Key
from core.resources import IPPool, Node
from datastore.api import ABSENT, BATCH_BYTES, Changes, Compacted, Delete, Put, Synced
from datastore.sqlite import RECENT, SqliteStore
from datastore.sqlite_file import TRIM_EVERY

POOL, NODE = IPPool.KIND, Node.KIND


def key(name: str) -> Key:
    return Key(POOL, "", name)


async def test_a_restart_keeps_values_revisions_and_history(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    first = await store.txn([Put(key("a"), b"1"), Put(key("b"), b"1")])
    second = await store.txn([Delete(key("a"))])
    before = await store.list({POOL})
    await store.close()
    store = await SqliteStore.open(tmp_path / "db")
    assert await store.list({POOL}) == before
    items = store.watch(first, {POOL})
    change = await anext(items)
    assert isinstance(change, Changes)
    assert [(event.key, event.value, event.revision) for event in change.events] == [(key("a"), None, second)]
    assert await anext(items) == Synced(second)
    assert await store.txn([Put(key("c"), b"1", ABSENT)]) == second + 1
    await items.aclose()
    await store.close()


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "new" / "folder" / "db")
    await store.txn([Put(key("a"), b"secret")])
    for name in os.listdir(tmp_path / "new" / "folder"):
        assert os.stat(tmp_path / "new" / "folder" / name).st_mode & 0o077 == 0, name
    await store.close()


async def test_history_is_bounded(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db", keep=20)
    start = (await store.list({POOL})).revision
    for number in range(20 + 2 * TRIM_EVERY + 10):
        last = await store.txn([Put(key("a"), b"%d" % number)])
    (ended,) = [item async for item in store.watch(start, {POOL})]
    assert isinstance(ended, Compacted)
    items = store.watch(ended.revision, {POOL})
    change = await anext(items)
    assert isinstance(change, Changes)
    assert [event.revision for event in change.events] == list(range(ended.revision + 1, last + 1))
    assert 20 <= len(change.events) <= 20 + TRIM_EVERY
    assert await anext(items) == Synced(last)
    await items.aclose()
    await store.close()


async def test_a_watcher_that_reads_slower_than_history_is_kept_is_ended(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db", keep=10)
    start = (await store.list({POOL})).revision
    await store.txn([Put(key("a"), b"1")])
    items = store.watch(start, {POOL})
    assert isinstance(await anext(items), Changes)
    for number in range(10 + 2 * TRIM_EVERY):
        await store.txn([Put(key("a"), b"%d" % number)])
    rest = [item async for item in items]
    assert isinstance(rest[-1], Compacted)
    await store.close()


@pytest.mark.parametrize("size", [1, BATCH_BYTES // 20])
async def test_watchers_hear_the_same_of_memory_and_of_the_file(tmp_path: Path, size: int) -> None:
    """However far behind they are: the last commits are in memory, of large objects fewer."""
    store = await SqliteStore.open(tmp_path / "db")
    start = (await store.list({POOL})).revision
    written = []
    for number in range(RECENT + 10):
        other = Key(NODE, "", f"n{number}")
        changes = [Put(key("a"), b"%d" % number * size), Put(other, b"1"), *([Delete(key("b"))] if number % 2 else [])]
        written.append(await store.txn([*changes, *([] if number % 2 else [Put(key("b"), b"1")])]))
    for after in (start, *written):
        events, revision = [], after
        async with aclosing(store.watch(after, {POOL})) as items:
            async for item in items:
                assert not isinstance(item, Compacted)
                if isinstance(item, Synced):
                    break
                assert len(item.events) == 1 or sum(len(event.value or b"") for event in item.events[:-2]) < BATCH_BYTES
                assert item.revision > revision
                revision = item.revision
                events += item.events
        assert [event.revision for event in events] == [each for each in written if each > after for _ in range(2)]
        assert {event.key for event in events} <= {key("a"), key("b")}
    await store.compact(written[-1])
    async with asyncio.timeout(10):
        (ended,) = [item async for item in store.watch(written[-3], {POOL})]
    assert isinstance(ended, Compacted)
    await store.close()


async def test_a_file_that_is_not_ours_is_refused_untouched(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "db")
    other.execute("CREATE TABLE wine (year INTEGER)")
    other.commit()
    other.close()
    before = (tmp_path / "db").read_bytes()
    with pytest.raises(Invalid, match="another program's SQLite file"):
        await SqliteStore.open(tmp_path / "db")
    assert (tmp_path / "db").read_bytes() == before
    (tmp_path / "text").write_bytes(b"no database at all\n" * 100)
    with pytest.raises(Invalid, match="damaged or not a datastore"):
        await SqliteStore.open(tmp_path / "text")
    assert (tmp_path / "text").read_bytes() == b"no database at all\n" * 100


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    for number in range(200):
        await store.txn([Put(key(f"p{number}"), b"x" * 500)])
    await store.close()
    content = bytearray((tmp_path / "db").read_bytes())
    for page in range(4096 * 5, len(content), 4096):
        content[page : page + 64] = os.urandom(64)
    (tmp_path / "db").write_bytes(content)
    with pytest.raises(Invalid, match="damaged"):
        await SqliteStore.open(tmp_path / "db")


async def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    await (await SqliteStore.open(tmp_path / "db")).close()
    newer = sqlite3.connect(tmp_path / "db")
    newer.execute("PRAGMA user_version = 7")
    newer.close()
    with pytest.raises(Invalid, match="schema version 7, this muslin knows 1"):
        await SqliteStore.open(tmp_path / "db")


async def test_a_file_begun_and_not_finished_is_begun_again(tmp_path: Path) -> None:
    half = sqlite3.connect(tmp_path / "db")
    half.execute("PRAGMA journal_mode = WAL")
    half.close()
    assert (tmp_path / "db").stat().st_size > 0
    store = await SqliteStore.open(tmp_path / "db")
    await store.txn([Put(key("a"), b"1")])
    await store.close()


async def test_a_folder_that_cannot_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unsupported, match="run as a user who may write there"):
        await SqliteStore.open(tmp_path / "file" / "db")


async def test_a_closed_store_is_unavailable_and_ends_its_watchers(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    items = store.watch(0, {POOL})
    assert await anext(items) == Synced(1)
    waiting = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(waiting, 5)
    for call in (store.get(key("a")), store.list({POOL}), store.txn([]), store.compact(1)):
        with pytest.raises(Unavailable, match="closed"):
            await call
    again = await SqliteStore.open(tmp_path / "db")
    await again.close()


async def test_a_writer_that_was_cancelled_still_wakes_the_watchers(sqlite_store: SqliteStore) -> None:
    items = sqlite_store.watch(0, {POOL})
    assert await anext(items) == Synced(1)
    waiting = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0.01)
    writer = asyncio.ensure_future(sqlite_store.txn([Put(key("a"), b"1")]))
    await asyncio.sleep(0)
    writer.cancel()
    await asyncio.wait([writer])
    entry = await sqlite_store.get(key("a"))
    if entry is None:  # cancelled before it began: then the next one wakes them
        await sqlite_store.txn([Put(key("a"), b"1")])
    assert isinstance(await asyncio.wait_for(waiting, 5), Changes)
    await items.aclose()
