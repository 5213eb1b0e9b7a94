"""An address that passes quickly from one pod to the next: its route leads to the new one, and stays there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.endpoint_feed import SOCKET, Outcomes
from core.names import workload_interface
from core.resources import WorkloadEndpoint
from datastore import objects
from datastore.api import Delete
from tests.felix.cluster import pod
from tests.felix.host import PATIENCE_S, Place, ip, unplug, until
from tests.felix.one_node import DB, Cluster

pytestmark = pytest.mark.kernel

ADDRESS = "10.0.0.2"
OLD, NEXT = pod("db", ADDRESS, "fd00::2", app="db"), pod("next", ADDRESS)
NEW = workload_interface("shop", "next")


def route() -> str:
    return ip("route", "show", ADDRESS)


def sysctl(path: str) -> str:
    return Path(f"/proc/sys/net/{path}").read_text().strip()


async def everything_heard(cluster: Cluster) -> None:
    """Return when felix has heard all that happened to links before now: it has seen one that came after."""
    await cluster.write(pod("marker", "10.0.0.8"))
    cluster.host.pod("marker", "10.0.0.8")
    await cluster.status(lambda state: state.endpoints["shop/a-k8s-marker-eth0"].state == "up")


async def reached(cluster: Cluster, there: Place) -> bool:
    async with there.echo(80):
        return await cluster.web.reaches(ADDRESS, 80)


async def test_within_one_round_and_the_old_link_goes_late(cluster: Cluster) -> None:
    await cluster.start()
    assert f"dev {DB}" in route()
    there = cluster.host.pod("next", ADDRESS)
    cluster.revision = await cluster.store.txn([Delete(OLD.key), objects.put(NEXT)])
    await cluster.programmed()
    assert f"dev {NEW}" in route()
    assert await reached(cluster, there)
    ip("link", "del", DB)
    await everything_heard(cluster)
    assert f"dev {NEW}" in route()
    assert await reached(cluster, there)


async def test_in_two_rounds_and_the_old_link_goes_between_them_or_late(cluster: Cluster) -> None:
    await cluster.start()
    await cluster.remove(OLD)
    assert route() == ""
    there = cluster.host.pod("next", ADDRESS)
    await cluster.write(NEXT)
    assert f"dev {NEW}" in route()
    ip("link", "set", DB, "down")
    ip("link", "del", DB)
    await everything_heard(cluster)
    assert await reached(cluster, there)


async def test_the_new_one_waits_while_the_old_one_still_claims_it(cluster: Cluster) -> None:
    await cluster.start()
    there = cluster.host.pod("next", ADDRESS)
    revision = await objects.write(cluster.store, NEXT)
    state = await cluster.status(lambda state: state.decided >= revision)
    assert f"{ADDRESS} belongs to {OLD.key}" in state.endpoints["shop/a-k8s-next-eth0"].reason
    assert f"dev {DB}" in route()
    await cluster.remove(OLD)
    assert f"dev {NEW}" in route()
    assert await reached(cluster, there)


@contextlib.asynccontextmanager
async def listening(cluster: Cluster) -> AsyncIterator[Outcomes]:
    outcomes = Outcomes(cluster.config.run_dir / SOCKET)
    task = asyncio.create_task(outcomes.run())
    try:
        yield outcomes
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_pod_of_the_same_name_has_another_link(cluster: Cluster) -> None:
    """A second interface of one name: what is said of it is said of the first until felix has seen the second."""
    await cluster.start()
    async with listening(cluster) as outcomes:
        await outcomes.until_up("shop/a-k8s-db-eth0", cluster.revision, PATIENCE_S, link=socket.if_nametoindex(DB))
        unplug(DB, cluster.db)
        again = cluster.host.pod("db", ADDRESS, "fd00::2")
        index = socket.if_nametoindex(DB)
        changed: WorkloadEndpoint = pod("db", ADDRESS, "fd00::2", container="second", app="db")
        revision = await objects.write(cluster.store, changed)
        await outcomes.until_up("shop/a-k8s-db-eth0", revision, PATIENCE_S, link=index)
        assert f"dev {DB}" in route()
        assert (sysctl(f"ipv4/conf/{DB}/proxy_arp"), sysctl(f"ipv4/neigh/{DB}/proxy_delay")) == ("1", "0")
        assert await reached(cluster, again)


async def test_a_link_that_falls_and_rises_has_its_routes_again(cluster: Cluster) -> None:
    """The kernel drops them without a word, and all may be over before felix hears that the link was down."""
    await cluster.start()
    for _ in range(3):
        ip("link", "set", DB, "down")
        ip("link", "set", DB, "up")
        await until(lambda: f"dev {DB}" in route() and f"dev {DB}" in ip("-6", "route", "show", "fd00::2"))
