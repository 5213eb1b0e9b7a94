"""Servers that are killed, stopped and stop: what is lost (nothing acknowledged) and how it is noticed."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from core.errors import Invalid, Unavailable
from core.names import Key
from core.resources import IPPool, Node
from datastore.api import (
    Put,
    Synced,
)
from datastore.client import GrpcStore
from datastore.sqlite import SqliteStore

POOL, NODE = IPPool.KIND, Node.KIND


def key(name: str) -> Key:
    return Key(POOL, "", name)


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
