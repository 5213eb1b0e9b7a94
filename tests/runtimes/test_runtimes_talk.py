"""Containers of podman on one node and of containerd on the other, in one network: they talk, are kept apart by their
labels, and outlive muslin's agents."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from tests.runtimes.container import ECHO, Container, server
from tests.runtimes.machine import until
from tests.runtimes.site import NODES, Site

pytestmark = pytest.mark.lab


async def pair(runtimes: Site) -> tuple[Container, Container]:
    """A web server of podman's, default/web on node1, and one of containerd's, shop/db on node2, which it reaches."""
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(runtimes.podman.run("web", *server("web")))
        other = tasks.create_task(runtimes.containerd.run("db", *server("db")))
    web, db = one.result(), other.result()
    await asyncio.gather(web.serving(), db.serving())
    # a node's first pod has a new block, and BGP has to carry it to the other node
    await asyncio.gather(*(until(fetching(web, each, "db"), f"web to reach {each}") for each in db.addresses))
    return web, db


def fetching(caller: Container, address: str, wanted: str) -> object:
    """Whether the server there says what is wanted, for `until`."""

    async def fetches() -> bool:
        return await caller.fetches(address) == wanted

    return fetches


async def test_containers_of_two_runtimes_talk(runtimes: Site) -> None:
    web, db = await pair(runtimes)
    assert await asyncio.gather(*(db.fetches(each) for each in web.addresses)) == ["web", "web"]
    assert await asyncio.gather(*(web.pings(each) for each in db.addresses)) == [True, True]
    assert await asyncio.gather(*(db.pings(each) for each in web.addresses)) == [True, True]


POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {label}}}}}
spec: {{nodeName: {node}}}
---"""
PODS = POD.format(name="web", namespace="default", label="web", node="node1")
PODS += POD.format(name="db", namespace="shop", label="db", node="node2")
ONLY_WEB = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
    - from:
        - namespaceSelector: {}
          podSelector: {matchLabels: {app: web}}
      ports: [{protocol: TCP, port: 80}]
"""


async def test_containers_obey_policy_by_the_labels_of_their_pods(runtimes: Site) -> None:
    await runtimes.apply(PODS + ONLY_WEB)
    try:
        web, db = await pair(runtimes)
        other = await runtimes.podman.run("other")
        assert await other.fetches(web.address) == "web"
        assert await asyncio.gather(*(other.fetches(each) for each in db.addresses)) == ["", ""]
        assert await asyncio.gather(*(web.pings(each) for each in db.addresses)) == [False, False]
        assert await asyncio.gather(*(web.fetches(each) for each in db.addresses)) == ["db", "db"]
    finally:
        await runtimes.delete(PODS + ONLY_WEB)


@contextmanager
def connected(web: Container, db: Container) -> Iterator[list[socket.socket]]:
    """An open connection from the one to the other, for each family."""
    opened = [web.connection(address, ECHO) for address in db.addresses]
    try:
        yield opened
    finally:
        for each in opened:
            each.close()


def says(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(64)


async def test_addresses_and_connections_outlive_every_agent(runtimes: Site) -> None:
    web, db = await pair(runtimes)
    with connected(web, db) as connections:
        for agent in ("felix", "bgp", "cni"):
            for node in NODES:
                runtimes.lab.kill(f"{agent}@{node}", children=True)
            assert [says(each, b"away") for each in connections] == [b"away"] * 2, f"without {agent}"
            for node in NODES:
                runtimes.lab.start(f"{agent}@{node}")
            await runtimes.until_ready()
            assert [says(each, b"back") for each in connections] == [b"back"] * 2, f"with {agent} again"
    assert await web.fetches(db.address) == "db"
    assert (await runtimes.podman.find("web")).addresses == web.addresses
    shown = await db.run("ip", "addr", "show", "dev", "eth0")
    assert all(f" {address}/" in shown for address in db.addresses)


async def test_a_host_port_leads_to_a_container(runtimes: Site) -> None:
    web = await runtimes.podman.run("web", *server("web"), options=("--publish", "8081:80"))
    db = await runtimes.containerd.run("db", *server("db"), ports={8082: 80})
    for container, port in ((web, 8081), (db, 8082)):
        await container.serving()
        node = str(runtimes.lab.address(container.machine.name, 4))
        with closing(runtimes.connection("outside", node, port)) as caller:
            caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with caller.makefile("rb") as answer:
                assert answer.read().endswith(container.name.encode() + b"\n")
