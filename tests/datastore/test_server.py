"""The gRPC front: who may reach it, what it admits, how it treats the slow, and what a killed one loses (nothing)."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from core.errors import Conflict, Invalid, Problem, Unavailable, Unsupported
from core.names import Key
from core.resources import IPPool, Metadata, Node, Tier
from core.resources.network import IPPoolSpec
from core.resources.policy import TierSpec
from datastore import codec
from datastore.admission import admit
from datastore.api import (
    ABSENT,
    Changes,
    Compacted,
    Delete,
    Event,
    Operation,
    Put,
    Store,
    Synced,
    Unchanged,
    WatchItem,
)
from datastore.client import GrpcStore
from datastore.fanout import Fanout
from datastore.objects import create, put, read, write
from datastore.serve import open_store
from datastore.server import ADMISSIONS
from datastore.sqlite import SqliteStore
from proto.v1 import datastore_pb2 as pb

POOL, NODE = IPPool.KIND, Node.KIND


def key(name: str) -> Key:
    return Key(POOL, "", name)


def pool(name: str, cidr: str) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr))


def encode(item: WatchItem) -> bytes:
    return codec.item_to(item).SerializeToString()


def decode(message: bytes) -> WatchItem:
    return codec.item_from(pb.WatchResponse.FromString(message))


# --- where it listens -------------------------------------------------------------------------------------------------


async def test_the_unix_socket_is_its_owners_alone_and_gone_afterwards(sqlite_store, serve, tmp_path: Path) -> None:
    path = tmp_path / "run" / "muslin" / "s.sock"
    async with serve(sqlite_store, f"unix:{path}"):
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0
        client = GrpcStore(f"unix:{path}")
        await client.txn([Put(key("a"), b"1")])
        await client.close()
    assert "s.sock" not in os.listdir(path.parent)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_it_listens_on_loopback(sqlite_store, serve, host: str) -> None:
    async with serve(sqlite_store, f"{host}:0") as addresses:
        assert addresses[0] != f"{host}:0"
        client = GrpcStore(addresses[0])
        await client.txn([Put(key("a"), b"1")])
        await client.close()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0:0", "open to everyone"),
        ("[::]:0", "open to everyone"),
        ("192.0.2.1:2390", "open to everyone"),
        ("example.com:2390", "open to everyone"),
        ("nonsense", "neither unix:PATH nor HOST:PORT"),
        ("127.0.0.1:http", "neither unix:PATH nor HOST:PORT"),
    ],
)
async def test_it_refuses_to_listen_where_everyone_could_write(sqlite_store, serve, address: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        async with serve(sqlite_store, address):
            pass


async def test_an_address_that_is_taken_is_said_to_be(sqlite_store, serve, tmp_path: Path) -> None:
    async with serve(sqlite_store, f"unix:{tmp_path}/s.sock", "127.0.0.1:0") as addresses:
        for address, error in zip(addresses, (Invalid, Unsupported), strict=True):
            with pytest.raises(error, match=r"another process|port is taken"):
                async with serve(sqlite_store, address):
                    pass
        client = GrpcStore(addresses[0])
        assert await client.get(key("a")) is None
        await client.close()


async def test_a_socket_left_by_a_killed_server_is_taken_over(sqlite_store, serve, tmp_path: Path) -> None:
    left = await asyncio.start_unix_server(lambda _r, _w: None, tmp_path / "s.sock")
    left.close()
    await left.wait_closed()
    assert "s.sock" in os.listdir(tmp_path)
    async with serve(sqlite_store, f"unix:{tmp_path}/s.sock") as addresses:
        client = GrpcStore(addresses[0])
        assert await client.get(key("a")) is None
        await client.close()


@pytest.mark.parametrize("backend", ["mysql:here", "sqlite:", "etcd:", "", "/path"])
async def test_an_unknown_backend_is_refused(backend: str) -> None:
    with pytest.raises(Invalid, match="sqlite:PATH or etcd:HOST:PORT"):
        await open_store(backend)


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_errors_arrive_as_they_were_raised(sqlite_store, serve) -> None:
    problems = [Problem(why="größer", path="spec.cidr", what="IPPool/a", where="x.yaml[2]"), Problem(why="zwei")]

    async def refuse(store: Store, operations: Sequence[Operation]) -> Sequence[Unchanged]:
        raise Invalid(problems)

    async with serve(sqlite_store, admit=refuse) as addresses:
        client = GrpcStore(addresses[0])
        with pytest.raises(Invalid) as caught:
            await client.txn([Put(key("a"), b"1")])
        assert list(caught.value.problems) == problems
        problems *= 3000
        with pytest.raises(Invalid) as caught:
            await client.txn([Put(key("a"), b"1")])
        received = caught.value.problems
        assert list(received[:-1]) == problems[: len(received) - 1]
        assert len(received) > 100
        assert received[-1].why.startswith(f"and {len(problems) - len(received) + 1} more")
        assert await client.get(key("a")) is None
        await client.close()


async def test_garbage_on_the_wire_is_refused_and_the_server_lives_on(sqlite_store, serve) -> None:
    async with serve(sqlite_store) as addresses:
        async with grpc.aio.insecure_channel(addresses[0]) as channel:

            async def call(method: str, request: bytes) -> grpc.StatusCode:
                try:
                    await channel.unary_unary(f"/{codec.SERVICE}/{method}")(request, timeout=5)
                except grpc.aio.AioRpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

            path, odd = key("a").path, "/muslin/projectcalico.org/ippools/"
            requests = [
                pb.TxnRequest(operations=[pb.Operation(path=path)]),
                pb.TxnRequest(operations=[pb.Operation(path=odd, put=b"1")]),
                pb.TxnRequest(operations=[pb.Operation(path="/etc/passwd", put=b"1")]),
                pb.TxnRequest(operations=[pb.Operation(path=path, put=b"1", at=-3)]),
                pb.TxnRequest(operations=[pb.Operation(path=path, put=b"1", at=0)]),
                pb.TxnRequest(operations=[pb.Operation(path=path, put=b"1")] * 2),
                pb.TxnRequest(guards=[pb.Unchanged(prefix="/muslin/", since=1)]),
                pb.TxnRequest(guards=[pb.Unchanged(prefix=odd, since=-1)]),
            ]
            for request in requests:
                assert await call("Txn", request.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT, request
            assert await call("Get", pb.GetRequest(path="").SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
            assert await call("Txn", b"\xff\xff\xff") is not grpc.StatusCode.OK
            assert await call("Nothing", b"") is grpc.StatusCode.UNIMPLEMENTED
            watch = channel.unary_stream(f"/{codec.SERVICE}/Watch")
            for request in (pb.WatchRequest(after=-1), pb.WatchRequest(prefixes=["/"])):
                with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
                    await watch(request.SerializeToString(), timeout=5).read()
        client = GrpcStore(addresses[0])
        assert (await client.list({POOL})).entries == ()
        await client.close()


# --- admission --------------------------------------------------------------------------------------------------------


async def test_resources_are_checked_as_they_are_written(sqlite_store, serve) -> None:
    async with serve(sqlite_store, admit=admit) as addresses:
        client = GrpcStore(addresses[0])
        revision = await create(client, pool("a", "10.1.0.0/16"))
        with pytest.raises(Conflict):
            await create(client, pool("a", "10.1.0.0/16"))
        found = await read(client, IPPool, "a")
        assert found is not None
        assert (found[0].spec.cidr, found[1]) == ("10.1.0.0/16", revision)
        assert await read(client, IPPool, "z") is None
        with pytest.raises(Invalid) as caught:
            await client.txn(
                [Put(key("b"), b'{"spec":{"sidr":1}}'), Put(key("c"), b"no json"), put(pool("d", "10.2.0.0/16"))]
            )
        assert {problem.what for problem in caught.value.problems} == {"IPPool/b", "IPPool/c"}
        with pytest.raises(Invalid, match="overlaps"):
            await write(client, pool("e", "10.1.128.0/17"))
        assert [entry.key.name for entry in (await client.list({POOL})).entries] == ["a"]
        await client.close()


async def test_of_many_overlapping_pools_written_at_once_one_is_admitted(store_behind_admission: Store) -> None:
    client = store_behind_admission

    async def one(number: int) -> str:
        try:
            await create(client, pool(f"p{number}", f"10.1.0.0/{16 + number}"))
        except Invalid as invalid:
            return "overlaps" if "overlaps" in str(invalid) else str(invalid)
        return "written"

    results = await asyncio.gather(*(one(number) for number in range(8)))
    assert sorted(results) == ["overlaps"] * 7 + ["written"]
    assert len((await client.list({POOL})).entries) == 1


@pytest.fixture(params=["sqlite", "etcd"])
async def store_behind_admission(request, tmp_path: Path, shared_etcd, serve) -> AsyncIterator[Store]:
    store = await open_store(f"sqlite:{tmp_path}/db" if request.param == "sqlite" else f"etcd:{shared_etcd.endpoint}")
    await store.txn([Delete(entry.key) for entry in (await store.list({POOL})).entries])
    async with serve(store, admit=admit) as addresses:
        client = GrpcStore(addresses[0])
        yield client
        await client.close()
    await store.close()


async def test_a_guard_of_admission_that_breaks_is_admitted_anew_a_bounded_number_of_times(sqlite_store, serve) -> None:
    rounds = 0
    racing = 2

    async def racy(store: Store, operations: Sequence[Operation]) -> Sequence[Unchanged]:
        nonlocal rounds
        rounds += 1
        revision = (await store.list({POOL})).revision
        if rounds <= racing:
            await sqlite_store.txn([Put(key("rival"), b"%d" % rounds)])
        return [Unchanged(POOL, revision)]

    async with serve(sqlite_store, admit=racy) as addresses:
        client = GrpcStore(addresses[0])
        await client.txn([Put(key("a"), b"1", ABSENT)])
        assert rounds == racing + 1
        rounds, racing = 0, 1000
        with pytest.raises(Conflict, match="any IPPool"):
            await client.txn([Put(key("b"), b"1", ABSENT)])
        assert rounds == ADMISSIONS
        rounds, racing = 0, 1
        with pytest.raises(Conflict, match="IPPool a"):
            await client.txn([Put(key("a"), b"2", ABSENT)])
        assert rounds == 1, "a conflict of the caller's own is the caller's"
        rounds, racing = 0, 1
        since = (await sqlite_store.list({POOL})).revision
        with pytest.raises(Conflict, match="any IPPool"):
            await client.txn([Put(key("c"), b"1")], [Unchanged(POOL, since)])
        assert rounds == 1, "so is a guard of the caller's own"
        await client.close()


async def test_a_batch_is_judged_as_a_whole(sqlite_store, serve) -> None:
    async with serve(sqlite_store, admit=admit) as addresses:
        client = GrpcStore(addresses[0])
        await create(client, pool("a", "10.1.0.0/16"))
        await client.txn([Delete(key("a")), put(pool("b", "10.1.0.0/17")), put(pool("c", "10.1.128.0/17"))])
        with pytest.raises(Invalid, match="overlaps"):
            await client.txn([put(pool("d", "10.2.0.0/16")), put(pool("e", "10.2.0.0/17"))])
        await write(client, Tier(metadata=Metadata(name="t"), spec=TierSpec(order=1)))
        assert {entry.key.name for entry in (await client.list({POOL})).entries} == {"b", "c"}
        await client.close()


# --- watchers ---------------------------------------------------------------------------------------------------------


async def test_watchers_of_the_same_kinds_share_the_very_same_bytes(sqlite_store) -> None:
    async with asyncio.TaskGroup() as tasks:
        fanout = Fanout(sqlite_store, encode, tasks)
        watchers = [fanout.watch(1, frozenset({POOL})) for _ in range(5)]
        for watcher in watchers:
            assert decode(await anext(watcher)) == Synced(1)
        waiting = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
        revision = await sqlite_store.txn([Put(key("a"), b"1")])
        messages = await asyncio.gather(*waiting)
        assert decode(messages[0]) == Changes(revision, (Event(key("a"), b"1", revision),))
        assert len({id(message) for message in messages}) == 1
        for watcher in watchers:
            await watcher.aclose()
    assert len(tasks._tasks) == 0  # type: ignore[attr-defined]


async def test_a_watcher_that_is_behind_gets_what_it_missed_in_few_messages(sqlite_store) -> None:
    async with asyncio.TaskGroup() as tasks:
        fanout = Fanout(sqlite_store, encode, tasks)
        quick, late = fanout.watch(1, frozenset({POOL})), fanout.watch(1, frozenset({POOL}))
        assert decode(await anext(quick)) == decode(await anext(late)) == Synced(1)
        first = asyncio.ensure_future(anext(late))
        for number in range(50):
            revision = await sqlite_store.txn([Put(key(f"p{number}"), b"%d" % number)])
            item = decode(await anext(quick))
            assert isinstance(item, Changes)
            assert item.revision == revision
        events: list[Event] = []
        messages = 0
        message = await first
        while True:
            item = decode(message)
            assert isinstance(item, Changes)
            events += item.events
            messages += 1
            if item.revision == revision:
                break
            message = await anext(late)
        assert [event.key.name for event in events] == [f"p{number}" for number in range(50)]
        assert messages <= 3
        await quick.aclose()
        await late.aclose()


async def test_a_slow_watcher_is_ended_and_what_is_kept_for_it_is_bounded(sqlite_store) -> None:
    async with asyncio.TaskGroup() as tasks:
        fanout = Fanout(sqlite_store, encode, tasks, window=20_000)
        quick, slow = fanout.watch(1, frozenset({POOL})), fanout.watch(1, frozenset({POOL}))
        assert decode(await anext(quick)) == decode(await anext(slow)) == Synced(1)
        first = asyncio.ensure_future(anext(slow))
        for _ in range(60):
            revision = await sqlite_store.txn([Put(key("a"), b"x" * 1000)])
            assert decode(await anext(quick)).revision == revision
            (channel,) = fanout._channels.values()
            assert channel._size <= 20_000
        rest = [decode(await first), *[decode(message) async for message in slow]]
        assert isinstance(rest[-1], Compacted)
        assert sum(len(item.events) for item in rest if isinstance(item, Changes)) < 60
        assert 1 < rest[-1].revision < revision
        await quick.aclose()


async def test_a_slow_client_is_ended_over_the_wire_and_lists_again(sqlite_store, serve) -> None:
    async with serve(sqlite_store, window=1 << 20) as addresses:
        client = GrpcStore(addresses[0])
        async with aclosing(client.watch(1, {POOL})) as items:
            assert await anext(items) == Synced(1)
            for number in range(120):
                await sqlite_store.txn([Put(key(f"p{number % 3}"), b"%d" % number * 50_000)])
            async with asyncio.timeout(20):
                rest = [item async for item in items]
        assert isinstance(rest[-1], Compacted)
        assert len((await client.list({POOL})).entries) == 3
        await client.close()


async def test_a_watcher_that_joins_while_others_watch_misses_nothing(sqlite_store, serve) -> None:
    async with serve(sqlite_store) as addresses:
        client = GrpcStore(addresses[0])

        async def writer() -> None:
            for number in range(300):
                await sqlite_store.txn([Put(key("a"), b"%d" % number), Put(Key(NODE, "", "n"), b"%d" % number)])

        async def watcher(after: int) -> list[int]:
            seen: list[int] = []
            async with aclosing(client.watch(after, {POOL})) as items:
                async for item in items:
                    assert not isinstance(item, Compacted)
                    if isinstance(item, Changes):
                        seen += [event.revision for event in item.events]
                        if item.revision == 301:
                            break
            return seen

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(writer())
            joining = []
            for _ in range(10):
                revision = (await client.list({POOL})).revision
                joining.append((revision, tasks.create_task(watcher(revision))))
        for revision, task in joining:
            assert task.result() == list(range(revision + 1, 302))
        await client.close()


# --- processes --------------------------------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from datastore.serve import serve
async def admit(store, operations): return ()
asyncio.run(serve(sys.argv[1], sys.argv[2:], admit=admit, on_ready=lambda _: print("ready", flush=True)))
"""


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A datastore server in a process of its own."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, *arguments), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert server.stdout is not None
        assert await asyncio.wait_for(server.stdout.readline(), 20) == b"ready\n"
        yield server
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()
        server._transport.close()  # type: ignore[attr-defined]


