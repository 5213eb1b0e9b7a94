"""Following a store: whole snapshots only, whatever happens to the store meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from core.breaker import RELEASE
from core.errors import Unavailable
from core.latest import Latest
from core.names import Key
from core.reconcile import Timing
from core.resources import IPPool, Metadata, Node, Tier
from core.resources.network import IPPoolSpec, NodeSpec
from core.snapshot import Snapshot
from datastore.api import PROGRESS, Delete, Put, Store, Synced
from datastore.client import GrpcStore
from datastore.follow import follow
from datastore.objects import delete, put, write
from datastore.sqlite import SqliteStore

FAST = Timing(retry_s=0.02, retry_max_s=0.1)


def pool(name: str, number: int = 0) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=f"10.{number}.0.0/16"))


def names(snapshot: Snapshot) -> set[str]:
    return {key.name for key in snapshot.of(IPPool)}


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what has no event to wait for."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


class Reader:
    """Sees every snapshot that a `follow` makes, as an agent would."""

    def __init__(self, latest: Latest[Snapshot], task: asyncio.Task[None]) -> None:
        self.latest, self.task = latest, task
        self.seen: list[Snapshot] = []

    async def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        """The next snapshot of which `holds` is true."""
        async with asyncio.timeout(10):
            while True:
                waiting = asyncio.ensure_future(self.latest.get())
                await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    self.task.result()
                self.seen.append(waiting.result())
                if holds(self.seen[-1]):
                    return self.seen[-1]


@asynccontextmanager
async def following(
    store: Store, cache: Path | None = None, save_every_s: float = 5.0, timing: Timing = FAST, node: str = ""
) -> AsyncIterator[Reader]:
    latest: Latest[Snapshot] = Latest()
    task = asyncio.create_task(
        follow(store, [IPPool, Node], latest, cache, node=node, timing=timing, save_every_s=save_every_s),
        name="follow",
    )
    try:
        yield Reader(latest, task)
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


async def test_the_first_snapshot_is_whole_and_each_change_makes_the_next(store: Store) -> None:
    await store.txn([put(pool(f"p{number}", number)) for number in range(20)])
    async with following(store) as reader:
        first = await reader.until(lambda _: True)
        assert names(first) == {f"p{number}" for number in range(20)}
        assert (first.stale, first.of(Node), dict(first.problems)) == (False, {}, {})
        revision = await write(store, pool("new", 99))
        snapshot = await reader.until(lambda snapshot: "new" in names(snapshot))
        assert snapshot.revision == revision
        gone = await delete(store, IPPool, "p3")
        snapshot = await reader.until(lambda snapshot: snapshot.revision >= gone)
        assert names(snapshot) == {"new"} | {f"p{number}" for number in range(20)} - {"p3"}
        new = snapshot.get(IPPool, "new")
        assert new is not None
        assert new.spec == pool("new", 99).spec


async def test_an_empty_store_is_a_whole_snapshot_too(store: Store) -> None:
    async with following(store) as reader:
        snapshot = await reader.until(lambda _: True)
        assert (names(snapshot), snapshot.stale) == (set(), False)
        assert snapshot.revision >= 1


async def test_an_object_that_does_not_decode_is_set_aside_alone(sqlite_store: SqliteStore) -> None:
    await sqlite_store.txn([put(pool("good")), Put(pool("bad").key, b'{"spec": 7}')])
    async with following(sqlite_store) as reader:
        snapshot = await reader.until(lambda _: True)
        assert names(snapshot) == {"good"}
        assert list(snapshot.problems) == [pool("bad").key]
        assert "bad" in snapshot.problems[pool("bad").key]
        await sqlite_store.txn([Put(pool("good").key, b"garbage"), put(pool("bad", 2))])
        snapshot = await reader.until(lambda snapshot: "bad" in names(snapshot))
        assert (names(snapshot), list(snapshot.problems)) == ({"bad"}, [pool("good").key])


async def test_a_lost_server_makes_the_snapshot_stale_and_its_return_brings_what_was_missed(
    sqlite_store: SqliteStore, serve, tmp_path: Path
) -> None:
    await write(sqlite_store, pool("a", 1))
    client = GrpcStore(f"unix:{tmp_path}/datastore.sock")
    with capture_logs() as logs:
        async with serve(sqlite_store):
            follower = following(client)
            reader = await follower.__aenter__()
            await reader.until(lambda snapshot: names(snapshot) == {"a"})
        stale = await reader.until(lambda snapshot: snapshot.stale)
        assert names(stale) == {"a"}
        await write(sqlite_store, pool("b", 2))
        await delete(sqlite_store, IPPool, "a")
        async with serve(sqlite_store):
            fresh = await reader.until(lambda snapshot: not snapshot.stale)
            assert names(fresh) == {"b"}
            await write(sqlite_store, pool("c", 3))
            await reader.until(lambda snapshot: names(snapshot) == {"b", "c"})
            await follower.__aexit__(None, None, None)
    await client.close()
    events = [log["event"] for log in logs if log["event"] in {"datastore.away", "datastore.back", "datastore.relist"}]
    assert events == ["datastore.away", "datastore.back"]


async def test_history_forgotten_while_away_is_made_up_by_a_listing_without_a_hole(
    sqlite_store: SqliteStore, serve, tmp_path: Path
) -> None:
    await sqlite_store.txn([put(pool("keep", 1)), put(pool("gone", 2))])
    client = GrpcStore(f"unix:{tmp_path}/datastore.sock")
    async with serve(sqlite_store):
        follower = following(client)
        reader = await follower.__aenter__()
        await reader.until(lambda snapshot: names(snapshot) == {"keep", "gone"})
    await reader.until(lambda snapshot: snapshot.stale)
    await delete(sqlite_store, IPPool, "gone")
    last = await write(sqlite_store, pool("new", 3))
    await sqlite_store.compact(last + 1)
    with capture_logs() as logs:
        async with serve(sqlite_store):
            fresh = await reader.until(lambda snapshot: not snapshot.stale)
            await follower.__aexit__(None, None, None)
    assert names(fresh) == {"keep", "new"}
    assert [log["event"] for log in logs].count("datastore.relist") == 1
    assert all("keep" in names(snapshot) for snapshot in reader.seen)
    await client.close()


async def test_a_store_restored_from_a_backup_is_believed(tmp_path: Path, serve) -> None:
    store = await SqliteStore.open(tmp_path / "one" / "db")
    await write(store, pool("old", 1))
    await store.close()
    shutil.copytree(tmp_path / "one", tmp_path / "backup")
    store = await SqliteStore.open(tmp_path / "one" / "db")
    for number in range(5):
        await write(store, pool("lost", number + 2))
    client = GrpcStore(f"unix:{tmp_path}/datastore.sock")
    async with serve(store):
        follower = following(client)
        reader = await follower.__aenter__()
        before = await reader.until(lambda snapshot: names(snapshot) == {"old", "lost"})
    await store.close()
    restored = await SqliteStore.open(tmp_path / "backup" / "db")
    async with serve(restored):
        after = await reader.until(lambda snapshot: not snapshot.stale and names(snapshot) == {"old"})
        assert after.revision < before.revision
        await write(restored, pool("new", 9))
        await reader.until(lambda snapshot: names(snapshot) == {"old", "new"})
        await follower.__aexit__(None, None, None)
    await client.close()
    await restored.close()


async def test_a_restored_store_that_has_gone_past_our_revision_is_believed(tmp_path: Path, serve) -> None:
    store = await SqliteStore.open(tmp_path / "one" / "db")
    await write(store, pool("old", 1))
    await store.close()
    shutil.copytree(tmp_path / "one", tmp_path / "backup")
    store = await SqliteStore.open(tmp_path / "one" / "db")
    for number in range(3):
        await write(store, pool(f"lost{number}", number + 2))
    client = GrpcStore(f"unix:{tmp_path}/datastore.sock")
    async with serve(store):
        follower = following(client)
        reader = await follower.__aenter__()
        before = await reader.until(lambda snapshot: "lost2" in names(snapshot))
    await reader.until(lambda snapshot: snapshot.stale)
    await store.close()
    restored = await SqliteStore.open(tmp_path / "backup" / "db")
    for number in range(5):
        await write(restored, pool(f"new{number}", number + 2))
    with capture_logs() as logs:
        async with serve(restored):
            after = await reader.until(lambda snapshot: not snapshot.stale)
            assert after.revision > before.revision
            assert names(after) == {"old", *(f"new{number}" for number in range(5))}
            await delete(restored, IPPool, "new3")
            await reader.until(lambda snapshot: names(snapshot) == names(after) - {"new3"})
            await follower.__aexit__(None, None, None)
    (said,) = [log for log in logs if log["event"] == "datastore.diverged"]
    assert said["objects"] == 6, "three that were lost, and three of five that revisions alone did not show"
    await client.close()
    await restored.close()


async def test_what_no_change_told_of_is_found_by_comparing(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    await sqlite_store.txn([put(pool("a", 1)), put(pool("b", 2))])
    with capture_logs() as logs:
        async with following(sqlite_store, timing=Timing(retry_s=0.02, retry_max_s=0.1, resync_s=0.05)) as reader:
            await reader.until(lambda snapshot: names(snapshot) == {"a", "b"})
            with closing(sqlite3.connect(tmp_path / "datastore.db")) as behind, behind:
                assert behind.execute("DELETE FROM objects WHERE path LIKE '%/a'").rowcount == 1
            await reader.until(lambda snapshot: names(snapshot) == {"b"})
            await write(sqlite_store, pool("c", 3))
            await reader.until(lambda snapshot: names(snapshot) == {"b", "c"})
    said = [log for log in logs if log["event"].startswith("datastore.")]
    assert [(log["event"], log["some"]) for log in said] == [("datastore.diverged", ["IPPool a"])]


async def test_comparing_disturbs_nobody(store: Store) -> None:
    lists = 0

    class Counted:
        def __getattr__(self, name: str) -> object:
            nonlocal lists
            lists += name == "pages"
            return getattr(store, name)

    await store.txn([put(pool("first")), Put(pool("bad").key, b"{}")])
    with capture_logs() as logs:
        async with following(Counted(), timing=Timing(retry_s=0.02, retry_max_s=0.1, resync_s=0.01)) as reader:  # type: ignore[arg-type]
            for number in range(100):
                await write(store, pool(f"p{number % 30}", number))
            newest = await write(store, pool("last"))
            await reader.until(lambda snapshot: snapshot.revision >= newest)
            counted = lists
            await eventually(lambda: lists > counted + 3)
            assert reader.latest.peek() is reader.seen[-1], "nothing new for a reader"
            assert not any(snapshot.stale for snapshot in reader.seen)
            assert names(reader.seen[-1]) == {"first", "last", *(f"p{number}" for number in range(30))}
    assert [log["event"] for log in logs if log["event"].startswith("datastore.")] == ["datastore.object_set_aside"]


async def test_an_agent_starts_from_its_disk_while_the_store_is_away(
    sqlite_store: SqliteStore, serve, tmp_path: Path
) -> None:
    cache = tmp_path / "cache" / "snapshot.jsonl"
    await sqlite_store.txn([put(pool("good", 1)), Put(pool("bad").key, b"garbage")])
    async with following(sqlite_store, cache) as reader:
        fresh = await reader.until(lambda _: True)
    client = GrpcStore(f"unix:{tmp_path}/datastore.sock")
    async with following(client, cache) as reader:
        cached = await reader.until(lambda _: True)
        assert cached.stale
        assert (cached.revision, cached.tables, cached.problems) == (fresh.revision, fresh.tables, fresh.problems)
        await delete(sqlite_store, IPPool, "bad")
        async with serve(sqlite_store):
            live = await reader.until(lambda snapshot: not snapshot.stale)
            assert (names(live), dict(live.problems)) == ({"good"}, {})
    assert [snapshot.stale for snapshot in reader.seen] == [True, False]
    await client.close()


async def test_without_a_cache_and_a_store_there_is_no_snapshot(tmp_path: Path) -> None:
    client = GrpcStore(f"unix:{tmp_path}/nobody.sock")
    with capture_logs() as logs:
        async with following(client, tmp_path / "none.jsonl") as reader:
            await eventually(lambda: bool(logs))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.latest.get(), 0.3)
    assert [(log["event"], log["have"]) for log in logs] == [("datastore.away", "nothing yet")]
    assert not (tmp_path / "none.jsonl").exists()
    await client.close()


async def test_an_emptied_store_is_held_also_after_restarts_until_the_node_is_released(
    sqlite_store: SqliteStore, tmp_path: Path
) -> None:
    def own(**annotations: str) -> Node:
        return Node(metadata=Metadata(name="a", annotations=annotations), spec=NodeSpec())

    cache = tmp_path / "snapshot.jsonl"
    await sqlite_store.txn([put(own()), *(put(pool(f"p{number}", number)) for number in range(3))])
    async with following(sqlite_store, cache, node="a") as reader:
        await reader.until(lambda snapshot: len(names(snapshot)) == 3)
    await sqlite_store.txn([Delete(own().key), *(Delete(pool(f"p{number}").key) for number in range(3))])
    for _ in range(2):  # against what the disk has from before; then against what it has from while it was held
        async with following(sqlite_store, cache, node="a") as reader:
            first = await reader.until(lambda _: True)
        assert names(first) == {"p0", "p1", "p2"}
        assert set(first.held) == {"nodes", "pools"}
        assert not first.stale
    nobody = GrpcStore(f"unix:{tmp_path}/nobody.sock")
    async with following(nobody, cache, node="a") as reader:
        away = await reader.until(lambda _: True)
    assert (away.stale, away.held, away.tables) == (True, first.held, first.tables)
    await nobody.close()
    async with following(sqlite_store, cache, node="a") as reader:
        await write(sqlite_store, own())
        back = await reader.until(lambda snapshot: set(snapshot.held) == {"pools"})
        assert len(names(back)) == 3
        await write(sqlite_store, own(**{RELEASE: "now"}))
        released = await reader.until(lambda snapshot: not snapshot.held)
    assert names(released) == set()


async def test_without_a_node_nothing_is_held(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    await sqlite_store.txn([put(pool(f"p{number}", number)) for number in range(3)])
    async with following(sqlite_store, tmp_path / "snapshot.jsonl") as reader:
        await reader.until(lambda snapshot: len(names(snapshot)) == 3)
        await sqlite_store.txn([Delete(pool(f"p{number}").key) for number in range(3)])
        await reader.until(lambda snapshot: not names(snapshot))


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "other kinds", "future"])
async def test_a_damaged_cache_is_as_good_as_none(sqlite_store: SqliteStore, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "snapshot.jsonl"
    await sqlite_store.txn([put(pool(f"p{number}", number)) for number in range(5)])
    async with following(sqlite_store, cache) as reader:
        await reader.until(lambda _: True)
    whole = cache.read_bytes()
    assert whole.count(b"\n") == 6
    cache.write_bytes(
        {
            "empty": b"",
            "cut": b"\n".join(whole.splitlines()[:-1]),
            "garbage": b"\x00\xff" + whole,
            "other kinds": whole.replace(b"/projectcalico.org/nodes/", b"/projectcalico.org/tiers/"),
            "future": whole.replace(b"snapshot 1", b"snapshot 2"),
        }[damage]
    )
    client = GrpcStore(f"unix:{tmp_path}/nobody.sock")
    with capture_logs() as logs:
        async with following(client, cache) as reader:
            await eventually(lambda: "datastore.cache_ignored" in [log["event"] for log in logs])
            assert reader.latest.peek() is None
    await client.close()


async def test_the_cache_is_kept_current_while_running(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    cache = tmp_path / "snapshot.jsonl"
    async with following(sqlite_store, cache, save_every_s=0.05):
        for name in ("first", "second"):
            await write(sqlite_store, pool(name, len(name)))
            await eventually(lambda name=name: cache.exists() and f"/{name}".encode() in cache.read_bytes())
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("snap")) == ["snapshot.jsonl"]
    assert cache.stat().st_mode & 0o777 == 0o600


async def test_a_cache_that_cannot_be_written_does_not_stop_the_agent(
    sqlite_store: SqliteStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        async with following(sqlite_store, tmp_path / "file" / "snapshot.jsonl", save_every_s=0.01) as reader:
            for number in range(3):
                await write(sqlite_store, pool(f"p{number}", number))
                await reader.until(lambda snapshot, number=number: f"p{number}" in names(snapshot))
    assert "datastore.cache_not_written" in [log["event"] for log in logs]


async def test_a_store_that_closes_is_away(sqlite_store: SqliteStore) -> None:
    async with following(sqlite_store) as reader:
        await reader.until(lambda snapshot: not snapshot.stale)
        await sqlite_store.close()
        await reader.until(lambda snapshot: snapshot.stale)
    with pytest.raises(Unavailable):
        await sqlite_store.list(frozenset())


async def test_nodes_are_followed_beside_pools(store: Store) -> None:
    async with following(store) as reader:
        await store.txn([put(Node(metadata=Metadata(name="n1"), spec=NodeSpec())), put(pool("a", 1))])
        snapshot = await reader.until(lambda snapshot: bool(snapshot.of(Node)))
        assert names(snapshot) == {"a"}, "a transaction is seen whole"


async def test_changes_of_other_kinds_make_no_snapshot_but_are_not_read_again(
    sqlite_store: SqliteStore, serve, tmp_path: Path
) -> None:
    await write(sqlite_store, pool("a", 1))
    client = GrpcStore(f"unix:{tmp_path}/datastore.sock")
    busy = Key(Tier.KIND, "", "busy")
    async with serve(sqlite_store):
        follower = following(client)
        reader = await follower.__aenter__()
        await reader.until(lambda snapshot: names(snapshot) == {"a"})
        beside = client.watch(reader.seen[-1].revision, {IPPool.KIND, Node.KIND})
        assert isinstance(await anext(beside), Synced)
        for number in range(PROGRESS + 10):
            last = await sqlite_store.txn([Put(busy, b"%d" % number)])
        told = await anext(beside)
        await beside.aclose()
        for _ in range(3):  # both watchers are told at once; what is asked afterwards is answered afterwards
            await client.get(busy)
        assert reader.latest.peek() is reader.seen[-1], "nothing new for a reader"
    await reader.until(lambda snapshot: snapshot.stale)
    await sqlite_store.compact(told.revision)
    with capture_logs() as logs:
        async with serve(sqlite_store):
            fresh = await reader.until(lambda snapshot: not snapshot.stale)
            assert fresh.revision == last
            await follower.__aexit__(None, None, None)
    assert "datastore.relist" not in [log["event"] for log in logs]
    await client.close()
