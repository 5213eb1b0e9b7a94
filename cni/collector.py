"""The agent's part of garbage collection: looks, waits, looks again, and carries out what `datastore.ipam` decided.

    run()     every grace / 2, at most SCAN_S     store + kernel ──> candidates ──> due ── look again ──> one txn each
    valid()   the runtime's GC                    all of a network that the runtime does not name ──> gone at once

What is lost to a race or refused stays for the next scan; one that cannot be done keeps nobody else's from being done.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import structlog

from cni.model import Config
from core.errors import Conflict, MuslinError, Unavailable
from core.metrics import Family
from core.names import WORKLOAD_PREFIX
from core.resources import IPAMBlock, IPAMRecord, WorkloadEndpoint
from datastore.api import Delete, Entry, Store
from datastore.ipam.collecting import history, idle, unused
from datastore.ipam.collecting.collect import Candidate, Collection, Live, Scene, Written, confirm, observe
from datastore.ipam.listing.holders import KINDS, Held, Holder, Holdings
from datastore.ipam.model import Step
from datastore.ipam.writing import operations
from linux import interfaces, netns
from linux.netlink import Netlink

SCAN_S: Final = 300.0
"""Most seconds between two scans, as Calico's."""

AGAIN_S: Final = 10.0
"""Seconds after which a scan that could not be made is tried again."""

HISTORY_S: Final = 3600.0
"""Seconds between two looks at the records of the past, which are many."""

ATTEMPTS: Final = 5
"""How often GC looks again at what changed under its hands."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the last scan saw of this node, by the pool's name ("": in none), and what all scans gave back.

    `in_use` are addresses that its pods and its tunnel hold, `borrowed` those of them in other nodes' blocks, `blocks`
    its own; `candidates` is what seems to be unused; `reclaimed` is by what it was (`container`, `handle`, `block`,
    `affinity`, `pool`).
    """

    in_use: Mapping[str, int] = field(default_factory=dict)
    borrowed: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    candidates: int = 0
    reclaimed: Mapping[str, int] = field(default_factory=dict)


class Collector:
    """One node's.

    `counts` and `trouble` ("": none) are of the last scan. `busy` gives the ids of the containers that the plugin is
    working on now. `namespace` is the node's network namespace, by name or path; "" is the one of the thread that runs
    it.
    """

    def __init__(
        self, config: Config, store: Store, busy: Callable[[], Iterable[str]] = tuple, *, namespace: str = ""
    ) -> None:
        self._config, self._store, self._busy, self._namespace = config, store, busy, namespace
        self._holdings: Holdings | None = None
        self._collection = Collection()
        self.counts = Counts()
        self.trouble = "it has not looked yet"

    async def run(self) -> None:
        """Collect until cancelled. Errors of the store and the kernel are waited out, and so are bugs."""
        cleared = -HISTORY_S
        while True:
            done = 0
            try:
                done = await self.scan()
                if time.monotonic() - cleared >= HISTORY_S:
                    cleared = time.monotonic()
                    await self.forget()
            except (MuslinError, OSError) as error:
                self.trouble = str(error)
                log.warning("collector.put_off", why=self.trouble)
            except Exception as bug:  # must not take the runtimes' answers with it
                self.trouble = f"a bug in muslin's collector: {bug!r}; the CNI agent's log says where"
                log.exception("collector.bug")
            if not done:  # else there may be more: the last block of a pool goes before the pool
                pause = min(self._config.leak_grace_s / 2, AGAIN_S if self.trouble else SCAN_S)
                await asyncio.sleep(pause * random.uniform(1.0, 1.1))  # noqa: S311 - jitter, not a secret

    async def scan(self) -> int:
        """Look once, and give back what is due; how much that was. Raises `MuslinError` or `OSError` if it cannot."""
        scene, found = await self._look()
        now, grace = time.monotonic(), self._config.leak_grace_s
        self._collection, due = observe(self._collection, found, now, grace)
        self.counts = _counts(scene, len(found), self.counts.reclaimed)
        self.trouble = scene.elsewhere
        done = 0
        for _ in range(ATTEMPTS if due else 0):
            scene, found = await self._look()
            checked = confirm(due, found)
            written = Written(scene.holdings, scene.now)
            carried = sum([await self._carry_out(each, written) for each in checked])
            done += carried
            if carried == len(checked):
                break
        return done

    async def forget(self) -> int:
        """Remove old records of the past; how many."""
        entries: list[Entry] = []
        async with aclosing(self._store.pages({IPAMRecord.KIND})) as pages:
            async for page in pages:
                entries += page.entries
        nodes = self._holdings.nodes if self._holdings is not None else frozenset()
        batches = await asyncio.to_thread(_outdated, entries, self._config.node, nodes)
        for batch in batches:
            await self._store.txn(batch)
        return sum(map(len, batches))

    async def valid(self, network: str, containers: Iterable[str]) -> None:
        """Remove all that containers of `network` have on this node, but for those named: wire, endpoint, addresses.

        CNI 1.1's GC. Done again it does nothing; what cannot be done is told at the end, in one `MuslinError`. A
        container that is worked on just now stays.
        """
        stays, failed = frozenset(containers), dict[str, Exception]()
        for _ in range(ATTEMPTS):
            scene, _ = await self._look()
            if scene.elsewhere:
                raise MuslinError(scene.elsewhere)
            written = Written(scene.holdings, scene.now)
            failed = {}
            for text, holder in sorted(scene.holdings.holders.items()):
                ours = holder.node == scene.node and bool(holder.container) and text == f"{network}.{holder.container}"
                if not ours or holder.container in stays or holder.container in self._under_way():
                    continue
                try:
                    await self._remove(scene, holder, written)
                except (MuslinError, OSError) as error:
                    failed[text] = error
            if not any(isinstance(error, Conflict) for error in failed.values()):
                break
        if failed:
            raise MuslinError("; ".join(f"{text}: {why}" for text, why in failed.items()))

    async def _remove(self, scene: Scene, holder: Holder, written: Written) -> None:
        endpoints = unused.endpoints_of(scene, holder.container, [holder])
        for held in endpoints:
            spec = held.resource.spec
            if (spec.container_id, spec.node) != (holder.container, scene.node):
                raise MuslinError(f"{held.resource.key} has its address; delete that if nothing uses it")
        if scene.holdings.doubtful(holder):
            raise MuslinError("an object that cannot be read may have to do with it; mend or delete that first")
        for name in _wires(scene, holder, endpoints):
            with self._here(), Netlink() as netlink:
                interfaces.delete_link(netlink, name)
        await self._write(Step(changes=tuple(unused.freeing([holder], endpoints, scene.now, "GC"))), written)
        log.info("collector.not_valid", handle=holder.text, addresses=[str(each) for each in holder.addresses])

    async def _write(self, step: Step, written: Written) -> None:
        fresh = written.rebased(step)
        written.note(fresh, await self._store.txn(operations(fresh.changes), fresh.guards))

    async def _look(self) -> tuple[Scene, tuple[Candidate, ...]]:
        """The store, then the kernel: what an ADD makes between is seen. What is under way before or after is alive."""
        busy = self._under_way()
        listing = await self._store.list(KINDS)
        with self._here(), Netlink() as netlink:
            names = frozenset(link.name for link in interfaces.links(netlink))
            own = frozenset(address.ip for _, address in interfaces.addresses(netlink))
        live = Live(interfaces=names, addresses=own, busy=busy | self._under_way())
        self._holdings = await asyncio.to_thread(Holdings, listing, self._holdings)
        scene = Scene(holdings=self._holdings, live=live, node=self._config.node, now=datetime.now(UTC))
        return scene, await asyncio.to_thread(_candidates, scene)

    async def _carry_out(self, candidate: Candidate, written: Written) -> bool:
        """Whether it was done."""
        try:
            await self._write(candidate.step, written)
        except Unavailable:
            raise
        except MuslinError as error:
            log.info("collector.left", what=candidate.subject, why=str(error))
            return False
        log.info("collector.returned", what=candidate.subject, why=candidate.why)
        what = candidate.subject.partition(" ")[0]
        self.counts = replace(self.counts, reclaimed=Counter(self.counts.reclaimed) + Counter([what]))
        return True

    def _under_way(self) -> frozenset[str]:
        return frozenset(self._busy())

    def _here(self) -> AbstractContextManager[None]:
        return netns.inside(self._namespace) if self._namespace else nullcontext()


