"""Two nodes are asked about one container id, which `cnitool` makes of a path: neither takes the other's address."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from survive_cluster import Container, cluster, node, pool, until
from survive_left import kernel, require_nothing, stored
from survive_runtime import Runtime, Told

from core.resources import BlockAffinity

pytestmark = pytest.mark.kernel

GRACE_S = 0.5


async def test_a_container_of_one_id_on_two_nodes_keeps_its_address_on_the_first(tmp_path: Path) -> None:
    told = Told()
    async with cluster(tmp_path, node("n1"), node("n2"), pool("pods", "10.62.0.0/26", 28)) as made:
        machines = [made.machine(each, GRACE_S) for each in ("n1", "n2")]
        for each in machines:
            each.start()
        for each in machines:
            await each.serving()
        before = {each.node: await kernel(made, each) for each in machines}
        first, second = (Runtime(each, told, random.Random(6)) for each in machines)
        probe, _ = await first.added("probe")
        container, given = await first.added("web")
        held = await stored(made)
        for pod in ("web", "other"):
            twin = Container(container.id, second.machine.namespace(pod), pod)
            heard = await second.machine.call("ADD", twin)
            assert heard.status == 1, heard
            assert "n1" in heard.document["msg"]
            assert (await second.machine.call("DEL", twin)).status == 0
            assert await stored(made) == held
            assert not second.machine.interfaces()
        await first.require_policy(probe, container, given)
        await first.removed(container)
        await second.removed(Container(container.id, second.machine.namespace("late"), "web"))
        await first.removed(probe)

        async def claimed_by_none() -> bool:  # n2 began to claim a block before it saw whose the container is
            async with made.store() as store:
                names = [each.key.name for each in (await store.list({BlockAffinity.KIND})).entries]
            return not any(name.startswith("n2-") for name in names)

        await until(claimed_by_none)
        await require_nothing(made, before)
