"""The ledger while the datastore is killed and connections are cut: nothing twice, nothing lost, history in order."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from core.addr import Address
from core.errors import Unavailable
from datastore.admission import admit
from datastore.api import Store
from datastore.client import GrpcStore
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Exhausted
from datastore.sqlite import SqliteStore
from tests.datastore.conftest import Serve
from tests.datastore.ipam_ground import DEADLINE_S, Proxy, Said, pod, pool, put

SERVER: Final = """
import asyncio, sys
from datastore.serve import serve
asyncio.run(serve(sys.argv[1], sys.argv[2:], on_ready=lambda _: print("ready", flush=True)))
"""

NODES = 8
OPERATIONS = 1000
CALLERS = 4


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A datastore of its own process, on `folder`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, f"sqlite:{folder}/db", f"unix:{folder}/s.sock"),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


async def until_there(store: Store) -> None:
    """Wait until the datastore answers."""
    async with asyncio.timeout(20):
        while True:
            with suppress(Unavailable):
                await store.list(frozenset())
                return
            await asyncio.sleep(0.02)


async def test_a_killed_datastore_leaves_what_callers_were_told_and_what_they_can_release(tmp_path: Path) -> None:
    client = GrpcStore(f"unix:{tmp_path}/s.sock")
    told: dict[str, tuple[Address, ...]] = {}
    freed: set[str] = set()
    unknown: set[str] = set()
    busy = asyncio.Event()
    ledgers = [Ledger(client) for _ in range(4)]

    async def caller(number: int) -> None:
        ledger, node = ledgers[number % 4], f"n{number % 4}"
        for turn in range(10_000):
            handle = f"p{number}-{turn}"
            try:
                grant, _ = await ledger.assign(pod(handle, node))
                told[handle] = grant.addresses
                if turn % 2:
                    await ledger.release(handle, "DEL")
                    freed.add(handle)
                    if len(freed) == 300:
                        busy.set()
            except Exhausted:
                return
            except Unavailable:
                unknown.add(handle)
                return

    async with server(tmp_path) as process:
        await until_there(client)
        await put(client, pool("pods", "10.0.0.0/20", block_size=26))
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(caller(number))
            await busy.wait()
            process.send_signal(signal.SIGKILL)
    assert unknown, "the kill came in the middle"
    async with server(tmp_path):
        await until_there(client)
        said = await Said.by(client)
        assert {handle: held for handle, held in told.items() if handle not in freed | unknown} == {
            handle: held for handle, held in said.by_handle.items() if handle not in unknown
        }
        given = [address for held in said.by_handle.values() for address in held]
        assert len(set(given)) == len(given)
        async with asyncio.timeout(DEADLINE_S):
            again = await asyncio.gather(*(ledgers[0].release(handle, "lost") for handle in sorted(unknown)))
        assert {grant.handle: grant.addresses for grant in again if grant.addresses} == {
            handle: held for handle, held in said.by_handle.items() if handle in unknown
        }
        assert not unknown & set((await Said.by(client)).by_handle)
        assert (await ledgers[1].assign(pod("after", "n1")))[0].addresses
    await client.close()


async def test_a_datastore_that_was_restored_from_a_backup_is_read_anew(tmp_path: Path, serve: Serve) -> None:
    path, backup = tmp_path / "datastore.db", tmp_path / "backup.db"
    opened = await SqliteStore.open(path)
    await put(opened, pool("pods", "10.0.0.0/28", block_size=28))
    await Ledger(opened).assign(pod("old", "a"))
    await opened.close()
    shutil.copy(path, backup)
    client = GrpcStore(f"unix:{tmp_path}/datastore.sock")
    ledger = Ledger(client)
    opened = await SqliteStore.open(path)
    async with serve(opened, admit=admit):
        for number in range(8):
            await ledger.assign(pod(f"new-{number}", "a"))
    await opened.close()
    shutil.copy(backup, path)
    opened = await SqliteStore.open(path)
    async with serve(opened, admit=admit):
        await until_there(client)
        async with asyncio.timeout(DEADLINE_S):
            grant, _ = await ledger.assign(pod("after", "a"))
            assert not (await ledger.release("new-3", "DEL")).addresses, "the backup knows nothing of it"
            again, _ = await ledger.assign(pod("new-5", "a"))
        said = await Said.by(opened)
        assert set(said.by_handle) == {"old", "after", "new-5"}
        assert said.by_handle["after"] == grant.addresses
        assert said.by_handle["new-5"] == again.addresses
    await opened.close()
    await client.close()


@dataclass(frozen=True, slots=True)
class Hold:
    """That a caller was told that `handle` has `addresses`, from `since` until he asked to give them back."""

    handle: str
    addresses: tuple[Address, ...]
    since: float
    until: float


class History:
    """What callers of all nodes asked and were told, and when: the order in which it can have happened is checked."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []
        self.open: dict[str, tuple[tuple[Address, ...], float]] = {}
        self.unknown: set[str] = set()

    def given(self, handle: str, addresses: tuple[Address, ...]) -> None:
        """An assign was answered: what the handle has now, and had before if it was known."""
        if handle in self.open and handle not in self.unknown:
            assert self.open[handle][0] == addresses, "a handle keeps what it has"
        self.unknown.discard(handle)
        self.open.setdefault(handle, (addresses, asyncio.get_running_loop().time()))

    def giving_back(self, handle: str) -> None:
        """A release is asked: from here on nobody knows."""
        if handle in self.open:
            addresses, since = self.open.pop(handle)
            self.holds.append(Hold(handle, addresses, since, asyncio.get_running_loop().time()))
            self.unknown.add(handle)

    def gone(self, handle: str, freed: tuple[Address, ...], held: tuple[Address, ...] | None) -> None:
        """A release was answered; `held` is what the handle had, if that was known."""
        assert held is None or freed == held, "what is freed is what was held"
        self.unknown.discard(handle)

    def check(self) -> None:
        """No address was two handles' at a time."""
        now = asyncio.get_running_loop().time()
        still = [Hold(handle, addresses, since, now) for handle, (addresses, since) in self.open.items()]
        by_address: dict[Address, list[Hold]] = {}
        for hold in (*self.holds, *still):
            for address in hold.addresses:
                by_address.setdefault(address, []).append(hold)
        for address, holds in by_address.items():
            holds.sort(key=lambda hold: hold.since)
            for one, other in pairwise(holds):
                assert one.until <= other.since, f"{address}: {one} and {other}"


