"""The node's address in the tunnel: given once, kept through Never, changed only when its pool is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from core.errors import Conflict
from core.manifest import decode
from core.names import Key
from core.resources import IPAMBlock, IPPool, Node, Resource
from core.resources.network import EncapMode
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import Entry, Put
from datastore.ipam.ledger import Ledger
from datastore.ipam.listing.ending import terminating
from datastore.ipam.model import Exhausted, Grant, Owner, Request
from datastore.sqlite import SqliteStore
from felix.overlay import tunnel_address
from felix.tunnel_address import ensure, handle, settled
from tests.felix.cluster import node, pool, snapshot


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db")
    yield opened
    await opened.close()


async def given(store: SqliteStore, *resources: Resource) -> Snapshot:
    await store.txn([objects.put(each) for each in resources])
    return snapshot(resources)


async def address(store: SqliteStore) -> str:
    found = await objects.read(store, Node, "a")
    assert found
    return str(tunnel_address(found[0]))


async def test_allocated_from_a_pool_that_tunnels_and_only_once(store: SqliteStore) -> None:
    native, tunnelled = pool("native", "10.9.0.0/24"), pool("tunnelled", "10.0.0.0/24", ipip_mode=EncapMode.FALLBACK)
    state = await given(store, node("a", "10.1.0.1/24"), native, tunnelled)
    assert not settled(state, "a")
    await ensure(store, Ledger(store), state, "a")
    first = await address(store)
    assert ip_address(first) in tunnelled.spec.network
    await ensure(store, Ledger(store), state, "a")  # the snapshot is behind the store
    assert await address(store) == first
    listing = await store.list({IPAMBlock.KIND})
    assert listing.entries[0].value.count(handle("a").encode()) == len(listing.entries) == 1


async def seen(store: SqliteStore) -> Snapshot:
    """All that the store holds of what matters here."""
    listing = await store.list({Node.KIND, IPPool.KIND, IPAMBlock.KIND})
    return Snapshot().apply(
        listing.revision, [(entry.key, decode(entry.key, entry.value)) for entry in listing.entries]
    )


async def test_kept_while_no_pool_tunnels_and_changed_when_its_pool_is_gone(store: SqliteStore) -> None:
    state = await given(store, node("a", "10.1.0.1/24"), pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS))
    ledger = Ledger(store)
    await ensure(store, ledger, state, "a")
    first = await address(store)
    assert settled(await seen(store), "a")
    assert settled(snapshot((node("a", "10.1.0.1/24", tunnel=first), pool("one", "10.0.0.0/24"))), "a")
    await objects.delete(store, IPPool, "one")
    other = pool("two", "10.2.0.0/24", ipip_mode=EncapMode.ALWAYS)
    await given(store, other)
    await ensure(store, ledger, await seen(store), "a")
    assert await address(store) == "None"
    assert await ledger.held_by(handle("a")) == Grant(handle=handle("a"), addresses=())
    await ensure(store, ledger, await seen(store), "a")
    assert ip_address(await address(store)) in other.spec.network
    assert settled(await seen(store), "a")


class Hurried(SqliteStore):
    """A store in which somebody changes the Node as soon as it has been read."""

    async def get(self, key: Key) -> Entry | None:
        entry = await super().get(key)
        if entry is not None and key.kind == Node.KIND:
            await self.txn([Put(key, entry.value)])
        return entry


async def test_a_pool_that_is_deleted_does_not_wait_for_tunnels(store: SqliteStore) -> None:
    one, ledger = pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS), Ledger(store)
    await ensure(store, ledger, await given(store, node("a", "10.1.0.1/24"), one), "a")
    first = await address(store)
    await ledger.assign(Request(handle="k8s.c1", owner=Owner(node="a")))
    await given(store, terminating(one, "2026-01-31T12:00:00Z"))
    assert settled(await seen(store), "a"), "a pod's packets go through the tunnel yet"
    await ledger.release("k8s.c1", "DEL")
    assert not settled(await seen(store), "a")
    await ensure(store, ledger, await seen(store), "a")
    assert (await address(store), await ledger.held_by(handle("a"))) == (
        "None",
        Grant(handle=handle("a"), addresses=()),
    )
    assert settled(await seen(store), "a"), "nobody needs another"
    await given(store, pool("two", "10.2.0.0/24", ipip_mode=EncapMode.ALWAYS))
    await ensure(store, ledger, await seen(store), "a")
    assert await address(store) not in ("None", first)


async def test_the_node_and_ipam_never_say_different_things(tmp_path: Path) -> None:
    store = await Hurried.open(tmp_path / "hurried.db")
    tunnelled = pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS)
    state = await given(store, node("a", "10.1.0.1/24"), tunnelled)
    with pytest.raises(Conflict, match="Node a"):
        await ensure(store, Ledger(store), state, "a")
    assert await address(store) == "None"
    assert await Ledger(store).held_by(handle("a")) == Grant(handle=handle("a"), addresses=())
    await store.close()


async def test_an_address_that_ipam_knows_nothing_of_is_claimed_before_a_pod_gets_it(store: SqliteStore) -> None:
    tunnelled = pool("one", "10.0.0.0/29", ipip_mode=EncapMode.ALWAYS, block_size=29)
    await given(store, node("a", "10.1.0.1/24", tunnel="10.0.0.3"), tunnelled)
    assert not settled(await seen(store), "a")
    ledger = Ledger(store)
    await ensure(store, ledger, await seen(store), "a")
    assert await address(store) == "10.0.0.3"
    assert settled(await seen(store), "a")
    for number in range(7):
        await ledger.assign(Request(handle=f"pod-{number}", owner=Owner(node="a")))
    assert (await ledger.held_by(handle("a"))).addresses == (ip_address("10.0.0.3"),)


async def test_an_address_that_is_a_pods_is_changed(store: SqliteStore) -> None:
    tunnelled = pool("one", "10.0.0.0/29", ipip_mode=EncapMode.ALWAYS, block_size=29)
    await given(store, node("a", "10.1.0.1/24", tunnel="10.0.0.0"), tunnelled)
    ledger = Ledger(store)
    (taken,) = (await ledger.assign(Request(handle="pod", owner=Owner(node="a"))))[0].addresses
    assert str(taken) == "10.0.0.0"
    await ensure(store, ledger, await seen(store), "a")
    assert await address(store) == "10.0.0.1"
    assert (await ledger.held_by("pod")).addresses == (taken,)


async def test_no_pool_no_node_no_address_is_nothing_to_do(store: SqliteStore) -> None:
    tunnelled = pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS)
    assert settled(snapshot((tunnelled,)), "a")
    assert settled(snapshot((node("a"), tunnelled)), "a")
    assert settled(snapshot((node("a", "10.1.0.1/24"),)), "a")
    full = pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS, node_selector="rack == '9'")
    with pytest.raises(Exhausted, match="none of the IPv4 pools may be used"):
        await ensure(store, Ledger(store), await given(store, node("a", "10.1.0.1/24"), full), "a")
