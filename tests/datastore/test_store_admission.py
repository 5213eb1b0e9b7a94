"""Admission against a real store: what it refuses, what it reads, and the guards it asks for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import Invalid
from core.manifest import encode
from core.names import Key
from core.resources import IPAMBlock, IPPool, Metadata, NetworkPolicy, Node, Resource, Tier, WorkloadEndpoint
from core.resources.ipam import BlockSpec
from core.resources.network import IPPoolSpec
from core.resources.policy import NetworkPolicySpec, TierSpec
from datastore.admission import admit
from datastore.api import At, Delete, Put, Store, Unchanged
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Owner, Request
from datastore.sqlite import SqliteStore


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Store]:
    store = await SqliteStore.open(tmp_path / "db")
    yield store
    await store.close()


def pool(name: str, cidr: str) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr))


def put(resource: Resource) -> Put:
    return Put(resource.key, encode(resource))


async def refusal(store: Store, *operations: Put | Delete) -> list[str]:
    with pytest.raises(Invalid) as caught:
        await admit(store, operations)
    return [str(problem) for problem in caught.value.problems]


async def test_what_needs_no_reading_asks_for_no_guard(sqlite: Store) -> None:
    node, pod = Node(metadata=Metadata(name="n1")), Key(WorkloadEndpoint.KIND, "shop", "n1-k8s-web-eth0")
    assert await admit(sqlite, [put(node)]) == ()
    assert await admit(sqlite, [Delete(pod)]) == ()


async def test_an_address_that_is_spelt_oddly_is_not_written(sqlite: Store) -> None:
    spec = BlockSpec(cidr="fd00::/122", allocations={"FD00::1": "pod-1"})
    block = IPAMBlock(metadata=Metadata(name="fd00---122"), spec=spec)
    said = "IPAMBlock/fd00---122: spec.allocations.FD00::1: is fd00::1; write it so"
    assert await refusal(sqlite, put(block)) == [said]


async def test_what_was_read_is_guarded(sqlite: Store) -> None:
    revision = await sqlite.txn([put(pool("a", "10.65.0.0/16"))])
    assert list(await admit(sqlite, [put(pool("b", "10.66.0.0/16"))])) == [Unchanged(IPPool.KIND, revision)]


async def test_what_is_relied_on_is_guarded(sqlite: Store) -> None:
    tier = Tier(metadata=Metadata(name="t"), spec=TierSpec(order=1))
    policy = NetworkPolicy(metadata=Metadata(name="p", namespace="shop"), spec=NetworkPolicySpec(tier="t"))
    made = await sqlite.txn([put(tier)])
    newest = await sqlite.txn([put(Tier(metadata=Metadata(name="u"), spec=TierSpec(order=2)))])
    assert list(await admit(sqlite, [put(policy)])) == [Unchanged(Tier.KIND, newest), At(tier.key, made)]
    assert list(await admit(sqlite, [put(policy), put(tier)])) == [Unchanged(Tier.KIND, newest)]


async def test_a_pool_stays_while_a_block_cannot_be_read(sqlite: Store) -> None:
    old, odd = pool("a", "10.65.0.0/16"), Key(IPAMBlock.KIND, "", "10-65-0-0-26")
    await sqlite.txn([put(old), Put(odd, b"{}")])
    said = await refusal(sqlite, Delete(old.key))
    assert said == ["IPPool/a: IPAMBlock 10-65-0-0-26 cannot be read and may be using it; mend or delete that first"]
    assert await admit(sqlite, [Delete(old.key), Delete(odd)])


async def test_what_ipam_gave_keeps_its_block_and_its_node(sqlite: Store) -> None:
    node = Node(metadata=Metadata(name="n1"))
    await sqlite.txn([put(pool("a", "10.65.0.0/24")), put(node)])
    ledger = Ledger(sqlite)
    grant, _ = await ledger.assign(Request(handle="k8s.shop.web", owner=Owner(node="n1")))
    (address,) = grant.addresses
    (block,) = (await sqlite.list({IPAMBlock.KIND})).entries
    for key, name in ((block.key, "IPAMBlock/10-65-0-"), (node.key, "Node/n1")):
        (said,) = await refusal(sqlite, Delete(key))
        assert said.startswith(name)
        assert f"1 of its addresses are in use ({address} by k8s.shop.web)" in said
    assert (await ledger.release("k8s.shop.web", "DEL")).addresses == (address,)
    revision = (await sqlite.list(frozenset())).revision
    guards = await admit(sqlite, [Delete(block.key), Delete(node.key)])
    assert set(guards) == {Unchanged(IPAMBlock.KIND, revision), Unchanged(Node.KIND, revision)}


async def test_objects_are_judged_alone_and_together(sqlite: Store) -> None:
    await sqlite.txn([put(pool("a", "10.65.0.0/16"))])
    assert await refusal(sqlite, put(pool("b", "10.65.8.0/24"))) == [
        "IPPool/b: spec.cidr: 10.65.8.0/24 overlaps 10.65.0.0/16 of IPPool/a"
    ]
    wrong = [put(pool("b", "10.65.0.1/16")), Put(pool("c", "10.66.0.0/16").key, b"{}")]
    said = await refusal(sqlite, *wrong)
    assert said[0] == "IPPool/b: spec.cidr: '10.65.0.1/16' has host bits set; did you mean '10.65.0.0/16'?"
    assert said[1:] == ["IPPool/c: metadata: is required", "IPPool/c: spec: is required"]
    assert len(await admit(sqlite, [Delete(pool("a", "10.65.0.0/16").key), put(pool("b", "10.65.8.0/24"))])) == 2
