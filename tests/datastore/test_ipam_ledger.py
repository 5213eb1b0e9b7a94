"""The ledger on real stores: no address twice, whoever races; what is asked again is kept; what is dry recovers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from core.addr import Family
from core.errors import Conflict, Invalid
from core.names import TUNNEL_HANDLE, Key
from core.resources import IPAMHandle, IPAMRecord, IPPool, Metadata, Namespace, Node, WorkloadEndpoint
from core.resources.network import EncapMode, WorkloadEndpointSpec
from datastore import objects
from datastore.admission import admit
from datastore.api import ABSENT, Delete, Guard, Operation, Put, Store
from datastore.client import GrpcStore
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Exhausted, Grant, Owner, Request, Use
from datastore.sqlite import SqliteStore
from tests.datastore.conftest import Etcd, Serve, cleaned
from tests.datastore.ipam_ground import DEADLINE_S, Said, node, pod, pool, put, settings

NODES = 40
PODS = 5


@pytest.fixture(params=["sqlite", "etcd"])
async def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, shared_etcd: Etcd, serve: Serve
) -> AsyncIterator[Store]:
    """A datastore as agents see it: over its socket, with admission."""
    async with AsyncExitStack() as stack:
        opened: Store
        if request.param == "etcd":
            opened = await stack.enter_async_context(cleaned(shared_etcd))
        else:
            opened = await SqliteStore.open(tmp_path / "datastore.db")
            stack.push_async_callback(opened.close)
        addresses = await stack.enter_async_context(serve(opened, admit=admit))
        client = GrpcStore(addresses[0])
        stack.push_async_callback(client.close)
        yield client


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db")
    yield opened
    await opened.close()


class Counted(SqliteStore):
    """A store that counts what is asked of it."""

    txns: int = 0
    lists: int = 0
    gets: int = 0

    async def txn(self, operations: Sequence[Operation], guards: Sequence[Guard] = ()) -> int:
        self.txns += 1
        return await super().txn(operations, guards)

    async def list(self, kinds):
        self.lists += 1
        return await super().list(kinds)

    async def get(self, key: Key):
        self.gets += 1
        return await super().get(key)


@pytest.fixture
async def counted(tmp_path: Path) -> AsyncIterator[Counted]:
    opened = await Counted.open(tmp_path / "counted.db")
    assert isinstance(opened, Counted)
    yield opened
    await opened.close()


def endpoint(name: str, grant: Grant) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node="a",
        pod=name,
        endpoint="eth0",
        ip_networks=[str(ip_network(x)) for x in grant.addresses],
    )
    return WorkloadEndpoint(metadata=Metadata(name=f"a-k8s-{name}-eth0", namespace="shop"), spec=spec)


async def start_node(store: Store, name: str) -> None:
    """What a node's agents take as they start: the tunnel's address, written into the Node, and pods' addresses."""
    ledger = Ledger(store)
    found = await objects.read(store, Node, name)
    assert found
    local, revision = found

    def into_node(grant: Grant) -> list[Operation]:
        assert local.spec.bgp is not None
        bgp = replace(local.spec.bgp, ipv4_ipip_tunnel_addr=str(grant.addresses[0]))
        return [objects.put(replace(local, spec=replace(local.spec, bgp=bgp)), revision)]

    async with asyncio.TaskGroup() as group:
        tunnel = Request(handle=f"{TUNNEL_HANDLE}{name}", owner=Owner(node=name), families=(Family.V4,), use=Use.TUNNEL)
        group.create_task(ledger.assign(tunnel, into_node))
        for number in range(PODS):
            group.create_task(ledger.assign(pod(f"{name}-{number}", name)))


async def test_forty_nodes_that_start_at_once_have_a_block_each_and_no_address_twice(cluster: Store) -> None:
    names = [f"node-{number}" for number in range(NODES)]
    await put(cluster, pool("pods", "10.0.0.0/18", ipip_mode=EncapMode.ALWAYS), *map(node, range(NODES)))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(start_node(cluster, name))
    said = await Said.by(cluster)
    assert sum(map(len, said.by_handle.values())) == len(said.by_handle) == NODES * (PODS + 1)
    assert Counter({owner: len(own) for owner, own in said.owners().items()}) == dict.fromkeys(names, 1)
    assert said.settled()
    for name in names:
        (own,) = said.owners()[name]
        held = said.by_handle[f"{TUNNEL_HANDLE}{name}"] + said.by_handle[f"{name}-0"]
        assert all(address in ip_network(own) for address in held)
        found = await objects.read(cluster, Node, name)
        assert found is not None
        assert found[0].spec.bgp is not None
        assert found[0].spec.bgp.tunnel_address == held[0]


