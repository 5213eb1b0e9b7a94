"""Addresses of ours on lo: put there, found again, put right, taken away; and never anybody else's."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator, Mapping
from ipaddress import ip_interface
from typing import Any

import pytest
from bgp_world import until

from core.addr import Interface
from core.reconcile import Plan, Reconciler
from linux.addresses import UNMARKED, AddressDriver
from linux.interfaces import IFADDR, RTM_NEWADDR, family
from linux.netlink import NLM_F_CREATE, Netlink, attribute

pytestmark = pytest.mark.kernel

FOUR, SIX = ip_interface("169.254.1.2/32"), ip_interface("fd00::2/128")
BOTH: Mapping[Interface, bool] = {FOUR: True, SIX: True}


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def on_lo() -> dict[str, dict[str, Any]]:
    """What the kernel holds, as iproute2 says it."""
    (link,) = json.loads(ip("-j", "addr", "show", "dev", "lo"))
    return {each["local"]: each for each in link["addr_info"]}


def add_marked(address: Interface, index: int) -> None:
    """An address with our mark and nothing else of what we give it; this iproute2 cannot."""
    body = IFADDR.pack(family(address), address.network.prefixlen, 0, 0, index)
    body += attribute(2, address.packed) + attribute(1, address.packed) + attribute(11, b"\xc8")
    with Netlink() as netlink:
        netlink.request(RTM_NEWADDR, NLM_F_CREATE, body)


@pytest.fixture
def driver() -> Iterator[AddressDriver]:
    ip("link", "set", "lo", "up")
    made = AddressDriver()
    yield made
    made.close()


async def so(driver: AddressDriver, wanted: Mapping[Interface, bool]) -> Reconciler[Interface, bool]:
    """A reconciler's round, as a process that has just started makes it."""
    made = Reconciler(driver)
    made.set_desired(wanted, 1)
    progress = await made.step()
    assert progress.healthy, progress
    return made


async def test_both_families_are_put_there_and_taken_away(driver: AddressDriver) -> None:
    before = on_lo().keys()
    await so(driver, BOTH)
    assert on_lo().keys() - before == {"169.254.1.2", "fd00::2"}
    assert (await driver.read(), driver.warning) == (BOTH, "")
    await so(driver, {SIX: True})
    assert on_lo().keys() - before == {"fd00::2"}
    await so(driver, {})
    assert on_lo().keys() == before


async def test_a_process_with_no_memory_finds_its_own_and_writes_nothing(driver: AddressDriver) -> None:
    await so(driver, BOTH)
    later = AddressDriver()
    try:
        assert await later.read() == BOTH
        assert (await so(later, BOTH)).progress.writes == 0
        await so(later, {})
        assert {"169.254.1.2", "fd00::2"}.isdisjoint(on_lo())
    finally:
        later.close()


async def test_what_is_taken_away_comes_back(driver: AddressDriver) -> None:
    running = await so(driver, BOTH)
    ip("addr", "del", "169.254.1.2/32", "dev", "lo")
    ip("addr", "del", "fd00::2/128", "dev", "lo")
    running.distrust()
    await running.step()
    assert {"169.254.1.2", "fd00::2"} <= on_lo().keys()


@pytest.mark.parametrize("address", [FOUR, SIX])
async def test_one_of_ours_that_is_not_as_we_make_it_is_made_anew(driver: AddressDriver, address: Interface) -> None:
    add_marked(address, 1)
    assert await driver.read() == {address: False}
    await so(driver, {address: True})
    assert await driver.read() == {address: True}


@pytest.mark.parametrize("others", [["169.254.1.2/32", "fd00::2/128"], ["169.254.1.2/24", "fd00::2/64"]])
async def test_somebody_elses_is_never_touched(driver: AddressDriver, others: list[str]) -> None:
    for each in others:
        ip("addr", "add", each, "dev", "lo", *(["nodad"] if ":" in each else []))
    before = ip("-d", "addr", "show", "dev", "lo")
    running = await so(driver, BOTH)
    running.set_desired({}, 2)
    assert (await running.step()).healthy
    await so(driver, {})
    assert ip("-d", "addr", "show", "dev", "lo") == before


async def test_on_other_interfaces_nothing_is_ours(driver: AddressDriver) -> None:
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    add_marked(FOUR, socket.if_nametoindex("eth0"))
    assert await driver.read() == {}
    await so(driver, BOTH)
    await so(driver, {})
    assert "169.254.1.2" in ip("addr", "show", "dev", "eth0")


def all_noticed() -> bool:
    """Whether four links have the routes that they will: a kernel may notice a second later that the far end is up."""
    four, six = ip("route", "show"), ip("-6", "route", "show")
    return "linkdown" not in four + six and six.count("fe80::/64") == 4


async def test_the_host_sends_nothing_of_its_own_from_them(driver: AddressDriver) -> None:
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
    for address in ("10.1.0.1/24", "fd77::1/64"):
        ip("addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    ip(
        "link", "add", "mus1", "type", "veth", "peer", "name", "far1"
    )  # a pod's: it has no address that a host could use
    for link in ("eth0", "far0", "mus1", "far1"):
        ip("link", "set", link, "up")
    ip("route", "add", "10.244.1.7/32", "dev", "mus1")
    ip("route", "add", "fd00::7/128", "dev", "mus1")
    until("the kernel knows of all ends", all_noticed)
    before = ip("route", "show"), ip("-6", "route", "show")
    await so(driver, BOTH)
    assert (ip("route", "show"), ip("-6", "route", "show")) == before
    for to, source in (("10.244.1.7", "10.1.0.1"), ("fd00::7", "fd77::1")):
        assert f"src {source} " in ip("route", "get", to)


async def test_a_refused_address_does_not_keep_the_other_away(driver: AddressDriver) -> None:
    nobodys = ip_interface("::/128")
    failed = await driver.apply(Plan(upsert={nobodys: True, FOUR: True}, delete={}))
    assert {each: str(why).partition(" on lo")[0] for each, why in failed.items()} == {nobodys: "address ::/128"}
    assert "169.254.1.2" in on_lo()


async def test_a_kernel_that_keeps_no_mark_is_said_and_done_without() -> None:
    """Protocol 0 is none: the kernel keeps nothing of it, as kernels before 5.18 do of any.

    There is no 127.0.0.1 either, whose mark would say that this kernel could.
    """
    ip("addr", "flush", "dev", "lo")
    driver, later = AddressDriver(protocol=0), AddressDriver(protocol=0)
    try:
        await so(driver, BOTH)
        assert (await driver.read(), driver.warning) == (BOTH, UNMARKED)
        await so(later, BOTH)
        assert (await later.read(), later.warning) == ({}, UNMARKED)
        await so(later, {})
        assert on_lo().keys() == {"169.254.1.2", "fd00::2"}
        await so(driver, {})
        assert on_lo().keys() == set()
    finally:
        driver.close()
        later.close()
