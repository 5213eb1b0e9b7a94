"""A node as an administrator runs it: a namespace with felix, the CNI agent and the installed executable."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asking import Executable, Heard, install
from cni_node import write

from core.names import workload_interface
from core.resources import (
    IPAMBlock,
    IPAMHandle,
    IPPool,
    Metadata,
    Namespace,
    Node,
    Resource,
    WorkloadEndpoint,
)
from core.resources.network import IPPoolSpec
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from linux import netns

HOUSE = Path(__file__).parents[2]
PATIENCE_S = 30.0
NETWORK = "k8s-pod-network"
NODE = "n1"


@dataclass(frozen=True, slots=True)
class Left:
    """What there is of pods on the node: endpoints, handles, addresses that are given, interfaces."""

    endpoints: tuple[str, ...] = ()
    handles: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """A container: its id, its namespace, and the pod that it is of."""

    id: str
    netns: str
    pod: str

    @property
    def interface(self) -> str:
        return workload_interface("shop", self.pod)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CNI_CONTAINERID": self.id,
            "CNI_NETNS": f"/run/netns/{self.netns}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={self.pod}",
            "CNI_PATH": "/opt/cni/bin",
        }


@dataclass
class Site:
    """The node. Its agents can be killed, stopped and started again."""

    namespace: str
    datastore: str
    folder: Path
    executable: Executable
    felix: subprocess.Popen[bytes] | None = None
    cni: subprocess.Popen[bytes] | None = None
    made: list[str] = field(default_factory=list)

    def container(self, pod: str = "") -> Container:
        """A new container, with a namespace of its own."""
        number = len(self.made)
        name = f"{self.namespace}-{number}"
        self.made.append(name)
        netns.create(name)
        return Container(f"c{number}f00d{os.getpid():x}", name, pod or f"pod-{number}")

    def conf(self, **more: object) -> bytes:
        return json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "type": "muslin", **more}).encode()

    async def call(self, command: str, container: Container, **more: object) -> Heard:
        """A call of the executable, from beginning to end."""
        return await self.executable.run(command, self.conf(**more), **container.environment)

    async def add(self, container: Container) -> tuple[str, ...]:
        """ADD, which succeeds; the addresses."""
        heard = await self.call("ADD", container)
        assert heard.status == 0, heard
        return tuple(each["address"].partition("/")[0] for each in heard.document["ips"])

    async def remove(self, container: Container) -> None:
        heard = await self.call("DEL", container)
        assert (heard.status, heard.out) == (0, b"")

    @contextlib.asynccontextmanager
    async def begun(self, command: str, container: Container) -> AsyncIterator[asyncio.subprocess.Process]:
        """A call under way."""
        async with self.executable.begun(command, self.conf(), **container.environment) as process:
            yield process

    def start_felix(self) -> None:
        self.felix = self._agent("felix")

    def start_cni(self) -> None:
        self.cni = self._agent("cni")

    def _agent(self, room: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", room, "--node", NODE, "--datastore", self.datastore]
        argv += ["--run-dir", str(self.folder / "run")]
        with (self.folder / f"{room}.log").open("ab") as log:
            return subprocess.Popen(netns.command(f"/run/netns/{self.namespace}", *argv), cwd=HOUSE, stderr=log)

    async def serving(self) -> None:
        """Return when STATUS is fine."""

        async def fine() -> bool:
            return (await self.executable.run("STATUS", self.conf(cniVersion="1.1.0"))).status == 0

        await until_so(fine)

    def kill_cni(self) -> None:
        assert self.cni
        self.cni.kill()
        self.cni.wait(10)

    @contextlib.contextmanager
    def stopped(self, agent: subprocess.Popen[bytes] | None) -> Iterator[None]:
        """An agent does nothing meanwhile."""
        assert agent
        agent.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            agent.send_signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        opened = GrpcStore(self.datastore)
        try:
            yield opened
        finally:
            await opened.close()

    async def left(self) -> Left:
        """What there is of pods, in the datastore and in the kernel."""
        async with self.store() as store:
            endpoints = [str(each.key.name) for each in (await store.list({WorkloadEndpoint.KIND})).entries]
            handles = [str(each.key.name) for each in (await store.list({IPAMHandle.KIND})).entries]
            blocks = [each.key.name for each in (await store.list({IPAMBlock.KIND})).entries]
            found = [await objects.read(store, IPAMBlock, name) for name in blocks]
        given = [f"{each[0].metadata.name}+{place}" for each in found if each for place in each[0].spec.allocations]
        return Left(tuple(endpoints), tuple(handles), tuple(given), self.interfaces())

    def interfaces(self) -> tuple[str, ...]:
        done = subprocess.run(
            netns.command(f"/run/netns/{self.namespace}", "ip", "-j", "link", "show"),
            check=True,
            capture_output=True,
        )
        return tuple(each["ifname"] for each in json.loads(done.stdout) if each["ifname"].startswith("mus"))

    async def until(self, true: Callable[[Left], bool]) -> None:
        """Wait until what there is is so."""

        async def so() -> bool:
            return true(await self.left())

        await until_so(so)

    def close(self) -> None:
        for agent in (self.cni, self.felix):
            if agent is not None:
                agent.send_signal(signal.SIGCONT)
                agent.terminate()
                try:
                    agent.wait(15)
                finally:
                    agent.kill()
        for each in (*self.made, self.namespace):
            netns.delete(each)

    def log(self, room: str = "cni") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{room}.log").read_text().splitlines()]


async def until_so(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what gives no event."""
    async with asyncio.timeout(PATIENCE_S):
        while not await true():  # noqa: ASYNC110 - the kernel and two stores tell nobody
            await asyncio.sleep(0.002)


def start() -> list[Resource]:
    """What the cluster begins with."""
    return [
        Node(metadata=Metadata(name=NODE)),
        Namespace(metadata=Metadata(name="shop")),
        IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.61.0.0/24")),
        IPPool(metadata=Metadata(name="six"), spec=IPPoolSpec(cidr="fd61::/112")),
    ]


@contextlib.contextmanager
def site(datastore: str, folder: Path) -> Iterator[Site]:
    """A node whose agents run; all of it is removed at the end."""
    name = f"muslin-cna{os.getpid()}"
    asyncio.run(write(datastore, *start()))
    netns.create(name)
    (folder / "run").mkdir()
    made = Site(name, datastore, folder, install(folder, folder / "run" / "cni.sock"))
    try:
        made.start_felix()
        made.start_cni()
        asyncio.run(made.serving())
        yield made
    finally:
        made.close()
