"""The node's address in the tunnel: given once, kept through Never, changed only when its pool is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from core.resources import IPAMBlock, IPPool, Node, Resource
from core.resources.network import EncapMode
from core.snapshot import Snapshot
from datastore import objects
from datastore.ipam.thin import Exhausted
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
    await ensure(store, state, "a")
    first = await address(store)
    assert ip_address(first) in tunnelled.spec.network
    await ensure(store, state, "a")  # the snapshot is behind the store
    assert await address(store) == first
    listing = await store.list({IPAMBlock.KIND})
    assert listing.entries[0].value.count(handle("a").encode()) == len(listing.entries) == 1


async def test_kept_while_no_pool_tunnels_and_changed_when_its_pool_is_gone(store: SqliteStore) -> None:
    state = await given(store, node("a", "10.1.0.1/24"), pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS))
    await ensure(store, state, "a")
    first = await address(store)
    held = node("a", "10.1.0.1/24", tunnel=first)
    assert settled(snapshot((held, pool("one", "10.0.0.0/24"))), "a")
    await objects.delete(store, IPPool, "one")
    other = pool("two", "10.2.0.0/24", ipip_mode=EncapMode.ALWAYS)
    state = await given(store, held, other)
    await ensure(store, state, "a")
    assert ip_address(await address(store)) in other.spec.network


async def test_no_pool_no_node_no_address_is_nothing_to_do(store: SqliteStore) -> None:
    tunnelled = pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS)
    assert settled(snapshot((tunnelled,)), "a")
    assert settled(snapshot((node("a"), tunnelled)), "a")
    assert settled(snapshot((node("a", "10.1.0.1/24"),)), "a")
    full = pool("one", "10.0.0.0/24", ipip_mode=EncapMode.ALWAYS, node_selector="rack == '9'")
    with pytest.raises(Exhausted, match="none of the pools may be used"):
        await ensure(store, await given(store, node("a", "10.1.0.1/24"), full), "a")
