"""Pods come and go while everybody tidies: collectors without patience, `check --fix` again and again, pools split,
deleted and made, reservations, settings, `release` of what is in use, and a second ledger that works for a node.

    runtime n1, n2 ── ADD, DEL, both at once ──> agents, whose collectors wait 0.3 s
    administrator ── split, delete, apply, configure, release, check --fix ──> datastore
    another process of n1 ── addresses of its own ──> datastore

1,000 lives with MUSLIN_SOAK=long (`make soak`). MUSLIN_SEED chooses another run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest
from survive_cluster import Cluster, cluster, node, pool, until
from survive_left import kernel, require_nothing, stored
from survive_runtime import TRY_AGAIN, Runtime, Told

from core.errors import Conflict, Invalid
from core.resources import IPAMConfiguration, IPPool, IPReservation, Metadata
from core.resources.ipam import IPAMConfigurationSpec, ReservationSpec
from datastore import objects
from datastore.api import Store
from datastore.ipam.auditing.mend import look, mend
from datastore.ipam.ledger import Ledger
from datastore.ipam.listing.ending import ending
from datastore.ipam.listing.holders import KINDS, Holdings
from datastore.ipam.model import Exhausted, Owner, Request
from datastore.ipam.writing import operations

LONG = os.environ.get("MUSLIN_SOAK") == "long"
LIVES = 1000 if LONG else 120
AT_ONCE = 12
SEED = int(os.environ.get("MUSLIN_SEED", "20261129"))
NO_ADDRESS = 100
BESIDE = "beside."
HELD = "datastore.held"
"""Felix does not follow at once when the last pool of all vanishes, and says so."""

POOLS = ("10.62.0.0/26", "10.62.1.0/26", "10.62.2.0/26")

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(0 if LONG else 240)]


class Administrator:
    """Somebody who changes everything that may be changed. `done` counts what was."""

    def __init__(self, made: Cluster, told: Told, chance: random.Random) -> None:
        self.made, self.told, self.chance = made, told, chance
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        acts: list[Callable[[], Awaitable[None]]] = [
            self.split,
            self.delete,
            self.apply,
            self.configure,
            self.reserve,
            self.release,
            self.release,
        ]
        while True:
            act = self.chance.choice(acts)
            await act()
            await asyncio.sleep(self.chance.uniform(0, 0.2))

    async def _pools(self) -> list[IPPool]:
        async with self.made.store() as store:
            names = [each.key.name for each in (await store.list({IPPool.KIND})).entries]
            found = [await objects.read(store, IPPool, name) for name in names]
        return [each[0] for each in found if each]

    async def _said(self, *words: str) -> int:
        status, said = await self.made.muslin(*words)
        assert status in (0, 1), said
        self.done[f"{words[0]} {words[1]}", status] += 1
        return status

    async def split(self) -> None:
        wide = [each for each in await self._pools() if each.spec.network.prefixlen < 28 and not each.terminating]
        if wide:
            await self._said("ipam", "split", "2", "--name", self.chance.choice(wide).metadata.name)

    async def delete(self) -> None:
        pools = [each for each in await self._pools() if not each.terminating]
        if len(pools) > 1:
            await self._said("delete", "ippool", self.chance.choice(pools).metadata.name)

    async def apply(self) -> None:
        """Those pools again for which there is room."""
        there = [each.spec.network for each in await self._pools()]
        for cidr in POOLS:
            if not any(each.overlaps(ip_network(cidr)) for each in there):
                with contextlib.suppress(Invalid):
                    await self.made.write(_pool(cidr))
                    self.done["pool"] += 1

    async def configure(self) -> None:
        spec = IPAMConfigurationSpec(
            strict_affinity=self.chance.random() < 0.5, ip_cooldown_seconds=self.chance.choice((0, 0, 1))
        )
        await self.made.write(IPAMConfiguration(metadata=Metadata(name="default"), spec=spec))

    async def reserve(self) -> None:
        cidrs = self.chance.sample([f"10.62.{pool}.{part}/29" for pool in range(3) for part in (0, 8, 16, 24)], 3)
        await self.made.write(IPReservation(metadata=Metadata(name="held"), spec=ReservationSpec(reserved_cidrs=cidrs)))

    async def release(self) -> None:
        """What a pod has is not released, when it has had it all the time."""
        if not self.told.holders:
            return
        address, holder = self.chance.choice(sorted(self.told.holders.items()))
        status = await self._said("ipam", "release", "--ip", address)
        assert status == 1 or self.told.holders.get(address) != holder, f"{address} was released from {holder}"


async def _mending(store: Store, done: Counter[str]) -> None:
    """`check --fix`, with hardly a moment between its looks."""
    while True:
        before = await look(store, datetime.now(UTC))
        await asyncio.sleep(0.02)
        after = await look(store, datetime.now(UTC))
        agreed = {each.identity for each in before.findings} & {each.identity for each in after.findings}
        mended = await mend(store, agreed, lambda: datetime.now(UTC))
        done["mended"] += len(mended.done)
        done["looks"] += 1
        await asyncio.sleep(0.05)


async def _beside(store: Store, told: Told, done: Counter[str]) -> None:
    """Another ledger of n1, of another network: what it holds for a moment, nobody else does."""
    ledger = Ledger(store)
    for number in range(1 << 30):
        handle = f"{BESIDE}{number:x}"
        owner = Owner(node="n1", namespace="shop", pod=f"beside-{number}", container=f"{number:x}", interface="lo")
        with contextlib.suppress(Conflict, Exhausted):
            grant, _ = await ledger.assign(Request(handle=handle, owner=owner))
            for each in map(str, grant.addresses):
                assert told.holders.setdefault(each, handle) == handle
            await asyncio.sleep(0.01)
            for each in map(str, grant.addresses):
                del told.holders[each]
            done["beside"] += 1
        await ledger.release(handle, "done")


@contextlib.asynccontextmanager
async def tidying(made: Cluster, told: Told, chance: random.Random) -> AsyncIterator[Administrator]:
    """All of that, meanwhile."""
    administrator = Administrator(made, told, chance)
    async with made.store() as one, made.store() as other:
        works = [
            asyncio.create_task(administrator.run()),
            asyncio.create_task(_mending(one, administrator.done)),
            asyncio.create_task(_beside(other, told, administrator.done)),
        ]
        try:
            yield administrator
        finally:
            for each in works:
                each.cancel()
            ended = await asyncio.gather(*works, return_exceptions=True)
    for each in ended:
        if isinstance(each, Exception):
            raise each


def _pool(cidr: str) -> IPPool:
    return pool(f"pods-{cidr.split('.')[2]}", cidr, 29)


async def test_pods_come_and_go_while_everybody_tidies(tmp_path: Path) -> None:
    chance, told = random.Random(SEED), Told()
    async with cluster(tmp_path, node("n1"), node("n2"), *map(_pool, POOLS)) as made:
        machines = [made.machine(each, 0.3) for each in ("n1", "n2")]
        for each in machines:
            each.start()
        for each in machines:
            await each.serving()
        before = {each.node: await kernel(made, each) for each in machines}
        runtimes = [Runtime(each, told, chance, codes=frozenset({TRY_AGAIN, NO_ADDRESS})) for each in machines]
        async with tidying(made, told, chance) as administrator:
            await _live_on(runtimes, chance)
        print(administrator.done, [each.failures for each in runtimes])
        for each in runtimes:
            for sentence, count in each.sentences.most_common(5):
                print("  ", count, sentence)
        await _restore(made)
        await require_nothing(made, before)
        assert administrator.done["beside"] > 10
        for each in machines:
            for process in (each.felix, each.cni):
                errors = [one for one in process.said() if one.get("level") in ("error", "critical")]
                assert {one["event"] for one in errors} <= {HELD}


async def _live_on(runtimes: list[Runtime], chance: random.Random) -> None:
    begun = iter(range(LIVES))
    probes = {each.machine.node: (await each.added("probe"))[0] for each in runtimes}

    async def live(worker: int) -> None:
        runtime = runtimes[worker % len(runtimes)]
        for _ in begun:
            if chance.random() < 0.2:
                await runtime.at_once(f"pod-{worker}")
            else:
                await runtime.live(f"pod-{worker}", probes[runtime.machine.node])

    async with asyncio.TaskGroup() as group:
        for worker in range(AT_ONCE):
            group.create_task(live(worker))
    for each in runtimes:
        await each.late()
        await each.removed(probes[each.machine.node])


async def _restore(made: Cluster) -> None:
    """The pools as they were, when the collectors have ended those that were deleted."""
    async with made.store() as store:
        for kind in (IPReservation, IPAMConfiguration):
            for entry in (await store.list({kind.KIND})).entries:
                await objects.delete(store, kind, entry.key.name)

        for handle in (await stored(made)).handles:
            assert handle.startswith(BESIDE)  # what the other ledger held as it ended
            await Ledger(store).release(handle, "ended")

        async def gone() -> bool:
            seen = Holdings(await store.list(KINDS))
            for held in seen.of(IPPool).values():
                step = ending(held, seen, datetime.now(UTC).isoformat()).step
                with contextlib.suppress(Conflict):  # a collector was faster
                    await store.txn(operations(step.changes), step.guards)
            return not seen.of(IPPool)

        await until(gone)
    await made.write(*map(_pool, POOLS))
