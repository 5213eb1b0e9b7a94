"""The route driver against the kernel's main table: what is read after a batch is what was asked for."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.reconcile import Plan, Reconciler, diff
from core.routing import RouteProtocol
from linux.model import NextHop, Route, RouteKey, RouteType
from linux.routes import RouteDriver

pytestmark = pytest.mark.kernel


def ip(line: str) -> str:
    return subprocess.run(["ip", *line.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def devices() -> tuple[int, int]:
    """Two devices that are up, each with an address of both families and a neighbour's subnet."""
    for name, peer, net in (("a0", "a1", 1), ("b0", "b1", 2)):
        ip(f"link add {name} type veth peer name {peer}")
        ip(f"addr add 192.0.{net}.1/24 dev {name}")
        ip(f"-6 addr add fd0{net}::1/64 dev {name} nodad")
        ip(f"link set {name} up")
        ip(f"link set {peer} up")
    return socket.if_nametoindex("a0"), socket.if_nametoindex("b0")


@pytest.fixture
def driver(devices: tuple[int, int]) -> Iterator[RouteDriver]:
    made = RouteDriver(RouteProtocol.FELIX)
    yield made
    made.close()


def key(prefix: str, metric: int = 100) -> RouteKey:
    return RouteKey(ip_network(prefix), metric)


def every_shape(a: int, b: int) -> dict[RouteKey, Route]:
    """One route of each shape that the kernel knows and muslin may ask for."""
    gateways = [ip_address(text) for text in ("192.0.1.9", "192.0.2.9", "fd01::9", "fd02::9")]
    return {
        key("10.0.0.1/32"): Route(next_hops=(NextHop(a),)),
        key("10.0.1.0/26", 400): Route(next_hops=(NextHop(a, gateways[0]),)),
        key("10.0.2.0/26", 400): Route(next_hops=(NextHop(a, ip_address("172.31.0.1"), onlink=True),)),
        key("10.0.3.0/26", 200): Route(next_hops=(NextHop(b, gateways[1], weight=3), NextHop(a, gateways[0]))),
        key("10.0.4.0/26", 1000): Route(type=RouteType.BLACKHOLE),
        key("10.0.5.0/26"): Route(next_hops=(NextHop(a),), source=ip_address("192.0.1.1")),
        key("10.0.6.0/26"): Route(next_hops=(NextHop(a), NextHop(b))),
        key("10.0.7.0/26"): Route(next_hops=(NextHop(a), NextHop(b, gateways[1]))),
        key("10.0.8.0/26"): Route(next_hops=(NextHop(a, gateways[2]),)),  # IPv4 by way of an IPv6 router
        key("0.0.0.0/0", 200): Route(next_hops=(NextHop(a, gateways[0]),)),
        key("10.0.1.0/26", 0): Route(next_hops=(NextHop(a, gateways[0]),)),
        key("fd10::1/128"): Route(next_hops=(NextHop(a),)),
        key("fd10:1::/64", 400): Route(next_hops=(NextHop(a, gateways[2]),)),
        key("fd10:2::/64", 400): Route(next_hops=(NextHop(a, ip_address("fd99::1"), onlink=True),)),
        key("fd10:3::/64", 200): Route(next_hops=(NextHop(a, gateways[2]), NextHop(b, gateways[3], weight=2))),
        key("fd10:4::/64", 1000): Route(type=RouteType.BLACKHOLE),
        key("fd10:5::/64"): Route(next_hops=(NextHop(a, gateways[2]),), source=ip_address("fd01::1")),
        key("::/0", 200): Route(next_hops=(NextHop(b, gateways[3]),)),
    }


async def test_reads_back_what_was_written(driver: RouteDriver, devices: tuple[int, int]) -> None:
    desired = every_shape(*devices)
    assert await driver.apply(Plan(desired, {})) == {}
    assert await driver.read() == desired
    assert await driver.apply(Plan({}, desired)) == {}
    assert await driver.read() == {}
    assert await driver.apply(Plan({}, desired)) == {}, "already gone is success"


async def test_writing_twice_changes_nothing(driver: RouteDriver, devices: tuple[int, int]) -> None:
    desired = every_shape(*devices)
    await driver.apply(Plan(desired, {}))
    assert await driver.apply(Plan(desired, {})) == {}
    assert await driver.read() == desired


