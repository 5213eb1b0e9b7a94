"""Namespaces and the links between them: a pod's wiring, checked with the administrator's tools."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from core.errors import MuslinError
from linux import interfaces, netns
from linux.interfaces import End
from linux.model import NextHop
from linux.netlink import Netlink, Refused
from linux.netns import inside, scratch_namespace

pytestmark = pytest.mark.kernel

NAME = f"muslin-test-{os.getpid()}"


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def in_pod(*argv: str) -> str:
    return run(*netns.command(NAME, *argv))


def shown(*argv: str) -> Any:
    return json.loads(in_pod("ip", "-j", *argv))


@pytest.fixture
def pod() -> Iterator[str]:
    netns.create(NAME)
    yield NAME
    netns.delete(NAME)


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    with Netlink() as made:
        yield made


def test_a_named_namespace_comes_and_goes(pod: str) -> None:
    assert netns.exists(pod)
    assert "UP" in shown("link", "show", "lo")[0]["flags"]
    with pytest.raises(MuslinError, match="File exists"):
        netns.create(pod)
    netns.delete(pod)
    assert not netns.exists(pod)
    netns.delete(pod)


def own() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def fail_elsewhere() -> None:
    before = own()
    with scratch_namespace():
        assert own() != before
        raise ZeroDivisionError


def test_a_thread_goes_inside_and_comes_back(pod: str) -> None:
    home = own()
    with inside(pod):
        there = own()
        with pytest.raises(ZeroDivisionError):
            fail_elsewhere()
        assert own() == there
    assert own() == home != there
    with pytest.raises(FileNotFoundError), inside("muslin-no-such"):
        pass


def test_other_threads_stay_where_they_are(pod: str) -> None:
    go, seen = threading.Event(), []

    def look() -> None:
        go.wait(5)
        seen.append(own())

    home = own()
    thread = threading.Thread(target=look)
    thread.start()
    with inside(pod):
        go.set()
        thread.join()
    assert seen == [home]


def test_a_pod_is_wired_and_answers(pod: str, netlink: Netlink) -> None:
    with open(netns.path(pod)) as there:
        interfaces.add_veth(
            netlink,
            End(name="mus1", mac="ee:ee:ee:ee:ee:ee"),
            End(name="eth0", mac="02:00:00:00:00:09", namespace=there.fileno()),
            1430,
        )
    host = interfaces.find(netlink, "mus1")
    assert host is not None
    assert (host.mac, host.mtu, host.kind, host.up) == ("ee:ee:ee:ee:ee:ee", 1430, "veth", False)
    with inside(pod), Netlink() as far:
        eth0 = interfaces.find(far, "eth0")
        assert eth0 is not None
        assert (eth0.mac, eth0.mtu) == ("02:00:00:00:00:09", 1430)
        interfaces.set_link(far, eth0.index, up=True)
        for address, gateway in (("10.0.0.9/32", "169.254.1.1"), ("fd00::9/128", "fe80::1")):
            router = ip_address(gateway)
            interfaces.add_address(far, eth0.index, ip_interface(address))
            interfaces.add_address(far, eth0.index, ip_interface(address))
            everything = ip_network("0.0.0.0/0" if router.version == 4 else "::/0")
            first = ip_network((router, router.max_prefixlen))
            hops = [(first, NextHop(eth0.index)), (everything, NextHop(eth0.index, router))]
            interfaces.add_routes(far, hops)
            interfaces.add_routes(far, hops)
        assert interfaces.peer_index(far, "eth0") == host.index
    assert interfaces.peer_index(netlink, "mus1") == eth0.index
    assert interfaces.peer_index(netlink, "lo") is interfaces.peer_index(netlink, "mus2") is None
    interfaces.set_link(netlink, host.index, up=True)
    interfaces.add_address(netlink, host.index, ip_interface("192.0.2.1/32"))
    interfaces.add_routes(netlink, [(ip_network("10.0.0.9/32"), NextHop(host.index))])
    in_pod("ip", "neigh", "replace", "169.254.1.1", "dev", "eth0", "lladdr", "ee:ee:ee:ee:ee:ee", "nud", "permanent")
    assert "1 received" in run("ping", "-c1", "-W2", "10.0.0.9")
    routes = {(route["dst"], route.get("gateway")) for route in shown("route")}
    assert {("default", "169.254.1.1"), ("169.254.1.1", None)} <= routes
    assert any(route["dst"] == "default" and route["gateway"] == "fe80::1" for route in shown("-6", "route"))
    interfaces.delete_address(netlink, host.index, ip_interface("192.0.2.1/32"))
    interfaces.delete_address(netlink, host.index, ip_interface("192.0.2.1/32"))
    interfaces.delete_link(netlink, "mus1")
    interfaces.delete_link(netlink, "mus1")
    assert "eth0" not in [link["ifname"] for link in shown("link")]


def test_a_refusal_carries_the_kernels_words(netlink: Netlink) -> None:
    interfaces.add_veth(netlink, End(name="a0"), End(name="a1"), 1500)
    with pytest.raises(Refused, match="File exists"):
        interfaces.add_veth(netlink, End(name="a0"), End(name="a2"), 1500)
    index = interfaces.find(netlink, "a0")
    assert index is not None
    with pytest.raises(Refused, match="mtu"):
        interfaces.set_link(netlink, index.index, mtu=70000)
