"""A node for real: a network namespace with a datastore server and a felix of its own, and a runtime that calls CNI."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cni import model
from cni.collector import Collector
from cni.model import Config, Question
from cni.plugin import Plugin
from core.endpoint_feed import SOCKET, Outcomes
from core.names import workload_interface
from core.resources import IPAMBlock, IPAMHandle, IPPool, Metadata, Namespace, Node, Resource, WorkloadEndpoint
from core.resources.network import IPPoolSpec
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from datastore.ipam.ledger import Ledger
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

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of its namespace."""
        opened = os.open(f"/run/netns/{self.netns}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield opened
        finally:
            os.close(opened)

    def environment(self, command: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": f"/run/netns/{self.netns}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.namespace};K8S_POD_NAME={self.name};COLOUR=blue",
            "CNI_PATH": "/opt/cni/bin",
        }


class Agent:
    """The CNI plugin as its agent runs it: a thread in the node's namespace, with an event loop of its own."""

    def __init__(self, namespace: str, datastore: str, run_dir: Path) -> None:
        self._namespace, self._datastore, self._run_dir = namespace, datastore, run_dir
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._began = threading.Event()
        self.unheard: set[str] = set()
        """Containers whose ADD succeeded just when nobody waited any more: their runtime owes a DEL."""
        self._thread = threading.Thread(target=self._run, name="cni agent")

    def __enter__(self) -> Agent:
        self._thread.start()
        assert self._began.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop
        assert self._stop
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with netns.inside(self._namespace):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        config = Config(node=NODE, datastore=self._datastore, run_dir=self._run_dir)
        store, outcomes = GrpcStore(self._datastore), Outcomes(self._run_dir / SOCKET)
        self.plugin = Plugin(config, store, Ledger(store), outcomes)
        collector = Collector(config, store, self.plugin.busy)
        self.plugin.collect_with(collector)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._following = asyncio.create_task(self.plugin.follow_pods())
        others = [asyncio.create_task(outcomes.run()), self._following]
        self._began.set()
        await self._stop.wait()
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await store.close()

    async def hear_no_more(self) -> None:
        """From now on it knows of Pods what it has heard up to now, as one does that is a moment late."""
        assert self._loop

        async def stop() -> None:
            self._following.cancel()
            await asyncio.wait([self._following])

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(stop(), self._loop))

    async def ask(self, question: Question) -> model.Answer:
        """What the plugin answers. Cancelled, so is the question, and this ends when it has been taken back."""
        assert self._loop
        asked: concurrent.futures.Future[model.Answer] = concurrent.futures.Future()
        begun: list[asyncio.Task[model.Answer]] = []

        def begin() -> None:
            begun.append(asyncio.create_task(self.plugin.answer(question)))
            begun[0].add_done_callback(end)

        def end(task: asyncio.Task[model.Answer]) -> None:
            if task.cancelled():
                asked.set_exception(asyncio.CancelledError())
            else:
                asked.set_result(task.result())

        self._loop.call_soon_threadsafe(begin)
        answer = asyncio.wrap_future(asked)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            self._loop.call_soon_threadsafe(lambda: begun[0].cancel())
            await asyncio.wait([answer])
            if not answer.cancelled() and answer.result().status == 0:
                self.unheard.add(question.environment["CNI_CONTAINERID"])
            raise


@dataclass
class Runtime:
    """The node, seen as a container runtime sees it."""

    namespace: str
    datastore: str
    folder: Path
    felix: subprocess.Popen[bytes]
    agent: Agent
    containers: list[str] = field(default_factory=list)

    def container(self, pod: str) -> Pod:
        """A new container of a pod, with a network namespace."""
        number = len(self.containers)
        made = f"{self.namespace}-{number}"
        self.containers.append(made)
        netns.create(made)
        return Pod(pod, f"c{number}f00d{os.getpid():x}", made)

    def config(self, **more: object) -> dict[str, object]:
        return {"cniVersion": "1.0.0", "name": NETWORK, "type": "muslin", **more}

    async def ask(
        self, environment: Mapping[str, str | None], given: Mapping[str, object] | bytes, agent: Agent | None = None
    ) -> Answer:
        """What the executable does: the environment, the configuration, and the namespace opened if it is there."""
        known = {key: text for key, text in environment.items() if text is not None}
        stdin = given if isinstance(given, bytes) else json.dumps(given).encode()
        opened = None
        with contextlib.suppress(OSError, KeyError):
            opened = os.open(known["CNI_NETNS"], os.O_RDONLY | os.O_CLOEXEC)
        try:
            async with asyncio.timeout(PATIENCE_S):
                question = Question(environment=known, stdin=stdin, netns=opened)
                answer = await (agent or self.agent).ask(question)
        finally:
            if opened is not None:
                os.close(opened)
        return Answer(answer.status, json.loads(answer.stdout) if answer.stdout else {})

    async def call(self, command: str, pod: Pod, **more: object) -> Answer:
        """A call and its answer."""
        return await self.ask(pod.environment(command), self.config(**more))

    @contextlib.asynccontextmanager
    async def begun(self, command: str, pod: Pod, **more: object) -> AsyncIterator[asyncio.Task[Answer]]:
        """A call under way."""
        task = asyncio.create_task(self.call(command, pod, **more))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def add(self, pod: Pod, **more: object) -> Answer:
        answer = await self.call("ADD", pod, **more)
        assert answer.status == 0, answer
        return answer

    async def remove(self, pod: Pod) -> None:
        answer = await self.call("DEL", pod)
        assert answer == Answer(0, {}), answer

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        opened = GrpcStore(self.datastore)
        try:
            yield opened
        finally:
            await opened.close()

    async def left(self) -> tuple[list[str], list[str], list[str]]:
        """Endpoints, handles (each twice: of its block, and its own), and workload interfaces that are there."""
        async with self.store() as store:
            endpoints = [str(each.key) for each in (await store.list({WorkloadEndpoint.KIND})).entries]
            handles = []
            for entry in (await store.list({IPAMBlock.KIND})).entries:
                found = await objects.read(store, IPAMBlock, entry.key.name)
                assert found
                handles += list(found[0].spec.allocations.values())
            handles += [each.key.name for each in (await store.list({IPAMHandle.KIND})).entries]
        return endpoints, handles, self.interfaces()

    @contextlib.asynccontextmanager
    async def without_pool(self, name: str) -> AsyncIterator[None]:
        """While the pool is disabled."""
        async with self.store() as store:
            found = await objects.read(store, IPPool, name)
            assert found
            pool = found[0]
            disabled = msgspec.structs.replace(pool, spec=msgspec.structs.replace(pool.spec, disabled=True))
            await objects.write(store, disabled)
            try:
                yield
            finally:
                await objects.write(store, pool)

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
    made = Runtime(name, datastore, folder, felix, Agent(name, datastore, folder / "run"))
    try:
        with made.agent:
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


NOTHING: tuple[list[str], list[str], list[str]] = ([], [], [])


def pings(namespace: str, address: str) -> bool:
    argv = netns.command(namespace, "ping", "-c1", "-W1", address)
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def stopped_felix(runtime: Runtime) -> Iterator[None]:
    runtime.felix.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        runtime.felix.send_signal(signal.SIGCONT)


STEPS: dict[str, Callable[[tuple[list[str], list[str], list[str]]], bool]] = {
    "a wire": lambda left: bool(left[2]),
    "an endpoint": lambda left: bool(left[0]),
}