@pytest.mark.parametrize(("strict", "given"), [(True, 1), (False, 4)])
async def test_a_race_for_the_last_block_has_one_winner_and_others_borrow_or_hear_why(
    cluster: Store, strict: bool, given: int
) -> None:
    await put(cluster, pool("pods", "10.0.0.0/30", block_size=30), settings(strict_affinity=strict))
    async with asyncio.timeout(DEADLINE_S):
        asked = (Ledger(cluster).assign(pod(f"p{number}", f"n{number}")) for number in range(8))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    grants = [each for each in outcomes if not isinstance(each, BaseException)]
    assert len({grant.addresses for grant, _ in grants}) == len(grants) == given
    assert sum(isinstance(each, Exhausted) for each in outcomes) == 8 - given, outcomes
    said = await Said.by(cluster)
    assert len(said.blocks) == 1
    assert said.settled()


async def test_many_calls_go_in_few_transactions_and_need_no_reads(counted: Counted) -> None:
    await put(counted, pool("pods", "10.0.0.0/24", block_size=25))
    ledger = Ledger(counted)
    await ledger.assign(pod("first", "a"))
    counted.txns = counted.lists = counted.gets = 0
    given = await asyncio.gather(*(ledger.assign(pod(f"p{number}", "a")) for number in range(100)))
    assert len({grant.addresses for grant, _ in given}) == 100
    assert (counted.txns, counted.lists, counted.gets) == (1, 0, 0)
    freed = await asyncio.gather(*(ledger.release(f"p{number}", "DEL") for number in range(100)))
    assert [each.addresses for each in freed] == [grant.addresses for grant, _ in given]
    assert (counted.lists, counted.gets) == (0, 0)
    assert counted.txns <= 4, "what is written is bounded, and no transaction has one release alone"
    said = await Said.by(counted)
    assert set(said.by_handle) == {"first"}


async def test_what_a_handle_has_is_kept_and_written_again_with_what_is_brought_along(store: SqliteStore) -> None:
    await put(store, pool("four", "10.0.0.0/24"), pool("six", "fd00::/112"))
    ledger = Ledger(store)
    grant, first = await ledger.assign(pod("web", "a"))
    assert [each.version for each in grant.addresses] == [4, 6]
    assert await ledger.assign(pod("web", "a")) == (grant, first)
    assert await Ledger(store).assign(pod("web", "a")) == (grant, first), "another process"
    again, second = await ledger.assign(pod("web", "a"), lambda found: [objects.put(endpoint("web", found), ABSENT)])
    assert again == grant
    key = endpoint("web", grant).key
    written = await store.get(key)
    handle = await objects.read(store, IPAMHandle, "web")
    assert handle is not None
    assert written is not None
    assert written.revision == handle[1] == second > first
    assert await ledger.held_by("web") == grant
    assert await ledger.release("web", "DEL", [Delete(key)]) == grant
    assert await store.get(key) is None
    assert await ledger.release("web", "DEL") == Grant(handle="web", addresses=()) == await ledger.held_by("web")
    records = (await store.list({IPAMRecord.KIND})).entries
    assert len(records) == 2
    assert all(b'"why":"DEL"' in each.value for each in records)


async def test_a_restarted_process_that_is_asked_everything_again_finds_it_in_few_transactions(
    counted: Counted,
) -> None:
    await put(counted, pool("pods", "10.0.0.0/24", block_size=25))
    names = [f"p{number}" for number in range(110)]
    ledger = Ledger(counted)
    given = await asyncio.gather(*(ledger.assign(pod(name, "a")) for name in names[:100]))
    counted.txns = 0
    restarted = Ledger(counted)
    again = await asyncio.gather(*(restarted.assign(pod(name, "a")) for name in names))
    assert again[:100] == given
    assert counted.txns <= 10
    assert len((await Said.by(counted)).by_handle) == 110


