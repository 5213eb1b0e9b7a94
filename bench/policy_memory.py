"""policy-memory: the resident memory of one node's agent in a cluster of 150,000 pods, all of them elsewhere.

    SQLite ── datastore server ── gRPC ── felix, as its own process in a namespace of its own ── kernel

The pods are on 1,000 nodes and in 500 namespaces, of 3,000 applications, and hold their addresses in IPAM's blocks.
Twenty pods of this node are under policies that let in every pod of the cluster, and a hundred applications one by one;
so every pod's address is in a map of this node's kernel. The figure is taken when the agent says that it has programmed
it all, and has then read all of it again because somebody else changed its table; the most it ever took is told beside
it. The peer is the same agent in the same cluster with 1,000 pods: the difference is what a pod costs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from bench.model import Bench, Figures, Subjects, at_most
from core import manifest
from core.names import NFT_TABLE, workload_interface
from core.resources import (
    FelixStatus,
    IPAMBlock,
    IPPool,
    Metadata,
    Namespace,
    NetworkPolicy,
    Node,
    Resource,
    WorkloadEndpoint,
)
from core.resources.ipam import BlockSpec
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec, WorkloadEndpointSpec
from core.resources.policy import Action, EntityRule, NetworkPolicySpec, Rule
from datastore.api import Changes, Put
from datastore.client import GrpcStore
from datastore.ipam.block import block_name
from datastore.serve import serve
from datastore.sqlite import SqliteStore
from linux.netns import scratch_namespace
from linux.rights import require_net_admin

PER_POD: Final = "KiB a pod"
PEAK: Final = "most MiB"

BENCH: Final = Bench(
    name="policy-memory",
    what="an agent's resident memory with 150,000 remote pods (and KiB for each of them)",
    unit="MiB",
    peer="with 1,000 pods",
    targets=(at_most(300, absolute=True), at_most(1.5, of=PER_POD, absolute=True)),
    runs=1,
)

MANY: Final = 150_000
FEW: Final = 1_000
NODE: Final = "node-0"
LOCAL: Final = 20
_NODES: Final = 1_000
_NAMESPACES: Final = 500
_APPS: Final = 3_000
_BLOCK: Final = 64
_BATCH: Final = 5_000
_PATIENCE_S: Final = 300
_MIB: Final = 1 << 10


def cluster(pods: int) -> Iterator[Resource]:
    """The objects of a cluster with `pods` pods elsewhere."""
    yield IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.0.0.0/8"))
    for number in range(_NODES):
        address = f"172.16.{number >> 8}.{number & 255}/16"
        yield Node(metadata=Metadata(name=f"node-{number}"), spec=NodeSpec(bgp=NodeBGPSpec(ipv4_address=address)))
    for number in range(_NAMESPACES):
        yield Namespace(metadata=Metadata(name=f"ns-{number}", labels={"team": f"team-{number % 20}"}))
    everyone = EntityRule(namespace_selector="all()")
    few = [EntityRule(selector=f"app == 'app-{n}'", namespace_selector="all()") for n in range(100)]
    rules = [Rule(action=Action.DENY, source=each) for each in few] + [Rule(action=Action.ALLOW, source=everyone)]
    for number in range(LOCAL):
        spec = NetworkPolicySpec(selector="all()", ingress=rules)
        yield NetworkPolicy(metadata=Metadata(name="some", namespace=f"ns-{number}"), spec=spec)
        yield _pod(pods + number, NODE, f"ns-{number}")
    for number in range(pods):
        yield _pod(number, _node(number), f"ns-{number % _NAMESPACES}")
    for first in range(0, pods + LOCAL, _BLOCK):
        yield _block(first, min(first + _BLOCK, pods + LOCAL))


def _node(number: int) -> str:
    return f"node-{1 + number // _BLOCK % (_NODES - 1)}"


def _address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def _block(first: int, end: int) -> IPAMBlock:
    """The block of the pods from `first` to before `end`."""
    network = ip_network(f"{_address(first)}/26")
    held = {_address(number): f"k8s-pod-network.{number:064x}" for number in range(first, end)}
    spec = BlockSpec(cidr=str(network), affinity=f"host:{_node(first)}", allocations=held)
    return IPAMBlock(metadata=Metadata(name=block_name(network)), spec=spec)


def _pod(number: int, node: str, namespace: str) -> WorkloadEndpoint:
    app = number % _APPS
    pod = f"app-{app}-{number:010x}"
    labels = {"app": f"app-{app}", "tier": ("web", "db", "cache")[app % 3], "pod-template-hash": f"{app:x}"}
    name = f"{node.replace('-', '--')}-k8s-{pod.replace('-', '--')}-eth0"
    return WorkloadEndpoint(
        metadata=Metadata(
            name=name,
            namespace=namespace,
            labels=labels,
            uid=f"00000000-0000-4000-8000-{number:012x}",
            creation_timestamp="2026-01-01T00:00:00Z",
        ),
        spec=WorkloadEndpointSpec(
            orchestrator="k8s",
            node=node,
            pod=pod,
            endpoint="eth0",
            container_id=f"{number:064x}",
            ip_networks=[f"{_address(number)}/32"],
            profiles=[f"kns.{namespace}"],
            interface_name=workload_interface(namespace, pod),
            service_account_name="default",
        ),
    )


@contextmanager
def subjects() -> Iterator[Subjects]:
    """With a datastore file for each of the two clusters."""
    require_net_admin()
    with tempfile.TemporaryDirectory() as folder:
        big, small = Path(folder) / "many.db", Path(folder) / "few.db"
        for file, pods in ((big, MANY), (small, FEW)):
            asyncio.run(_fill(file, pods))

        def peer() -> Figures:
            now, peak = asyncio.run(_measured(small, Path(folder)))
            return Figures(now, {PEAK: peak})

        def ours() -> Figures:
            now, peak = asyncio.run(_measured(big, Path(folder)))
            least, _ = asyncio.run(_measured(small, Path(folder)))
            return Figures(now, {PER_POD: (now - least) * _MIB / (MANY - FEW), PEAK: peak})

        yield Subjects(ours, peer)


async def _fill(file: Path, pods: int) -> None:
    store = await SqliteStore.open(file)
    batch: list[Put] = []
    for resource in cluster(pods):
        batch.append(Put(resource.key, manifest.encode(resource)))
        if len(batch) == _BATCH:
            await store.txn(batch)
            batch = []
    await store.txn(batch)
    await store.close()


async def _measured(file: Path, folder: Path) -> tuple[float, float]:
    """MiB that an agent of that datastore takes when it has programmed all of it, and the most it took till then."""
    target = f"unix:{folder / 'datastore.sock'}"
    ready = asyncio.Event()
    serving = asyncio.create_task(serve(f"sqlite:{file}", [target], on_ready=lambda _: ready.set()))
    try:
        await asyncio.wait({serving, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
        store = GrpcStore(target)
        with tempfile.TemporaryDirectory() as run_dir, _agent(target, Path(run_dir)) as pid:
            begun = (await store.list(frozenset({Node.KIND}))).revision
            async with asyncio.timeout(_PATIENCE_S):
                await _programmed(store, begun)
                await asyncio.to_thread(_heal, pid)
            found = _resident(pid, "VmRSS"), _resident(pid, "VmHWM")
        await store.close()
        return found
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def _programmed(store: GrpcStore, revision: int) -> None:
    """Wait until the agent says that all of `revision` is in the kernel."""
    async with aclosing(store.watch(0, {FelixStatus.KIND})) as items:
        async for item in items:
            for event in item.events if isinstance(item, Changes) else ():
                said = manifest.decode(event.key, event.value) if event.value is not None else None
                if isinstance(said, FelixStatus) and said.status.programmed >= revision and not said.status.stale:
                    return


def _heal(pid: int) -> None:
    """Put a stranger's chain into the agent's table, and wait until it is gone."""
    inside = ("nsenter", "-t", str(pid), "-n", "nft")
    subprocess.run([*inside, "add", "chain", "inet", NFT_TABLE, "stranger"], check=True)
    ask = [*inside, "list", "chain", "inet", NFT_TABLE, "stranger"]
    until = time.monotonic() + _PATIENCE_S
    while subprocess.run(ask, check=False, capture_output=True).returncode == 0:
        assert time.monotonic() < until, "the agent does not take away what is not its own"
        time.sleep(0.2)


@contextmanager
def _agent(target: str, run_dir: Path) -> Iterator[int]:
    """A felix in a namespace of its own; its process id."""
    argv = [sys.executable, "-m", "felix", "--node", NODE, "--datastore", target, "--run-dir", str(run_dir)]
    with scratch_namespace():
        process = subprocess.Popen([*argv, "--log-level", "error"], cwd=Path(__file__).parents[1])
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


def _resident(pid: int, field: str) -> float:
    """MiB, by that line of the process's status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / _MIB
    raise ProcessLookupError(f"process {pid} has ended")
