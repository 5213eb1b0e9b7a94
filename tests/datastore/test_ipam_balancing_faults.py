"""Addresses for Services while servers are killed and the store goes: nothing doubled, nothing lost."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from core.errors import Unavailable
from core.names import Key, Kind
from core.resources import Service
from datastore import objects
from datastore.api import Listing, Put
from datastore.client import GrpcStore
from datastore.etcd import EtcdStore
from datastore.sqlite import SqliteStore
from tests.datastore.balancing_ground import agreed, balanced, balancing, service, told, until
from tests.datastore.conftest import Etcd
from tests.datastore.ipam_ground import Said, put
from tests.datastore.test_ipam_ledger_faults import server, until_there

POOL = balanced("wide", "198.18.0.0/22", block_size=28)
MANY = 300


async def test_servers_killed_in_the_middle_leave_nothing_doubled_or_lost(tmp_path: Path) -> None:
    client = GrpcStore(f"unix:{tmp_path}/s.sock")
    names = [f"s{number}" for number in range(MANY)]
    random.seed(7)
    middle = 0
    async with asyncio.timeout(120):
        async with server(tmp_path):
            await until_there(client)
            await put(client, POOL)
        for turn in range(5):
            async with server(tmp_path) as process:
                await until_there(client)
                if turn == 0:
                    for start in range(0, MANY, 50):
                        await put(client, *map(service, names[start : start + 50]))
                await asyncio.sleep(random.random() * 0.15)
                process.send_signal(signal.SIGKILL)
                await process.wait()
            opened = await SqliteStore.open(tmp_path / "db")
            middle += 0 < len(await agreed(opened, [POOL])) < MANY
            await opened.close()
        async with server(tmp_path):
            await until_there(client)

            async def all_have() -> bool:
                return all((await told(client)).values())

            await until(all_have)
            held = await agreed(client, [POOL])
            assert {name: len(of) for name, of in held.items()} == dict.fromkeys(names, 1)
            for name in names[::2]:
                await objects.delete(client, Service, name, "shop")

            async def half() -> bool:
                return len((await Said.by(client)).by_handle) == MANY // 2

            await until(half)
            await agreed(client, [POOL])
    await client.close()
    assert middle, "no kill came while addresses were given"


async def test_an_etcd_that_goes_and_comes_back_is_waited_for(own_etcd: Etcd) -> None:
    store, other = EtcdStore([own_etcd.endpoint]), EtcdStore([own_etcd.endpoint])
    await put(store, POOL, service("before"))
    async with balancing(store, other):
        await until(lambda: _has(store, "before"))
        own_etcd.kill()
        await asyncio.sleep(0.3)
        own_etcd.start()
        await until(lambda: _written(store, "after"))
        await until(lambda: _has(store, "after"))
        assert set(await agreed(store, [POOL])) == {"before", "after"}
    await store.close()
    await other.close()


async def _has(store: EtcdStore, name: str) -> bool:
    with suppress(Unavailable):
        return len((await told(store)).get(name, ())) == 1
    return False


async def _written(store: EtcdStore, name: str) -> bool:
    with suppress(Unavailable):
        await put(store, service(name))
        return True
    return False


class Counted(SqliteStore):
    """A store that counts its listings."""

    lists: int = 0

    async def list(self, kinds: AbstractSet[Kind]) -> Listing:
        self.lists += 1
        return await super().list(kinds)


async def test_fifty_that_wait_ask_together(tmp_path: Path) -> None:
    store = await Counted.open(tmp_path / "db")
    assert isinstance(store, Counted)
    await put(
        store, balanced("small", "198.18.0.0/30", block_size=30), *(service(f"s{number}") for number in range(54))
    )
    async with balancing(store):

        async def full() -> bool:
            return sum(map(len, (await told(store)).values())) == 4

        await until(full)
        before = store.lists
        await asyncio.sleep(2.5)
        assert store.lists - before < 20
    await store.close()


async def test_one_bad_service_or_handle_disables_itself_and_no_other(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    await put(store, POOL, service("good"))
    unreadable = Key(Service.KIND, "shop", "unreadable")
    odd = service("odd", {"loadBalancer": "a text"})
    also = service("also", {"loadBalancer": {"ingress": ["a text", {"ip": 7}, {"ip": "no address"}]}})
    await store.txn([Put(unreadable, b'{"spec": 7}')])
    await put(store, odd, also, service("families", ip_families=["IPv5"]))
    async with balancing(store):
        for name in ("good", "odd", "also"):
            await until(lambda name=name: _told(store, name, 1))
        # what cannot be read keeps what it has
        handles = (await Said.by(store)).by_handle
        good = service("good").key
        await store.txn([Put(good, b"not JSON")])
        await put(store, service("later"))
        await until(lambda: _told(store, "later", 1))
        assert handles.items() <= (await Said.by(store)).by_handle.items()
        assert await _told(store, "families", 0)
        await store.txn([Put(unreadable, objects.put(service("unreadable")).value)])
        await until(lambda: _told(store, "unreadable", 1))
    await store.close()


async def _told(store: SqliteStore, name: str, count: int) -> bool:
    found = await store.get(service(name).key)
    return found is not None and found.value.count(b'"ip":"198.18.') == count