async def test_a_killed_server_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    backend, listen = f"sqlite:{tmp_path}/db", f"unix:{tmp_path}/s.sock"
    acknowledged: dict[Key, bytes] = {}
    client = GrpcStore(listen)

    async def writer(number: int) -> None:
        for count in range(10_000):
            name, value = key(f"w{number}-{count % 50}"), b"%d" % count
            await client.txn([Put(name, value), Put(Key(NODE, "", name.name), value)])
            acknowledged[name] = value

    async with process(backend, listen) as server:
        writers = [asyncio.create_task(writer(number)) for number in range(4)]
        watch = asyncio.create_task(anext(client.watch(1 << 40, {POOL})))
        async with asyncio.timeout(20):
            await watch
            while len(acknowledged) < 100:
                await asyncio.wait(writers, timeout=0.01)
        server.kill()
        results = await asyncio.gather(*writers, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results), results
    async with process(backend, listen):
        async with asyncio.timeout(10):
            while True:
                try:
                    listing = await client.list({POOL, NODE})
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
        kept = {entry.key: int(entry.value) for entry in listing.entries}
        for name, value in acknowledged.items():
            other = kept[Key(NODE, "", name.name)]
            assert kept[name] == other, "a transaction was made in part"
            assert kept[name] >= int(value)
        assert await client.txn([Put(key("after"), b"1")]) == listing.revision + 1
    await client.close()


