"""A pod that somebody already sends to when its wire is made: it is heard as soon as it has its address."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni import wiring
from cni.wiring import Furniture, Place
from core.addr import Family, host_prefix
from linux import netns

MAC = "02:00:00:00:00:07"
AT_ONCE_S = 0.5
"""A neighbour that did not answer is asked again after a second."""


@pytest.fixture
def pod() -> Iterator[Path]:
    name = f"muslin-nb{os.getpid()}"
    netns.create(name)
    try:
        yield Path("/run/netns", name)
    finally:
        netns.delete(name)


@pytest.mark.parametrize("address", ["10.66.0.7", "fd66::7"])
def test_what_is_sent_before_does_not_delay_what_is_sent_after(pod: Path, address: str) -> None:
    given = ip_address(address)
    family = socket.AF_INET if given.version == 4 else socket.AF_INET6
    with netns.scratch_namespace(), contextlib.ExitStack() as stack:
        there = os.open(pod, os.O_RDONLY)
        stack.callback(os.close, there)
        # The kernel is slow to see that a veth is up whose index is its peer's, and an IPv6 address waits for that.
        subprocess.run(["ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1"], check=True)
        place = Place(host="mus0", inside="eth0", path=str(pod), netns=there)
        wire = wiring.attach(place, 1480, MAC)
        source = "192.0.2.1/32" if given.version == 4 else "fd66::1/128"
        for line in (f"addr add {source} dev mus0 nodad", f"route add {host_prefix(given)} dev mus0"):
            subprocess.run(["ip", *line.split()], check=True)
        sending = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sending.sendto(b"early", (address, 9))
        while address not in neighbours():
            time.sleep(0.001)  # the kernel has asked, and nobody has answered
        wiring.furnish(place, wire, Furniture(addresses=(given,), routes=()), MAC)
        hearing = stack.enter_context(netns.open_socket(str(pod), family, socket.SOCK_DGRAM))
        hearing.bind((address, 9))
        hearing.settimeout(0.001)
        end, heard = time.monotonic() + AT_ONCE_S, b""
        while heard != b"late" and time.monotonic() < end:
            sending.sendto(b"late", (address, 9))  # again: an IPv6 address may take some milliseconds to be there
            with contextlib.suppress(TimeoutError):
                heard = hearing.recv(16)
        assert heard == b"late"
        assert MAC in neighbours()
        gateway = wiring.GATEWAYS[Family(given.version)]
        known = subprocess.run(
            netns.command(str(pod), "ip", "neigh"), check=True, capture_output=True, text=True
        ).stdout
        assert f"{gateway} dev eth0 lladdr {wiring.HOST_MAC} PERMANENT" in known  # it need not answer


def neighbours() -> str:
    return subprocess.run(["ip", "neigh", "show", "dev", "mus0"], check=True, capture_output=True, text=True).stdout
