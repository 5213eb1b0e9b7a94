"""Facts follow the kernel; our own writes are silent; another hand on our routes is drift."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Collection
from ipaddress import ip_address, ip_interface, ip_network

import pytest
import structlog.testing

from core.latest import Latest
from core.reconcile import Plan
from core.routing import RouteProtocol
from linux.links import watch_facts
from linux.model import Facts, NextHop, Route, RouteKey, Via
from linux.routes import RouteDriver

pytestmark = pytest.mark.kernel


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True)


class Watched:
    """A running watch: its newest facts, how many came, and whether it cried drift."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.seen = 0
        self.drift = asyncio.Event()
        self.devices: list[Collection[int]] = []
        self._latest: Latest[Facts] = Latest()

    def _drifted(self, devices: Collection[int]) -> None:
        self.devices.append(set(devices))
        self.drift.set()

    async def run(self, port: int) -> None:
        async for facts in watch_facts(
            protocol=RouteProtocol.FELIX, ports=(port,), on_drift=self._drifted, settle_s=0.005
        ):
            self.facts = facts
            self.seen += 1
            self._latest.put(facts)

    async def until(self, holds: Callable[[Facts], object]) -> Facts:
        """The first facts from now for which `holds`."""
        async with asyncio.timeout(5):
            while not holds(self.facts):
                await self._latest.get()
        return self.facts


@pytest.fixture
async def driver() -> AsyncIterator[RouteDriver]:
    ip("link add a0 type veth peer name a1")
    made = RouteDriver(RouteProtocol.FELIX)
    yield made
    made.close()


@pytest.fixture
async def watched(driver: RouteDriver) -> AsyncIterator[Watched]:
    watch = Watched()
    task = asyncio.create_task(watch.run(driver.port))
    await watch.until(lambda facts: "a0" in facts.links)
    yield watch
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_links_and_addresses_follow(watched: Watched) -> None:
    assert watched.facts.links["a0"].kind == "veth"
    assert not watched.facts.links["a0"].up
    assert watched.facts.links["lo"].up
    ip("link set a0 mtu 1400 address 02:00:00:00:00:07 up")
    ip("link set a1 up")
    facts = await watched.until(lambda facts: facts.links["a0"].up and facts.links["a0"].mtu == 1400)
    assert facts.links["a0"].mac == "02:00:00:00:00:07"
    assert facts.links["a0"].index == socket.if_nametoindex("a0")
    ip("addr add 192.0.2.1/24 dev a0")
    ip("-6 addr add fd01::1/64 dev a0 nodad")
    wanted = {ip_interface("192.0.2.1/24"), ip_interface("fd01::1/64")}
    facts = await watched.until(lambda facts: wanted <= set(facts.links["a0"].addresses))
    link = facts.on_link(ip_address("fd01::7"))
    assert link is not None
    assert link.name == "a0"
    ip("addr del 192.0.2.1/24 dev a0")
    await watched.until(lambda facts: ip_interface("192.0.2.1/24") not in facts.links["a0"].addresses)
    ip("link set a1 down")
    await watched.until(lambda facts: not facts.links["a0"].up)
    ip("link set a0 down")
    ip("link set a0 name b0")
    await watched.until(lambda facts: "b0" in facts.links and "a0" not in facts.links)
    ip("link del b0")
    await watched.until(lambda facts: not {"a0", "a1", "b0"} & set(facts.links))


async def test_others_gateways_follow(watched: Watched) -> None:
    ip("addr add 192.0.2.1/24 dev a0")
    ip("-6 addr add fd01::1/64 dev a0 nodad")
    ip("link set a1 up")
    ip("link set a0 up")
    index = socket.if_nametoindex("a0")

    def via(prefix: str, gateway: str) -> Via:
        return Via(destination=ip_network(prefix), gateway=ip_address(gateway), device=index)

    ip("route add default via 192.0.2.254")
    ip("-6 route add default via fd01::fe")
    await watched.until(lambda facts: facts.gateways == (via("0.0.0.0/0", "192.0.2.254"), via("::/0", "fd01::fe")))
    ip("route replace default via 192.0.2.253")
    await watched.until(lambda facts: via("0.0.0.0/0", "192.0.2.253") in facts.gateways)
    assert via("0.0.0.0/0", "192.0.2.254") not in watched.facts.gateways
    ip("link set a0 down")  # the kernel drops the routes, and says so only for IPv6
    await watched.until(lambda facts: facts.gateways == ())


async def test_our_own_writes_are_silent_and_anothers_are_drift(watched: Watched, driver: RouteDriver) -> None:
    ip("link set a1 up")
    ip("link set a0 up")
    await watched.until(
        lambda facts: all(facts.links[each].up and facts.links[each].addresses for each in ("a0", "a1"))
    )
    hop = Route(next_hops=(NextHop(socket.if_nametoindex("a0")),))
    desired = {RouteKey(ip_network((0x0A000000 + n, 32)), 100): hop for n in range(3000)}
    seen = watched.seen
    assert await driver.apply(Plan(desired, {})) == {}
    assert await driver.apply(Plan({}, dict(list(desired.items())[10:]))) == {}
    ip("route add 10.9.0.0/24 dev a0 proto 201 metric 200")
    ip("route del 10.9.0.0/24 dev a0 proto 201 metric 200")
    ip("link set lo mtu 65000")  # a marker behind them: once it is seen, everything before it was
    await watched.until(lambda facts: facts.links["lo"].mtu == 65000)
    assert not watched.drift.is_set()
    assert watched.seen == seen + 1
    ip("route del 10.0.0.1/32")
    await asyncio.wait_for(watched.drift.wait(), 5)


@pytest.mark.parametrize(
    "line",
    [
        "route replace 10.0.0.1/32 dev lo proto static metric 100",
        "-6 route del fd10::1/128",
        "link set a0 down",
        "link del a0",
        "addr del 192.0.2.1/24 dev a0",
    ],
)
async def test_every_way_to_lose_a_route_is_drift(watched: Watched, driver: RouteDriver, line: str) -> None:
    ip("addr add 192.0.2.1/24 dev a0")
    ip("link set a1 up")
    ip("link set a0 up")
    hop = Route(next_hops=(NextHop(socket.if_nametoindex("a0")),))
    plan = Plan({RouteKey(ip_network(each), 100): hop for each in ("10.0.0.1/32", "fd10::1/128")}, {})
    assert await driver.apply(plan) == {}
    await watched.until(lambda facts: facts.links["a0"].up)
    watched.drift.clear()
    ip(line)
    await asyncio.wait_for(watched.drift.wait(), 5)


async def test_a_flood_that_overruns_the_socket_ends_in_the_truth(
    driver: RouteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("linux.netlink._BUFFER", 4096)
    watch = Watched()
    task = asyncio.create_task(watch.run(driver.port))
    await watch.until(lambda facts: "a0" in facts.links)
    with structlog.testing.capture_logs() as said:
        add_addresses(600)
        ip("addr del 10.1.0.7/32 dev a0")
        await asyncio.wait_for(watch.drift.wait(), 5)
        await watch.until(lambda facts: len(facts.links["a0"].addresses) == 599)
    assert any(line["event"] == "links.resync" for line in said)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def add_addresses(number: int) -> None:
    lines = "".join(f"addr add 10.1.{n >> 8}.{n & 255}/32 dev a0\n" for n in range(number))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
