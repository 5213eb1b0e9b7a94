"""Routes by prefix against the kernel's main table: what is read after a batch is what was asked for."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from core.prefix import Prefix
from core.reconcile import Plan, Reconciler
from core.routing import Metric, RouteProtocol
from linux.model import NextHop, Route
from linux.prefix_routes import PrefixRoutes

pytestmark = pytest.mark.kernel


def ip(line: str) -> str:
    return subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def device() -> int:
    ip("link add a0 type veth peer name a1")
    ip("addr add 192.0.1.1/24 dev a0")
    ip("-6 addr add fd01::1/64 dev a0 nodad")
    ip("link set a0 up")
    ip("link set a1 up")
    return socket.if_nametoindex("a0")


@pytest.fixture
def driver(device: int) -> Iterator[PrefixRoutes]:
    made = PrefixRoutes(RouteProtocol.BGP, Metric.BGP)
    yield made
    made.close()


def prefix(text: str) -> Prefix:
    return Prefix.of(ip_network(text))


def by(device: int, *gateways: str) -> Route:
    return Route(next_hops=tuple(NextHop(device, ip_address(each)) for each in gateways))


async def test_what_is_asked_for_is_read(driver: PrefixRoutes, device: int) -> None:
    one, two = by(device, "192.0.1.2"), by(device, "192.0.1.2", "192.0.1.3")
    six, many = by(device, "fd01::2"), by(device, "fd01::2", "fd01::3")
    wanted = {
        prefix("10.1.0.0/26"): one,
        prefix("10.1.0.64/26"): two,
        prefix("10.1.0.128/32"): one,
        prefix("0.0.0.0/0"): one,
        prefix("fd44::/64"): six,
        prefix("fd44::40/122"): many,
        prefix("::/0"): six,
    }
    assert await driver.apply(Plan(wanted, {})) == {}
    assert await driver.read() == wanted
    shown = ip("-d route show 10.1.0.0/26")
    assert "proto 201" in shown or "proto muslin-bgp" in shown or "proto muslin" in shown
    assert "metric 200" in shown
    changed = {prefix("10.1.0.0/26"): two, prefix("fd44::/64"): many}
    gone = {each: wanted[each] for each in (prefix("10.1.0.64/26"), prefix("::/0"))}
    assert await driver.apply(Plan(changed, gone)) == {}
    assert await driver.read() == {each: route for each, route in (wanted | changed).items() if each not in gone}
    assert await driver.apply(Plan({}, gone)) == {}, "what is gone already is gone"


async def test_what_the_kernel_refuses_is_named_and_the_rest_goes_in(driver: PrefixRoutes, device: int) -> None:
    good, bad = prefix("10.1.0.0/26"), prefix("10.1.0.64/26")
    failed = await driver.apply(Plan({bad: by(device, "203.0.113.9"), good: by(device, "192.0.1.2")}, {}))
    assert failed.keys() == {bad}
    assert "10.1.0.64/26 metric 200" in str(failed[bad])
    assert set(await driver.read()) == {good}
    linked = Route(next_hops=(NextHop(device), NextHop(device, ip_address("fd01::2"))))
    failed = await driver.apply(Plan({prefix("fd44::/64"): linked, prefix("10.2.0.0/26"): Route()}, {}))
    assert "needs a gateway" in str(failed[prefix("fd44::/64")])
    assert "needs a next hop" in str(failed[prefix("10.2.0.0/26")])


async def test_others_routes_are_neither_read_nor_taken(driver: PrefixRoutes, device: int) -> None:
    ip("route add 10.1.0.0/26 via 192.0.1.9 metric 5")
    ip("route add 10.1.0.64/26 via 192.0.1.9 proto 200 metric 200")
    assert await driver.read() == {}
    await driver.apply(Plan({}, {prefix("10.1.0.0/26"): by(device, "192.0.1.9")}))
    assert "192.0.1.9" in ip("route show 10.1.0.0/26")


async def test_a_route_of_ours_at_another_metric_goes(driver: PrefixRoutes, device: int) -> None:
    here, stray = prefix("10.1.0.0/26"), prefix("10.1.0.64/26")
    ip("route add 10.1.0.0/26 via 192.0.1.2 proto 201 metric 200")
    ip("route add 10.1.0.0/26 via 192.0.1.3 proto 201 metric 7")
    ip("route append 10.1.0.0/26 via 192.0.1.4 proto 201 metric 200")
    ip("route add 10.1.0.64/26 via 192.0.1.3 proto 201 metric 7")
    assert (await driver.read()).keys() == {here, stray}
    reconciler = Reconciler(driver)
    reconciler.change_desired({here: by(device, "192.0.1.2")}, 1)
    progress = await reconciler.step()
    assert progress.healthy
    assert await driver.read() == {here: by(device, "192.0.1.2")}
    assert ip("route show proto 201").count("\n") == 1


async def test_thousands_go_in_and_out_beside_a_loop_that_runs(driver: PrefixRoutes, device: int) -> None:
    blocks = [Prefix.of(each) for each in ip_network("10.0.0.0/15").subnets(new_prefix=27)]
    wanted = dict.fromkeys(blocks, by(device, "192.0.1.2"))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    assert await driver.apply(Plan(wanted, {})) == {}
    turning.cancel()
    assert turns > 10
    assert await driver.read() == wanted
    assert await driver.apply(Plan({}, wanted)) == {}
    assert await driver.read() == {}
