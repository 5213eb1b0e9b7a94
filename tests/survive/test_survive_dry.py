"""A pool runs dry: an ADD says so and harms nobody, and the first that can succeed does, without any restart."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from survive_cluster import NETWORK, Cluster, Container, cluster, node, pool
from survive_left import kernel, require_nothing, stored
from survive_runtime import Runtime, Told, addresses

from core.resources import IPReservation, Metadata
from core.resources.ipam import ReservationSpec
from datastore import objects

pytestmark = pytest.mark.kernel

NO_ADDRESS = 100
POOL = [f"10.62.0.{each}" for each in range(8)]


@asynccontextmanager
async def dry(folder: Path) -> AsyncIterator[tuple[Cluster, Runtime, list[tuple[Container, tuple[str, ...]]]]]:
    """A node whose pool of eight has none left; at the end all goes, and nothing is left."""
    async with cluster(folder, node("n1"), pool("pods", "10.62.0.0/29", 29)) as made:
        machine = made.machine("n1")
        machine.start()
        await machine.serving()
        before = {"n1": await kernel(made, machine)}
        runtime = Runtime(machine, Told(), random.Random(4))
        pods = [await runtime.added(f"pod-{number}") for number in range(8)]
        yield made, runtime, pods
        for each, _ in pods:
            await runtime.removed(each)
        status, said = await made.muslin("delete", "ippool", "more")
        assert status == 0, said
        await require_nothing(made, before)


async def refused(runtime: Runtime, container: Container) -> None:
    """An ADD finds no address, says so in a sentence, and has left nothing."""
    interfaces = runtime.machine.interfaces()
    heard = await runtime.machine.call("ADD", container)
    said = heard.document
    assert (heard.status, said["code"]) == (1, NO_ADDRESS), said
    assert f"{NETWORK}.{container.id}" in said["msg"]
    assert "pods" in said["msg"]
    assert runtime.machine.interfaces() == interfaces
    await runtime.removed(container)


async def test_a_pool_runs_dry_and_recovers(tmp_path: Path) -> None:
    async with dry(tmp_path) as (made, runtime, pods):
        assert sorted(each for _, given in pods for each in given) == sorted(POOL)
        waiting = runtime.container("waiting")
        full = await stored(made)
        for _ in range(3):
            await refused(runtime, waiting)
        assert await stored(made) == full
        for each, given in pods[1:]:
            await runtime.require_policy(pods[0][0], each, given)

        gone, its = pods.pop()
        await runtime.removed(gone)
        pods.append(await _at_once(runtime, waiting))
        assert pods[-1][1] == its

        late = runtime.container("late")
        await refused(runtime, late)
        await made.write(pool("more", "10.62.1.0/29", 29))
        pods.append(await _at_once(runtime, late))
        assert pods[-1][1][0].startswith("10.62.1.")
        await runtime.require_policy(pods[0][0], *pods[-1])

        held = [IPReservation(metadata=Metadata(name="held"), spec=ReservationSpec(reserved_cidrs=["10.62.1.0/29"]))]
        await made.write(*held)
        last = runtime.container("last")
        await refused(runtime, last)
        async with made.store() as store:
            await objects.delete(store, IPReservation, "held")
        pods.append(await _at_once(runtime, last))


async def _at_once(runtime: Runtime, container: Container) -> tuple[Container, tuple[str, ...]]:
    """The first ADD succeeds."""
    heard = await runtime.machine.call("ADD", container)
    assert heard.status == 0, heard
    runtime.told.given(container, addresses(heard))
    return container, addresses(heard)
