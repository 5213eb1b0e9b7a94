"""Real stores for the tests: a real etcd, real files, real servers on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from core.errors import Unavailable
from datastore.api import Operation, Store, Unchanged
from datastore.client import GrpcStore
from datastore.etcd import EtcdStore
from datastore.server import Admission, serve_store
from datastore.sqlite import SqliteStore


async def anything(store: Store, operations: Sequence[Operation]) -> Sequence[Unchanged]:
    """An admission that lets the contract's tests write what they like."""
    return ()


class Serve(Protocol):
    """Serves a store while the context is open; gives the addresses as bound."""

    def __call__(
        self, store: Store, *listen: str, admit: Admission = anything, window: int = 8 << 20, keepalive_s: float = 10.0
    ) -> AbstractAsyncContextManager[Sequence[str]]:
        """Addresses default to a UNIX socket in the test's folder."""


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """A factory of servers in this process."""

    @asynccontextmanager
    async def served(
        store: Store, *listen: str, admit: Admission = anything, window: int = 8 << 20, keepalive_s: float = 10.0
    ) -> AsyncIterator[Sequence[str]]:
        ready: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            serve_store(
                store,
                listen or [f"unix:{tmp_path}/datastore.sock"],
                admit,
                on_ready=ready.set_result,
                window=window,
                keepalive_s=keepalive_s,
            )
        )
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        try:
            yield ready.result()
        finally:
            task.cancel()
            await asyncio.wait([task])

    return served


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now, and that the kernel gives nobody who asks for any."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("a hundred ports of the loopback are taken")


@dataclass
class Etcd:
    """A real etcd on loopback."""

    folder: Path
    port: int
    peer_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """As `EtcdStore` takes it."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer_port}"
        with (self.folder / "etcd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("etcd", "--name=one", f"--data-dir={self.folder}/data", "--unsafe-no-fsync"),
                    *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
                    *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
                    *(f"--initial-cluster=one={peer}", "--heartbeat-interval=50", "--election-timeout=500"),
                ],
                stdout=log,
                stderr=log,
            )
        for _ in range(200):
            if self.healthy():
                return
            assert self.process.poll() is None, (self.folder / "etcd.log").read_text()
            time.sleep(0.05)
        raise AssertionError((self.folder / "etcd.log").read_text())

    def healthy(self) -> bool:
        """Whether it says so itself."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), opener.open(f"http://{self.endpoint}/health", timeout=1) as answer:
            return b'"true"' in answer.read()
        return False

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def new_etcd(folder: Path) -> Etcd:
    """An etcd that is not started yet."""
    assert shutil.which("etcd"), "etcd is not installed: apt-get install etcd-server"
    folder.mkdir(exist_ok=True)
    return Etcd(folder, free_port(), free_port())


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One etcd for all the tests that leave it running."""
    etcd = new_etcd(tmp_path_factory.mktemp("etcd"))
    etcd.start()
    try:
        yield etcd
    finally:
        etcd.kill()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd of this test, to be killed at will."""
    etcd = new_etcd(tmp_path / "etcd")
    etcd.start()
    try:
        yield etcd
    finally:
        etcd.kill()


@asynccontextmanager
async def cleaned(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    """A store on an etcd with nothing of an earlier test in it."""
    process = await asyncio.create_subprocess_exec(
        *("etcdctl", f"--endpoints={etcd.endpoint}", "del", "", "--prefix"),
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    store = EtcdStore([etcd.endpoint])
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def etcd_store(shared_etcd: Etcd) -> AsyncIterator[EtcdStore]:
    """A store on the shared etcd."""
    async with cleaned(shared_etcd) as store:
        yield store


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store in a new file."""
    store = await SqliteStore.open(tmp_path / "datastore.db")
    yield store
    await store.close()


@pytest.fixture(params=["sqlite", "etcd", "sqlite-grpc", "etcd-grpc"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, shared_etcd: Etcd, serve: Serve
) -> AsyncIterator[Store]:
    """Every kind of store there is."""
    backend, _, front = request.param.partition("-")
    async with contextlib.AsyncExitStack() as stack:
        opened: Store
        if backend == "etcd":
            opened = await stack.enter_async_context(cleaned(shared_etcd))
        else:
            opened = await SqliteStore.open(tmp_path / "datastore.db")
            stack.push_async_callback(opened.close)
        if front:
            addresses = await stack.enter_async_context(serve(opened))
            opened = GrpcStore(addresses[0])
            stack.push_async_callback(opened.close)
        yield opened


async def away(store: Store) -> Unavailable:
    """Wait until the store is noticed to be away; how it says so."""
    for _ in range(200):
        try:
            await store.list(frozenset())
        except Unavailable as unavailable:
            return unavailable
        await asyncio.sleep(0.05)
    raise AssertionError("the store is still there")
