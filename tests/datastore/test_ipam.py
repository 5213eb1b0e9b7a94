"""IPAM: no address twice, whoever races; the same handle, the same address; what is full says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.addr import Address, Family
from core.errors import Invalid
from core.names import Kind
from core.resources import EncapMode, IPAMBlock, IPPool, Metadata, Namespace, Node, Resource
from core.resources.ipam import BlockSpec
from core.resources.network import IPPoolSpec
from datastore.api import ABSENT, Delete, Listing, Put, Store
from datastore.ipam import thin as ipam
from datastore.ipam.thin import Exhausted, Held, Request, State, Use, allocate, choose, release
from datastore.sqlite import SqliteStore

DEADLINE_S = 60


def pool(name: str, cidr: str, **fields: object) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **fields))  # type: ignore[arg-type]


def node(name: str, **labels: str) -> Node:
    return Node(metadata=Metadata(name=name, labels=labels))


def block(cidr: str, affinity: str = "", **allocations: str) -> IPAMBlock:
    name = ipam.block_name(ip_network(cidr))
    return IPAMBlock(
        metadata=Metadata(name=name), spec=BlockSpec(cidr=cidr, affinity=affinity, allocations=allocations)
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db")
    yield opened
    await opened.close()


async def put(store: Store, *resources: Resource) -> None:
    whole = [
        msgspec.structs.replace(each, api_version=each.KIND.api_version, kind=each.KIND.name) for each in resources
    ]
    await store.txn([Put(each.key, msgspec.json.encode(each), ABSENT) for each in whole])


async def blocks(store: Store) -> list[IPAMBlock]:
    listing = await store.list({IPAMBlock.KIND})
    return [msgspec.json.decode(entry.value, type=IPAMBlock) for entry in listing.entries]


async def test_twenty_nodes_race_and_no_address_is_given_twice(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/23", block_size=28), *(node(f"n{i}") for i in range(20)))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        tasks = {
            (f"n{i}", f"h{i}-{j}"): group.create_task(allocate(store, Request(node=f"n{i}", handle=f"h{i}-{j}")))
            for j in range(5)
            for i in range(20)
        }
    given = {who: task.result() for who, task in tasks.items()}
    assert len(set(given.values())) == len(given) == 100
    made = await blocks(store)
    assert Counter(each.spec.node for each in made) == {f"n{i}": 1 for i in range(20)}  # five fit one block of sixteen
    for (owner, handle), address in given.items():
        (own,) = (each for each in made if each.spec.node == owner)
        assert address in own.spec.network
        assert own.spec.allocations[str(address)] == handle


async def test_nodes_that_race_for_the_last_block_share_nothing(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/30", block_size=30))
    async with asyncio.timeout(DEADLINE_S):
        outcomes = await asyncio.gather(
            *(allocate(store, Request(node=f"n{i}", handle=f"h{i}")) for i in range(8)), return_exceptions=True
        )
    assert sum(isinstance(each, Exhausted) for each in outcomes) == 7
    assert [each for each in outcomes if not isinstance(each, Exhausted)] == [ip_address("10.0.0.0")]


class PoolsGo(SqliteStore):
    """A store whose pools are deleted by somebody as soon as they have been read."""

    async def list(self, kinds: AbstractSet[Kind]) -> Listing:
        listing = await super().list(kinds)
        await self.txn([Delete(entry.key) for entry in listing.entries if entry.key.kind == IPPool.KIND])
        return listing


async def test_a_pool_that_goes_meanwhile_gives_nothing(tmp_path: Path) -> None:
    store = await PoolsGo.open(tmp_path / "store.db")
    await put(store, pool("pods", "10.0.0.0/24"))
    with pytest.raises(Exhausted):
        await allocate(store, Request(node="a", handle="pod"))
    assert await blocks(store) == []
    await store.close()


async def test_the_same_handle_gets_the_same_address_per_family(store: SqliteStore) -> None:
    await put(store, pool("v4", "10.0.0.0/24"), pool("v6", "fd00::/112"))
    four = await allocate(store, Request(node="a", handle="pod"))
    six = await allocate(store, Request(node="a", handle="pod", family=Family.V6))
    assert (four.version, six.version) == (4, 6)
    before = await store.list({IPAMBlock.KIND})
    assert await allocate(store, Request(node="a", handle="pod")) == four
    assert await allocate(store, Request(node="b", handle="pod", family=Family.V6)) == six
    assert (await store.list({IPAMBlock.KIND})).revision == before.revision
    assert set(await release(store, "pod")) == {four, six}
    assert await release(store, "pod") == ()
    assert all(not each.spec.allocations for each in await blocks(store))


async def test_a_pod_has_the_families_that_a_pool_serves_it_in(store: SqliteStore) -> None:
    six = pool("six", "fd00::/64", namespace_selector="kubernetes.io/metadata.name == 'shop'")
    await put(store, pool("four", "10.0.0.0/24"), six)
    assert await ipam.families(store, "a", "shop") == (Family.V4, Family.V6)
    assert await ipam.families(store, "a", "office") == (Family.V4,)
    given = {await allocate(store, Request(node="a", handle="pod", family=f, namespace="shop")) for f in Family}
    assert set(await ipam.held_by(store, "pod")) == given
    assert await ipam.held_by(store, "other") == ()


async def test_every_address_of_a_block_is_used_first_and_last_too(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/29", block_size=29))
    given = {await allocate(store, Request(node="a", handle=f"h{i}")) for i in range(8)}
    assert given == set(ip_network("10.0.0.0/29"))
    with pytest.raises(Exhausted, match=r"for h8 on node a: every block is full.*pods \(10\.0\.0\.0/29\)"):
        await allocate(store, Request(node="a", handle="h8"))
    await release(store, "h3")
    assert await allocate(store, Request(node="a", handle="h8")) == ip_address("10.0.0.3")


async def test_an_object_that_cannot_be_read_is_not_an_empty_one(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/24"), block("10.0.0.0/26"))
    key = block("10.0.0.64/26").key
    await store.txn([Put(key, b'{"spec":{"cidr":7}}', ABSENT)])
    with pytest.raises(Invalid, match="10-0-0-64-26"):
        await allocate(store, Request(node="a", handle="pod"))


def state(*resources: Resource) -> State:
    return State(
        pools=tuple(each for each in resources if isinstance(each, IPPool)),
        blocks=tuple(Held(block=each, revision=1) for each in resources if isinstance(each, IPAMBlock)),
        nodes={each.key.name: each.metadata.labels for each in resources if isinstance(each, Node)},
        namespaces={each.key.name: each.metadata.labels for each in resources if isinstance(each, Namespace)},
    )


SHOP = Namespace(metadata=Metadata(name="shop", labels={"team": "shop"}))


@pytest.mark.parametrize(
    ("fields", "request_", "usable"),
    [
        ({}, {}, True),
        ({"disabled": True}, {}, False),
        ({"disabled": True}, {"pools": ["pods"]}, False),
        ({"node_selector": "rack == '1'"}, {}, True),
        ({"node_selector": "rack == '2'"}, {}, False),
        ({"node_selector": "rack == '2'"}, {"pools": ["pods"]}, True),
        ({"node_selector": "rack == '1'"}, {"node": "stranger"}, False),
        ({"namespace_selector": "team == 'shop'"}, {"namespace": "shop"}, True),
        ({"namespace_selector": "team == 'shop'"}, {}, False),
        ({"namespace_selector": "projectcalico.org/name == 'shop'"}, {"namespace": "shop"}, True),
        ({"namespace_selector": "kubernetes.io/metadata.name == 'shop'"}, {"namespace": "shop"}, True),
        ({"assignment_mode": "Manual"}, {}, False),
        ({"assignment_mode": "Manual"}, {"pools": ["pods"]}, True),
        ({"allowed_uses": ["Tunnel"]}, {}, False),
        ({"allowed_uses": ["Tunnel"], "ipip_mode": EncapMode.ALWAYS}, {"use": Use.TUNNEL}, True),
        ({}, {"use": Use.TUNNEL}, False),
        ({}, {"pools": ["other"]}, False),
        ({}, {"family": Family.V6}, False),
    ],
)
def test_which_pools_may_serve(fields: dict[str, object], request_: dict[str, object], usable: bool) -> None:
    given = state(pool("pods", "10.0.0.0/24", **fields), node("a", rack="1"), SHOP)
    request = Request(**{"node": "a", "handle": "pod", **request_})  # type: ignore[arg-type]
    if usable:
        assert choose(given, request).address in ip_network("10.0.0.0/24")
    else:
        with pytest.raises(Exhausted, match=r"none of the pools may be used.*there are: (pods|none)"):
            choose(given, request)


def test_own_blocks_come_before_ownerless_ones_and_those_before_new_ones() -> None:
    own, loose = block("10.0.0.128/26", "host:a"), block("10.0.0.64/26")
    pods, other = pool("pods", "10.0.0.0/24"), block("10.0.0.0/26", "host:b")
    request = Request(node="a", handle="pod")
    assert choose(state(pods, own, loose, other), request).address == ip_address("10.0.0.128")
    chosen = choose(state(pods, loose, other), request)
    assert chosen.address == ip_address("10.0.0.64")
    assert chosen.write is not None
    assert (chosen.write.block.spec.node, chosen.write.revision) == ("a", 1)
    fresh = choose(state(pods, other), request)
    assert fresh.write is not None
    assert fresh.write.revision == ABSENT
    assert fresh.write.block.spec.network != other.spec.network


def test_blocks_left_by_a_pool_of_another_block_size_are_never_overlapped() -> None:
    left = [block("10.0.0.0/25", "host:b"), block("10.0.0.192/28", "host:b")]
    pods = pool("pods", "10.0.0.0/24", block_size=26)
    for name in map(str, range(32)):
        assert ipam.new_block(pods, [each.spec.network for each in left], name) == ip_network("10.0.0.128/26")
    assert ipam.new_block(pods, [ip_network("10.0.0.0/16")], "a") is None


def test_nodes_begin_in_different_places() -> None:
    starts = {ipam.new_block(pool("pods", "10.0.0.0/16"), [], f"node-{i}") for i in range(50)}
    assert len(starts) > 45


def test_a_vast_pool_costs_no_more_than_what_is_taken() -> None:
    vast = pool("v6", "fd00::/48", ipip_mode=EncapMode.NEVER)
    taken = ipam.new_block(vast, [], "a")
    assert taken is not None
    following = ipam.new_block(vast, [taken], "a")
    assert following is not None
    assert not following.overlaps(taken)


class Model(RuleBasedStateMachine):
    """Allocations and releases by several nodes against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, Address] = {}
        self.blocks: dict[str, IPAMBlock] = {}
        self.pools = (pool("a", "10.0.0.0/28", block_size=30), pool("b", "10.1.0.0/30", block_size=31))

    def now(self) -> State:
        return state(*self.pools, *self.blocks.values())

    @rule(node=strategies.sampled_from("xyz"), number=strategies.integers(0, 30))
    def allocate(self, node: str, number: int) -> None:
        handle = f"{node}-{number}"
        try:
            choice = choose(self.now(), Request(node=node, handle=handle))
        except Exhausted:
            mine = [each for each in self.blocks.values() if each.spec.node == node]
            assert handle not in self.held
            assert all(len(each.spec.allocations) == each.spec.network.num_addresses for each in mine)
            assert sum(each.spec.network.num_addresses for each in self.blocks.values()) == 20
            return
        if handle in self.held:
            assert (choice.address, choice.write) == (self.held[handle], None)
            return
        assert choice.write is not None
        assert choice.address not in self.held.values()
        self.held[handle] = choice.address
        self.blocks[choice.write.block.metadata.name] = choice.write.block

    @precondition(lambda self: self.held)
    @rule(data=strategies.data())
    def release(self, data: strategies.DataObject) -> None:
        handle = data.draw(strategies.sampled_from(sorted(self.held)))
        del self.held[handle]
        self.blocks = {name: ipam.without(each, handle) for name, each in self.blocks.items()}

    @invariant()
    def blocks_say_what_was_given(self) -> None:
        said = {h: ip_address(a) for each in self.blocks.values() for a, h in each.spec.allocations.items()}
        assert said == self.held

    @invariant()
    def an_address_lies_in_a_block_of_its_node(self) -> None:
        for each in self.blocks.values():
            assert all(handle.split("-")[0] == each.spec.node for handle in each.spec.allocations.values())


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
