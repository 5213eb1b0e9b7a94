"""Many nodes start at once, and each is asked for pods before it has taken a breath; there are fewer blocks than nodes.

Each node has a real CNI agent in a network namespace of its own, real pods, and its own ledger. With MUSLIN_SOAK=long
(`make soak`) they are forty, each with felix; in the suite some of them, of which two have felix, and for the others
the network is configured not to wait for it.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from survive_cluster import Cluster, Container, Machine, cluster, node, pool, until
from survive_left import NOTHING, blocks, stored
from survive_runtime import TRY_AGAIN, Told, addresses

from core.resources import BlockAffinity
from core.resources.ipam import AffinityState
from datastore import objects

LONG = os.environ.get("MUSLIN_SOAK") == "long"
NODES, POOL, BLOCKS = (40, "10.62.0.0/24", 32) if LONG else (8, "10.62.0.0/27", 4)
PODS = 4
"""Of each node."""

WHOLE = NODES if LONG else 2
"""Nodes with felix."""

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(0 if LONG else 120)]


async def test_many_nodes_that_start_at_once_share_what_there_is(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(NODES)]
    told = Told()
    async with cluster(tmp_path, *map(node, names), pool("pods", POOL, 29)) as made:
        machines = [made.machine(each) for each in names]
        waits = {each.node: 10 if number < WHOLE else 0 for number, each in enumerate(machines)}
        for each in machines:
            each.start(felix=bool(waits[each.node]))
        wanted = [(each, _container(each, number)) for each in machines for number in range(PODS)]
        async with asyncio.TaskGroup() as group:
            for machine, container in wanted:
                group.create_task(_added(machine, container, told, waits[machine.node]))
        assert len(told.holders) == NODES * PODS
        await _require_sound(made, told)
        async with asyncio.TaskGroup() as group:
            for machine, container in wanted:
                group.create_task(machine.call("DEL", container))
        assert await stored(made) == NOTHING
        assert [each.interfaces() for each in machines] == [[]] * NODES
        status, said = await made.muslin("ipam", "check")
        assert status == 0, said


def _container(machine: Machine, number: int) -> Container:
    return Container(f"{number:08x}{machine.node}", machine.namespace(f"{number}"), f"{machine.node}-{number}")


async def _added(machine: Machine, container: Container, told: Told, wait_s: int) -> None:
    """Asked from the first moment on, also before its agent has a socket."""

    async def added() -> bool:
        heard = await machine.call("ADD", container, policy_setup_timeout_seconds=wait_s)
        if heard.status:
            assert heard.document["code"] == TRY_AGAIN, heard
            await machine.call("DEL", container)
            return False
        told.given(container, addresses(heard))
        return True

    await until(added)


async def _require_sound(made: Cluster, told: Told) -> None:
    """What the datastore says is what was told; each block is one node's, whose claim is confirmed; some borrow."""
    given = {line.split()[0] for line in (await stored(made)).addresses}
    assert given == set(told.holders)
    async with made.store() as store:
        all_blocks = await blocks(store)
        names = [each.key.name for each in (await store.list({BlockAffinity.KIND})).entries]
        claims = [found[0].spec for name in names if (found := await objects.read(store, BlockAffinity, name))]
    assert len(all_blocks) == BLOCKS
    owners = Counter(each.spec.node for each in all_blocks)
    assert "" not in owners
    confirmed = {(each.node, each.cidr) for each in claims if each.state is AffinityState.CONFIRMED}
    assert confirmed == {(each.spec.node, each.spec.cidr) for each in all_blocks}
    assert any(each.spec.borrowers for each in all_blocks)
    status, said = await made.muslin("ipam", "check")
    assert status == 0, said
