"""A whole cluster: brought up from a topology, asked and disturbed, taken down without a trace.

    up:  record ── underlay, routers ── datastore ── manifests ─┬─ felix and bgp on every node ─┬─ all report ready
                                                                └─ pods: address, veth, endpoint┘
    down: end every process of the record and everyone in the lab's namespaces; remove namespaces, then the directory

`up` leaves everything running, so another process can `attach`. All waiting is on a real condition, with a bound.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from core import manifest
from core.addr import Address
from core.errors import MuslinError, NotFound, Unavailable
from core.resources import FelixStatus, Node, SpeakerStatus
from datastore.api import Put, Store
from datastore.ipam.ledger import Ledger
from lab import capture, conditions, ip, manifests, pods, probe, processes, state, topology, underlay
from lab.processes import Process
from lab.routers import Router
from lab.state import Record, Started
from lab.store import opened, read
from lab.topology import RouterKind, Topology
from lab.wiring import UPLINK, Wiring, wire
from linux import netns

HOUSE: Final = Path(__file__).parents[1]
FELIX: Final = "felix"
CNI: Final = "cni"
AGENTS: Final = (FELIX, "bgp", CNI)
DATASTORE: Final = "datastore"
PROBE: Final = "probe"
POLL_S: Final = 0.1
WAIT_S: Final = 120.0
"""How long a part of a cluster may take to come up: 5 s on an idle machine, much more in a User-Mode Linux one."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left: its exit code and output."""

    code: int
    out: str
    err: str


