"""The agent: wiring only. What is decided is in `felix.desired`; how it gets into the kernel, in `core.reconcile`.

    datastore.follow ── snapshot ──┐
                                   ├── decide: desired() ── set_desired ──> reconcile.run ──> kernel
    linux.links ─────── facts ─────┘                            ^                 │
        │                                                       │                 └── progress ── status ──> datastore
        └── a route of ours was taken, a rule of ours changed ── distrust

    reconcilers, in this order, each without waiting for the one before to succeed:
        sysctls   forwarding and proxy ARP stand before a route leads anywhere
        tunnels   the device must exist before routes through it
        addresses of lo, where pods call the speaker
        nft       an endpoint is judged before it can be reached
        routes    last: they are what lets packets in

    nft is done ──> felix.cutting: what lives and is denied by now ends

Nothing that depends on state is written before the first complete snapshot. What depends on none comes first of all:
on a host without our table (it was rebooted) the frame is programmed with empty maps, which cuts every workload off;
until then one with an interface and a route would go unjudged, as the kernel forwards whatever no table forbids. A
table that stands, an earlier felix's, is left alone. A snapshot from disk, because the datastore is away, is programmed
on a host that holds nothing of ours but the frame (its pods would stay cut off); what an earlier felix left standing
may be newer than the disk, and is left alone until the datastore answers. On exit everything stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from core import clock
from core.endpoint_feed import SOCKET, Feed
from core.errors import Conflict, MuslinError
from core.health import Health
from core.latest import Latest
from core.memo import Memo
from core.names import NFT_TABLE
from core.nftables import Element
from core.reconcile import Driver, Plan, Progress, Reconciler
from core.reconcile import run as reconcile
from core.report import keep_reported
from core.resources import HostEndpoint
from core.resources.status import FelixState
from core.routing import RouteProtocol
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import Store
from datastore.client import GrpcStore
from datastore.follow import follow
from datastore.ipam.ledger import Ledger
from felix import filter as frame
from felix import status, tunnel_address
from felix.cutting import Cutter
from felix.desired import Judge, desired
from felix.endpoints import device_sysctls, lost_routes
from felix.hosts import is_workloads
from felix.kinds import KINDS
from felix.metrics import Metrics
from felix.model import Config, Desired, Judged
from felix.quarrel import CALM_S, Quarrel
from linux import malloc, rights
from linux.addresses import AddressDriver
from linux.alone import alone
from linux.links import watch_facts
from linux.model import Facts
from linux.nft import NftDriver
from linux.nft_objects import flatten
from linux.nft_parts import Flattener
from linux.routes import RouteDriver
from linux.sysctl import SysctlDriver
from linux.tunnels import TunnelDriver

COMPONENTS: Final = ("datastore", "breaker", "sysctls", "tunnels", "addresses", "nft", "routes")
"""What felix says of its health."""

CLOSED: Final = flatten(frame.closed())
"""What our table holds when no workload is known: every one is cut off."""

STATUS_EVERY_S: Final = 0.1
"""The least time between two writes of the status."""

SETTLE_S: Final = 0.001
"""How long what the kernel says of links is gathered: a pod waits for it."""

RETRY_S: Final = 1.0
"""How long to wait before something that the datastore refused is tried again."""

log = structlog.get_logger()


async def run(config: Config, health: Health | None = None, metrics: Metrics | None = None) -> None:
    """Make this host what the datastore says, until cancelled. Raises `Unsupported` when the host cannot be ours, and
    `Unavailable` while another felix has this network namespace.

    `health` (of COMPONENTS) hears how each part is, `metrics` what it comes to.
    """
    malloc.share_heap()
    rights.require_net_admin()
    rights.require_nftables()
    with alone("felix"):
        store = GrpcStore(config.datastore)
        try:
            with contextlib.closing(Agent(config, store, health, metrics)) as agent:
                await agent.serve()
        finally:
            await store.close()


async def cleanup() -> None:
    """Remove what is felix's from this host: routes, the nftables table, tunnels, addresses. Pods lose their network.

    Raises `MuslinError` naming what could not be removed.
    """
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        routes = stack.enter_context(contextlib.closing(RouteDriver(RouteProtocol.FELIX)))
        rules = stack.enter_context(contextlib.closing(NftDriver()))
        tunnels = stack.enter_context(contextlib.closing(TunnelDriver()))
        addresses = stack.enter_context(contextlib.closing(AddressDriver()))
        drivers: tuple[Driver[Any, Any], ...] = (routes, tunnels, addresses)
        for driver in drivers:
            errors = await driver.apply(Plan(upsert={}, delete=await driver.read()))
            failed += [f"{driver.name}: {error}" for error in errors.values()]
        await rules.remove()  # last: while there is a route to a pod, its packets are judged
    if failed:
        raise MuslinError("; ".join(failed))


class Agent:
    """One felix. Everything here runs in one event loop; what is shared between its tasks is assigned whole."""

    def __init__(
        self, config: Config, store: Store, health: Health | None = None, metrics: Metrics | None = None
    ) -> None:
        self._config, self._store = config, store
        self._health = health or Health(COMPONENTS)
        self._metrics = metrics
        self._snapshot: Snapshot | None = None
        self._facts: Facts | None = None
        self._judge, self._memo = Judge(config.node), Memo()
        self._judged: tuple[Snapshot, Judged] | None = None
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._tried = asyncio.Condition()
        self._routes_driver = RouteDriver(RouteProtocol.FELIX)
        self._nft_driver = NftDriver()
        self._flattener = Flattener()
        self._cutter = Cutter(self._fence_changed)
        self._sysctl_driver = SysctlDriver()
        self._sysctls = Reconciler(self._sysctl_driver)
        self._tunnel_driver = TunnelDriver()
        self._tunnels = Reconciler(self._tunnel_driver)
        self._address_driver = AddressDriver()
        self._addresses = Reconciler(self._address_driver)
        self._nft = Reconciler(self._nft_driver)
        self._routes = Reconciler(self._routes_driver)
        self._each = (self._sysctls, self._tunnels, self._addresses, self._nft, self._routes)
        self._wanted: dict[int, Desired] = {}  # by generation: a number for each state that was ever decided
        self._generation = 0
        self._programmed = 0
        self._fresh = False
        self._no_tunnel_address = ""
        self._fought = ""
        self._settling: Latest[Snapshot] = Latest()
        self._said: Latest[FelixState] = Latest()
        self._feed = Feed()
        self._since, self._ready = clock.now(), False

    def close(self) -> None:
        """Let go of the kernel; everything in it stays."""
        for driver in (self._routes_driver, self._nft_driver, self._tunnel_driver, self._address_driver):
            driver.close()
        self._cutter.close()

    async def serve(self) -> None:
        """Run every part until cancelled, or until one fails."""
        await self._close_what_is_open()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="snapshots")
            group.create_task(self._watch_links(), name="facts")
            group.create_task(self._watch_rules(), name="rules")
            group.create_task(self._decide(), name="decide")
            group.create_task(self._keep_tunnel_address(), name="tunnel address")
            group.create_task(self._write_status(), name="status")
            group.create_task(self._feed.serve(self._config.run_dir / SOCKET), name="feed")
            group.create_task(self._cutter.run(), name="connections")
            group.create_task(reconcile(self._each, self._wake, self._on_progress), name="reconcile")

    async def _close_what_is_open(self) -> None:
        """Give a host without our table the frame, so that no workload is ever forwarded unjudged.

        Raises `MuslinError` if that cannot be done: there is nothing safe to do after.
        """
        standing = await self._nft_driver.read()
        if standing:
            self._cutter.adopt({key: str(value) for key, value in standing.items() if isinstance(key, Element)})
            return
        refused = await self._nft_driver.apply(Plan(upsert=CLOSED, delete={}))
        if refused:
            raise MuslinError(f"no pod of this host can be cut off: {next(iter(refused.values()))}")
        log.info("nft.closed", table=NFT_TABLE, why="there was no table: every workload is cut off until it is known")

    async def _follow(self) -> None:
        latest: Latest[Snapshot] = Latest()
        async with asyncio.TaskGroup() as group:
            disk, node = self._config.run_dir / "felix.snapshot", self._config.node
            group.create_task(follow(self._store, KINDS, latest, disk, node=node))
            async for snapshot in latest:
                self._snapshot = snapshot
                if snapshot.stale:
                    self._health.degraded("datastore", "the datastore is away: felix works from its last snapshot")
                else:
                    self._health.ok("datastore")
                self._changed.set()

    async def _watch_links(self) -> None:
        def drift(devices: Collection[int]) -> None:
            wanted = self._wanted.get(self._generation)
            if devices and wanted and (keys := lost_routes(wanted.endpoints, self._facts, devices)) is not None:
                self._routes.forget(keys)
            else:
                self._routes.distrust()
                self._addresses.distrust()
            self._changed.set()  # first of all it is decided by what is there now

        ours = (self._routes_driver.port,)
        async for facts in watch_facts(ports=ours, on_drift=drift, settle_s=SETTLE_S):
            before, self._facts = self._facts or facts, facts
            for name, link in before.links.items():
                if facts.links.get(name) is not link and (
                    name not in facts.links or facts.links[name].index != link.index
                ):
                    self._sysctls.forget(device_sysctls(name))  # one of that name that comes again has the defaults
            if self._matters(before, facts):
                self._changed.set()

    def _matters(self, before: Facts, facts: Facts) -> bool:
        """Whether what is wanted may be another now: not when all that changed are interfaces of pods without endpoint.

        A pod has its interface before its endpoint is written, and with that comes a decision in any case.
        """
        wanted, snapshot = self._wanted.get(self._generation), self._snapshot
        if wanted is None or snapshot is None or before is facts or before.gateways != facts.gateways:
            return True
        if snapshot.of(HostEndpoint):
            return True
        known = {each.interface for each in wanted.endpoints} | self._cutter.interfaces
        names = before.links.keys() | facts.links.keys()
        changed = (name for name in names if before.links.get(name) is not facts.links.get(name))
        return any(name in known or not is_workloads(name) for name in changed)

    async def _watch_rules(self) -> None:
        quarrel, loop = Quarrel(), asyncio.get_running_loop()
        over: asyncio.TimerHandle | None = None
        async for who in self._nft_driver.foreign_changes():
            pause_s = quarrel.hear(loop.time())
            if not quarrel.on:
                log.warning("nft.changed_by_another", table=NFT_TABLE, who=who)
            elif quarrel.begins:
                log.error("nft.changed_again_and_again", table=NFT_TABLE, who=who)
            if over:
                over.cancel()
            if quarrel.on:
                self._fought = f"{who} changes table inet {NFT_TABLE} again and again: end it, or what makes it do so"
                over = loop.call_later(pause_s + CALM_S, self._at_peace)
            await asyncio.sleep(pause_s)
            self._nft.distrust()
            self._wake.set()

    def _at_peace(self) -> None:
        self._fought = ""
        self._wake.set()  # so that the status says it

    async def _decide(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            snapshot, facts = self._snapshot, self._facts
            if snapshot is None or facts is None or await self._older_than_the_kernel(snapshot):
                continue
            if self._judged is None or self._judged[0] is not snapshot or not self._judged[1].settled:
                # Policy is the heavy part, and does not depend on facts: a link that comes up costs nothing of it.
                self._judged = (snapshot, await asyncio.to_thread(self._judge, snapshot))
            facts = self._facts or facts  # as they are now: what came meanwhile may have been no reason to decide
            wanted = desired(snapshot, facts, self._config, self._judged[1], self._memo)
            self._memo.forget()
            self._set(replace(wanted, held=tuple(snapshot.held.values())))
            if self._generation == 1:
                # What a cluster is lasts: the collector need not go through all of it, for a second, again and again.
                gc.collect()
                gc.freeze()
            self._settling.put(snapshot)
            self._wake.set()
            async with self._tried:  # what changes meanwhile is decided together: no state is worked out to be skipped
                await self._tried.wait_for(lambda: min(each.progress.tried for each in self._each) >= self._generation)

    async def _older_than_the_kernel(self, snapshot: Snapshot) -> bool:
        """Whether `snapshot` is from disk, where it may lag, while what an earlier felix programmed still stands."""
        self._fresh = self._fresh or not snapshot.stale
        if self._fresh or self._generation:
            return False
        return dict(await self._nft_driver.read()) not in ({}, CLOSED)

    def _set(self, wanted: Desired) -> None:
        self._generation += 1
        self._wanted[self._generation] = wanted
        if wanted.ruling is not None:
            self._cutter.wanted(wanted.ruling)
        self._sysctl_driver.watch(wanted.sysctls)
        self._sysctls.set_desired(wanted.sysctls, self._generation, prune=False)  # none is ever set back
        self._tunnels.set_desired(wanted.tunnels, self._generation)
        peering = wanted.peering
        self._addresses.set_desired(peering.addresses, self._generation, prune=peering.certain)
        self._nft.set_desired(self._flattener.flatten({**wanted.nft, "cut": self._cutter.fence}), self._generation)
        self._routes.set_desired(wanted.routes, self._generation)

    def _fence_changed(self) -> int:
        if self._generation:
            self._set(self._wanted[self._generation])
            self._wake.set()
        return self._generation

    async def _on_progress(self, progress: Sequence[Progress]) -> None:
        sysctls, tunnels, addresses, nft, routes = progress
        async with self._tried:
            self._tried.notify_all()
        programmed = self._wanted.get(nft.revision)
        if nft.revision == self._generation and self._judged and not self._judged[1].settled:
            self._changed.set()  # what borrowed its number may have its own now
        await self._cutter.programmed(nft.revision, programmed.ruling if programmed else None)
        outcome = status.Outcome(sysctls=sysctls, tunnels=tunnels, addresses=addresses, nft=nft, routes=routes)
        wanted = self._wanted.get(outcome.tried)
        if wanted is None:
            return
        status.tell_health(self._health, wanted, outcome)
        if outcome.done >= outcome.tried and not wanted.held and not (wanted.awaited and tunnels.healthy):
            self._programmed = wanted.revision
        for generation in [each for each in self._wanted if each < outcome.tried]:
            del self._wanted[generation]
        more = filter(None, [self._no_tunnel_address, self._fought, self._address_driver.warning])
        wanted = replace(wanted, problems=(*wanted.problems, *more))
        said = status.state(wanted, outcome, self._programmed, self._since)
        if said.ready is not self._ready:
            self._ready, self._since = said.ready, clock.now()
            said = status.state(wanted, outcome, self._programmed, self._since)
        self._feed.tell(said)
        self._said.put(said)
        if self._metrics:
            self._metrics.tell(said, {name: each.writes for name, each in outcome})

    async def _write_status(self) -> None:
        async def write(said: FelixState) -> None:
            await objects.write(self._store, status.status(self._config.node, said))

        await keep_reported(self._said.get, write, pause_s=STATUS_EVERY_S)

    async def _keep_tunnel_address(self) -> None:
        ledger = Ledger(self._store)
        while True:
            snapshot = await self._settling.get()
            try:
                await tunnel_address.ensure(self._store, ledger, snapshot, self._config.node)
            except Conflict:
                continue  # somebody else wrote the Node: the snapshot with that is on its way
            except MuslinError as error:
                self._no_tunnel_address = f"no address for the tunnel: {error}"
                self._wake.set()  # so that the status says it
                await asyncio.sleep(RETRY_S)
                self._settling.put(self._settling.peek() or snapshot)
            else:
                self._no_tunnel_address = ""
