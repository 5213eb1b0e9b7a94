"""The bgp agent of one node: wiring only.

    datastore.follow ──> Latest[Snapshot] ──> desired ──> Speaker ─┬─> ExaBGP.configure     start, load
                                                                   ├─> Bfd.configure
                                                                   └─> Teller: export, Reconciler(adverts) ─┐
    peers <──────────────────────────── ExaBGP <──── API commands, one by one ──────────────────────────────┤
      └──> ExaBGP ──> bridge ──> line.decode ─┬─> Sessions ──> status, what is told again                   │
      └──> Bfd: path up, lost ────────────────┼─> Learnt: rib, best path, import, next hops ── best paths ──┘
    linux.links ──> Facts ────────────────────┘     └──> Reconciler(kernel routes, protocol 201)

Between ExaBGP and the kernel stands no queue: a line is folded into the state as it is read, and the reconciler
programs the newest state. An agent that falls behind fills the bridge's buffer, whose overflow restarts ExaBGP.

Kernel routes found at start stay until every session has sent its End-of-RIB, or `settle_s` after the first snapshot.
When ExaBGP dies, paths turn stale and stay in the kernel until peers have spoken to the next one. When the agent
ends, routes stay and ExaBGP is killed without a farewell, so that peers keep ours too (graceful restart).
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from bgp.bfd.watch import Bfd, BfdState
from bgp.desired import desired
from bgp.exabgp.errands import Errands
from bgp.exabgp.line import Ack, Other, PeerDown, PeerUp, Refresh, Teardown, decode
from bgp.exabgp.process import ExaBGP
from bgp.model import Config, Speaker
from bgp.paths.by_device import ByDevice
from bgp.paths.fib import Scope
from bgp.paths.learnt import Learnt
from bgp.paths.reach import PeerRoutes
from bgp.peering.pods import with_pods
from bgp.reporting.account import Account, Course, Parts
from bgp.reporting.answer import Answers
from bgp.reporting.metrics import Metrics
from bgp.sessions import Sessions
from bgp.telling.teller import Teller
from bgp.thrift import thrifty
from core import clock, manifest
from core.addr import Address, Family
from core.errors import Invalid, NotFound
from core.health import Health
from core.latest import Latest
from core.prefix import Prefix
from core.reconcile import Progress, Reconciler, Timing
from core.reconcile import run as reconcile
from core.report import keep_reported
from core.resources import (
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    CalicoNodeStatus,
    EndpointSlice,
    IPAMBlock,
    IPPool,
    Metadata,
    Node,
    Secret,
    Service,
    SpeakerStatus,
)
from core.resources.status import SpeakerState
from core.routing import Metric, RouteProtocol
from core.snapshot import Snapshot
from datastore import objects
from datastore.client import GrpcStore
from datastore.follow import follow
from linux.alone import alone
from linux.links import watch_facts
from linux.model import Route
from linux.prefix_routes import PrefixRoutes
from linux.rights import require_net_admin

KINDS: Final = (
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    CalicoNodeStatus,
    EndpointSlice,
    IPAMBlock,
    IPPool,
    Node,
    Secret,
    Service,
)

COMPONENTS: Final = ("datastore", "breaker", "configuration", "exabgp", "adverts", "routes")
"""What bgp says of its health."""

REPORT_S: Final = 1.0
"""Least time between two status writes."""

SETTLE_S: Final = 30.0

TURN_S: Final = 0.0005
"""How soon a thread that writes routes gets its turn while the loop is busy with what peers say, in seconds. It needs
one after each system call; at Python's own 5 ms the kernel has a full table half a second later."""

BFD_DOWN: Final = 10
"""Cease subcode: BFD says that the path is down (RFC 9384)."""

GARBAGE: Final = 20_000
"""After how many new objects Python looks for cycles among them; an UPDATE alone makes a thousand and no cycle."""

