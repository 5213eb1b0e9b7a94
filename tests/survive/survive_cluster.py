"""A cluster whose every process can be killed and started again: a datastore, and nodes with felix and a CNI agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.resources import IPPool, Metadata, Namespace, NetworkPolicy, Node, Resource
from core.resources.network import IPPoolSpec
from core.resources.policy import Action, Direction, EntityRule, NetworkPolicySpec, Rule
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from linux import netns
from tests.cni.asking import Executable, Heard, install

HOUSE = Path(__file__).parents[2]
NETWORK = "k8s-pod-network"
NAMESPACE = "shop"
ALLOWED, DENIED = 8080, 8081
"""UDP ports of every pod: its policy lets in the one, from anywhere, and not the other."""

PATIENCE_S = 60.0
"""How long something that must happen may take on a machine that has other things to do."""


class Process:
    """One process; its log is kept over its lives."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._argv, self.log = argv, log
        self._running: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self._running
        return self._running.pid

    @property
    def runs(self) -> bool:
        return self._running is not None

    def start(self) -> None:
        assert self._running is None
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(self._argv, cwd=HOUSE, stderr=log)
        self.starts += 1

    async def end(self, by: signal.Signals) -> int:
        """Send a signal that ends it, and wait until it has ended; its exit status."""
        assert self._running
        self._running.send_signal(signal.SIGCONT)
        self._running.send_signal(by)
        running, self._running = self._running, None
        try:
            return await asyncio.to_thread(running.wait, PATIENCE_S)
        finally:
            running.kill()

    async def kill(self) -> None:
        """End it at once; it has not ended by itself before."""
        status = await self.end(signal.SIGKILL)
        assert status == -signal.SIGKILL, f"it ended with {status}: {self.log.read_text()[-4000:]}"

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does nothing meanwhile, and its peers hear nothing of it."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def said(self) -> list[dict[str, object]]:
        """Its log."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@dataclass(frozen=True, slots=True)
class Container:
    """A container: its id, where its namespace is, and the pod that it is of."""

    id: str
    netns: str
    pod: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CNI_CONTAINERID": self.id,
            "CNI_NETNS": netns.path(self.netns),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={self.pod}",
            "CNI_PATH": "/opt/cni/bin",
        }


class Machine:
    """A node: a network namespace, a folder, felix, the CNI agent, and the executable that runtimes call."""

    def __init__(self, node: str, datastore: str, folder: Path, grace_s: float) -> None:
        self.node, self.folder, self.place = node, folder, f"muslin-sv{os.getpid()}-{node}"
        self.made: set[str] = set()
        folder.mkdir()
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        words = ("--node", node, "--datastore", datastore, "--run-dir", str(self.run_dir))
        self.felix = self._process("felix", "-m", "felix", *words)
        self.cni = self._process("cni", "-m", "cli", "cni", *words, "--leak-grace", str(grace_s))
        self.executable: Executable = install(folder, self.run_dir / "cni.sock")

    def _process(self, name: str, *words: str) -> Process:
        argv = netns.command(netns.path(self.place), sys.executable, *words)
        return Process(argv, self.folder / f"{name}.log")

    def start(self, *, felix: bool = True) -> None:
        """A new network namespace with an uplink, through which a pod's gateway is answered for; and both agents."""
        netns.create(self.place)
        self.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for words in (
            "addr add 10.9.0.1/24 dev up0",
            "link set up0 up",
            "link set up1 up",
            "route add default dev up0",
        ):
            self.run("ip", *words.split())
        if felix:
            self.felix.start()
        self.cni.start()

    async def serving(self) -> None:
        """Return when STATUS is fine."""

        async def fine() -> bool:
            return (await self.ask("STATUS", conf(cniVersion="1.1.0"))).status == 0

        await until(fine)

    def namespace(self, name: str) -> str:
        """A new network namespace for a pod."""
        made = f"{self.place}-{name}"
        netns.create(made)
        self.made.add(made)
        return made

    def without(self, namespace: str) -> None:
        """That namespace is gone."""
        netns.delete(namespace)
        self.made.discard(namespace)

    async def call(self, command: str, container: Container, **more: object) -> Heard:
        """A call of the executable, as a runtime makes it, from beginning to end."""
        return await self.ask(command, conf(**more), **container.environment)

    async def ask(self, command: str, given: bytes, **environment: str) -> Heard:
        async with asyncio.timeout(2 * PATIENCE_S), self.executable.begun(command, given, **environment) as process:
            out, err = await process.communicate()
            assert not err, err
            assert process.returncode is not None
            return Heard(process.returncode, out)

    def run(self, *argv: str) -> str:
        """What a command says in the node's namespace."""
        words = netns.command(netns.path(self.place), *argv)
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def interfaces(self) -> list[str]:
        listed = json.loads(self.run("ip", "-j", "link", "show"))
        return [each["ifname"] for each in listed if each["ifname"].startswith("mus")]

    async def close(self) -> None:
        for process in (self.cni, self.felix):
            if process.runs:
                await process.end(signal.SIGTERM)
        for each in self.made:
            netns.delete(each)
        self.leave()

    def leave(self) -> None:
        """The node's own network namespace is gone."""
        netns.delete(self.place)


