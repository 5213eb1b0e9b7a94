"""Probes between real namespaces: who answers, under which address, how fast; transfers; packet counts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lab import ip, probe, processes
from lab.capture import Capture
from linux import netns

pytestmark = pytest.mark.lab

HOSTS = ("a", "b", "c")
SERVED = {"a": "172.16.1.11", "b": "172.16.1.12", "c": "172.16.1.13"}


@pytest.fixture
def served(ground: Any, tmp_path: Path, wait: Callable[[Callable[[], object]], None]) -> Iterator[Any]:
    """Three hosts in one subnet, each serving port 8080 over TCP and UDP, both families."""
    made = ground(
        {
            "name": "rack",
            "pools": ["10.9.0.0/16", "fd09::/48"],
            "routers": [{"name": "tor", "kind": "kernel"}],
            "racks": [{"name": "rack", "router": "tor", "asNumber": 64512}],
            "nodes": [{"name": host, "rack": "rack"} for host in HOSTS],
        }
    )
    services = [{"name": host, "namespace": made.namespace(host), "ports": [8080]} for host in HOSTS]
    (tmp_path / "services").write_text(json.dumps(services))
    argv = [sys.executable, "-m", "lab.probe", str(tmp_path / "services"), str(tmp_path / "ready")]
    server = processes.start(argv, log=tmp_path / "log")
    made.processes.append(server)
    wait((tmp_path / "ready").exists)
    return made


def inside(namespace: str, *argv: str) -> None:
    """Run a command in a namespace."""
    subprocess.run(netns.command(namespace, *argv), check=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, 20 s at most."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is a counter
            await asyncio.sleep(0.01)


def sources(made: Any) -> dict[str, probe.Source]:
    return {host: probe.Source(made.namespace(host)) for host in HOSTS}


DESTINATIONS = {host: ip_address(text) for host, text in SERVED.items()}
PAIRS = {(a, b) for a in HOSTS for b in HOSTS if a != b}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_the_matrix_tells_who_answered_and_under_which_address_it_was_seen(served: Any, protocol: str) -> None:
    found = await probe.matrix(sources(served), DESTINATIONS, protocol)
    assert set(found) == PAIRS
    for (source, destination), answer in found.items():
        assert answer
        assert answer.server == destination
        assert answer.seen == DESTINATIONS[source]


async def test_both_families_are_served(served: Any) -> None:
    destination = {"b": ip_address("fd16:1::12")}
    found = await probe.matrix({"a": sources(served)["a"]}, destination)
    assert found["a", "b"].seen == ip_address("fd16:1::11")


async def test_blocked_pairs_cost_one_timeout_together_and_open_ones_stay_open(served: Any) -> None:
    block = "table inet t { chain c { type filter hook input priority 0; th dport 8080 ip saddr 172.16.1.11 drop; }; }"
    for host in ("b", "c"):
        inside(served.namespace(host), "nft", block)
    for protocol in ("tcp", "udp"):
        begin = time.monotonic()
        found = await probe.matrix(sources(served), DESTINATIONS, protocol, timeout=0.5)
        assert time.monotonic() - begin < 1.5
        assert {pair for pair, answer in found.items() if not answer} == {("a", "b"), ("a", "c")}
        assert found["a", "b"].why == "timeout"


async def test_a_closed_port_is_told_from_a_silent_one(served: Any) -> None:
    found = await probe.matrix(sources(served), DESTINATIONS, port=9, timeout=5)
    assert {answer.why for answer in found.values()} == {"Connection refused"}


async def test_a_transfer_counts_what_came_back_and_notices_silence(served: Any) -> None:
    async with probe.transfer(sources(served)["a"], DESTINATIONS["b"]) as running:
        await until(lambda: running.received > 20_000)
        ip.batch(["link set eth0 down"], served.namespace("b"))
        running.mark()
        await until(lambda: running.silence_s > 0.5)
        stopped_at = running.received
        ip.batch(["link set eth0 up"], served.namespace("b"))
        await until(lambda: running.received > stopped_at)


async def test_a_transfer_that_breaks_raises(served: Any) -> None:
    async def broken() -> None:
        async with probe.transfer(sources(served)["a"], DESTINATIONS["b"]) as running:
            processes.stop(served.processes)
            await until(lambda: running.silence_s > 0.3)

    with pytest.raises(ConnectionError):
        await broken()


async def test_a_capture_counts_its_protocol_and_no_other(served: Any) -> None:
    # IP protocol 253 is for experiments (RFC 3692): the kernel sends it raw and answers with ICMP
    argv = [sys.executable, "-c", _RAW, SERVED["b"], "253", "40"]
    namespace = served.namespace("a")
    with Capture(namespace, protocol=253) as wanted, Capture(namespace, protocol=4) as other:
        await probe.matrix(sources(served), DESTINATIONS)
        assert (wanted.count(), other.count()) == (0, 0)
        inside(namespace, *argv)
        assert (wanted.count(), other.count()) == (40, 0)
        inside(namespace, *argv)
        assert wanted.count() == 80


_RAW = """
import socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    raw.sendto(b"x" * 100, (sys.argv[1], 0))
"""


def test_a_pid_that_was_used_again_is_not_taken_for_ours(tmp_path: Path) -> None:
    process = processes.start(["sleep", "60"], log=tmp_path / "log")
    other = processes.Process(process.pid, process.started + 1)
    assert process.alive()
    assert not other.alive()
    processes.stop([other])
    assert process.alive()
    processes.stop([process])
    assert not process.alive()


def test_a_process_that_will_not_end_is_killed_with_its_children(
    tmp_path: Path, wait: Callable[[Callable[[], object]], None]
) -> None:
    argv = ["bash", "-c", "trap '' TERM; sleep 60 & touch ready; wait; sleep 60"]
    process = processes.start(argv, log=tmp_path / "log", cwd=tmp_path)
    wait((tmp_path / "ready").exists)
    found = processes.tree(process)
    assert len(found) == 2
    processes.stop(found, patience_s=0.2)
    assert not any(each.alive() for each in found)
