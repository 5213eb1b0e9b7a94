"""A packet's way through the kernel: its route, and the rules that decided, whoever's they are."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from linux.libnftables import NftRefused
from linux.nft_trace import Traced, Watch, rule_text
from linux.route_query import Way, Ways, way_to

pytestmark = pytest.mark.kernel


def run(line: str) -> str:
    return subprocess.run(line.split(), check=True, capture_output=True, text=True).stdout


def nft(script: str) -> str:
    return subprocess.run(["nft", script], check=True, capture_output=True, text=True).stdout


def heard(watch: Watch, enough: Callable[[list[Traced]], bool]) -> list[Traced]:
    """What is heard until it is enough: the kernel tells at once, but not before `send` returns."""
    found: list[Traced] = []
    deadline = time.monotonic() + 10
    while not enough(found):
        assert time.monotonic() < deadline, found
        found = watch.packets()
    return found


def send(host: str, port: int) -> int:
    """One datagram; the port it came from."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((host, port))
        with contextlib.suppress(PermissionError):  # what an output chain drops, the sender is told of
            sender.send(b"x")
        return int(sender.getsockname()[1])


@pytest.mark.parametrize(("host", "word"), [("127.0.0.1", "ip"), ("::1", "ip6")])
def test_who_drops_a_packet_is_named_with_the_rule(host: str, word: str) -> None:
    nft(
        "table inet theirs { chain more { udp dport 9 counter drop; }; "
        "chain out { type filter hook output priority 0; jump more; }; }"
    )
    with Watch([f"{word} daddr {host} udp dport {{ 9, 10 }}"]) as watch:
        ports = send(host, 9), send(host, 10)
        found = heard(watch, lambda found: len({each.sport for each in found}) >= 2)
    by_port = {each.dport: each for each in found}
    lost = by_port[9].dropped
    assert lost is not None
    assert (lost.family, lost.table, lost.chain, lost.verdict) == ("inet", "theirs", "more", "drop")
    assert rule_text(lost).startswith("udp dport 9 counter packets")
    assert [step.verdict for step in by_port[9].steps] == ["jump", "drop"]
    assert (by_port[9].source, by_port[9].protocol, by_port[9].sport) == (ip_address(host), 17, ports[0])
    assert by_port[10].dropped is None
    assert str(by_port[10].steps[0]) == "table inet theirs, chain out: jump more"


def test_only_what_matches_is_watched_and_nothing_is_left_behind() -> None:
    nft("table inet theirs { chain out { type filter hook output priority 0; udp dport 9 counter drop; }; }")
    with Watch(["udp dport 9"]) as watch:
        assert f"table inet muslin-trace-{os.getpid()}" in nft("list tables")
        send("127.0.0.1", 10)
        send("127.0.0.1", 9)
        found = heard(watch, bool)
    assert {each.dport for each in found} == {9}
    assert nft("list tables") == "table inet theirs\n"


def test_the_table_goes_also_when_its_maker_is_killed() -> None:
    script = (
        "import os, signal; from linux.nft_trace import Watch; "
        "watch = Watch(['udp dport 9']); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    assert nft("list tables") == ""


def test_a_match_that_is_none_is_refused_and_leaves_nothing() -> None:
    with pytest.raises(NftRefused):
        Watch(["nonsense"])
    assert nft("list tables") == ""


@pytest.mark.parametrize(
    ("prefix", "inside", "gateway"),
    [("10.9.0.0/16", "10.9.1.2", "192.0.2.9"), ("fd09::/64", "fd09::7", "fd02::9")],
)
def test_the_way_that_a_packet_would_take(prefix: str, inside: str, gateway: str) -> None:
    run("ip link add a0 type veth peer name a1")
    run("ip addr add 192.0.2.1/24 dev a0")
    run("ip addr add fd02::1/64 dev a0 nodad")
    run("ip link set a0 up")
    run("ip link set a1 up")
    run(f"ip route add {prefix} via {gateway} dev a0 proto 201 metric 200")
    assert way_to(ip_address(inside)) == Way(
        kind="unicast",
        prefix=ip_network(prefix),
        device="a0",
        gateway=ip_address(gateway),
        protocol=201,
        metric=200,
    )
    assert way_to(ip_address(gateway)).gateway is None
    own = "192.0.2.1" if "." in gateway else "fd02::1"
    assert way_to(ip_address(own)).kind == "local"
    assert way_to(ip_address("203.0.113.1" if "." in gateway else "2001:db8::1")).device == ""
    run(f"ip route add blackhole {inside}")
    assert way_to(ip_address(inside)).kind == "blackhole"


def test_by_which_interfaces_an_address_may_be_reached() -> None:
    for name, four, six in (("a", "192.0.2.1", "fd02::1"), ("b", "198.51.100.1", "fd03::1")):
        run(f"ip link add {name}0 type veth peer name {name}1")
        run(f"ip addr add {four}/24 dev {name}0")
        run(f"ip addr add {six}/64 dev {name}0 nodad")
        run(f"ip link set {name}0 up")
        run(f"ip link set {name}1 up")
    run("ip link set lo up")
    run("ip route add 10.9.0.0/16 nexthop via 192.0.2.9 dev a0 nexthop via 198.51.100.9 dev b0")
    run("ip -6 route add fd09::/64 nexthop via fd02::9 dev a0 nexthop via fd03::9 dev b0")
    with Ways() as ways:
        for both in ("10.9.1.2", "fd09::7"):
            assert set(ways.devices(ip_address(both))) == {"a0", "b0"}
        for one in ("192.0.2.7", "fd02::7"):
            assert ways.devices(ip_address(one)) == ("a0",)
        for own in ("192.0.2.1", "fd02::1", "127.0.0.1", "192.0.2.255", "224.0.0.5"):
            expected = ("",) if own != "224.0.0.5" else ()
            assert ways.devices(ip_address(own)) == expected, own
        for nowhere in ("203.0.113.1", "2001:db8::1", "fe80::1"):
            assert ways.devices(ip_address(nowhere)) == ()
        run("ip route add 203.0.113.0/24 dev b0")
        assert ways.devices(ip_address("203.0.113.1")) == (), "what was asked is remembered"
        ways.forget()
        assert ways.devices(ip_address("203.0.113.1")) == ("b0",)
