"""What only etcd has: its limits, its members that die, and what others leave in it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from contextlib import aclosing

import pytest

from core.errors import Invalid, Unavailable
from core.latest import Latest
from core.names import Key
from core.reconcile import Timing
from core.resources import IPPool, Metadata
from core.resources.network import IPPoolSpec
from core.snapshot import Snapshot
from datastore.api import Changes, Event, Put, Synced
from datastore.client import GrpcStore
from datastore.etcd import EtcdStore
from datastore.follow import follow
from datastore.objects import write

POOL = IPPool.KIND


def key(name: str) -> Key:
    return Key(POOL, "", name)


def etcdctl(endpoint: str, *arguments: str) -> bytes:
    """What an operator's own tool says."""
    return subprocess.run(
        ["etcdctl", f"--endpoints={endpoint}", *arguments],
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    ).stdout


async def until(store: EtcdStore, here: bool) -> None:
    """Wait until the store answers, or until it does not."""
    for _ in range(300):
        try:
            await store.list(frozenset())
            answered = True
        except Unavailable:
            answered = False
        if answered is here:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"the store is {'not there' if here else 'still there'}")


async def test_it_reads_as_the_manifests_do(etcd_store: EtcdStore, shared_etcd) -> None:
    await etcd_store.txn([Put(key("rack-1"), b'{"spec":{}}')])
    out = await asyncio.to_thread(etcdctl, shared_etcd.endpoint, "get", "--prefix", "/muslin/")
    assert out == b'/muslin/projectcalico.org/ippools/rack-1\n{"spec":{}}\n'


async def test_what_an_operator_writes_is_seen_and_what_is_not_ours_is_passed_over(
    etcd_store: EtcdStore, shared_etcd
) -> None:
    start = (await etcd_store.list({POOL})).revision
    async with aclosing(etcd_store.watch(start, {POOL})) as items:
        assert await anext(items) == Synced(start)
        for path in (
            "/registry/pods/x",
            "/muslin/projectcalico.org/ippools/a/b/c",
            "/muslin/projectcalico.org/ippools/",
            "/muslin/projectcalico.org/ippoolsx/c",
            "/muslin/other",
            "/muslin/projectcalico.org/ippools/mine",
        ):
            await asyncio.to_thread(etcdctl, shared_etcd.endpoint, "put", path, "value")
        item = await asyncio.wait_for(anext(items), 5)
    assert isinstance(item, Changes)
    assert [(event.key, event.value) for event in item.events] == [(key("mine"), b"value")]
    assert [entry.key for entry in (await etcd_store.list({POOL})).entries] == [key("mine")]


async def test_a_resumed_watch_is_synced_even_when_the_newest_revision_is_not_ours(
    etcd_store: EtcdStore, shared_etcd
) -> None:
    revision = await etcd_store.txn([Put(key("a"), b"1")])
    await asyncio.to_thread(etcdctl, shared_etcd.endpoint, "put", "/registry/pods/x", "value")
    async with aclosing(etcd_store.watch(revision, {POOL})) as items:
        assert await asyncio.wait_for(anext(items), 5) == Synced(revision + 1)
        later = await etcd_store.txn([Put(key("b"), b"1")])
        assert await asyncio.wait_for(anext(items), 5) == Changes(later, (Event(key("b"), b"1", later),))


async def test_etcds_own_limits_are_said_with_the_remedy(etcd_store: EtcdStore) -> None:
    await etcd_store.txn([Put(key(f"p{number}"), b"1") for number in range(128)])
    with pytest.raises(Invalid, match="--max-txn-ops"):
        await etcd_store.txn([Put(key(f"q{number}"), b"1") for number in range(129)])
    with pytest.raises(Invalid, match="--max-request-bytes"):
        await etcd_store.txn([Put(key(f"r{number}"), b"x" * 1_000_000) for number in range(2)])
    assert len((await etcd_store.list({POOL})).entries) == 128


async def test_an_etcd_that_dies_is_unavailable_and_comes_back_with_everything(own_etcd) -> None:
    store = EtcdStore([own_etcd.endpoint], timeout_s=5)
    revision = await store.txn([Put(key("a"), b"1")])
    items = store.watch(revision, {POOL})
    assert await anext(items) == Synced(revision)
    own_etcd.kill()
    with pytest.raises(Unavailable, match=own_etcd.endpoint):
        await asyncio.wait_for(anext(items), 10)
    await until(store, here=False)
    with pytest.raises(Unavailable):
        await store.txn([Put(key("b"), b"1")])
    await asyncio.to_thread(own_etcd.start)
    await until(store, here=True)
    async with aclosing(store.watch(revision, {POOL})) as again:
        assert await asyncio.wait_for(anext(again), 5) == Synced(revision)
    later = await store.txn([Put(key("b"), b"1")])
    assert later > revision
    await store.close()


async def test_an_agent_behind_a_front_lives_through_the_death_of_etcd(own_etcd, serve) -> None:
    store = EtcdStore([own_etcd.endpoint], timeout_s=5)
    async with serve(store) as addresses:
        client = GrpcStore(addresses[0])
        latest: Latest[Snapshot] = Latest()
        timing = Timing(retry_s=0.02, retry_max_s=0.2)
        follower = asyncio.create_task(follow(client, [IPPool], latest, None, timing=timing))

        async def state(holds: Callable[[Snapshot], bool]) -> None:
            async with asyncio.timeout(15):
                while not holds(await latest.get()):
                    pass

        await write(client, IPPool(metadata=Metadata(name="a"), spec=IPPoolSpec(cidr="10.1.0.0/16")))
        await state(lambda snapshot: len(snapshot.of(IPPool)) == 1)
        own_etcd.kill()
        await state(lambda snapshot: snapshot.stale and len(snapshot.of(IPPool)) == 1)
        await asyncio.to_thread(own_etcd.start)
        await state(lambda snapshot: not snapshot.stale and len(snapshot.of(IPPool)) == 1)
        await write(client, IPPool(metadata=Metadata(name="b"), spec=IPPoolSpec(cidr="10.2.0.0/16")))
        await state(lambda snapshot: len(snapshot.of(IPPool)) == 2)
        follower.cancel()
        await asyncio.wait([follower])
        await client.close()
    await store.close()


async def test_an_endpoint_that_is_away_is_passed_over(shared_etcd, etcd_store: EtcdStore) -> None:
    nobody = "127.0.0.1:1"
    store = EtcdStore([nobody, shared_etcd.endpoint])
    with pytest.raises(Unavailable, match=nobody):
        await store.list({POOL})
    await store.txn([Put(key("a"), b"1")])
    assert await etcd_store.get(key("a")) is not None
    await store.close()


async def test_no_endpoint_is_refused() -> None:
    with pytest.raises(Invalid, match="at least one endpoint"):
        EtcdStore([])


async def test_a_closed_store_is_unavailable_and_ends_its_watchers(shared_etcd) -> None:
    store = EtcdStore([shared_etcd.endpoint])
    items = store.watch(0, {POOL})
    async with asyncio.timeout(5):
        while not isinstance(await anext(items), Synced):
            pass
    waiting = asyncio.ensure_future(anext(items))
    await asyncio.sleep(0.05)
    await store.close()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(Unavailable):
        await store.get(key("a"))
