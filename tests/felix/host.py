"""A node for real: a network namespace with an uplink, pods joined to it, and probes that run inside them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from core.names import workload_interface
from linux import netns
from linux.interfaces import delete_link
from linux.netlink import Netlink

PATIENCE_S = 20.0
"""How long a test waits for what must happen."""

DENIED_S = 0.4
"""How long a connection is tried before it counts as dropped."""

HOST, OUTSIDE = "10.1.0.1", "10.1.0.254"


def ip(*argv: str) -> str:
    """Run `ip` in the namespace of the calling thread."""
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(argv)}: {done.stderr}"
    return done.stdout


def nft(*argv: str) -> str:
    """Run `nft` in the namespace of the calling thread."""
    done = subprocess.run(["nft", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"nft {' '.join(argv)}: {done.stderr}"
    return done.stdout


@dataclass
class Place:
    """A namespace with addresses, and sockets opened in it."""

    namespace: str
    addresses: tuple[str, ...]
    sockets: list[socket.socket] = field(default_factory=list)

    def open(self, kind: int, address: str = "", port: int = 0, family: int = socket.AF_INET) -> socket.socket:
        """A non-blocking socket inside, bound where that is asked for."""
        with netns.inside(self.namespace) if self.namespace else contextlib.nullcontext():
            opened = socket.socket(family, kind)
        self.sockets.append(opened)
        opened.setblocking(False)
        if address or port:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, port))
        return opened

    def udp(self, address: str = "", port: int = 0) -> socket.socket:
        """A datagram socket."""
        return self.open(socket.SOCK_DGRAM, address, port, _family(address or self.addresses[0]))

    @contextlib.asynccontextmanager
    async def echo(self, port: int, address: str = "") -> AsyncIterator[None]:
        """A TCP server that says everything back."""
        address = address or self.addresses[0]
        listening = self.open(socket.SOCK_STREAM, address, port, _family(address))

        listening.listen()
        loop = asyncio.get_running_loop()

        async def answer(caller: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := await loop.sock_recv(caller, 4096):
                    await loop.sock_sendall(caller, data)

        async def accept() -> None:
            async with asyncio.TaskGroup() as callers:
                while True:
                    caller, _ = await loop.sock_accept(listening)
                    self.sockets.append(caller)
                    callers.create_task(answer(caller))

        serving = asyncio.create_task(accept())
        try:
            yield
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            listening.close()

    async def connect(self, address: str, port: int, wait_s: float = PATIENCE_S) -> socket.socket:
        """A TCP connection from inside; TimeoutError when nobody answers in time."""
        made = self.open(socket.SOCK_STREAM, family=_family(address))
        async with asyncio.timeout(wait_s):
            await asyncio.get_running_loop().sock_connect(made, (address, port))
        return made

    async def reaches(self, address: str, port: int) -> bool:
        """Whether a new TCP connection is made."""
        try:
            await self.connect(address, port, DENIED_S)
        except (TimeoutError, OSError):
            return False
        return True


def unplug(interface: str, place: Place) -> None:
    """The pod's end, as a runtime makes it. The kernel takes its time with a namespace, and with it the wire."""
    for opened in place.sockets:
        opened.close()
    netns.delete(place.namespace)
    with Netlink() as node:
        delete_link(node, interface)


async def says(connection: socket.socket, text: bytes) -> bytes:
    """What comes back over a connection to an echo server."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        await loop.sock_sendall(connection, text)
        return await loop.sock_recv(connection, 4096)


async def first_datagram(receiver: socket.socket) -> tuple[bytes, str]:
    """The next datagram and who sent it."""
    async with asyncio.timeout(PATIENCE_S):
        data, sender = await asyncio.get_running_loop().sock_recvfrom(receiver, 4096)
    return data, sender[0]


def dropped(chain: str) -> int:
    """How many packets the chain's last rule has dropped."""
    text = nft("list", "chain", "inet", "muslin", chain)
    return int(re.findall(r"counter packets (\d+) bytes \d+ drop", text)[-1])


def counted(name: str) -> int:
    """How many packets a counter object has seen; 0 while there is none."""
    text = nft("list", "counters", "table", "inet", "muslin")
    found = re.search(rf"counter {re.escape(name)} {{\s*packets (\d+)", text)
    return int(found[1]) if found else 0


async def until(true: Callable[[], bool]) -> None:
    """Wait for what gives no event, within bounds."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.02)


@dataclass
class Host:
    """The node itself, in the calling thread's own namespace, with what was joined to it."""

    place: Place
    outside: Place
    pods: dict[str, Place] = field(default_factory=dict)

    def pod(self, name: str, *addresses: str, namespace: str = "shop") -> Place:
        """Join a pod as the CNI plugin does: one veth, host routes to a link-local next hop."""
        interface = workload_interface(namespace, name)
        made = self.pods[name] = Place(f"muslin-{os.getpid()}-{name}", addresses)
        netns.create(made.namespace)
        ip("link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", made.namespace)
        ip("addr", "add", "fe80::1/64", "dev", interface, "nodad")
        ip("link", "set", interface, "up")
        ip("-n", made.namespace, "link", "set", "eth0", "up")
        for address in addresses:
            ip("-n", made.namespace, "addr", "add", address, "dev", "eth0", *(("nodad",) if ":" in address else ()))
        ip("-n", made.namespace, "route", "add", "169.254.1.1", "dev", "eth0")
        ip("-n", made.namespace, "route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
        ip("-n", made.namespace, "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        return made


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """Move the calling thread into a new node's namespace, and back; nothing is left behind."""
    with netns.scratch_namespace():
        made = Host(Place("", (HOST,)), Place(f"muslin-{os.getpid()}-outside", (OUTSIDE,)))
        try:
            netns.create(made.outside.namespace)
            ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", made.outside.namespace)
            ip("addr", "add", f"{HOST}/24", "dev", "eth0")
            ip("link", "set", "eth0", "up")
            ip("-n", made.outside.namespace, "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
            ip("-n", made.outside.namespace, "link", "set", "eth0", "up")
            ip("route", "add", "default", "via", OUTSIDE)
            yield made
        finally:
            for place in (made.place, made.outside, *made.pods.values()):
                for opened in place.sockets:
                    opened.close()
                if place.namespace:
                    netns.delete(place.namespace)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
