"""A node is wiped and joins again under its name: no DEL ever comes for its pods, and nothing of them stays for ever.

n1, first life    pods a b c d          agents killed, namespaces and run directory gone
n1, second life   pods a b e f, new containers: other addresses at once
                  after the grace, what the first life held is free, and n2's pod has noticed nothing
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from survive_cluster import Machine, cluster, node, pool, until
from survive_left import kernel, require_nothing, stored
from survive_runtime import Runtime, Told

pytestmark = pytest.mark.kernel

GRACE_S = 4.0


async def test_a_node_that_was_wiped_joins_again(tmp_path: Path) -> None:
    told = Told()
    async with cluster(tmp_path, node("n1"), node("n2"), pool("pods", "10.62.0.0/26", 28)) as made:
        wiped, other = made.machine("n1", GRACE_S), made.machine("n2", GRACE_S)
        for each in (wiped, other):
            each.start()
        for each in (wiped, other):
            await each.serving()
        before = {each.node: await kernel(made, each) for each in (wiped, other)}
        beside = Runtime(other, told, random.Random(1))
        probe, _ = await beside.added("probe")
        steady, its_addresses = await beside.added("steady")

        first = Runtime(wiped, told, random.Random(2))
        containers = [(await first.added(name))[0] for name in "abcd"]
        old = set((await stored(made)).addresses)
        await _wipe(wiped)
        made.machines.remove(wiped)

        again = made.machine("n1", GRACE_S, "n1-again")
        again.start()
        await again.serving()
        second = Runtime(again, told, random.Random(3), made=100)
        pods = {name: await second.added(name) for name in "abef"}  # who was told an address by now has it alone
        assert old < set((await stored(made)).addresses)

        async def collected() -> bool:
            return len((await stored(made)).handles) == len(pods) + 2

        await until(collected)
        left = await stored(made)
        mine = {f"{address} k8s-pod-network.{each.id}" for each, given in pods.values() for address in given}
        assert mine < set(left.addresses)
        assert len(left.addresses) == len(left.endpoints) == len(left.handles) == 6
        assert (await made.muslin("ipam", "check"))[0] == 0
        for each, given in list(pods.values())[1:]:
            await second.require_policy(pods["a"][0], each, given)
        await beside.require_policy(probe, steady, its_addresses)

        for each in containers:  # a DEL of the first life, long after
            await second.removed(each)
        assert await stored(made) == left
        for each, _ in pods.values():
            await second.removed(each)
        await beside.removed(probe)
        await beside.removed(steady)
        await require_nothing(made, before)


async def _wipe(machine: Machine) -> None:
    """Nothing of the node is left but what the datastore knows of it."""
    await machine.felix.kill()
    await machine.cni.kill()
    for each in tuple(machine.made):
        machine.without(each)
    machine.leave()
