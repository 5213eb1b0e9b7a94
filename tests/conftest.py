"""What several rooms' tests stand on: real datastore servers."""

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from shares import pytest_collection_modifyitems, pytest_xdist_make_scheduler

from core.resources import BY_KIND
from datastore.api import Delete
from datastore.client import GrpcStore

__all__ = ["pytest_collection_modifyitems", "pytest_xdist_make_scheduler"]  # hooks of ours for pytest

HOUSE = Path(__file__).parents[1]


@contextmanager
def served() -> Iterator[str]:
    """The address of a datastore server: a process of its own, over SQLite, on a UNIX socket."""
    with tempfile.TemporaryDirectory(prefix="muslin-") as folder:
        address = f"unix:{folder}/datastore.sock"
        argv = [sys.executable, "-m", "cli", "datastore", "--backend", f"sqlite:{folder}/db", "--listen", address]
        said = Path(folder, "log")
        with said.open("w") as log, subprocess.Popen(argv, cwd=HOUSE, stderr=log) as server:
            try:
                deadline = time.monotonic() + 30
                while "datastore.listening" not in said.read_text():
                    assert server.poll() is None, said.read_text()
                    assert time.monotonic() < deadline, f"the datastore does not listen: {said.read_text()}"
                    time.sleep(0.02)
                yield address
            finally:
                server.send_signal(signal.SIGTERM)
                assert server.wait(10) == 0


@pytest.fixture(scope="session")
def shared_datastore() -> Iterator[str]:
    """One server for all tests that do not mind at which revision they begin."""
    with served() as address:
        yield address


@pytest.fixture
def datastore(shared_datastore: str) -> str:
    """The address of a datastore without objects."""
    asyncio.run(_empty(shared_datastore))
    return shared_datastore


@pytest.fixture
def new_datastore() -> Iterator[str]:
    """The address of a datastore that has never held anything: its first transaction makes revision 2."""
    with served() as address:
        yield address


async def _empty(address: str) -> None:
    store = GrpcStore(address)
    try:
        entries = (await store.list(BY_KIND.keys())).entries
        if entries:
            await store.txn([Delete(entry.key) for entry in entries])
    finally:
        await store.close()


@pytest.fixture(scope="session", autouse=True)
def _grpc_at_home() -> Iterator[None]:
    """gRPC keeps threads for the whole process, in the network namespace of whoever needs it first and until nobody
    does: here, in ours. In that of a node whose agent runs in a thread, later tests would have none of our loopback."""
    with grpc.insecure_channel("unix:/nowhere"):
        yield
