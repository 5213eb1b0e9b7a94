"""Addresses for Services on real stores: whoever races, one address each; what is asked for anew is exchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from core.resources import BlockAffinity, IPAMBlock, IPAMHandle, IPAMRecord, IPPool, Service
from core.resources.ipam import LOAD_BALANCER
from datastore import objects
from datastore.api import Store
from datastore.etcd import EtcdStore
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Exhausted
from datastore.sqlite import SqliteStore
from tests.datastore.balancing_ground import (
    agreed,
    assigning,
    balanced,
    balancing,
    ingress,
    says,
    service,
    services,
    told,
    until,
    write,
)
from tests.datastore.conftest import Etcd, cleaned
from tests.datastore.ipam_ground import Said, pod, pool, put

POOL = balanced("lb", "198.51.100.0/24", block_size=28)


@pytest.fixture(params=["sqlite", "etcd"])
async def stores(
    request: pytest.FixtureRequest, tmp_path: Path, shared_etcd: Etcd
) -> AsyncIterator[tuple[Store, Store]]:
    """A store as two servers see it: over etcd each has its own way to it."""
    async with AsyncExitStack() as stack:
        if request.param == "etcd":
            one: Store = await stack.enter_async_context(cleaned(shared_etcd))
            other: Store = EtcdStore([shared_etcd.endpoint])
            stack.push_async_callback(other.close)
            yield one, other
        else:
            opened = await SqliteStore.open(tmp_path / "datastore.db")
            stack.push_async_callback(opened.close)
            yield opened, opened


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db")
    yield opened
    await opened.close()


async def test_a_service_gets_an_address_of_each_family_and_says_so_in_the_same_transaction(
    stores: tuple[Store, Store],
) -> None:
    store, _ = stores
    six = balanced("six", "2001:db8::/112")
    status = {"conditions": [], "loadBalancer": {"ingress": [{"hostname": "lb.example"}]}}
    await put(
        store, POOL, six, pool("pods", "10.0.0.0/24"), service("web", status), service("v6", ip_families=["IPv6"])
    )
    before = (await services(store))["web"]
    async with balancing(store):
        await until(lambda: has(store, "web", 2))
        await until(lambda: has(store, "v6", 1))
    held = await agreed(store, [POOL, six])
    found = (await services(store))["web"]
    texts = [str(each) for each in sorted(held["web"], key=lambda each: each.version)]
    entries = [{"hostname": "lb.example"}, *({"ip": text} for text in texts)]
    assert found == replace(before, status={"conditions": [], "loadBalancer": {"ingress": entries}})
    assert [each.version for each in held["v6"]] == [6]
    entry = await store.get(found.key)
    handles = {each.key: each for each in (await store.list({IPAMHandle.KIND})).entries}
    assert entry is not None
    assert entry.revision in {each.revision for each in handles.values()}
    claims = [each.spec for each in (await Said.by(store)).claims]
    assert {(each.node, each.type) for each in claims} == {("load-balancer", "virtual")}


async def has(store: Store, name: str, count: int) -> bool:
    return len((await told(store)).get(name, ())) == count


async def test_two_servers_at_once_give_each_of_500_services_one_address(stores: tuple[Store, Store]) -> None:
    wide = balanced("wide", "198.18.0.0/22", block_size=26)
    await put(stores[0], wide)
    names = [f"s{number}" for number in range(500)]
    async with balancing(*stores):
        for start in range(0, len(names), 100):
            await put(stores[0], *(service(name) for name in names[start : start + 100]))

        async def all_have() -> bool:
            return sum(map(len, (await told(stores[0])).values())) == len(names)

        await until(all_have)
        revision = (await stores[0].list({Service.KIND})).revision
        await asyncio.sleep(0.5)
        assert (await stores[0].list({Service.KIND})).revision == revision, "nothing changes, and nobody writes"
    held = await agreed(stores[0], [wide])
    assert {name: len(of) for name, of in held.items()} == dict.fromkeys(names, 1)
    assert len((await Said.by(stores[0])).blocks) == 8, "as few blocks as it takes"


async def test_what_others_are_to_serve_or_nobody_is_not_touched(store: SqliteStore) -> None:
    await put(
        store,
        POOL,
        service("mine", load_balancer_class="calico"),
        service("theirs", ingress("198.51.100.77"), load_balancer_class="metallb.io/metallb"),
        service("inner", ingress("198.51.100.78"), type="ClusterIP"),
    )
    before = await services(store)
    async with balancing(store):
        await until(lambda: has(store, "mine", 1))
        await write(store, "theirs", lambda each: each)  # a change is heard of too
        await put(store, service("later"))
        await until(lambda: has(store, "later", 1))
    after = await services(store)
    assert (after["theirs"], after["inner"]) == (before["theirs"], before["inner"])


@pytest.mark.parametrize(
    "change",
    [
        {"type": "ClusterIP"},
        {"load_balancer_class": "other.example/lb"},
    ],
)
async def test_who_does_not_ask_any_more_loses_what_we_wrote_and_nothing_else(
    store: SqliteStore, change: dict[str, Any]
) -> None:
    status = {"loadBalancer": {"ingress": [{"hostname": "h"}, {"ip": "192.0.2.99"}]}}
    await put(store, POOL, service("web", status))
    async with balancing(store):
        await until(lambda: has(store, "web", 2))
        await write(store, "web", lambda each: replace(each, spec=replace(each.spec, **change)))
        await says(store, {"web": ["192.0.2.99"]})
    assert (await services(store))["web"].status == status
    said = await Said.by(store)
    assert not said.by_handle
    records = [each.value for each in (await store.list({IPAMRecord.KIND})).entries]
    assert len(records) == 1
    assert b'"service":"web"' in records[0]
    assert b'"why":"Service asks for none"' in records[0]


async def test_a_service_that_goes_frees_its_address_and_one_that_comes_again_gets_one(
    stores: tuple[Store, Store],
) -> None:
    store, _ = stores
    one = balanced("one", "198.51.100.8/32", block_size=32)
    await put(store, one, service("web"))
    async with balancing(*stores):
        await says(store, {"web": ["198.51.100.8"]})
        for _ in range(5):
            await objects.delete(store, Service, "web", "shop")
            await put(store, service("web"))
            await says(store, {"web": ["198.51.100.8"]})
            assert set(await agreed(store, [one])) == {"web"}
        await objects.delete(store, Service, "web", "shop")

        async def free() -> bool:
            return not (await Said.by(store)).by_handle

        await until(free)


async def test_only_who_asks_is_served_if_the_settings_say_so(store: SqliteStore) -> None:
    await put(store, POOL, assigning("RequestedServicesOnly"))
    await put(
        store,
        service("web"),
        service("asks", asks={"ipv4pools": '["lb"]'}),
        service("a-old", load_balancer_ip="198.51.100.9"),
    )
    async with balancing(store):
        await until(lambda: has(store, "asks", 1))
        await says(store, {"a-old": ["198.51.100.9"], "web": []})
        await put(store, assigning("AllServices"))
        await until(lambda: has(store, "web", 1))
        await put(store, assigning("RequestedServicesOnly"))
        await says(store, {"web": []})
        await until(lambda: has(store, "asks", 1))
    assert set(await agreed(store, [POOL])) == {"asks", "a-old"}


async def test_what_is_asked_for_anew_is_exchanged_and_two_never_have_one(stores: tuple[Store, Store]) -> None:
    store, _ = stores
    more = balanced("more", "203.0.113.0/28", block_size=28, assignment_mode="Manual")
    await put(store, POOL, more, service("web", asks={"loadBalancerIPs": '["198.51.100.5"]'}), service("db"))
    async with balancing(*stores):
        await says(store, {"web": ["198.51.100.5"]})
        await write(store, "web", lambda each: asking(each, loadBalancerIPs='["203.0.113.4"]'))
        await says(store, {"web": ["203.0.113.4"]})
        await write(store, "db", lambda each: asking(each, loadBalancerIPs='["198.51.100.5"]'))
        await says(store, {"db": ["198.51.100.5"]})
        await write(store, "db", lambda each: asking(each, ipv4pools='["203.0.113.0/28"]'))

        async def moved() -> bool:
            (text,) = (await told(store))["db"]
            return text.startswith("203.0.113.")

        await until(moved)
    held = await agreed(store, [POOL, more])
    assert set(held) == {"web", "db"}
    records = [each.value for each in (await store.list({IPAMRecord.KIND})).entries]
    assert sum(b'"why":"exchanged"' in each for each in records) == 3


def asking(given: Service, **words: str) -> Service:
    annotations = {f"projectcalico.org/{word}": text for word, text in words.items()}
    return replace(given, metadata=replace(given.metadata, annotations=annotations))


async def test_what_cannot_be_had_is_said_and_costs_nobody_what_he_has(store: SqliteStore) -> None:
    await put(store, POOL, service("web"), service("taken", asks={"loadBalancerIPs": '["198.51.100.7"]'}))
    with capture_logs() as logs:
        async with balancing(store):
            await says(store, {"taken": ["198.51.100.7"]})
            await until(lambda: has(store, "web", 1))
            had = (await told(store))["web"]
            wrong = {
                "bad": ({"loadBalancerIPs": "198.51.100.9"}, "is not a JSON list"),
                "twice": ({"loadBalancerIPs": '["198.51.100.7"]'}, "is held by lb-"),
                "pods": ({"loadBalancerIPs": '["192.0.2.1"]'}, "lies in no pool"),
                "nopool": ({"ipv4pools": '["none"]'}, "IPPool none: does not exist"),
                "two": ({"loadBalancerIPs": '["198.51.100.8", "198.51.100.9"]'}, "at most one of a family"),
            }
            await put(store, *(service(name, asks=asks) for name, (asks, _) in wrong.items()))
            await write(store, "web", lambda each: asking(each, loadBalancerIPs='["198.51.100.7"]'))
            for name, why in [*((name, why) for name, (_, why) in wrong.items()), ("web", "is held by lb-")]:
                await until(lambda name=name, why=why: said(logs, name, why), f"{name}: {why}, in {logs}")
            assert await told(store) == {**{name: [] for name in wrong}, "web": had, "taken": ["198.51.100.7"]}
            await objects.delete(store, Service, "taken", "shop")
            await objects.delete(store, Service, "twice", "shop")
            await says(store, {"web": ["198.51.100.7"]})
    assert set(await agreed(store, [POOL])) == {"web"}


async def said(logs: list[Any], name: str, why: str) -> bool:
    found = [each["why"] for each in logs if each["event"] == "balancing.waits" and each["service"] == f"shop/{name}"]
    return any(why in each for each in found)


async def test_a_pool_that_is_dry_serves_again_as_soon_as_an_address_is_free(store: SqliteStore) -> None:
    small = balanced("small", "198.51.100.0/30", block_size=30)
    names = [f"s{number}" for number in range(6)]
    await put(store, small, *map(service, names))
    with capture_logs() as logs:
        async with balancing(store):

            async def full() -> bool:
                return sum(map(len, (await told(store)).values())) == 4

            await until(full)
            have = {name for name, texts in (await told(store)).items() if texts}
            waiting = sorted({*names} - have)
            for name in waiting:
                await until(lambda name=name: said(logs, name, "small (198.51.100.0/30) has 4 of 4 held"), str(logs))
            for name in sorted(have)[:2]:
                await objects.delete(store, Service, name, "shop")
            for name in waiting:
                await until(lambda name=name: has(store, name, 1), name)
            await put(store, service("late"))
            await until(lambda: said(logs, "late", "add a pool or free addresses"))
            await put(store, balanced("second", "203.0.113.0/30", block_size=30))
            await until(lambda: has(store, "late", 1))


async def test_a_pool_that_is_disabled_gives_nothing_and_takes_nothing(store: SqliteStore) -> None:
    await put(store, POOL, service("web"))
    with capture_logs() as logs:
        async with balancing(store):
            await until(lambda: has(store, "web", 1))
            had = await told(store)
            await put(store, replace(POOL, spec=replace(POOL.spec, disabled=True)), service("db"))
            await until(lambda: said(logs, "db", "lb is disabled"), str(logs))
            assert await told(store) == had | {"db": []}


async def test_a_pool_that_is_deleted_goes_with_its_last_address(store: SqliteStore) -> None:
    await put(store, POOL, service("web"), service("db"))
    async with balancing(store):
        await until(lambda: has(store, "web", 1))
        await until(lambda: has(store, "db", 1))
        ended = replace(
            POOL,
            metadata=replace(POOL.metadata, deletion_timestamp="2026-01-31T12:00:00Z", finalizers=[IPPool.FINALIZER]),
        )
        await put(store, ended, service("late"))
        await objects.delete(store, Service, "web", "shop")
        await until(lambda: has(store, "db", 1))
        assert await objects.read(store, IPPool, "lb") is not None
        await objects.delete(store, Service, "db", "shop")

        async def gone() -> bool:
            return not (await store.list({IPPool.KIND, IPAMBlock.KIND, BlockAffinity.KIND, IPAMHandle.KIND})).entries

        await until(gone)
        assert (await told(store))["late"] == []


async def test_an_empty_block_and_a_claim_that_came_to_nothing_go_after_a_while(store: SqliteStore) -> None:
    await put(store, POOL, service("web"))
    async with balancing(store, idle_s=0.3):
        await until(lambda: has(store, "web", 1))
        await objects.delete(store, Service, "web", "shop")

        async def gone() -> bool:
            return not (await store.list({IPAMBlock.KIND, BlockAffinity.KIND})).entries

        await until(gone)
        assert await objects.read(store, IPPool, "lb") is not None


async def test_what_somebody_takes_out_of_a_status_is_put_back(store: SqliteStore) -> None:
    await put(store, POOL, service("web"))
    async with balancing(store):
        await until(lambda: has(store, "web", 1))
        had = (await told(store))["web"]
        await write(store, "web", lambda each: replace(each, status=None))
        await says(store, {"web": had})
        await write(store, "web", lambda each: replace(each, status=ingress("198.51.100.200", *had)))
        await says(store, {"web": had})


async def test_what_a_service_says_it_has_is_its_own_if_it_is_nobody_elses(store: SqliteStore) -> None:
    six = balanced("six", "2001:db8::/112")
    taken = service("taken", asks={"loadBalancerIPs": '["198.51.100.7"]'})
    await put(store, POOL, six, taken)
    async with balancing(store):
        await says(store, {"taken": ["198.51.100.7"]})
        await put(
            store,
            service("moved", ingress("198.51.100.77"), ip_families=["IPv4"]),
            service("both", ingress("2001:db8::77", "198.51.100.78")),
            service("half", ingress("2001:db8::79")),
            service("late", ingress("198.51.100.7"), ip_families=["IPv4"]),
        )
        await says(store, {"moved": ["198.51.100.77"], "both": ["2001:db8::77", "198.51.100.78"]})
        await until(lambda: has(store, "half", 2))
        await until(lambda: others(store))
    held = await agreed(store, [POOL, six])
    assert "2001:db8::79" in map(str, held["half"])
    assert list(map(str, held["taken"])) == ["198.51.100.7"]
    assert len(held["late"]) == 1


async def others(store: Store) -> bool:
    return (await told(store))["late"] != ["198.51.100.7"]


async def test_pods_never_get_such_an_address_nor_borrow_from_such_a_block(store: SqliteStore) -> None:
    await put(store, POOL, service("web"))
    async with balancing(store):
        await until(lambda: has(store, "web", 1))
    ledger = Ledger(store)
    with pytest.raises(Exhausted, match="is for LoadBalancer only"):
        await ledger.assign(pod("p", "a"))
    await put(store, replace(POOL, spec=replace(POOL.spec, allowed_uses=[])))
    (taken,) = (await ledger.assign(pod("p", "a")))[0].addresses
    said_now = await Said.by(store)
    virtual = next(each for each in said_now.blocks if each.spec.affinity == LOAD_BALANCER)
    assert taken not in virtual.spec.network, "not even when the pool has come to be the pods'"
    free = next(each for each in virtual.spec.network if str(each) not in virtual.spec.allocations)
    with pytest.raises(Exhausted, match="virtual:load-balancer's and not for pods"):
        await Ledger(store).assign(pod("q", "a", addresses=(free,)))
