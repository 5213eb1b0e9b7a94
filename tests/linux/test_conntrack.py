"""The kernel's table of connections: read whole, by address, and cut one at a time."""

from __future__ import annotations

import socket
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address

import pytest

from linux.conntrack import ASKED_ONE_BY_ONE, FEW, Conntrack, Flow, Status, Tuple, pack
from linux.netlink import NETLINK_NETFILTER, NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute, message

pytestmark = pytest.mark.kernel

NESTED = 0x8000
AGREED = int(Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED)


def tcp(source: str, sport: int, destination: str, dport: int) -> Tuple:
    return Tuple(ip_address(source), ip_address(destination), 6, sport, dport)


def answer(given: Tuple) -> Tuple:
    return replace(given, source=given.destination, destination=given.source, sport=given.dport, dport=given.sport)


def entry(original: Tuple, reply: Tuple | None = None, zone: int = 0, mark: int = 0, timeout_s: int = 300) -> bytes:
    """The message that makes an established TCP connection out of nothing."""
    state = attribute(4 | NESTED, attribute(1 | NESTED, attribute(1, b"\3")))
    body = attribute(1 | NESTED, pack(original)) + attribute(2 | NESTED, pack(reply or answer(original))) + state
    body += attribute(3, AGREED.to_bytes(4, "big")) + attribute(7, timeout_s.to_bytes(4, "big"))
    body += attribute(8, mark.to_bytes(4, "big")) + (attribute(18, zone.to_bytes(2, "big")) if zone else b"")
    family = 2 if original.source.version == 4 else 10
    return message(0x100, NLM_F_CREATE | NLM_F_EXCL, bytes((family, 0, 0, 0)) + body)


def make(*entries: bytes) -> None:
    with Netlink(NETLINK_NETFILTER) as netlink:
        assert not netlink.batch(entries)


@pytest.fixture
def conntrack() -> Iterator[Conntrack]:
    with Conntrack() as opened:
        yield opened


