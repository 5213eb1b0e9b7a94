"""ipam-allocate: addresses given each second by one node, and by eight at once, through a datastore's server.

The server is a process of its own, over SQLite, at its UNIX socket, as it is in service; the nodes' ledgers are in this
one. A pod asks for one IPv4 address, and for nothing else in the transaction.

    figure         one node: 64 callers at once, 1,000 addresses in 16 blocks, which are claimed as they are needed
    eight nodes    8 ledgers, each with a connection of its own and 64 callers, 500 addresses each, at once
    alone          one caller, one address after the other

What was given is given back, and the blocks taken away, between turns and out of time. The peer is host-local, the CNI
project's own IPAM plugin, which keeps one node's addresses in files: a process for each ADD, as many at once as there
are processors (its figure) and one after the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from bench.filling import fill
from bench.model import Bench, Figures, Subjects, at_least
from core.errors import Unsupported
from core.resources import BlockAffinity, IPAMBlock, IPAMRecord, IPPool, Metadata, Namespace
from core.resources.network import IPPoolSpec
from datastore.api import Delete
from datastore.client import GrpcStore
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Owner, Request

ONE: Final = 1_000
"""Addresses that one node takes; it may have 1,280."""

NODES: Final = 8
EACH: Final = 500
CALLERS: Final = 64
ALONE: Final = 200

EIGHT: Final = "eight nodes, addresses/s"
P50: Final = "alone, p50 ms"
P99: Final = "alone, p99 ms"
IN_TURN: Final = "one after the other, addresses/s"

BENCH: Final = Bench(
    name="ipam-allocate",
    what="addresses given through the datastore, one node and 64 callers; eight such nodes at once",
    unit="addresses/s",
    peer="host-local, processes at once",
    targets=(at_least(1_000, absolute=True), at_least(3_000, of=EIGHT, absolute=True)),
)

HOST_LOCAL: Final = Path("/usr/lib/cni/host-local")
PEER_ADDS: Final = 400
PEER_IN_TURN: Final = 100
WRITES: Final = 500


@contextmanager
def subjects() -> Iterator[Subjects]:
    """A datastore's server, with a pool and a namespace; and host-local."""
    if not HOST_LOCAL.exists():
        raise Unsupported(f"{HOST_LOCAL} is not there: apt-get install containernetworking-plugins")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muslin-bench-")))
        datastore = f"unix:{folder}/datastore.sock"
        log = stack.enter_context((folder / "log").open("w"))
        words = ("datastore", "--backend", f"sqlite:{folder}/db", "--listen", datastore)
        server = subprocess.Popen([sys.executable, "-m", "cli", *words], stdout=log, stderr=log)

        def end() -> None:
            server.terminate()
            server.wait(20)

        stack.callback(end)
        pool = IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.0.0.0/16"))
        asyncio.run(fill(datastore, [pool, Namespace(metadata=Metadata(name="shop"))]))
        yield Subjects(lambda: asyncio.run(_turn(datastore)), lambda: _host_local(folder / "host-local"))


async def _turn(datastore: str) -> Figures:
    stores = [GrpcStore(datastore) for _ in range(NODES)]
    try:
        alone = await _alone(stores[0])
        one = await _at_once(stores[:1], ONE)
        eight = await _at_once(stores, EACH)
        return Figures(one, {EIGHT: eight, P50: median(alone), P99: quantiles(alone, n=100, method="inclusive")[98]})
    finally:
        for store in stores:
            await store.close()


async def _at_once(stores: list[GrpcStore], count: int) -> float:
    """Addresses a second of so many ledgers, each of which takes `count`."""
    ledgers = [Ledger(store) for store in stores]
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for node, ledger in enumerate(ledgers):
            numbers = iter(range(count))
            for _ in range(CALLERS):
                group.create_task(_caller(ledger, node, numbers))
    took = time.perf_counter() - begun
    async with asyncio.TaskGroup() as group:
        for node, ledger in enumerate(ledgers):
            for number in range(count):
                group.create_task(ledger.release(_handle(node, number), "DEL"))
    await _swept(stores[0])
    return len(ledgers) * count / took


async def _caller(ledger: Ledger, node: int, numbers: Iterator[int]) -> None:
    for number in numbers:
        await ledger.assign(_request(node, number))


async def _alone(store: GrpcStore) -> list[float]:
    """Milliseconds of each address, one caller and one address at a time."""
    ledger = Ledger(store)
    took = []
    for number in range(ALONE):
        begun = time.perf_counter()
        await ledger.assign(_request(0, number))
        took.append((time.perf_counter() - begun) * 1000)
    for number in range(ALONE):
        await ledger.release(_handle(0, number), "DEL")
    await _swept(store)
    return took


async def _swept(store: GrpcStore) -> None:
    """Take the blocks away, and what is remembered of them."""
    listing = await store.list({IPAMBlock.KIND, BlockAffinity.KIND, IPAMRecord.KIND})
    left = [Delete(entry.key) for entry in listing.entries]
    for start in range(0, len(left), WRITES):
        await store.txn(left[start : start + WRITES])


def _handle(node: int, number: int) -> str:
    return f"k8s-pod-network.{node:04x}{number:060x}"


def _request(node: int, number: int) -> Request:
    handle = _handle(node, number)
    container = handle.partition(".")[2]
    owner = Owner(
        node=f"node-{node}", namespace="shop", pod=f"pod-{number}", container=container, interface="mus0123456789a"
    )
    return Request(handle=handle, owner=owner)


def _host_local(folder: Path) -> Figures:
    shutil.rmtree(folder, ignore_errors=True)
    ranges = [[{"subnet": "10.0.0.0/16"}]]
    ipam = {"type": "host-local", "dataDir": str(folder), "ranges": ranges}
    asked = json.dumps({"cniVersion": "1.0.0", "name": "bench", "type": "ptp", "ipam": ipam}).encode()

    def add(number: int) -> None:
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": f"{number:064x}",
            "CNI_NETNS": "/proc/self/ns/net",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(HOST_LOCAL.parent),
        }
        subprocess.run([HOST_LOCAL], input=asked, env=environment, check=True, stdout=subprocess.DEVNULL)

    begun = time.perf_counter()
    for number in range(PEER_IN_TURN):
        add(number)
    in_turn = PEER_IN_TURN / (time.perf_counter() - begun)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        begun = time.perf_counter()
        list(threads.map(add, range(PEER_IN_TURN, PEER_IN_TURN + PEER_ADDS)))
        at_once = PEER_ADDS / (time.perf_counter() - begun)
    return Figures(at_once, {IN_TURN: in_turn})