class Cluster:
    """A lab that is up, or on its way. Hosts are named as in the topology; pods are `namespace/name`."""

    def __init__(self, plan: Topology, record: Record) -> None:
        self.topology = plan
        self.wiring: Wiring = wire(plan)
        self.record = record
        self.directory = state.directory(record.name)
        self.socket = f"unix:{self.directory / 'datastore.sock'}"
        self.routers: Mapping[str, Router] = {
            name: underlay.router(record.name, self.wiring, name, self.directory) for name in self.wiring.routers
        }

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.record.name

    def namespace(self, host: str) -> str:
        """The network namespace of a host or pod."""
        known = {*self.wiring.hosts, *(pod.name for pod in self.topology.pods)}
        if host not in known:
            raise NotFound(f"lab {self.name} has no {host!r}; it has {', '.join(sorted(known))}")
        return underlay.namespace(self.name, host)

    def address(self, host: str, version: int | None = None) -> Address:
        """The address of a node, external host or pod; of the lab's first family when no IP version is asked for."""
        version = version or self.topology.families[0]
        own = [interface.ip for interface in self.wiring.addresses.get(host, ())]
        found = [each for each in (*own, *self.record.pod_addresses.get(host, ())) if each.version == version]
        if not found:
            raise NotFound(f"{host} has no IPv{version} address in lab {self.name}")
        return found[0]

    # --- processes

    def _record(self, **changes: object) -> None:
        self.record = msgspec.structs.replace(self.record, **changes)
        state.write(self.record)

    def _started(self, label: str, process: Process) -> None:
        self._record(processes={**self.record.processes, label: Started.of(process)})

    def process(self, label: str) -> Process:
        """A process by its label: `datastore`, `probe`, `felix@NODE`, `bgp@NODE`, `cni@NODE`."""
        return self.record.processes[label].process

    def log(self, label: str) -> Path:
        """Where a process of that label writes its log."""
        return self.directory / f"{label}.log"

    def run_dir(self, agent: str, node: str) -> Path:
        """Where an agent keeps its sockets; the CNI agent's is felix's, who tells it there how endpoints are."""
        return self.directory / f"{FELIX if agent == CNI else agent}@{node}"

    def start(self, label: str) -> None:
        """Start the datastore, or an agent (`felix@NODE`, `bgp@NODE`, `cni@NODE`), as when the lab comes up."""
        agent, _, node = label.partition("@")
        if agent == DATASTORE:
            arguments = ["--backend", f"sqlite:{self.directory / 'datastore.db'}", "--listen", self.socket]
        else:
            run = self.run_dir(agent, node)
            run.mkdir(exist_ok=True)
            arguments = ["--node", node, "--datastore", self.socket, "--run-dir", str(run)]
        argv = [sys.executable, "-m", "cli", agent, *arguments]
        namespace = self.namespace(node) if node else ""
        self._started(label, processes.start(argv, log=self.log(label), namespace=namespace, cwd=HOUSE))

    def kill(self, label: str, *, children: bool = False) -> None:
        """`kill -9` a process (with all its descendants, if asked), and wait until it is gone."""
        process = self.process(label)
        doomed = processes.tree(process) if children else (process,)
        for each in doomed:
            each.signal(signal.SIGKILL)
        processes.stop(doomed)

    async def muslin(self, *arguments: str, datastore: bool = True) -> Said:
        """Run `muslin ARGUMENTS --datastore SOCKET` from the project's directory."""
        argv = [sys.executable, "-m", "cli", *arguments, *(["--datastore", self.socket] if datastore else [])]
        child = await asyncio.create_subprocess_exec(
            *argv, cwd=HOUSE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            out, err = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return Said(child.returncode or 0, out.decode(), err.decode())

    async def apply(self, *paths: Path) -> None:
        """`muslin apply` files or folders, in one transaction; raises with what it said if it refused."""
        await self._manifests("apply", paths)

    async def delete(self, *paths: Path) -> None:
        """`muslin delete` what files or folders name."""
        await self._manifests("delete", paths)

    async def _manifests(self, verb: str, paths: Iterable[Path]) -> None:
        said = await self.muslin(verb, *(word for path in paths for word in ("-f", str(path.resolve()))))
        if said.code:
            raise MuslinError(f"muslin {verb} failed: {said.err.strip() or said.out.strip()}")

    # --- coming up

    async def build(self, progress: Progress) -> None:
        """Everything of `up` after the record. Manifests are read before anything is made."""
        users = [Path(self.record.topology).parent / each for each in self.topology.manifests]
        generated = self.directory / "generated.yaml"
        generated.write_text(self._generated(users))
        progress(f"lab {self.name}: {len(self.wiring.hosts)} hosts, {len(self.topology.pods)} pods")
        underlay.build(self.name, self.wiring)
        for name, router in self.routers.items():
            for number, process in enumerate(router.start()):
                self._started(f"router@{name}.{number}", process)
        progress(f"routers run: {', '.join(self.routers)}")
        self.start(DATASTORE)
        async with opened(self.socket) as store:
            await self.until(lambda: self._serving(store), "the datastore to answer", WAIT_S, DATASTORE)
            paths = [path for path in (generated, *users) if path != generated or path.stat().st_size]
            if paths:
                await self.apply(*paths)
            progress("manifests applied")
            for node in self.topology.nodes:
                for agent in AGENTS:
                    if agent != CNI or self.topology.runtimes:
                        self.start(f"{agent}@{node.name}")
            revision = await self._pods(store)
            progress("pods created; waiting for felix and bgp on every node")
            await self.until_programmed(revision, store=store)
            await self.until_peered(store=store)
        self._record(complete=True)
        progress(f"lab {self.name} is up")

    def _generated(self, users: Iterable[Path]) -> str:
        """What follows from the topology, as manifests; what users write themselves is left to them."""
        theirs = {resource.key for path in users for resource in manifest.load_path(path)}
        ours = [*manifests.nodes(self.topology, self.wiring), *manifests.namespaces(self.topology)]
        return manifests.as_yaml(each for each in ours if each.key not in theirs)

    async def _serving(self, store: Store) -> str:
        await store.list({Node.KIND})
        return ""

    async def _pods(self, store: Store) -> int:
        """Create every pod; the revision at which all their endpoints are known."""
        found = await pods.addresses(Ledger(store), self.topology.pods, self.topology.families)
        self._record(pods={name: tuple(map(str, addresses)) for name, addresses in found.items()})
        pods.create(self.name, self.topology.pods, found)
        self._started(PROBE, pods.serve(self.name, self.topology, self.directory))
        endpoints = [manifests.endpoint(pod, found[pod.name]) for pod in self.topology.pods]
        if not endpoints:
            return 0
        return await store.txn([Put(each.key, manifest.encode(each)) for each in endpoints])

    # --- waiting

    async def until(self, condition: Callable[[], object], what: str, timeout: float, *logs: str) -> None:
        """Wait until `condition()` says "" (it says what is missing); it may be a coroutine function.

        After `timeout` seconds, or when a process of `logs` has ended, raises with what was missing and the logs' ends.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            try:
                missing = condition()
                if asyncio.iscoroutine(missing):
                    missing = await missing
            except Unavailable as away:  # the datastore is on its way, or was killed on purpose
                missing = str(away)
            if not missing:
                return
            dead = [label for label in logs if not self.process(label).alive()]
            if dead or asyncio.get_running_loop().time() > deadline:
                why = f"{', '.join(dead)} ended" if dead else f"waited {timeout:.0f} s"
                raise MuslinError(f"{why} for {what}: {missing}{self._tails(dead or logs)}")
            await asyncio.sleep(POLL_S)

    def _tails(self, labels: Iterable[str]) -> str:
        text = ""
        for label in labels:
            if self.log(label).exists():
                lines = self.log(label).read_text(errors="replace").splitlines()[-12:]
                text += "\n".join([f"\n--- {label}", *lines])
        return text

    async def until_programmed(self, revision: int = 0, *, timeout: float = WAIT_S, store: Store | None = None) -> None:
        """Wait until felix on every node has programmed `revision`, with every endpoint up."""
        labels = [f"felix@{node.name}" for node in self.topology.nodes]
        async with opened(self.socket, store) as own:
            await self.until(lambda: self._unprogrammed(own, revision), "felix", timeout, *labels)

    async def _unprogrammed(self, store: Store, revision: int) -> str:
        found = await read(store, FelixStatus)
        return conditions.unprogrammed(self.topology, {each.metadata.name: each.status for each in found}, revision)

    async def until_peered(self, *, timeout: float = WAIT_S, store: Store | None = None) -> None:
        """Wait until bgp on every node, and every router, has all its sessions established."""
        labels = [f"bgp@{node.name}" for node in self.topology.nodes]
        async with opened(self.socket, store) as own:
            await self.until(lambda: self._unpeered(own), "BGP", timeout, *labels)

    async def _unpeered(self, store: Store) -> str:
        found = await read(store, SpeakerStatus)
        sessions = {name: router.sessions() for name, router in self.routers.items()}
        return conditions.unpeered(self.topology, {each.metadata.name: each.status for each in found}, sessions)

    async def until_routed(self, *, timeout: float = WAIT_S) -> None:
        """Wait until the kernels of all nodes, and of all routers that speak BGP, have a route to every pod."""
        await self.until(self._unrouted, "every kernel to have a route to every pod", timeout)

    def _unrouted(self) -> str:
        speaking = [name for name, each in self.routers.items() if each.wiring.kind is not RouterKind.KERNEL]
        hosts = (*speaking, *(node.name for node in self.topology.nodes))
        held = {
            host: {net for version in self.topology.families for net in ip.routes(self.namespace(host), version)}
            for host in hosts
        }
        return conditions.unrouted(self.record.pod_addresses, held)

    # --- asking

    def sources(self, hosts: Iterable[str] | None = None) -> Mapping[str, probe.Source]:
        """Places to ask from: the hosts or pods named, or all pods."""
        return {host: probe.Source(self.namespace(host)) for host in self._pods_or(hosts)}

    def destinations(self, hosts: Iterable[str] | None = None, version: int | None = None) -> Mapping[str, Address]:
        """Places to ask: the hosts or pods named, or all pods."""
        return {host: self.address(host, version) for host in self._pods_or(hosts)}

    def _pods_or(self, hosts: Iterable[str] | None) -> tuple[str, ...]:
        return tuple(pod.name for pod in self.topology.pods) if hosts is None else tuple(hosts)

    async def matrix(
        self,
        sources: Iterable[str] | None = None,
        destinations: Iterable[str] | None = None,
        *,
        protocol: str = "tcp",
        port: int = 8080,
        timeout: float = 1.0,
        version: int | None = None,
    ) -> Mapping[tuple[str, str], probe.Answer]:
        """Who reaches whom, by (source, destination); all pods when none are named. `version` is as in `address`."""
        return await probe.matrix(
            self.sources(sources), self.destinations(destinations, version), protocol, port, timeout
        )

    def transfer(
        self, source: str, destination: str, port: int = 8080, *, version: int | None = None
    ) -> AbstractAsyncContextManager[probe.Transfer]:
        """A TCP transfer that runs while the block does."""
        return probe.transfer(probe.Source(self.namespace(source)), self.address(destination, version), port)

    def capture(self, host: str, *, protocol: int = capture.IPIP, version: int = 4) -> capture.Capture:
        """Count packets of an IP protocol on a host's uplink, from now on."""
        return capture.Capture(self.namespace(host), UPLINK, protocol=protocol, version=version)

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The argument vector that runs `argv` in a host's or pod's namespace."""
        return netns.command(self.namespace(host), *argv)


async def up(path: Path, progress: Progress, *, name: str | None = None) -> Cluster:
    """Bring a topology up, as the lab `name` (the topology's own when None), and leave it running.

    What a lab of that name left behind when it crashed is removed first; one that is up is an error. When anything
    fails, or the caller is cancelled, all is taken down again.
    """
    underlay.require_root()
    plan = topology.load(path)
    lab = name or plan.name
    left = state.read(lab)
    if left is not None and (left.up or left.coming_up):
        how = "up" if left.up else "coming up"
        raise MuslinError(f"lab {lab} is {how} already: take it down first, with `muslin lab down {lab}`")
    underlay.require_tools(plan)
    await down(lab)
    (builder,) = processes.known([os.getpid()])
    record = Record(name=lab, topology=str(path.resolve()), builder=Started.of(builder))
    state.write(record)
    cluster = Cluster(plan, record)
    try:
        await cluster.build(progress)
    except BaseException:
        await _to_the_end(down(lab, progress))
        raise
    return cluster


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Do `work` whole, however often we are cancelled meanwhile; the cancellation follows it.

    Ctrl-C reaches the `ip` that we wait for as well, so its failure may come before our own cancellation is told.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as ours:
            cancelled = ours
    task.result()
    if cancelled:
        raise cancelled


async def down(lab: str, progress: Progress | None = None) -> None:
    """Take a lab down, whatever state it is in; one that is not there is a success."""
    underlay.require_root()
    record = state.read(lab)
    names = netns.names(underlay.prefix(lab))
    if progress:
        progress(f"taking lab {lab} down" if record or names else f"lab {lab} is not up: nothing to take down")
    own = {label: each.process for label, each in record.processes.items()} if record else {}
    agents = [process for label, process in own.items() if label.partition("@")[0] in AGENTS]
    # agents first, while the datastore and the routers still answer: so they end in order, and quickly
    await asyncio.to_thread(processes.stop, agents)
    await asyncio.to_thread(processes.stop, {*own.values(), *processes.known(netns.inhabitants(names))})
    for each in names:
        netns.delete(each)
    state.forget(lab)


def attach(lab: str) -> Cluster:
    """A lab that is up, from another process."""
    record = state.read(lab)
    if record is None:
        known = ", ".join(state.all_names()) or "none"
        raise NotFound(f"no lab {lab} is up (up now: {known}); start it with `muslin lab up FILE`")
    return Cluster(topology.load(Path(record.topology)), record)


def exec_in(lab: str, host: str, argv: Sequence[str]) -> NoReturn:
    """Become a command in a host's or pod's namespace: its terminal, signals and exit code are ours."""
    underlay.require_root()
    found = attach(lab).command(host, argv)
    os.execvp(found[0], found)
