"""A child's sockets, borrowed: what is seen of them, and what is done to them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from core.addr import Address
from linux.borrowed import borrowed, cut, far_end, guard, listens, progress, send_ttl
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

CHILD = """
import socket, sys
four, six = socket.socket(), socket.socket(socket.AF_INET6)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
for each, address in ((four, "0.0.0.0"), (six, "::")):
    each.bind((address, 179))
    each.listen()
print("listens", flush=True)
accepted = []
for line in sys.stdin:
    accepted.append((four if line.strip() == "4" else six).accept()[0])
    print("accepted", flush=True)
"""


class Child:
    def __init__(self, process: subprocess.Popen[str], pidfd: int) -> None:
        self.process, self.pidfd = process, pidfd

    def accept(self, version: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{version}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "accepted\n"

    def guard(self, least: dict[Address, int]) -> None:
        with borrowed(self.process.pid, self.pidfd) as tcp:
            assert [listens(each) for each in tcp] == [True, True]
            for each in tcp:
                guard(each, least)


@pytest.fixture
def child() -> Iterator[Child]:
    with scratch_namespace():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", CHILD], text=True, **pipes) as process:  # type: ignore[call-overload]
            assert process.stdout.readline() == "listens\n"
            pidfd = os.pidfd_open(process.pid)
            try:
                yield Child(process, pidfd)
            finally:
                process.kill()
                os.close(pidfd)


IP_MINTTL, IPV6_MINHOPCOUNT = 21, 73


def call(local: str, ttl: int, least: int = 0) -> socket.socket:
    six = ":" in local
    tcp = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
    tcp.settimeout(0.3)
    if six:
        tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        tcp.setsockopt(socket.IPPROTO_IPV6, IPV6_MINHOPCOUNT, least)
    else:
        tcp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        tcp.setsockopt(socket.IPPROTO_IP, IP_MINTTL, least)
    tcp.bind((local, 0))
    try:
        tcp.connect(("::1" if six else "127.0.0.1", 179))
    except OSError:
        tcp.close()
        raise
    return tcp


def test_a_guard_looks_at_its_addresses_only(child: Child) -> None:
    child.guard({ip_address("127.0.0.5"): 255, ip_address("127.0.0.6"): 10, ip_address("::1"): 254})
    for local, ttl in (("127.0.0.5", 255), ("127.0.0.6", 10), ("127.0.0.7", 1), ("::1", 254)):
        call(local, ttl).close()
    for local, ttl in (("127.0.0.5", 254), ("127.0.0.6", 9), ("::1", 253)):
        with pytest.raises(TimeoutError):
            call(local, ttl)
    child.guard({})
    call("127.0.0.5", 1).close()


def test_it_holds_for_what_a_guarded_listener_has_accepted(child: Child) -> None:
    child.guard({ip_address("127.0.0.5"): 255})
    with call("127.0.0.5", 255) as tcp:
        child.accept(4)
        tcp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 254)
        tcp.send(b"forged")
        with borrowed(child.process.pid, child.pidfd) as sockets:
            (accepted,) = [each for each in sockets if not listens(each)]
            accepted.setblocking(False)
            with pytest.raises(BlockingIOError):
                accepted.recv(10)


def test_a_listener_is_heard_by_callers_that_are_as_strict(child: Child) -> None:
    for local in ("127.0.0.5", "::1"):
        with pytest.raises(TimeoutError):
            call(local, 255, least=255)
    with borrowed(child.process.pid, child.pidfd) as tcp:
        for each in tcp:
            send_ttl(each, 255)
    for local in ("127.0.0.5", "::1"):
        call(local, 255, least=255).close()


def test_who_reads_nothing_is_seen_and_cut(child: Child) -> None:
    with call("127.0.0.5", 64) as tcp:
        child.accept(4)
        with borrowed(child.process.pid, child.pidfd) as sockets:
            (accepted,) = [each for each in sockets if far_end(each) == ip_address("127.0.0.5")]
            accepted.setblocking(False)
            before = progress(accepted)
            fill(accepted)
            blocked = progress(accepted)
            assert blocked.acked > before.acked
            assert blocked.queued > 0
            cut(accepted)
            with pytest.raises(BrokenPipeError):
                accepted.send(b"more")
        child.process.kill()
        child.process.wait()
        with pytest.raises(ConnectionResetError):
            drain(tcp)


def fill(tcp: socket.socket) -> None:
    """Send until nothing more goes in."""
    with contextlib.suppress(BlockingIOError):
        while True:
            tcp.send(bytes(65536))


def drain(tcp: socket.socket) -> None:
    """Read until the end."""
    while tcp.recv(1 << 20):
        pass


def test_a_process_that_is_gone_lends_nothing(child: Child) -> None:
    child.process.kill()
    child.process.wait()
    with pytest.raises(OSError), borrowed(child.process.pid, child.pidfd):  # noqa: PT011 - by the moment, one of several
        pass


CHURN = """
import socket
print("churns", flush=True)
while True:
    socket.socket().close()
"""


def test_sockets_that_come_and_go_are_no_trouble() -> None:
    pipes = {"stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CHURN], text=True, **pipes) as process:  # type: ignore[call-overload]
        pidfd = os.pidfd_open(process.pid)
        try:
            assert process.stdout.readline() == "churns\n"
            for _ in range(3000):
                with borrowed(process.pid, pidfd) as tcp:
                    assert len(tcp) <= 1
        finally:
            process.kill()
            os.close(pidfd)


def test_without_a_handle_nothing_is_borrowed(child: Child) -> None:
    closed = os.dup(child.pidfd)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"), borrowed(child.process.pid, closed):
        pass
