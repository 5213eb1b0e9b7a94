"""A BGP peer by hand: says what it is told to say, byte for byte, and remembers what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

from bgp.attributes import Path as Heard
from bgp.exabgp.line import Ack, Event, Other, PeerDown, PeerUp, Update, decode
from bgp.exabgp.process import ExaBGP
from bgp.model import Session, Speaker
from core.addr import Address, Network
from core.errors import Unavailable

OPEN, UPDATE, NOTIFICATION, KEEPALIVE, REFRESH = 1, 2, 3, 4, 5
MARKER = b"\xff" * 16
UNICAST = {4: b"\0\1\0\1", 6: b"\0\2\0\1"}


def message(kind: int, body: bytes = b"") -> bytes:
    return MARKER + (19 + len(body)).to_bytes(2, "big") + bytes((kind,)) + body


def capability(code: int, value: bytes = b"") -> bytes:
    return bytes((code, len(value))) + value


def opening(as_number: int, router_id: str, *, version: int = 4, hold_s: int = 90, capabilities: bytes = b"") -> bytes:
    """The OPEN of a peer with four-byte AS numbers, graceful restart and one family."""
    said = capability(1, UNICAST[version]) + capability(2) + capability(65, as_number.to_bytes(4, "big"))
    said += capability(64, b"\x00\x78" + UNICAST[version][:2] + b"\1\x80") + capabilities
    short = as_number if as_number < 65536 else 23456
    fixed = b"\4" + short.to_bytes(2, "big") + hold_s.to_bytes(2, "big") + IPv4Address(router_id).packed
    return message(OPEN, fixed + bytes((len(said) + 2, 2, len(said))) + said)


def attribute(flags: int, code: int, value: bytes) -> bytes:
    if len(value) > 255:
        return bytes((flags | 0x10, code)) + len(value).to_bytes(2, "big") + value
    return bytes((flags, code, len(value))) + value


def as_path(*numbers: int) -> bytes:
    if not numbers:
        return attribute(0x40, 2, b"")
    return attribute(0x40, 2, bytes((2, len(numbers))) + b"".join(each.to_bytes(4, "big") for each in numbers))


def packed(prefix: str | Network) -> bytes:
    network = ip_network(prefix)
    return bytes((network.prefixlen,)) + network.network_address.packed[: (network.prefixlen + 7) // 8]


def update(attributes: bytes, *announced: str | Network, withdrawn: tuple[str, ...] = ()) -> bytes:
    gone = b"".join(packed(each) for each in withdrawn)
    body = len(gone).to_bytes(2, "big") + gone + len(attributes).to_bytes(2, "big") + attributes
    return message(UPDATE, body + b"".join(packed(each) for each in announced))


def plain(as_number: int, next_hop: str) -> bytes:
    """The three attributes that every announcement has."""
    return attribute(0x40, 1, b"\0") + as_path(as_number) + attribute(0x40, 3, IPv4Address(next_hop).packed)


class RawPeer:
    """One TCP connection, from `local` to port 179 of `to`, keeping itself alive while `reading`."""

    def __init__(self, local: str, to: str, *, port: int = 179) -> None:
        self.local, self.to, self.port = local, to, port
        self.heard: list[tuple[int, bytes]] = []
        self.closed = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def connect(self, hello: bytes, *, prepare: Callable[[socket.socket], object] = lambda _: None) -> None:
        """Open the session, from a socket that `prepare` has seen; returns when the first KEEPALIVE has come."""
        connection = socket.socket(socket.AF_INET6 if ":" in self.local else socket.AF_INET)
        connection.setblocking(False)
        try:
            prepare(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.bind((self.local, 0))
            await asyncio.get_running_loop().sock_connect(connection, (self.to, self.port))
        except BaseException:
            connection.close()
            raise
        reader, self.writer = await asyncio.open_connection(sock=connection, limit=4096)
        self._task = asyncio.create_task(self._listen(reader))
        self.send(hello)
        await self.wait("its OPEN", lambda: self.count(OPEN) > 0)
        self.send(message(KEEPALIVE))
        await self.wait("its KEEPALIVE", lambda: self.count(KEEPALIVE) > 0)

    def send(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)

    def count(self, kind: int) -> int:
        return sum(1 for each, _ in self.heard if each == kind)

    def bodies(self, kind: int) -> list[bytes]:
        return [body for each, body in self.heard if each == kind]

    async def wait(self, what: str, holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    if self.closed:
                        raise ConnectionError(f"{self.local} was closed while waiting for {what}: {self.heard[-2:]}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {what}; heard {self.heard[-5:]}") from None

    def pause(self) -> None:
        """Stop reading: when the buffers are full, the window is zero."""
        assert self.writer is not None
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        assert self.writer is not None
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.writer is not None:
            self.writer.transport.abort()
            with contextlib.suppress(OSError):
                await self.writer.wait_closed()
            self.writer = None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                header = await reader.readexactly(19)
                body = await reader.readexactly(int.from_bytes(header[16:18], "big") - 19)
                self.heard.append((header[18], body))
                if header[18] == KEEPALIVE and self.count(KEEPALIVE) > 1:
                    self.send(message(KEEPALIVE))
                self._news.set()
        except (asyncio.IncompleteReadError, OSError):
            self.closed = True
            self._news.set()


class Speaking:
    """An ExaBGP of ours, what it said, and what it says now: prefixes by peer, as the last updates have them."""

    def __init__(self, run_dir: Path, *, answer_s: float = 10.0, extended: bool = True) -> None:
        self.events: list[Event] = []
        self.lives: list[str] = []
        self.errors: list[str] = []
        self.up: set[Address] = set()
        self.table: dict[Address, dict[Network, Heard]] = {}
        self._news = asyncio.Event()
        self.exabgp = ExaBGP(
            run_dir,
            on_line=self._hear,
            on_start=lambda: self._live("start"),
            on_loss=lambda: self._live("loss"),
            answer_s=answer_s,
            extended=extended,
        )

    def _live(self, what: str) -> None:
        self.lives.append(what)
        self.up.clear()
        self.table.clear()
        self._news.set()

    def _hear(self, lines: object) -> None:
        assert isinstance(lines, list)
        for line in lines:
            try:
                event = decode(line)
            except ValueError as error:
                self.errors.append(str(error))
                continue
            if isinstance(event, (Ack, Other)):
                continue
            self.events.append(event)
            if isinstance(event, PeerUp):
                self.up.add(event.peer)
            elif isinstance(event, PeerDown):
                self.up.discard(event.peer)
                self.table.pop(event.peer, None)
            elif isinstance(event, Update):
                table = self.table.setdefault(event.peer, {})
                for prefix in event.withdrawn:
                    table.pop(prefix.network, None)
                table |= {prefix.network: path for path, prefixes in event.announced for prefix in prefixes}
        self._news.set()

    async def wait(self, what: str, holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(
                f"not within {timeout_s} s: {what}; {self.lives}, {self.errors[-1:]}, {self.events[-3:]}"
            ) from None

    def heard(self, peer: str, prefix: Network) -> Heard | None:
        """What a peer says of a prefix now."""
        return self.table.get(ip_address(peer), {}).get(prefix)

    @property
    def downs(self) -> list[PeerDown]:
        return [event for event in self.events if isinstance(event, PeerDown)]


def speaker(*sessions: Session, port: int = 179) -> Speaker:
    listen = tuple(dict.fromkeys(each.local for each in sessions if each.local is not None))
    return Speaker(
        router_id=IPv4Address("10.0.0.1"), as_number=64512, port=port, listen=listen, sessions=tuple(sessions)
    )


@contextlib.asynccontextmanager
async def speaking(
    run_dir: Path, what: Speaker, *, answer_s: float = 10.0, extended: bool = True
) -> AsyncIterator[Speaking]:
    """An ExaBGP that runs with `what`, in the calling thread's namespace."""
    made = Speaking(run_dir, answer_s=answer_s, extended=extended)
    made.exabgp.configure(what)
    task = asyncio.create_task(made.exabgp.run())
    try:
        await made.wait("it runs", lambda: "start" in made.lives)
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Unavailable):
            await task
