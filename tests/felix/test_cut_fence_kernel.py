"""What keeps a cut connection dead goes with its pod, and the next one that has the address finds none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from core.resources import WorkloadEndpoint
from datastore import objects
from datastore.api import Delete
from linux.conntrack import Conntrack
from tests.felix.cluster import allow_from, deny, pod
from tests.felix.host import HOST, OUTSIDE, PATIENCE_S, Place, ip, nft, unplug, until
from tests.felix.one_node import DB, WEB, Cluster
from tests.felix.test_cut_kernel import Talk, ended, of_port, tcp, udp

pytestmark = pytest.mark.kernel

OLD = pod("db", "10.0.0.2", "fd00::2", app="db")
CLIENT = pod("web", "10.0.0.1", "fd00::1", app="web")


@pytest.fixture
def conntrack() -> Iterator[Conntrack]:
    with Conntrack() as opened:
        yield opened


def fenced() -> bool:
    """Whether anything of a fence is there: an element, a set, a chain."""
    return "cut" in nft("list", "table", "inet", "muslin")


async def no_fence() -> None:
    await until(lambda: not fenced())


async def cut(cluster: Cluster, conntrack: Conntrack, address: str = "10.0.0.2") -> tuple[Talk, Talk]:
    """A connection and an exchange of datagrams that policy has ended; the db may still call the web."""
    await cluster.start()
    talks = await tcp(cluster.web, cluster.db, address, 80), await udp(cluster.web, cluster.db, address, 53)
    await cluster.write(allow_from("only", "shop", "app == 'db'", "app == 'web'", 81, "TCP"))
    await ended(conntrack, 80)
    await ended(conntrack, 53)
    assert fenced()
    return talks


@pytest.mark.parametrize(
    ("interface", "endpoint", "address"), [(DB, OLD, "10.0.0.2"), (WEB, CLIENT, "fd00::2")], ids=["server", "client"]
)
async def test_it_goes_with_the_pod_at_either_end(
    cluster: Cluster, conntrack: Conntrack, interface: str, endpoint: WorkloadEndpoint, address: str
) -> None:
    await cut(cluster, conntrack, address)
    await cluster.remove(endpoint)
    unplug(interface, cluster.db if interface == DB else cluster.web)
    await no_fence()


async def test_it_stands_while_the_pod_may_come_back(cluster: Cluster, conntrack: Conntrack) -> None:
    """Its object is gone and written again, as by hand; its process, and what it has open, never went away."""
    flips, datagrams = await cut(cluster, conntrack)
    await cluster.remove(OLD)
    assert fenced()
    await cluster.stop()
    await cluster.start()
    assert fenced(), "nor does a felix that comes meanwhile take it away"
    await cluster.write(OLD)
    await flips.is_dead()
    await datagrams.is_dead()


async def test_it_goes_with_an_interface_that_was_down_for_long(cluster: Cluster, conntrack: Conntrack) -> None:
    await cut(cluster, conntrack)
    await cluster.remove(OLD)
    ip("link", "set", DB, "down")
    await cluster.write(pod("marker", "10.0.0.8"))
    cluster.host.pod("marker", "10.0.0.8")
    await cluster.status(lambda state: state.endpoints["shop/a-k8s-marker-eth0"].state == "up")
    assert fenced()
    ip("link", "del", DB)
    await no_fence()


async def test_the_next_pod_is_free_of_it_within_one_round(cluster: Cluster, conntrack: Conntrack) -> None:
    _, datagrams = await cut(cluster, conntrack)
    there = cluster.host.pod("next", "10.0.0.2")
    cluster.revision = await cluster.store.txn([Delete(OLD.key), objects.put(pod("next", "10.0.0.2"))])
    await cluster.programmed()
    assert not fenced(), "when it is said to be up, it has all that is its own and nothing else"
    await calls(there, datagrams)


async def test_a_pod_of_the_same_name_is_free_of_it(cluster: Cluster, conntrack: Conntrack) -> None:
    _, datagrams = await cut(cluster, conntrack)
    unplug(DB, cluster.db)
    there = cluster.host.pod("db", "10.0.0.2", "fd00::2")
    await cluster.write(pod("db", "10.0.0.2", "fd00::2", container="second", app="db"))
    assert not fenced()
    await calls(there, datagrams)


async def calls(there: Place, datagrams: Talk) -> None:
    """From the very port, to the very port, where the one before was kept from it."""
    sender = there.udp("10.0.0.2", 53)
    sender.connect(("10.0.0.1", 40000))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        await loop.sock_sendall(sender, b"a new one")
        assert await loop.sock_recv(datagrams.client, 4096) == b"a new one"


@pytest.mark.parametrize("then", ["nobody", "another", "same name"])
async def test_a_felix_that_starts_finds_it_and_whose_it_was(cluster: Cluster, conntrack: Conntrack, then: str) -> None:
    _, datagrams = await cut(cluster, conntrack)
    await cluster.stop()
    unplug(DB, cluster.db)
    await cluster.store.txn([Delete(OLD.key)])
    heir = {
        "nobody": None,
        "another": pod("next", "10.0.0.2"),
        "same name": pod("db", "10.0.0.2", "fd00::2", container="second", app="db"),
    }[then]
    if heir is None:
        await cluster.start()
        await no_fence()
        return
    there = cluster.host.pod(heir.spec.pod, "10.0.0.2")
    await cluster.write(heir)
    await cluster.start()
    assert not fenced()
    await calls(there, datagrams)


async def test_it_goes_with_a_pod_that_is_another_address_outside(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.start()
    await tcp(cluster.web, cluster.host.outside, OUTSIDE, 80)
    assert of_port(conntrack, 80)[0].reply.destination == ip_address(HOST)
    await cluster.write(deny("web", "shop", "app == 'web'"))
    await ended(conntrack, 80)
    await cluster.stop()
    await cluster.start()
    assert fenced()
    await cluster.remove(CLIENT)
    unplug(WEB, cluster.web)
    await no_fence()


async def test_one_pods_end_leaves_the_others_alone(cluster: Cluster, conntrack: Conntrack) -> None:
    flips, datagrams = await cut(cluster, conntrack)
    await cluster.write(third := pod("third", "10.0.0.3", app="web"))
    there = cluster.host.pod("third", "10.0.0.3")
    await cluster.remove(third)
    unplug(third.spec.interface_name, there)
    await cluster.write(pod("marker", "10.0.0.8"))
    assert fenced()
    await flips.is_dead()
    await datagrams.is_dead()