def values(version: int, a: int, b: int) -> list[Route]:
    return [route for each, route in every_shape(a, b).items() if each.destination.version == version]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_state_follows_any_other(driver: RouteDriver, devices: tuple[int, int], data: st.DataObject) -> None:
    """Values change type, gain and lose next hops, come and go; the kernel always ends where it was told to."""
    tables = st.fixed_dictionaries(
        {},
        optional={
            each: st.sampled_from(values(each.destination.version, *devices))
            for each in (key("10.9.0.0/26"), key("10.9.0.0/26", 200), key("fd19::/64"), key("fd19::/64", 200))
        },
    )

    async def walk() -> None:
        for desired in data.draw(st.lists(tables, min_size=1, max_size=4)):
            assert await driver.apply(diff(desired, await driver.read())) == {}
            assert await driver.read() == desired

    asyncio.run(walk())


async def test_others_routes_are_neither_read_nor_removed(driver: RouteDriver, devices: tuple[int, int]) -> None:
    ip("route add 10.1.0.0/24 dev a0 proto static metric 100")
    ip("-6 route add fd20::/64 dev a0 proto 201 metric 100")
    assert await driver.read() == {}
    hop = Route(next_hops=(NextHop(devices[0]),))
    assert await driver.apply(Plan({}, {key("10.1.0.0/24"): hop, key("fd20::/64"): hop})) == {}
    assert "10.1.0.0/24" in ip("route show proto static")
    assert "fd20::/64" in ip("-6 route show proto 201")


async def test_one_bad_route_fails_alone_and_says_why(driver: RouteDriver, devices: tuple[int, int]) -> None:
    a, _ = devices
    good = {key(f"10.2.{n}.0/24"): Route(next_hops=(NextHop(a),)) for n in range(200)}
    bad = {
        key("10.3.0.0/24"): Route(next_hops=(NextHop(a, ip_address("172.16.9.9")),)),  # no such gateway there
        key("10.4.0.0/24"): Route(next_hops=(NextHop(9999),)),
        key("fd30::/64", 0): Route(next_hops=(NextHop(a),)),
        key("10.5.0.0/24"): Route(),
        key("10.6.0.0/24"): Route(type=RouteType.BLACKHOLE, next_hops=(NextHop(a),)),
        key("fd31::/64"): Route(next_hops=(NextHop(a), NextHop(devices[1]))),
    }
    failed = await driver.apply(Plan({**good, **bad}, {}))
    assert set(failed) == set(bad)
    assert "10.3.0.0/24 metric 100: Network is unreachable" in str(failed[key("10.3.0.0/24")])
    assert "gateway" in str(failed[key("10.3.0.0/24")]), "the kernel's own words are passed on"
    assert "reads 0 as 1024" in str(failed[key("fd30::/64", 0)])
    assert await driver.read() == good


@pytest.mark.parametrize("line", ["route delete 10.0.0.1/32", "-6 route delete fd10::1/128", "link set a0 down"])
async def test_drift_is_seen_and_healed(driver: RouteDriver, devices: tuple[int, int], line: str) -> None:
    desired = {k: v for k, v in every_shape(*devices).items() if k in (key("10.0.0.1/32"), key("fd10::1/128"))}
    reconciler = Reconciler(driver)
    reconciler.set_desired(desired, 1)
    assert (await reconciler.step()).healthy
    ip(line)
    assert await driver.read() != desired
    ip("link set a0 up")
    reconciler.distrust()
    assert (await reconciler.step()).healthy
    assert await driver.read() == desired


@pytest.mark.parametrize(("prefix", "family"), [("10.7.0.0/24", "-4"), ("fd40::/64", "-6")], ids=["ipv4", "ipv6"])
async def test_a_tangle_under_one_key_is_cleared(
    driver: RouteDriver, devices: tuple[int, int], prefix: str, family: str
) -> None:
    for device in ("a0", "b0"):
        ip(f"{family} route append {prefix} dev {device} proto 200 metric 100")
    desired = {key(prefix): Route(next_hops=(NextHop(devices[0]),))}
    actual = await driver.read()
    assert actual.keys() == desired.keys()
    assert actual != desired
    assert await driver.apply(diff(desired, actual)) == {}
    assert await driver.read() == desired
    assert ip(f"{family} route show {prefix}").count("proto") == 1


async def test_tens_of_thousands_go_in_and_out(driver: RouteDriver, devices: tuple[int, int]) -> None:
    hop = Route(next_hops=(NextHop(devices[0]),))
    desired = {RouteKey(ip_network((0x0A000000 + n, 32)), 100): hop for n in range(20_000)}
    assert await driver.apply(Plan(desired, {})) == {}
    assert await driver.read() == desired
    assert await driver.apply(Plan({}, desired)) == {}
    assert await driver.read() == {}