async def test_what_others_released_meanwhile_is_not_said_to_be_held(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/30", block_size=30))
    one, other = Ledger(store), Ledger(store)
    mine, _ = await one.assign(pod("web", "a"))
    assert await other.release("web", "collected") == mine
    taken, _ = await other.assign(pod("db", "a", addresses=mine.addresses))
    assert taken.addresses == mine.addresses
    given, _ = await one.assign(pod("web", "a"))
    assert given.addresses != mine.addresses


async def test_a_dry_pool_says_so_and_gives_again_as_soon_as_there_is_something(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/30", block_size=30))
    ledger, other = Ledger(store), Ledger(store)
    await asyncio.gather(*(ledger.assign(pod(f"p{number}", "a")) for number in range(4)))
    for each in (ledger, other):
        with pytest.raises(Exhausted, match=r"no IPv4 address for web on node a: .*pods \(10\.0\.0\.0/30\)"):
            await each.assign(pod("web", "a"))
    (freed,) = (await other.release("p2", "DEL")).addresses
    assert (await ledger.assign(pod("web", "a")))[0].addresses == (freed,)
    with pytest.raises(Exhausted):
        await ledger.assign(pod("db", "a"))
    await put(store, pool("more", "10.1.0.0/30", block_size=30))
    (address,) = (await ledger.assign(pod("db", "a")))[0].addresses
    assert address in ip_network("10.1.0.0/30")


async def test_a_pool_that_was_asked_for_and_came_just_now_serves(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/24"))
    ledger = Ledger(store)
    wanted = pod("web", "a", pools={Family.V4: ("new",)})
    await ledger.assign(pod("first", "a"))
    with pytest.raises(Invalid, match="IPPool new: does not exist"):
        await ledger.assign(wanted)
    await put(store, pool("new", "10.1.0.0/24"))
    (address,) = (await ledger.assign(wanted))[0].addresses
    assert address in ip_network("10.1.0.0/24")


async def test_labels_of_a_namespace_that_came_after_the_books_were_read_count(store: SqliteStore) -> None:
    shops = pool("a-shops", "10.0.0.0/24", namespace_selector="kind == 'shop'")
    await put(store, shops, pool("rest", "10.1.0.0/24", namespace_selector="kind != 'shop'"))
    ledger = Ledger(store)
    (first,) = (await ledger.assign(pod("first", "a")))[0].addresses
    assert first in ip_network("10.1.0.0/24")
    await put(store, Namespace(metadata=Metadata(name="shop", labels={"kind": "shop"})))
    (second,) = (await ledger.assign(pod("second", "a")))[0].addresses
    assert second in ip_network("10.0.0.0/24")
    await put(store, Namespace(metadata=Metadata(name="shop", labels={"kind": "office"})))
    (third,) = (await ledger.assign(pod("third", "a")))[0].addresses
    assert third in ip_network("10.1.0.0/24")


async def test_a_pool_of_another_family_serves_at_once(store: SqliteStore) -> None:
    """Later it would be too late: what a pod has when it begins, it has for good."""
    await put(store, pool("four", "10.0.0.0/24"))
    ledger = Ledger(store)
    assert len((await ledger.assign(pod("first", "a")))[0].addresses) == 1
    await put(store, pool("six", "fd00::/112"))
    assert len((await ledger.assign(pod("second", "a")))[0].addresses) == 2


async def test_a_pool_that_is_disabled_or_goes_gives_nothing_more(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/24"))
    ledger = Ledger(store)
    await ledger.assign(pod("web", "a"))
    await put(store, pool("pods", "10.0.0.0/24", disabled=True))
    with pytest.raises(Exhausted, match="is disabled"):
        await ledger.assign(pod("db", "a"))
    await objects.delete(store, IPPool, "pods")
    with pytest.raises(Exhausted):
        await ledger.assign(pod("db", "a"))
    assert set((await Said.by(store)).by_handle) == {"web"}


async def test_what_is_brought_along_at_a_wrong_revision_hurts_only_who_brings_it(cluster: Store) -> None:
    await put(cluster, pool("pods", "10.0.0.0/24", block_size=25))
    there = endpoint("p3", Grant(handle="p3", addresses=(ip_address("10.0.0.9"),)))
    await put(cluster, there)
    ledger = Ledger(cluster)
    asked = (
        ledger.assign(
            pod(f"p{number}", "a"), lambda found, name=f"p{number}": [objects.put(endpoint(name, found), ABSENT)]
        )
        for number in range(20)
    )
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    failed = [number for number, each in enumerate(outcomes) if isinstance(each, BaseException)]
    assert failed == [3]
    assert isinstance(outcomes[3], Conflict)
    assert str(there.key) in str(outcomes[3])
    assert set((await Said.by(cluster)).by_handle) == {f"p{number}" for number in range(20)} - {"p3"}


async def test_what_the_store_refuses_hurts_only_who_brings_it(cluster: Store) -> None:
    await put(cluster, pool("pods", "10.0.0.0/24", block_size=25))
    ledger = Ledger(cluster)

    def along(number: int, found: Grant) -> list[Operation]:
        if number == 5:
            raise LookupError("a fault of the caller's")
        good = endpoint(f"p{number}", found)
        return [Put(good.key, b"{}")] if number == 3 else [objects.put(good, ABSENT)]

    asked = (
        ledger.assign(pod(f"p{number}", "a"), lambda found, number=number: along(number, found)) for number in range(20)
    )
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    failed = {number: type(each) for number, each in enumerate(outcomes) if isinstance(each, BaseException)}
    assert failed == {3: Invalid, 5: LookupError}
    assert len((await Said.by(cluster)).by_handle) == 18


async def test_calls_for_one_handle_are_done_in_their_order(store: SqliteStore) -> None:
    await put(store, pool("pods", "10.0.0.0/24"))
    ledger = Ledger(store)
    (one, _), freed, (two, _), (three, _) = await asyncio.gather(
        ledger.assign(pod("web", "a")),
        ledger.release("web", "DEL"),
        ledger.assign(pod("web", "a")),
        ledger.assign(pod("web", "a")),
    )
    assert freed == one
    assert two == three == await ledger.held_by("web")


async def test_two_ledgers_of_one_node_share_its_block(cluster: Store) -> None:
    await put(cluster, pool("pods", "10.0.0.0/24"))
    felix, cni = Ledger(cluster), Ledger(cluster)
    async with asyncio.timeout(DEADLINE_S):
        given = await asyncio.gather(*((felix, cni)[number % 2].assign(pod(f"p{number}", "a")) for number in range(60)))
        await asyncio.gather(*((cni, felix)[number % 2].release(f"p{number}", "DEL") for number in range(30)))
    assert len({grant.addresses for grant, _ in given}) == 60
    said = await Said.by(cluster)
    assert {handle: said.by_handle[handle] for handle in said.by_handle} == {
        grant.handle: grant.addresses for grant, _ in given[30:]
    }
    assert len(said.owners()["a"]) <= 2, "each began a claim before it knew of the other's, at the most"
    assert said.settled()


class Held(SqliteStore):
    """A store whose transactions wait until they are let through."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.gate, self.waiting = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def txn(self, operations: Sequence[Operation], guards: Sequence[Guard] = ()) -> int:
        self.waiting.set()
        await self.gate.wait()
        return await super().txn(operations, guards)


async def test_who_is_cancelled_leaves_what_his_handle_knows_and_hurts_nobody(tmp_path: Path) -> None:
    store = await Held.open(tmp_path / "held.db")
    assert isinstance(store, Held)
    await put(store, pool("pods", "10.0.0.0/24"))
    ledger = Ledger(store)
    await ledger.assign(pod("first", "a"))
    store.gate.clear()
    store.waiting.clear()
    calls = [asyncio.create_task(ledger.assign(pod(f"p{number}", "a"))) for number in range(4)]
    await store.waiting.wait()
    late = [asyncio.create_task(ledger.assign(pod(f"late-{number}", "a"))) for number in range(4)]
    await asyncio.sleep(0)
    for call in (calls[0], calls[2], late[1]):
        call.cancel()
    store.gate.set()
    outcomes = await asyncio.gather(*calls, *late, return_exceptions=True)
    assert [number for number, each in enumerate(outcomes) if isinstance(each, asyncio.CancelledError)] == [0, 2, 5]
    assert not any(isinstance(each, Exception) for each in outcomes)
    said = await Said.by(store)
    assert "late-1" not in said.by_handle, "nothing was under way for it"
    assert {"p0", "p2"} <= set(said.by_handle), "their transaction was under way"
    for handle in ("p0", "p2", "late-1"):
        await ledger.release(handle, "DEL")
    assert set((await Said.by(store)).by_handle) == {"first", "p1", "p3", "late-0", "late-2", "late-3"}
    await store.close()