async def test_a_server_that_stops_answering_is_noticed_by_calls_and_watches(tmp_path: Path) -> None:
    async with process(f"sqlite:{tmp_path}/db", "127.0.0.1:0", f"unix:{tmp_path}/s.sock") as server:
        client = GrpcStore(f"unix:{tmp_path}/s.sock", timeout_s=0.5, keepalive_s=0.5)
        async with aclosing(client.watch(1, {POOL})) as items:
            assert await anext(items) == Synced(1)
            server.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(10):
                with pytest.raises(Unavailable):
                    await anext(items)
                with pytest.raises(Unavailable):
                    await client.get(key("a"))
            server.send_signal(signal.SIGCONT)
        await client.close()


async def test_two_servers_cannot_have_one_file(tmp_path: Path) -> None:
    async with process(f"sqlite:{tmp_path}/db", f"unix:{tmp_path}/s.sock"):
        with pytest.raises(Invalid, match="in use by another datastore process"):
            await SqliteStore.open(tmp_path / "db")


async def test_what_a_stopping_server_answers_is_unavailable(sqlite_store, serve) -> None:
    async with serve(sqlite_store) as addresses:
        client = GrpcStore(addresses[0])
        items = client.watch(1, {POOL})
        assert await anext(items) == Synced(1)
    with pytest.raises(Unavailable):
        await anext(items)
    with pytest.raises(Unavailable):
        await client.txn([Put(key("a"), b"1")])
    await client.close()
    for call in (client.get(key("a")), client.list({POOL}), client.txn([]), client.compact(1)):
        with pytest.raises(Unavailable):
            await call


async def test_closing_a_client_ends_its_watch(sqlite_store, serve) -> None:
    async with serve(sqlite_store) as addresses:
        client = GrpcStore(addresses[0])
        items = client.watch(1, {POOL})
        assert await anext(items) == Synced(1)
        waiting = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, 5)
