"""The gRPC front: who may reach it, what it admits, and what it says of what it does not."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest

from core.errors import Conflict, Invalid, Problem, Unsupported
from core.names import Key
from core.resources import IPPool, Metadata, NetworkPolicy, Tier
from core.resources.network import IPPoolSpec
from core.resources.policy import NetworkPolicySpec, TierSpec
from datastore import codec
from datastore.admission import admit
from datastore.api import (
    ABSENT,
    Delete,
    Guard,
    Operation,
    Put,
    Store,
    Unchanged,
)
from datastore.client import GrpcStore
from datastore.objects import create, put, read, write
from datastore.serve import open_store
from datastore.server import ADMISSIONS
from proto.v1 import datastore_pb2 as pb

POOL = IPPool.KIND


def key(name: str) -> Key:
    return Key(POOL, "", name)


def pool(name: str, cidr: str) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr))


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


async def test_a_tier_that_goes_while_a_policy_for_it_is_admitted(sqlite_store, serve) -> None:
    tier = Tier(metadata=Metadata(name="t"), spec=TierSpec(order=1))
    await write(sqlite_store, tier)

    async def late(store: Store, operations: Sequence[Operation]) -> Sequence[Guard]:
        guards = await admit(store, operations)
        await sqlite_store.txn([Delete(tier.key)])
        return guards

    policy = NetworkPolicy(metadata=Metadata(name="p", namespace="shop"), spec=NetworkPolicySpec(tier="t"))
    async with serve(sqlite_store, admit=late) as addresses:
        client = GrpcStore(addresses[0])
        with pytest.raises(Invalid, match="there is no tier 't'"):
            await create(client, policy)
        await client.close()
    assert await sqlite_store.get(policy.key) is None


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
