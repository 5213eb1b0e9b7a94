"""Pods come and go, 32 at a time, while everything that serves them is killed and started again.

    runtime n1 ── ADD, DEL ──> CNI agent, felix ──┐
    runtime n2 ── ADD, DEL ──> CNI agent, felix ──┴── datastore        one of the five dies each second or so

1,000 lives with MUSLIN_SOAK=long (`make soak`), some of them in the suite. MUSLIN_SEED chooses another run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from survive_cluster import Cluster, Machine, Process, cluster, node, pool, until
from survive_left import kernel, require_nothing
from survive_runtime import Runtime, Told

LONG = os.environ.get("MUSLIN_SOAK") == "long"
LIVES = 1000 if LONG else 96
AT_ONCE = 32
SEED = int(os.environ.get("MUSLIN_SEED", "20261128"))
NODES = ("n1", "n2")
CALM = 16
"""Pods that come and go once more when all is quiet: after that an agent has no descriptor more than before."""

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(0 if LONG else 240)]


@contextlib.asynccontextmanager
async def dying(made: Cluster, chance: random.Random) -> AsyncIterator[list[str]]:
    """Meanwhile one process after the other is killed, and started again a little later; who was."""
    killed: list[str] = []

    async def kill() -> None:
        victims = [("datastore", made.datastore)]
        victims += [(f"{each.node} felix", each.felix) for each in made.machines]
        victims += [(f"{each.node} cni", each.cni) for each in made.machines]
        deck: list[tuple[str, Process]] = []
        while True:
            await asyncio.sleep(chance.uniform(0.1, 1.0))
            deck = deck or chance.sample(victims, len(victims))
            name, victim = deck.pop()
            await victim.kill()
            killed.append(name)
            await asyncio.sleep(chance.uniform(0, 0.5))
            await _started(made, victim)

    killing = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        killing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killing
        for process in (made.datastore, *(each for one in made.machines for each in (one.felix, one.cni))):
            if not process.runs:
                await _started(made, process)


async def _started(made: Cluster, process: Process) -> None:
    if process is made.datastore:
        await made.datastore_started()
    else:
        process.start()


async def live_on(runtimes: list[Runtime], lives: int, at_once: int) -> None:
    """So many lives, so many of them at a time, over all nodes; the same pods again and again."""
    begun = iter(range(lives))
    probes = {each.machine.node: await each.added("probe") for each in runtimes}

    async def live(worker: int) -> None:
        runtime = runtimes[worker % len(runtimes)]
        for _ in begun:
            await runtime.live(f"pod-{worker}", probes[runtime.machine.node][0])

    async with asyncio.TaskGroup() as group:
        for worker in range(at_once):
            group.create_task(live(worker))
    for each in runtimes:
        await each.late()
        await each.removed(probes[each.machine.node][0])


async def test_pods_come_and_go_while_everything_dies(tmp_path: Path) -> None:
    chance, told = random.Random(SEED), Told()
    pools = (pool("pods", "10.62.0.0/24", 28), pool("six", "fd62::/112"))
    async with cluster(tmp_path, *map(node, NODES), *pools) as made:
        machines = [made.machine(each) for each in NODES]
        for each in machines:
            each.start()
        for each in machines:
            await each.serving()
        before = {each.node: await kernel(made, each) for each in machines}
        runtimes = [Runtime(each, told, chance) for each in machines]
        async with dying(made, chance) as killed:
            await live_on(runtimes, LIVES, AT_ONCE)
        for each in machines:
            await each.serving()
        _report(killed, runtimes)
        assert len(set(killed)) == 5
        assert any(each.failures for each in runtimes)
        assert sum(each.packets for each in runtimes) > LIVES / 2
        await require_nothing(made, before)
        await _require_no_descriptors(machines, runtimes)
        await require_nothing(made, before)
        for each in machines:
            _require_no_bugs(each)


def _report(killed: list[str], runtimes: list[Runtime]) -> None:
    print(f"\nkilled {len(killed)}: { ({each: killed.count(each) for each in sorted(set(killed))}) }")
    for each in runtimes:
        print(each.machine.node, dict(each.failures), "datagrams", each.packets)
        for sentence, count in each.sentences.most_common(12):
            print("  ", count, sentence)


async def _require_no_descriptors(machines: list[Machine], runtimes: list[Runtime]) -> None:
    await live_on(runtimes, CALM, AT_ONCE)
    agents = [process for each in machines for process in (each.felix, each.cni)]
    counts = [each.descriptors() for each in agents]
    await live_on(runtimes, CALM, AT_ONCE)

    async def no_more() -> bool:
        return all(each.descriptors() <= count for each, count in zip(agents, counts, strict=True))

    await until(no_more)


def _require_no_bugs(machine: Machine) -> None:
    for process in (machine.cni, machine.felix):
        assert [each for each in process.said() if each.get("level") in ("error", "critical")] == []