def conf(**more: object) -> bytes:
    """The network, as an administrator wrote it."""
    return json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "type": "muslin", **more}).encode()


@dataclass
class Cluster:
    """All of it."""

    folder: Path
    address: str
    datastore: Process
    machines: list[Machine] = field(default_factory=list)

    def machine(self, node: str, grace_s: float = 900.0, folder: str = "") -> Machine:
        """A node, not started."""
        made = Machine(node, self.address, self.folder / (folder or node), grace_s)
        self.machines.append(made)
        return made

    async def datastore_started(self) -> None:
        """Start the datastore, and return when it listens."""
        said = self.datastore.log
        before = said.stat().st_size if said.exists() else 0

        async def listens() -> bool:
            return b"datastore.listening" in said.read_bytes()[before:]

        self.datastore.start()
        await until(listens)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        opened = GrpcStore(self.address)
        try:
            yield opened
        finally:
            await opened.close()

    async def write(self, *resources: Resource) -> None:
        async with self.store() as store:
            await store.txn([objects.put(each) for each in resources])

    async def muslin(self, *words: str) -> tuple[int, str]:
        """The exit status of a command of `muslin`, and what it said."""
        argv = [sys.executable, "-m", "cli", *words, "--datastore", self.address]
        done = await asyncio.to_thread(subprocess.run, argv, cwd=HOUSE, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


@contextlib.asynccontextmanager
async def cluster(folder: Path, *resources: Resource) -> AsyncIterator[Cluster]:
    """A datastore that runs and holds `resources`; everything that was made of it is removed at the end."""
    address = f"unix:{folder}/store.sock"
    argv = [sys.executable, "-m", "cli", "datastore", "--backend", f"sqlite:{folder}/db", "--listen", address]
    made = Cluster(folder, address, Process(argv, folder / "datastore.log"))
    try:
        await made.datastore_started()
        await made.write(Namespace(metadata=Metadata(name=NAMESPACE)), policy(), *resources)
        yield made
    finally:
        for each in made.machines:
            await each.close()
        if made.datastore.runs:
            await made.datastore.end(signal.SIGTERM)


def node(name: str) -> Node:
    return Node(metadata=Metadata(name=name))


def pool(name: str, cidr: str, block_size: int | None = None) -> IPPool:
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, block_size=block_size))


def policy() -> NetworkPolicy:
    """Every pod may be asked at one port, and may ask everywhere."""
    rules = [
        Rule(
            action=Action.ALLOW,
            protocol="UDP",
            source=EntityRule(selector="projectcalico.org/orchestrator == 'k8s'"),
            destination=EntityRule(ports=[ALLOWED]),
        )
    ]
    spec = NetworkPolicySpec(
        selector="all()",
        types=[Direction.INGRESS, Direction.EGRESS],
        ingress=rules,
        egress=[Rule(action=Action.ALLOW)],
    )
    return NetworkPolicy(metadata=Metadata(name="ask", namespace=NAMESPACE), spec=spec)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what gives no event."""
    async with asyncio.timeout(PATIENCE_S):
        while not await true():  # noqa: ASYNC110 - the kernel and other processes tell nobody
            await asyncio.sleep(0.02)
