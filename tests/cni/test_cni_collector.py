"""Garbage collection on a real store and in real network namespaces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_interface

import pytest
from collector_node import (
    NETWORK,
    GcNode,
    assigned_and_killed,
    begin,
    claims,
    every,
    held,
    namespace_of,
    start,
    until_gone,
)
from msgspec.structs import replace

from cni.collector import Collector, families
from core.errors import Conflict, MuslinError
from core.metrics import exposed
from core.names import workload_interface
from core.resources import EncapMode, IPAMHandle, IPAMRecord, IPPool, Metadata, Node, WorkloadEndpoint
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from datastore.ipam.listing.ending import ending
from datastore.ipam.listing.holders import KINDS, Holdings
from datastore.ipam.model import Owner, Request, Use
from datastore.ipam.writing import operations
from linux import interfaces, netns
from linux.netlink import Netlink
from tests.conftest import served

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def gc_server() -> Iterator[str]:
    with served() as address:
        yield address


@pytest.fixture
async def store(gc_server: str) -> AsyncIterator[Store]:
    opened = GrpcStore(gc_server)
    try:
        await begin(opened, "n1", "n2")
        yield opened
    finally:
        await opened.close()


@pytest.fixture
def n1(store: Store) -> Iterator[GcNode]:
    name = namespace_of("n1")
    netns.create(name)
    try:
        yield GcNode(store, "n1", name)
    finally:
        netns.delete(name)


async def observed_twice(collector: Collector) -> int:
    assert await collector.scan() == 0
    return await collector.scan()


async def test_what_a_killed_process_left_is_collected_after_the_grace(
    gc_server: str, store: Store, n1: GcNode
) -> None:
    await n1.add("api", "c2")
    await asyncio.to_thread(assigned_and_killed, gc_server)
    assert "net.c1" in (await held(store)).values()
    grace_s, began = 0.4, time.monotonic()
    running = asyncio.create_task(n1.collector(grace_s).run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await until_gone(store, IPAMHandle.KIND, {"net.c1"})
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert time.monotonic() - began >= grace_s
    assert set((await held(store)).values()) == {"net.c2"}
    records = [each.spec for each in (await every(store, IPAMRecord)).values()]
    assert {(each.handle_id, each.why, each.pod) for each in records} == {("net.c1", "collected", "web")}
    assert len(records) == 2  # one of each family


async def test_a_second_add_between_the_observations_saves_it(store: Store, n1: GcNode) -> None:
    collector = n1.collector()
    before = await n1.add("web", "c1", wire=False)
    assert await collector.scan() == 0
    assert await n1.add("web", "c1") == before
    assert await collector.scan() == 0
    assert await collector.scan() == 0
    assert set((await held(store)).values()) == {"net.c1"}
    assert collector.counts.candidates == 0


async def test_a_second_add_after_the_last_look_wins(store: Store, n1: GcNode) -> None:
    collector = n1.collector()
    await n1.add("web", "c1", wire=False)
    _, (judged,) = await collector._look()
    await n1.add("web", "c1")
    with pytest.raises(Conflict):
        await store.txn(operations(judged.step.changes))
    assert set((await held(store)).values()) == {"net.c1"}


async def test_a_node_that_was_wiped_gives_back_what_its_old_pods_had(store: Store, n1: GcNode) -> None:
    for number in range(3):
        await n1.add(f"web-{number}", f"c{number}")
    assert await observed_twice(n1.collector()) == 0
    n1.wipe()
    collector = n1.collector()
    assert await collector.scan() == 0
    renewed = await n1.add("web-0", "c9")  # a pod of the same name, started since
    async with asyncio.timeout(PATIENCE_S):
        while len(await held(store)) > len(renewed.addresses):
            await collector.scan()
    assert await held(store) == {str(each): "net.c9" for each in renewed.addresses}
    assert [each.spec.container_id for each in (await every(store, WorkloadEndpoint)).values()] == ["c9"]
    assert len(await claims(store)) == 2  # one block of each family stays


async def test_one_scan_gives_back_all_that_is_due(store: Store, n1: GcNode) -> None:
    for number in range(12):
        await n1.add(f"web-{number}", f"c{number}", wire=False)
    assert len(await claims(store)) == 2  # all in one block of each family
    assert await observed_twice(n1.collector()) == 12
    assert await held(store) == {}


async def test_what_the_plugin_works_on_is_left_alone(store: Store, n1: GcNode) -> None:
    await n1.add("web", "c1", wire=False)
    n1.busy.add("c1")
    collector = n1.collector()
    assert await observed_twice(collector) == 0
    n1.busy.clear()
    assert await observed_twice(collector) == 1


async def test_the_blocks_of_a_deleted_node_come_back(store: Store, n1: GcNode) -> None:
    tunnel = Request(handle="ipip-tunnel-addr-n2", owner=Owner(node="n2"), use=Use.TUNNEL)
    spec = IPPoolSpec(cidr="10.61.0.0/24", block_size=28, ipip_mode=EncapMode.ALWAYS)
    await objects.write(store, IPPool(metadata=Metadata(name="pods"), spec=spec))
    await n1.ledger.assign(tunnel)
    assert {name for name, _ in await claims(store)} == {"n2"}
    collector = n1.collector()
    assert await observed_twice(collector) == 0
    await objects.delete(store, Node, "n2")
    async with asyncio.timeout(PATIENCE_S):
        while await held(store) or await claims(store):
            await collector.scan()
    assert await every(store, IPAMHandle) == {}


async def test_a_pool_ends_with_its_last_pod(store: Store, n1: GcNode) -> None:
    await n1.add("web", "c1")
    holdings = Holdings(await store.list(KINDS))
    (pool,) = (each for each in holdings.of(IPPool).values() if each.resource.metadata.name == "pods")
    end = ending(pool, holdings, "2026-01-31T12:00:00Z")
    assert not end.over
    await store.txn(operations(end.step.changes), end.step.guards)
    running = asyncio.create_task(n1.collector(0.1).run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            n1.unwire("web")
            await until_gone(store, WorkloadEndpoint.KIND, {"n1-k8s-web-eth0"})
            await until_gone(store, IPPool.KIND, {"pods"})
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert await held(store) == {}
    assert {cidr.partition(":")[0] for _, cidr in await claims(store)} == {"fd61"}


async def test_two_collectors_that_race_free_each_address_once(store: Store, n1: GcNode) -> None:
    for number in range(6):
        await n1.add(f"web-{number}", f"c{number}", wire=False)
    one, other = n1.collector(), n1.collector()
    await asyncio.gather(one.scan(), other.scan())
    done = await asyncio.gather(one.scan(), other.scan())
    async with asyncio.timeout(PATIENCE_S):
        while await held(store):
            done += await asyncio.gather(one.scan(), other.scan())
    returned = [each.counts.reclaimed.get("container", 0) for each in (one, other)]
    assert sum(returned) == 6
    assert len(await every(store, IPAMRecord)) == 12
    assert await every(store, WorkloadEndpoint) == {}


async def test_an_add_that_races_a_collector_has_what_it_was_given(store: Store, n1: GcNode) -> None:
    for number in range(15):
        pod, container = f"web-{number}", f"c{number}"
        collector = n1.collector()
        await n1.add(pod, container, wire=False)
        await collector.scan()
        grant, _ = await asyncio.gather(n1.add(pod, container), collector.scan())
        assert {str(each): f"net.{container}" for each in grant.addresses}.items() <= (await held(store)).items()
        found = await objects.read(store, WorkloadEndpoint, f"n1-k8s-web--{number}-eth0", "shop")
        assert found is not None
        assert found[0].spec.addresses == grant.addresses
        n1.unwire(pod)
        await observed_twice(n1.collector())
        assert await held(store) == {}


# What a runtime's GC asks for


async def test_gc_removes_what_the_runtime_does_not_name_and_nothing_else(store: Store, n1: GcNode) -> None:
    for number in range(4):
        await n1.add(f"web-{number}", f"c{number}")
    await n1.add("other", "c9", network="other")
    n1.busy.add("c3")
    collector = n1.collector(900.0)
    await collector.valid(NETWORK, {"c0"})
    assert set((await held(store)).values()) == {"net.c0", "net.c3", "other.c9"}
    assert n1.wires() == {workload_interface("shop", pod) for pod in ("web-0", "web-3", "other")}
    assert {each.spec.container_id for each in (await every(store, WorkloadEndpoint)).values()} == {"c0", "c3", "c9"}
    assert {each.spec.why for each in (await every(store, IPAMRecord)).values()} == {"GC"}
    revision = (await store.list(KINDS)).revision
    await collector.valid(NETWORK, {"c0"})
    assert (await store.list(KINDS)).revision == revision


async def test_gc_removes_a_whole_block_of_pods(store: Store, n1: GcNode) -> None:
    for number in range(12):
        await n1.add(f"web-{number}", f"c{number}")
    await n1.collector().valid(NETWORK, {"c7"})
    assert set((await held(store)).values()) == {"net.c7"}
    assert n1.wires() == {workload_interface("shop", "web-7")}


async def test_gc_goes_on_after_what_it_cannot_do_and_tells_it(store: Store, n1: GcNode) -> None:
    first = await n1.add("web-1", "c1")
    await n1.add("web-2", "c2")
    by_hand = n1.endpoint("by-hand", "", first)
    await objects.create(store, by_hand)
    with pytest.raises(MuslinError, match=r"net\.c1: WorkloadEndpoint shop/n1-k8s-by--hand-eth0 has its address"):
        await n1.collector().valid(NETWORK, ())
    assert set((await held(store)).values()) == {"net.c1"}
    assert n1.wires() == {workload_interface("shop", "web-1")}
    await objects.delete(store, WorkloadEndpoint, by_hand.metadata.name, "shop")
    await n1.collector().valid(NETWORK, ())
    assert await held(store) == {}
    assert n1.wires() == set()


async def test_gc_does_not_cut_the_pods_next_container(store: Store, n1: GcNode) -> None:
    await n1.add("web", "c1")
    grant = await n1.add("web", "c2")
    await n1.collector().valid(NETWORK, {"c2"})
    assert await held(store) == {str(each): "net.c2" for each in grant.addresses}
    assert n1.wires() == {workload_interface("shop", "web")}


async def test_gc_is_of_this_node_only(store: Store, n1: GcNode) -> None:
    elsewhere = GcNode(store, "n2", n1.namespace)
    await elsewhere.add("far", "c1", wire=False)
    await n1.collector().valid(NETWORK, ())
    assert set((await held(store)).values()) == {"net.c1"}


async def test_an_agent_on_another_host_takes_nothing(store: Store, n1: GcNode) -> None:
    await n1.add("web", "c1")
    bgp = NodeBGPSpec(ipv4_address="192.0.2.7/24")
    await objects.write(store, Node(metadata=Metadata(name="n1"), spec=NodeSpec(bgp=bgp)))
    n1.wipe()
    collector = n1.collector()
    assert await observed_twice(collector) == 0
    assert "Node n1 has 192.0.2.7, and this host has none of them" in collector.trouble
    with pytest.raises(MuslinError, match=r"is it that node"):
        await collector.valid(NETWORK, ())
    assert set((await held(store)).values()) == {"net.c1"}
    with netns.inside(n1.namespace), Netlink() as netlink:
        interfaces.add_address(netlink, 1, ip_interface("192.0.2.7/24"))
    await collector.valid(NETWORK, ())
    assert await held(store) == {}


async def test_what_is_long_past_is_forgotten(store: Store, n1: GcNode) -> None:
    await n1.add("web", "c1", wire=False)
    collector = n1.collector()
    await observed_twice(collector)
    young = await every(store, IPAMRecord)
    old = [
        replace(each, metadata=Metadata(name=f"old-{name}"), spec=replace(each.spec, until="2020-01-31T12:00:00Z"))
        for name, each in young.items()
    ]
    await store.txn([objects.put(each) for each in old])
    assert await collector.forget() == len(old) == 2
    assert await every(store, IPAMRecord) == young


# What it tells


async def test_the_counts_are_this_nodes(store: Store, n1: GcNode) -> None:
    await n1.add("web", "c1")
    await n1.add("api", "c2", wire=False)
    await GcNode(store, "n2", n1.namespace).add("far", "c3", wire=False)
    collector = n1.collector()
    await collector.scan()
    counts = collector.counts
    assert (counts.in_use, counts.borrowed, counts.blocks) == ({"pods": 2, "six": 2}, {}, {"pods": 1, "six": 1})
    assert counts.candidates == 1
    await collector.scan()
    text = exposed(families(collector.counts)).decode()
    assert 'muslin_ipam_allocations_in_use{ippool="pods"} 2.0' in text
    assert 'muslin_ipam_gc_reclamations_total{what="container"} 1.0' in text


async def test_a_collector_waits_until_the_store_is_back(n1: GcNode) -> None:
    away = GrpcStore("unix:/run/there-is-no-such-datastore.sock")
    try:
        collector = GcNode(away, "n1", n1.namespace).collector()
        with pytest.raises(MuslinError):
            await collector.scan()
    finally:
        await away.close()


async def test_the_cluster_without_pods_is_as_it_began(store: Store, n1: GcNode) -> None:
    before = (await store.list(KINDS)).entries
    assert len(before) == len([each for each in start("n1", "n2") if each.KIND in KINDS])
    assert await observed_twice(n1.collector()) == 0
    assert (await store.list(KINDS)).entries == before
