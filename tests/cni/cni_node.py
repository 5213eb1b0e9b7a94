"""A node for real: a network namespace with a datastore server and a felix of its own, and a runtime that calls CNI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.names import workload_interface
from core.resources import IPAMBlock, IPPool, Metadata, Namespace, Node, Resource, WorkloadEndpoint
from core.resources.network import IPPoolSpec
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from linux import netns
from tests.felix.host import Place

HOUSE = Path(__file__).parents[2]
PATIENCE_S = 20.0
NETWORK = "k8s-pod-network"
NODE = "n1"


def run(namespace: str, *argv: str) -> str:
    """Run a command in a namespace; its output."""
    done = subprocess.run(netns.command(namespace, *argv), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
    return done.stdout


@dataclass
class Answer:
    """What a call of the plugin came to."""

    status: int
    document: dict[str, Any]

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(each["address"].partition("/")[0] for each in self.document["ips"])


@dataclass
class Pod:
    """A container: its namespace, its id, and the pod that it is of."""

    name: str
    container: str
    netns: str
    namespace: str = "shop"

    @property
    def interface(self) -> str:
        return workload_interface(self.namespace, self.name)

    @contextlib.contextmanager
    def place(self, answer: Answer) -> Iterator[Place]:
        """Where connections begin and end."""
        made = Place(self.netns, answer.addresses)
        try:
            yield made
        finally:
            for opened in made.sockets:
                opened.close()

    def environment(self, command: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": f"/run/netns/{self.netns}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.namespace};K8S_POD_NAME={self.name};COLOUR=blue",
            "CNI_PATH": "/opt/cni/bin",
        }


@dataclass
class Runtime:
    """The node, seen as a container runtime sees it."""

    namespace: str
    datastore: str
    folder: Path
    felix: subprocess.Popen[bytes]
    containers: list[str] = field(default_factory=list)

    def container(self, pod: str) -> Pod:
        """A new container of a pod, with a network namespace."""
        number = len(self.containers)
        made = f"{self.namespace}-{number}"
        self.containers.append(made)
        netns.create(made)
        return Pod(pod, f"c{number}f00d{os.getpid():x}", made)

    def config(self, **more: object) -> dict[str, object]:
        own = {"cniVersion": "1.0.0", "name": NETWORK, "type": "muslin", "datastore": self.datastore, "node": NODE}
        return {**own, "log_file": str(self.folder / "cni.log"), **more}

    @contextlib.asynccontextmanager
    async def begun(self, command: str, pod: Pod, **more: object) -> AsyncIterator[asyncio.subprocess.Process]:
        """A call under way."""
        process = await asyncio.create_subprocess_exec(
            *netns.command(f"/run/netns/{self.namespace}", sys.executable, "-m", "cni"),
            cwd=HOUSE,
            env=pod.environment(command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin
        process.stdin.write(json.dumps(self.config(**more)).encode())
        process.stdin.close()
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def call(self, command: str, pod: Pod, **more: object) -> Answer:
        """A call and its answer."""
        async with asyncio.timeout(PATIENCE_S), self.begun(command, pod, **more) as process:
            out, err = await process.communicate()
            assert process.returncode is not None
            assert not err, err
            return Answer(process.returncode, json.loads(out) if out else {})

    async def add(self, pod: Pod, **more: object) -> Answer:
        answer = await self.call("ADD", pod, **more)
        assert answer.status == 0, answer
        return answer

    async def remove(self, pod: Pod) -> None:
        answer = await self.call("DEL", pod)
        assert answer == Answer(0, {})

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        opened = GrpcStore(self.datastore)
        try:
            yield opened
        finally:
            await opened.close()

    async def left(self) -> tuple[list[str], list[str], list[str]]:
        """Endpoints, handles with an address, and workload interfaces that are there."""
        async with self.store() as store:
            endpoints = [str(each.key) for each in (await store.list({WorkloadEndpoint.KIND})).entries]
            handles = []
            for entry in (await store.list({IPAMBlock.KIND})).entries:
                found = await objects.read(store, IPAMBlock, entry.key.name)
                assert found
                handles += list(found[0].spec.allocations.values())
        return endpoints, handles, self.interfaces()

    def interfaces(self) -> list[str]:
        listed = json.loads(run(self.namespace, "ip", "-j", "link", "show"))
        return [each["ifname"] for each in listed if each["ifname"].startswith("mus")]

    async def until(self, true: Callable[[tuple[list[str], list[str], list[str]]], bool]) -> None:
        """Wait until what is there is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not true(await self.left()):  # noqa: ASYNC110 - the kernel and two stores tell nobody
                await asyncio.sleep(0.002)


def start() -> list[Resource]:
    """What the cluster begins with."""
    return [
        Node(metadata=Metadata(name=NODE)),
        Namespace(metadata=Metadata(name="shop")),
        Namespace(metadata=Metadata(name="default")),
        IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.60.0.0/24")),
        IPPool(metadata=Metadata(name="six"), spec=IPPoolSpec(cidr="fd60::/112")),
    ]


@contextlib.contextmanager
def node(datastore: str, folder: Path) -> Iterator[Runtime]:
    """A node whose felix runs; all of it is removed at the end."""
    name = f"muslin-cni{os.getpid()}"
    asyncio.run(write(datastore, *start()))
    netns.create(name)
    run(name, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for words in ("addr add 10.9.0.1/24 dev up0", "link set up0 up", "link set up1 up", "route add default dev up0"):
        run(name, "ip", *words.split())
    argv = [sys.executable, "-m", "felix", "--node", NODE, "--datastore", datastore, "--run-dir", str(folder / "run")]
    with (folder / "felix.log").open("wb") as log:
        felix = subprocess.Popen(netns.command(f"/run/netns/{name}", *argv), cwd=HOUSE, stderr=log)
    made = Runtime(name, datastore, folder, felix)
    try:
        yield made
    finally:
        felix.send_signal(signal.SIGCONT)
        felix.terminate()
        try:
            felix.wait(10)
        finally:
            felix.kill()
            for each in (*made.containers, name):
                netns.delete(each)


async def write(datastore: str, *resources: Resource) -> None:
    store = GrpcStore(datastore)
    try:
        await store.txn([objects.put(each) for each in resources])
    finally:
        await store.close()


def stopwatch() -> Callable[[], float]:
    """Seconds since now, whenever it is asked."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