async def test_eight_nodes_with_one_cut_off_now_and_then_have_a_history_that_is_in_order(
    tmp_path: Path, serve: Serve
) -> None:
    """8 ledgers x 1,000 operations over a pool that is too small, so that all claim, borrow and run dry."""
    history, dice = History(), random.Random(8)
    done = dry = away = 0

    async def caller(ledger: Ledger, node: str, number: int) -> None:
        nonlocal done, dry, away
        for _ in range(OPERATIONS // CALLERS):
            handle = f"{node}-{number}-{dice.randrange(12)}"
            known = history.open.get(handle)
            try:
                if known is None or dice.random() < 0.2:
                    # As an ADD does: what it is told it has is written, and no release of before can come after.
                    grant, _ = await ledger.assign(pod(handle, node), lambda _: [])
                    history.given(handle, grant.addresses)
                else:
                    history.giving_back(handle)
                    history.gone(handle, (await ledger.release(handle, "DEL")).addresses, known[0])
            except Exhausted:
                dry += 1
            except Unavailable:
                away += 1
                history.unknown.add(handle)
                await asyncio.sleep(0.1)
            done += 1

    async def cutting(proxy: Proxy) -> None:
        while done < NODES * OPERATIONS:
            await asyncio.sleep(dice.uniform(0.2, 0.5))
            proxy.cut()
            await asyncio.sleep(dice.uniform(0.05, 0.1))
            proxy.mend()

    opened = await SqliteStore.open(tmp_path / "datastore.db")
    async with serve(opened, admit=admit) as addresses, Proxy(tmp_path / "proxy.sock", addresses[0]).running() as proxy:
        await put(opened, pool("pods", "10.0.0.0/25", block_size=29))
        clients = [GrpcStore(proxy.address, timeout_s=5), GrpcStore(addresses[0])]
        stores = [*clients, *[opened] * (NODES - len(clients))]
        async with asyncio.timeout(DEADLINE_S * 2), asyncio.TaskGroup() as group:
            breaking = group.create_task(cutting(proxy))
            for number, store in enumerate(stores):
                ledger = Ledger(store)
                for each in range(CALLERS):
                    group.create_task(caller(ledger, f"n{number}", each))
        assert breaking.done()
        assert dry > 100
        assert away > 10
        history.check()
        said = await Said.by(opened)
        known = {handle: held for handle, (held, _) in history.open.items() if handle not in history.unknown}
        assert known == {handle: held for handle, held in said.by_handle.items() if handle not in history.unknown}
        last = Ledger(opened)
        for handle in said.by_handle:
            await last.release(handle, "end")
        assert not (await Said.by(opened)).by_handle
        for client in clients:
            await client.close()
    await opened.close()