def _candidates(scene: Scene) -> tuple[Candidate, ...]:
    return (*unused.candidates(scene), *idle.candidates(scene))


def _outdated(entries: list[Entry], node: str, nodes: frozenset[str]) -> list[list[Delete]]:
    return list(history.outdated(entries, node, nodes, datetime.now(UTC)))


def _wires(scene: Scene, holder: Holder, endpoints: Iterable[Held[WorkloadEndpoint]]) -> Iterator[str]:
    """The host's ends of the container's wires, as far as they are there and no other container's endpoint has them."""
    named = {unused.own_interface(scene, holder), *(held.resource.spec.interface_name for held in endpoints)}
    for name in sorted(named & scene.live.interfaces):
        there = scene.holdings.by_interface.get((scene.node, name), ())
        if name.startswith(WORKLOAD_PREFIX) and all(each.spec.container_id == holder.container for each in there):
            yield name


def _counts(scene: Scene, candidates: int, reclaimed: Mapping[str, int]) -> Counts:
    in_use, borrowed, blocks = Counter[str](), Counter[str](), Counter[str]()
    for held in scene.holdings.of(IPAMBlock).values():
        spec = held.resource.spec
        pool = scene.holdings.pool_of(spec.network)
        name = pool.resource.metadata.name if pool else ""
        lent = sum(node == scene.node for node in spec.borrowers.values())
        own = spec.node == scene.node
        blocks[name] += own
        borrowed[name] += lent
        in_use[name] += lent + (len(spec.allocations.keys() - spec.borrowers.keys()) if own else 0)
    return Counts(in_use=+in_use, borrowed=+borrowed, blocks=+blocks, candidates=candidates, reclaimed=reclaimed)


def families(counts: Counts) -> Iterator[Family]:
    """The counts as Prometheus reads them; Calico's names, of one node."""
    gauges = (
        ("allocations_in_use", "Addresses that the node's pods and its tunnel hold, by pool.", counts.in_use),
        ("allocations_borrowed", "Those of them that lie in other nodes' blocks, by pool.", counts.borrowed),
        ("blocks", "Blocks of the node, by pool.", counts.blocks),
    )
    for name, said, values in gauges:
        samples: dict[tuple[str, ...], float] = {(pool,): float(count) for pool, count in values.items()}
        yield Family(name=f"muslin_ipam_{name}", help=said, labels=("ippool",), samples=samples)
    yield Family(
        name="muslin_ipam_allocations_gc_candidates",
        help="What seems to be unused and has not been so for long enough.",
        samples={(): float(counts.candidates)},
    )
    yield Family(
        name="muslin_ipam_gc_reclamations_total",
        help="What garbage collection gave back, by what it was.",
        kind="counter",
        labels=("what",),
        samples={(what,): float(count) for what, count in counts.reclaimed.items()},
    )
