"""Pods are followed while somebody asks for sessions with them: on a real store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from bgp_world import node, peer, pool

from bgp.peering.pods import asks, with_pods
from core.latest import Latest
from core.resources import BGPPeer, IPPool, Metadata, Namespace, Node, WorkloadEndpoint
from core.snapshot import Snapshot
from datastore.follow import follow
from datastore.objects import delete, put, write
from datastore.sqlite import SqliteStore

HERE, THERE = node("here", "10.1.0.1/24"), node("there", "10.1.0.2/24")
ASKING = peer("pods", "", localWorkloadSelector="all()", asNumber=65100)


def pod(name: str, on: str = "here") -> WorkloadEndpoint:
    spec = {"node": on, "pod": name, "ipNetworks": ["10.244.1.7/32"]}
    return msgspec.convert({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}, WorkloadEndpoint)


def names(snapshot: Snapshot) -> set[str]:
    return {key.name for key in snapshot.of(WorkloadEndpoint)}


class Seen:
    """What comes out, as an agent would see it."""

    def __init__(self) -> None:
        self.out: Latest[Snapshot] = Latest()
        self.count = 0

    async def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        async with asyncio.timeout(10):
            while True:
                snapshot = await self.out.get()
                self.count += 1
                if holds(snapshot):
                    return snapshot


@contextlib.asynccontextmanager
async def passing(store: SqliteStore) -> AsyncIterator[Seen]:
    given: Latest[Snapshot] = Latest()
    seen = Seen()
    async with asyncio.TaskGroup() as group:
        kinds = (BGPPeer, IPPool, Node)
        tasks = [
            group.create_task(follow(store, kinds, given, None, node="here")),
            group.create_task(with_pods(store, "here", given, seen.out)),
        ]
        yield seen
        for task in tasks:
            task.cancel()


async def test_pods_come_and_go_with_who_asks_for_them(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    try:
        await store.txn([put(each) for each in (HERE, THERE, pod("a"), pod("far", "there"))])
        async with passing(store) as seen:
            first = await seen.until(lambda _: True)
            assert WorkloadEndpoint.KIND not in first.tables
            await write(store, ASKING)
            asked = await seen.until(lambda snapshot: WorkloadEndpoint.KIND in snapshot.tables)
            assert names(asked) == {"a"}
            await write(store, pod("b"))
            await seen.until(lambda snapshot: names(snapshot) == {"a", "b"})
            await write(store, pod("a", "there"))  # it has moved
            await seen.until(lambda snapshot: names(snapshot) == {"b"})
            await write(store, Namespace(metadata=Metadata(name="shop", labels={"env": "prod"})))
            await seen.until(lambda snapshot: bool(snapshot.of(Namespace)))
            await write(store, pool("p", "10.244.0.0/16"))
            both = await seen.until(lambda snapshot: bool(snapshot.of(IPPool)))
            assert names(both) == {"b"}
            await delete(store, BGPPeer, "pods")
            await seen.until(lambda snapshot: WorkloadEndpoint.KIND not in snapshot.tables)
            await write(store, ASKING)
            await seen.until(lambda snapshot: names(snapshot) == {"b"})
    finally:
        await store.close()


async def test_pods_of_others_make_no_news(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    try:
        await store.txn([put(each) for each in (HERE, ASKING, pod("a"))])
        async with passing(store) as seen:
            await seen.until(lambda snapshot: names(snapshot) == {"a"})
            before = seen.count
            for number in range(50):
                await write(store, pod(f"far-{number}", "there"))
            await write(store, pod("b"))
            await seen.until(lambda snapshot: names(snapshot) == {"a", "b"})
            assert seen.count == before + 1
    finally:
        await store.close()


def test_who_asks() -> None:
    def asked(*resources: Node | BGPPeer) -> bool:
        return asks(Snapshot().apply(1, [(each.key, each) for each in resources]), "here")

    assert asked(HERE, ASKING)
    assert not asked(THERE, ASKING)
    assert not asked(HERE)
    assert not asked(HERE, peer("p", "10.1.0.9", asNumber=1))
    assert not asked(HERE, peer("pods", "", localWorkloadSelector="all()", node="there"))
    assert not asked(HERE, peer("pods", "", localWorkloadSelector="all()", nodeSelector="has("))