Report = Callable[[SpeakerState], Awaitable[None]]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What an agent is wired to; `report` puts the node's status where others can read it, `health` (of COMPONENTS)
    hears how each part is, `metrics` what it comes to."""

    node: str
    run_dir: Path
    snapshots: Latest[Snapshot]
    report: Report
    settle_s: float = SETTLE_S
    report_s: float = REPORT_S
    health: Health = field(default_factory=lambda: Health(COMPONENTS))
    metrics: Metrics = field(default_factory=Metrics)


async def run(config: Config, health: Health | None = None, metrics: Metrics | None = None) -> None:
    """Be the speaker of `config.node` until cancelled. Raises `Unsupported` when this machine lacks what it takes,
    and `Unavailable` while another bgp has this network namespace."""
    require_net_admin()
    sys.setswitchinterval(TURN_S)
    gc.set_threshold(GARBAGE)
    store = GrpcStore(config.datastore)
    followed: Latest[Snapshot] = Latest()
    snapshots: Latest[Snapshot] = Latest()

    async def report(state: SpeakerState) -> None:
        kind, metadata = SpeakerStatus.KIND, Metadata(name=config.node)
        status = SpeakerStatus(api_version=kind.api_version, kind=kind.name, metadata=metadata, status=state)
        await objects.write(store, status)

    inputs = Inputs(
        node=config.node,
        run_dir=config.run_dir,
        snapshots=snapshots,
        report=report,
        health=health or Health(COMPONENTS),
        metrics=metrics or Metrics(),
    )
    try:
        with alone("bgp"):
            async with asyncio.TaskGroup() as group:
                disk = config.run_dir / "bgp.snapshot"
                decode = thrifty(manifest.decode, config.node)
                following = follow(store, KINDS, followed, disk, node=config.node, decode=decode)
                group.create_task(following, name="follow")
                group.create_task(with_pods(store, config.node, followed, snapshots), name="pods")
                agent = Agent(inputs)
                answers = Answers(store, config.node, agent.learnt, agent.account.outlook)
                agent.on_snapshot = answers.ask
                group.create_task(answers.run(), name="answers")
                group.create_task(agent.run(), name="agent")
    finally:
        await store.close()


class Agent:
    """One node's speaker."""

    def __init__(self, inputs: Inputs) -> None:
        self._in = inputs
        self._health = inputs.health
        self.learnt = self._learnt = Learnt()
        self._sessions = Sessions()
        self.exabgp = ExaBGP(inputs.run_dir, on_line=self._on_lines, on_start=self._on_start, on_loss=self._on_loss)
        self._bfd = Bfd(inputs.run_dir, self._on_path)
        self._teller = Teller(self.exabgp.send, self._sessions, self._learnt.best)
        self._told = self._teller.reconciler
        self._errands = Errands(self.exabgp.send)
        self._peer_routes = PeerRoutes()
        self._routes = PrefixRoutes(RouteProtocol.BGP, Metric.BGP)
        self._kernel: Reconciler[Prefix, Route] = Reconciler(self._routes)
        self._by_device = ByDevice()
        self._wake_kernel = asyncio.Event()
        self._timers, self._news = asyncio.Event(), asyncio.Event()
        self._course = Course(snapshot=Snapshot())
        parts = Parts(
            learnt=self._learnt,
            sessions=self._sessions,
            exabgp=self.exabgp,
            bfd=self._bfd,
            teller=self._teller,
            kernel=self._kernel,
            peer_routes=self._peer_routes,
        )
        self.account = Account(inputs.node, self._course, parts, self._news.set)
        self.on_snapshot: Callable[[Snapshot], None] = lambda _: None

    async def run(self) -> None:
        """Work until cancelled. Kernel routes stay as they are."""
        self._learnt.adopt(await self._routes.read())
        timing = Timing(retry_s=0.1, retry_max_s=2.0)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.exabgp.run(), name="exabgp")
            group.create_task(self._follow_snapshots(), name="snapshots")
            group.create_task(self._follow_facts(), name="facts")
            group.create_task(reconcile([self._kernel], self._wake_kernel, self._on_progress, timing), name="kernel")
            group.create_task(reconcile([self._told], self._teller.wake, self._on_progress, timing), name="adverts")
            group.create_task(self._errands.run(), name="errands")
            group.create_task(self._bfd.run(), name="bfd")
            group.create_task(self._keep_time(), name="timers")
            group.create_task(self.account.auditor.run(), name="audit")
            group.create_task(self._report(), name="status")

    async def _follow_snapshots(self) -> None:
        async for snapshot in self._in.snapshots:
            before, self._course.snapshot = self._course.snapshot, snapshot
            self.on_snapshot(snapshot)
            if snapshot.stale:
                self._health.degraded("datastore", "the datastore is away: bgp works from its last snapshot")
            else:
                self._health.ok("datastore")
            if snapshot.held:
                self._health.degraded("breaker", "; ".join(snapshot.held.values()))
            else:
                self._health.ok("breaker")
                self._course.whole = snapshot.revision
            if self._course.speaker and not self._course.problem and _same_speaker(before, snapshot):
                self._teller.advance(self._course.whole)
                self._program()
                continue
            try:
                speaker = desired(snapshot, self._in.node)
            except (NotFound, Invalid) as error:
                log.warning("bgp.node_unusable", why=str(error))
                self._course.problem = str(error)
                self._health.degraded("configuration", self._course.problem)
                self._news.set()
                continue
            self._course.problem = ""
            self._health.ok("configuration")
            self._configure(speaker)

    def _configure(self, speaker: Speaker) -> None:
        before, self._course.speaker = self._course.speaker, speaker
        if before is None or before.sessions != speaker.sessions:
            self._course.configured = clock.now()
        if before is None:
            self._course.settle_at = time.monotonic() + self._in.settle_s
        for blocked in set(speaker.blocked) - set(before.blocked if before else ()):
            log.warning("session.blocked", session=blocked.name, peer=blocked.peer, why=blocked.reason)
        self._sessions.configure(speaker.sessions, clock.now())
        self.exabgp.configure(speaker)
        self._bfd.configure({each.peer: (each.local, each.bfd) for each in speaker.sessions if each.bfd})
        self._find_peers()
        self._learnt.configure(speaker, Scope(self._course.snapshot, self._in.node), time.monotonic())
        self._teller.configure(speaker, self._course.whole)
        self._learnt.follows_best = self._teller.exporter.passes_on
        self._program()

    async def _follow_facts(self) -> None:
        ours = (self._routes.port,)
        async for facts in watch_facts(protocol=RouteProtocol.BGP, ports=ours, on_drift=self._on_drift):
            self._course.facts = facts
            self._news.set()
            self._find_peers()
            self._program()

    def _find_peers(self) -> None:
        """Peers or links are others, and with them the ways to peers and to what they tell."""
        if self._course.facts is not None:
            sessions = self._course.speaker.sessions if self._course.speaker else ()
            self._learnt.learn_facts(self._peer_routes.find(sessions, self._course.facts))

    def _on_drift(self, devices: Collection[int]) -> None:
        """Somebody else's hand was on our routes, or those through some devices may be gone."""
        lost = self._by_device.lost(devices, self._kernel.wanted)
        if lost is None:
            self._kernel.distrust()
        else:
            self._kernel.forget(lost)
        self._wake_kernel.set()

    def _on_start(self) -> None:
        self._health.ok("exabgp")
        self._course.booted = clock.now()
        self._sessions.start_speaker()
        self._teller.start()
        self._news.set()

    def _on_loss(self) -> None:
        self._health.degraded("exabgp", "ExaBGP has ended and is started again")
        self._teller.stop()
        self._sessions.lose_speaker(clock.now())
        self._learnt.rib.lose_speaker(time.monotonic())
        self._timers.set()
        self._news.set()

    def _on_lines(self, lines: Sequence[str]) -> None:
        routes, sessions = False, set[Address]()
        for line in lines:
            try:
                event = decode(line)
            except ValueError as error:
                log.error("exabgp.not_understood", why=str(error))
                continue
            if isinstance(event, (Ack, Other)):
                continue
            routes |= self._learnt.hear(event, time.monotonic())
            if self._sessions.hear(event, clock.now()):
                sessions.add(event.peer)
                _log_session(event)
        if sessions:
            self._teller.tell(sessions)
        if routes:
            self._program()
        self._timers.set()
        self._news.set()

    def _on_path(self, peer: Address, path: BfdState) -> None:
        """BFD has lost the path to a peer: nothing goes that way any more, and what its session says is void."""
        if path.lost:
            log.warning("path.lost", peer=str(peer), why=path.reason)
            self._errands.add(Teardown(peer, BFD_DOWN))
            changed = self._learnt.lose_path(peer)
        else:
            changed = path.up and self._learnt.regain_path(peer)
        if changed:
            self._program()
        self._news.set()

    def _program(self) -> None:
        """Bring the kernel's reconciler up to date; nothing before the first snapshot and the first facts."""
        if self._course.speaker is None or self._course.facts is None:
            return
        changes = self._peer_routes.over(self._learnt.take_changes(), self._learnt.decisions)
        self._by_device.learn(changes.values())
        self._kernel.change_desired(changes, self._course.whole)
        self._wake_kernel.set()
        self._teller.pass_on(self._learnt.take_chosen())
        self._news.set()
        self._timers.set()

    async def _keep_time(self) -> None:
        """Sweep what is stale for too long, and end the time of settling."""
        while True:
            now = time.monotonic()
            swept = self._learnt.expire(now)
            settle_at = self._course.settle_at
            settled = settle_at is not None and (self._learnt.all_told() or now >= settle_at)
            if settled or (settle_at is not None and self._learnt.may_conclude()):
                self._teller.conclude()
            if settled:
                log.info("bgp.settled", told_all=self._learnt.all_told())
                self._learnt.settle()
                self._course.settle_at = None
            if swept or settled:
                self._program()
            for peer in self._learnt.rib.refreshes(now):
                self._errands.add(Refresh(peer, Family(peer.version)))
            self._timers.clear()
            due = [at for at in (self._learnt.rib.deadline, self._course.settle_at) if at is not None]
            try:
                async with asyncio.timeout(max(0.0, min(due) - time.monotonic()) if due else None):
                    await self._timers.wait()
            except TimeoutError:
                pass  # something is due

    async def _on_progress(self, _: Sequence[Progress]) -> None:
        self._health.round("adverts", self._told.progress)
        if self._course.settle_at is None:
            self._health.round("routes", self._kernel.progress)
        elif self._course.speaker is not None:
            self._health.starting("routes", "waiting for what the peers have to tell")
        if self.exabgp.problem:
            self._health.degraded("exabgp", self.exabgp.problem)
        self._news.set()

    async def _report(self) -> None:
        """Write the status when it changed, seldom enough not to be a load of its own, and when it is time."""
        await keep_reported(self._changed_state, self._in.report, pause_s=self._in.report_s)

    async def _changed_state(self) -> SpeakerState:
        await self._news.wait()
        self._news.clear()
        state = self.account.status()
        self._in.metrics.tell(state, self.account.measured())
        return state


def _same_speaker(before: Snapshot, after: Snapshot) -> bool:
    """Whether nothing has changed but questions to speakers, and their answers: every agent hears of each of them."""
    return before.problems == after.problems and all(
        before.tables.get(kind) is after.tables.get(kind)
        for kind in before.tables.keys() | after.tables.keys()
        if kind != CalicoNodeStatus.KIND
    )


def _log_session(event: object) -> None:
    if isinstance(event, PeerUp):
        log.info("session.up", peer=str(event.peer))
    elif isinstance(event, PeerDown):
        log.info("session.down", peer=str(event.peer), why=event.reason)