@pytest.fixture
def tracked() -> None:
    """Rules that ask for states: without any, the kernel tracks nothing."""
    rules = "table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }"
    subprocess.run(["nft", rules], check=True)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_what_the_kernel_tracks_is_told_as_it_is(
    conntrack: Conntrack, tracked: None, host: str, family: socket.AddressFamily
) -> None:
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    server = socket.create_server((host, 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    with closing(server), closing(client), closing(datagrams):
        datagrams.connect((host, 9))
        datagrams.send(b"x")
        subprocess.run(["ping", "-c1", host], check=True, capture_output=True)
        found = {flow.original.protocol: flow for flow in conntrack.flows()}
        here, port, at = ip_address(host), server.getsockname()[1], client.getsockname()[1]
    assert found[6].original == Tuple(here, here, 6, at, port)
    assert found[6].reply == Tuple(here, here, 6, port, at)
    assert found[6].state == "ESTABLISHED"
    assert found[6].status & Status.ASSURED
    assert 0 < found[6].timeout_s <= 5 * 24 * 3600
    assert found[17].original.dport == 9
    assert found[17].state == ""
    echo, icmp = found[1 if family == socket.AF_INET else 58].original.icmp, (8, 0) if host != "::1" else (128, 0)
    assert echo is not None
    assert echo[1:] == icmp


def test_zone_mark_translation_and_time_left(conntrack: Conntrack) -> None:
    first = tcp("10.0.0.1", 4000, "10.96.0.1", 80)
    behind = tcp("10.0.0.2", 8080, "10.0.0.1", 4000)
    make(entry(first, behind, zone=7, mark=0xABCD, timeout_s=300))
    (flow,) = conntrack.flows()
    assert (flow.original, flow.reply, flow.zone, flow.mark) == (first, behind, 7, 0xABCD)
    assert flow.timeout_s in (299, 300)


def test_one_is_deleted_and_no_other(conntrack: Conntrack) -> None:
    ours = [tcp("10.0.0.1", port, "10.0.0.2", 80) for port in (4000, 4001)] + [tcp("fd00::1", 4000, "fd00::2", 80)]
    make(*map(entry, ours), entry(ours[0], zone=7))
    flows = {(flow.original, flow.zone): flow for flow in conntrack.flows()}
    assert conntrack.count() == len(flows) == 4
    assert conntrack.delete(flows[ours[0], 7])
    assert conntrack.delete(flows[ours[2], 0])
    assert {(flow.original, flow.zone) for flow in conntrack.flows()} == {(ours[0], 0), (ours[1], 0)}
    assert not conntrack.delete(flows[ours[2], 0]), "it is gone"
    assert conntrack.count() == 2


def test_a_later_connection_of_the_same_tuple_is_not_deleted_for_an_earlier(conntrack: Conntrack) -> None:
    ours = tcp("10.0.0.1", 4000, "10.0.0.2", 80)
    make(entry(ours))
    (earlier,) = conntrack.flows()
    assert not conntrack.delete(replace(earlier, id=earlier.id ^ 1))
    assert [flow.original for flow in conntrack.flows()] == [ours]
    assert conntrack.delete(earlier)


@pytest.mark.parametrize(("others", "crowd"), [(0, 0), (0, FEW), (ASKED_ONE_BY_ONE, FEW)])
def test_by_address_of_either_end(conntrack: Conntrack, others: int, crowd: int) -> None:
    make(*(entry(tcp(f"10.8.{n >> 8}.{n & 255}", 4000, "10.255.0.1", 80)) for n in range(crowd)))
    out, inward = tcp("10.0.0.1", 4000, "10.0.0.2", 80), tcp("10.0.0.9", 4000, "10.0.0.1", 80)
    service = tcp("10.0.0.9", 4001, "10.96.0.1", 80)
    itself = tcp("10.0.0.1", 4001, "10.0.0.1", 80)
    six, other = tcp("fd00::1", 4000, "fd00::2", 80), tcp("10.0.0.7", 4000, "10.0.0.8", 80)
    make(*map(entry, (out, inward, itself, six, other)), entry(service, tcp("10.0.0.1", 8080, "10.0.0.9", 4001)))
    padding = {ip_address(f"10.9.0.{number}") for number in range(others)}

    def of(*addresses: str) -> set[Tuple]:
        return {flow.original for flow in conntrack.flows_of({*map(ip_address, addresses), *padding})}

    assert of("10.0.0.1") == {out, inward, itself, service}
    assert of("10.96.0.1") == set()
    assert of("fd00::1") == of("fd00::2") == {six}
    assert of("fd00::3") == of("10.0.0.3") == set()
    assert of("fd00::1", "10.0.0.7") == {six, other}


def test_a_large_table_is_read_without_being_kept(conntrack: Conntrack) -> None:
    many = [tcp(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 4000, "10.255.0.1", 80) for n in range(1, 20_001)]
    make(*map(entry, many))
    tracemalloc.start()
    number = sum(1 for _ in conntrack.flows())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert number == conntrack.count() == len(many)
    assert most < 2 << 20


def test_readings_may_be_left_early_but_not_overlap(conntrack: Conntrack) -> None:
    make(*(entry(tcp("10.0.0.1", port, "10.0.0.2", 80)) for port in range(2000, 4000)))
    reading = conntrack.flows()
    first = next(reading)
    assert conntrack.delete(first), "deleting while reading is what readings are for"
    with pytest.raises(OSError, match="another reading"):
        conntrack.count()
    reading.close()
    assert conntrack.count() == 1999
    assert sum(1 for _ in conntrack.flows()) == 1999


def test_nothing_tracked_is_nothing_and_a_closed_one_raises() -> None:
    with Conntrack() as opened:
        assert list(opened.flows()) == []
        assert opened.count() == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        list(opened.flows())


def test_a_flow_says_itself() -> None:
    flow = Flow(
        original=tcp("fd00::1", 4000, "fd00::2", 80),
        reply=answer(tcp("fd00::1", 4000, "fd00::2", 80)),
        zone=0,
        status=Status(0),
        timeout_s=1,
        mark=0,
        state="",
        id=1,
    )
    assert str(flow.original) == "[fd00::1]:4000 -> [fd00::2]:80 protocol 6"
