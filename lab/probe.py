"""Who can talk to whom, found out with real packets.

A socket stays in the network namespace it was made in. So one process serves every pod of a lab, and one asks from
every pod at once: hundreds of pairs in the time of one, and all the blocked ones cost one timeout together.

Every server answers a TCP connection, and a UDP datagram, with one line: its own name and the address it saw the
client under. After that line a TCP server sends back what it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from core.addr import Address
from linux import netns
from linux.interfaces import family

UDP_AGAIN_S = 0.2
"""A datagram that is not answered is sent again after this long, until the probe's own timeout."""

CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Source:
    """Where a probe starts: a namespace, and the address it binds to (None: the kernel's choice)."""

    namespace: str
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found; true when the destination answered.

    `server` is the name in the answer, `seen` the address the server saw the client under, `took_s` how long it
    took, `why` why there was none (`timeout`, or the kernel's word: `Connection refused`, `No route to host`).
    """

    server: str = ""
    seen: Address | None = None
    took_s: float = 0.0
    why: str = ""

    def __bool__(self) -> bool:
        return bool(self.server)


@dataclass(frozen=True, slots=True)
class Service:
    """What one namespace serves: `name` is what it answers, `ports` are open over TCP and UDP in both families."""

    name: str
    namespace: str
    ports: tuple[int, ...]


class _Echo(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(_line(self.name, addr[0]), addr)


def _line(name: str, peer: str) -> bytes:
    return f"{name} {peer.removeprefix('::ffff:')}\n".encode()


def _listening(namespace: str, kind: int, port: int) -> socket.socket:
    """A socket open on `port` for both families."""
    opened = netns.open_socket(namespace, socket.AF_INET6, kind)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        opened.listen(256)
    return opened


async def serve(services: Iterable[Service], ready: Path) -> None:
    """Serve until cancelled; the file `ready` appears once every port is open."""
    loop = asyncio.get_running_loop()

    def answerer(name: str) -> object:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(_line(name, writer.get_extra_info("peername")[0]))
                while data := await reader.read(CHUNK):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        return answer

    for service in services:
        for port in service.ports:
            stream = _listening(service.namespace, socket.SOCK_STREAM, port)
            await asyncio.start_server(answerer(service.name), sock=stream)  # type: ignore[arg-type]
            datagram = _listening(service.namespace, socket.SOCK_DGRAM, port)
            await loop.create_datagram_endpoint(lambda name=service.name: _Echo(name), sock=datagram)  # type: ignore[misc]
    ready.touch()
    await asyncio.Event().wait()


async def ask(source: Source, destination: Address, protocol: str, port: int, timeout: float) -> Answer:
    """Ask one server from one place; `protocol` is `tcp` or `udp`, `timeout` in seconds."""
    kind = socket.SOCK_STREAM if protocol.lower() == "tcp" else socket.SOCK_DGRAM
    begin = time.monotonic()
    with netns.open_socket(source.namespace, family(destination), kind) as opened:
        try:
            if source.address is not None:
                opened.bind((str(source.address), 0))
            async with asyncio.timeout(timeout):
                line = await (_tcp if kind == socket.SOCK_STREAM else _udp)(opened, (str(destination), port))
        except TimeoutError:
            return Answer(why="timeout")
        except OSError as error:
            return Answer(why=os.strerror(error.errno) if error.errno else str(error))
    words = line.decode().split()
    if len(words) != 2:
        return Answer(why="the connection ended without an answer")
    return Answer(words[0], ip_address(words[1]), time.monotonic() - begin)


async def _tcp(opened: socket.socket, address: tuple[str, int]) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(opened, address)
    line = b""
    while not line.endswith(b"\n") and (more := await loop.sock_recv(opened, 256)):
        line += more
    return line


async def _udp(opened: socket.socket, address: tuple[str, int]) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(opened, address)
    while True:
        await loop.sock_sendall(opened, b"?")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UDP_AGAIN_S):  # wait_for loses a cancellation that comes with the answer
                return await loop.sock_recv(opened, 256)


async def matrix(
    sources: Mapping[str, Source],
    destinations: Mapping[str, Address],
    protocol: str = "tcp",
    port: int = 8080,
    timeout: float = 1.0,
) -> Mapping[tuple[str, str], Answer]:
    """Ask every destination from every source, all at once; a pair of one name is left out."""
    pairs = [(a, b) for a in sources for b in destinations if a != b]
    asked = (ask(sources[a], destinations[b], protocol, port, timeout) for a, b in pairs)
    return dict(zip(pairs, await asyncio.gather(*asked), strict=True))


@dataclass(slots=True)
class Transfer:
    """A running TCP transfer: bytes sent, sent back and counted. `gap_s` is the longest silence so far."""

    received: int = 0
    gap_s: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def mark(self) -> None:
        """Forget the longest silence; count from now."""
        self.gap_s, self.last = 0.0, time.monotonic()

    @property
    def silence_s(self) -> float:
        """The longest silence since `mark`, the present one included; seconds."""
        return max(self.gap_s, time.monotonic() - self.last)

    def arrived(self, count: int) -> None:
        """Note bytes that came back."""
        now = time.monotonic()
        self.gap_s, self.last = max(self.gap_s, now - self.last), now
        self.received += count


@contextlib.asynccontextmanager
async def transfer(
    source: Source, destination: Address, port: int = 8080, *, pause_s: float = 0.005
) -> AsyncIterator[Transfer]:
    """Keep one TCP connection busy, a kilobyte every `pause_s`, while the block runs; it must be able to connect."""
    loop = asyncio.get_running_loop()
    with netns.open_socket(source.namespace, family(destination), socket.SOCK_STREAM) as opened:
        async with asyncio.timeout(5):
            await loop.sock_connect(opened, (str(destination), port))
        state = Transfer()

        async def send() -> None:
            while True:
                await loop.sock_sendall(opened, bytes(1024))
                await asyncio.sleep(pause_s)

        async def receive() -> None:
            while data := await loop.sock_recv(opened, CHUNK):
                state.arrived(len(data))
            raise ConnectionResetError("the server ended the transfer")

        tasks = [asyncio.create_task(send()), asyncio.create_task(receive())]
        try:
            yield state
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [each for each in results if isinstance(each, OSError)]
        if failed:
            raise failed[0]


def main(argv: Sequence[str]) -> None:
    """`python -m lab.probe SERVICES.json READY`: serve what the file lists."""
    services = [
        Service(each["name"], each["namespace"], tuple(each["ports"])) for each in json.loads(Path(argv[0]).read_text())
    ]
    asyncio.run(serve(services, Path(argv[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
