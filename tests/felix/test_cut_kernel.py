"""A connection that policy comes to deny ends, both ways and for good, and no other loses a byte. Real packets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from core.names import workload_interface
from core.resources import Resource
from datastore import objects
from datastore.api import Delete
from linux.conntrack import Conntrack, Flow
from tests.felix.cluster import allow_from, deny, felix, pod
from tests.felix.host import DENIED_S, HOST, PATIENCE_S, Place, dropped, nft, says, until
from tests.felix.one_node import Cluster

pytestmark = pytest.mark.kernel


@pytest.fixture
def conntrack() -> Iterator[Conntrack]:
    with Conntrack() as opened:
        yield opened


@dataclass
class Talk:
    """One connection or exchange, held at both ends."""

    client: socket.socket
    server: socket.socket

    async def carries(self, text: bytes) -> None:
        """Both ways, and in order."""
        for sender, receiver in ((self.client, self.server), (self.server, self.client)):
            assert await _passes(sender, receiver, text) == text

    async def is_dead(self) -> None:
        """Neither end hears the other, whoever speaks first."""
        loop = asyncio.get_running_loop()
        for sender in (self.server, self.client, self.server):
            await loop.sock_sendall(sender, b"anybody?")
        ears = [asyncio.create_task(loop.sock_recv(ear, 4096)) for ear in (self.client, self.server)]
        heard, deaf = await asyncio.wait(ears, timeout=DENIED_S)
        for each in deaf:
            each.cancel()
        assert not heard


async def _passes(sender: socket.socket, receiver: socket.socket, text: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        await loop.sock_sendall(sender, text)
        return await loop.sock_recv(receiver, 4096)


@contextlib.asynccontextmanager
async def listening(place: Place, address: str, port: int) -> AsyncIterator[socket.socket]:
    opened = place.open(socket.SOCK_STREAM, address, port, socket.AF_INET6 if ":" in address else socket.AF_INET)
    opened.listen()
    try:
        yield opened
    finally:
        opened.close()


async def tcp(client: Place, server: Place, address: str, port: int, behind: int = 0) -> Talk:
    """A connection to `address` and `port`, which the server accepts at its own, on port `behind` if that differs."""
    own = next(each for each in server.addresses if (":" in each) == (":" in address))
    async with listening(server, own, behind or port) as opened:
        calling = await client.connect(address, port)
        async with asyncio.timeout(PATIENCE_S):
            accepted, _ = await asyncio.get_running_loop().sock_accept(opened)
    accepted.setblocking(False)
    server.sockets.append(accepted)
    talk = Talk(calling, accepted)
    await talk.carries(b"hello")
    return talk


async def udp(client: Place, server: Place, address: str, port: int) -> Talk:
    own = next(each for each in client.addresses if (":" in each) == (":" in address))
    there, here = server.udp(address, port), client.udp(own, 40000)
    here.connect((address, port))
    there.connect((own, 40000))
    talk = Talk(here, there)
    await talk.carries(b"hello")
    return talk


def of_port(conntrack: Conntrack, port: int) -> list[Flow]:
    return [flow for flow in conntrack.flows() if port in (flow.original.dport, flow.reply.sport)]


async def ended(conntrack: Conntrack, port: int) -> None:
    await until(lambda: not of_port(conntrack, port))


def only(port: int, protocol: str = "TCP") -> Resource:
    """The db accepts that port from the web, and nothing else."""
    return allow_from("only", "shop", "app == 'db'", "app == 'web'", port, protocol)


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
async def test_what_flips_ends_and_its_neighbour_loses_no_byte(
    cluster: Cluster, conntrack: Conntrack, address: str
) -> None:
    await cluster.start()
    flips = await tcp(cluster.web, cluster.db, address, 80)
    stays = await tcp(cluster.web, cluster.db, address, 81)
    loop, sent, heard = asyncio.get_running_loop(), bytearray(), bytearray()

    async def speak() -> None:
        for number in range(10_000):
            line = b"%d\n" % number
            await loop.sock_sendall(stays.client, line)
            sent.extend(line)
            await asyncio.sleep(0.001)

    async def hear() -> None:
        while True:
            heard.extend(await loop.sock_recv(stays.server, 65536))

    speaking, hearing = asyncio.create_task(speak()), asyncio.create_task(hear())
    await until(lambda: len(heard) > 100)
    await cluster.write(only(81))
    await ended(conntrack, 80)
    await flips.is_dead()
    assert dropped("cut") > 0, "the server's next packet would have begun a flow that policy allows"
    assert not of_port(conntrack, 80), "nothing of it comes back"
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    await until(lambda: len(heard) >= len(sent))
    hearing.cancel()
    await asyncio.gather(hearing, return_exceptions=True)
    assert bytes(heard) == bytes(sent)
    await stays.carries(b"still here")


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
async def test_datagrams_stop_both_ways(cluster: Cluster, conntrack: Conntrack, address: str) -> None:
    await cluster.start()
    flips, stays = await udp(cluster.web, cluster.db, address, 53), await tcp(cluster.web, cluster.db, address, 81)
    await cluster.write(only(81))
    await ended(conntrack, 53)
    await flips.is_dead()
    await stays.carries(b"still here")


async def test_egress_that_flips_ends_and_may_begin_again_when_allowed(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.start()
    flips = await tcp(cluster.web, cluster.db, "10.0.0.2", 80)
    closed = deny("web", "shop", "app == 'web'")
    await cluster.write(closed)
    await ended(conntrack, 80)
    await flips.is_dead()
    await cluster.remove(closed)
    async with cluster.db.echo(80):
        assert await says(await cluster.web.connect("10.0.0.2", 80), b"again") == b"again"


async def test_a_peer_that_is_no_longer_meant_is_cut_off(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.write(only(80))
    await cluster.start()
    flips = await tcp(cluster.web, cluster.db, "10.0.0.2", 80)
    await cluster.write(pod("web", "10.0.0.1", "fd00::1", app="stranger"))
    await ended(conntrack, 80)
    await flips.is_dead()


async def test_behind_a_service_the_pod_itself_is_judged(cluster: Cluster, conntrack: Conntrack) -> None:
    nft(
        "table ip service { chain pre { type nat hook prerouting priority -100; "
        "ip daddr 10.96.0.1 tcp dport 80 dnat to 10.0.0.2:8080; ip daddr 10.96.0.1 tcp dport 81 dnat to 10.0.0.2:8081; "
        "}; }"
    )
    await cluster.start()
    flips = await tcp(cluster.web, cluster.db, "10.96.0.1", 80, 8080)
    stays = await tcp(cluster.web, cluster.db, "10.96.0.1", 81, 8081)
    await cluster.write(only(8081))
    await ended(conntrack, 8080)
    await flips.is_dead()
    await stays.carries(b"still here")


async def test_a_policy_that_changed_while_felix_was_away_counts(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.start()
    flips = await tcp(cluster.web, cluster.db, "10.0.0.2", 80)
    stays = await tcp(cluster.web, cluster.db, "10.0.0.2", 81)
    await cluster.stop()
    await cluster.write(only(81))
    await flips.carries(b"nobody has said so yet")
    await cluster.start()
    await ended(conntrack, 80)
    await flips.is_dead()
    before = nft("list", "set", "inet", "muslin", "cut4")
    await cluster.stop()
    await cluster.start()
    assert nft("list", "set", "inet", "muslin", "cut4") == before, "a restart keeps what keeps it dead"
    await flips.is_dead()
    await stays.carries(b"still here")


async def test_who_wants_it_so_keeps_connections(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.write(felix(policy_cut_connections="Disabled"))
    await cluster.start()
    running = await tcp(cluster.web, cluster.db, "10.0.0.2", 80)
    await cluster.write(deny("all", "shop"))
    assert not await cluster.web.reaches("10.0.0.2", 80)
    await running.carries(b"still here")
    await cluster.write(felix(policy_cut_connections="Enabled"))
    await ended(conntrack, 80)
    await running.is_dead()


async def test_the_host_to_its_own_pods_is_left_alone_and_a_pod_to_the_host_is_not(
    cluster: Cluster, conntrack: Conntrack
) -> None:
    await cluster.write(felix(default_endpoint_to_host_action="Accept"))
    await cluster.start()
    here = cluster.host.place
    outwards, inwards = await tcp(here, cluster.db, "10.0.0.2", 80), await tcp(cluster.web, here, HOST, 8080)
    await cluster.write(deny("all", "shop"))
    await ended(conntrack, 8080)
    await inwards.is_dead()
    await outwards.carries(b"still here")


async def test_flows_of_an_address_end_with_its_pod(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.start()
    stays = await tcp(cluster.host.place, cluster.web, "10.0.0.1", 81)
    await tcp(cluster.web, cluster.db, "10.0.0.2", 80)
    await udp(cluster.web, cluster.db, "10.0.0.2", 53)
    await cluster.remove(pod("db", "10.0.0.2", "fd00::2"))
    await ended(conntrack, 80)
    await ended(conntrack, 53)
    await stays.carries(b"still here")


async def test_flows_of_an_address_do_not_pass_to_the_next_pod(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.start()
    await udp(cluster.web, cluster.db, "10.0.0.2", 53)
    heir, late = pod("heir", "10.0.0.2", app="db"), cluster.host.pod("heir", "10.0.0.2")
    earlier = of_port(conntrack, 53)
    cluster.revision = await cluster.store.txn([Delete(pod("db", "10.0.0.2").key), objects.put(heir)])
    await cluster.programmed()
    await until(lambda: earlier[0].id not in {flow.id for flow in conntrack.flows()})
    async with late.echo(80):
        assert await cluster.web.reaches("10.0.0.2", 80)
    assert workload_interface("shop", "heir") in nft("list", "map", "inet", "muslin", "to-workload")


async def test_flows_of_an_address_that_nobody_has_when_felix_starts(cluster: Cluster, conntrack: Conntrack) -> None:
    await cluster.start()
    await tcp(cluster.web, cluster.db, "10.0.0.2", 80)
    await cluster.stop()
    await cluster.store.txn([Delete(pod("db", "10.0.0.2").key)])
    await cluster.start()
    await ended(conntrack, 80)
