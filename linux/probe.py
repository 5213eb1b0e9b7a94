"""One real packet from where a pod (or this host) sends, and what comes of it: a SYN, a datagram, or an echo request.

The socket is bound before anything is sent, so that whoever watches knows what to look for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.addr import Address
from core.errors import NotFound, Unsupported
from linux import interfaces, netns
from linux.netlink import HEADER, NLM_F_REQUEST, NLMSG_ERROR, Netlink, attribute, attributes

TCP: Final = 6
UDP: Final = 17
ICMP: Final = {4: 1, 6: 58}
_ECHO: Final = {4: (8, 0), 6: (128, 129)}  # request, answer
_TICK_S: Final = 0.05
_RTM_GETNSID: Final = 90
_NETNSA_NSID: Final = 1
_NETNSA_FD: Final = 3
_IFLA_LINK_NETNSID: Final = 37
_S32: Final = struct.Struct("=i")
_MOST_PROCESSES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of it: whether there was an answer (also a refusal is one), in a word, and after how long."""

    answered: bool
    word: str
    took_s: float


class Probe:
    """A packet ready to be sent. `number` is its source port, or the identifier of an echo request."""

    def __init__(self, source: Address, destination: Address, protocol: int, port: int) -> None:
        self.source, self.destination, self.protocol, self.port = source, destination, protocol, port
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        kinds = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM, ICMP[source.version]: socket.SOCK_RAW}
        if protocol not in kinds:
            raise Unsupported(f"--trace sends TCP, UDP or an echo request; protocol {protocol} it cannot")
        self._raw = kinds[protocol] == socket.SOCK_RAW
        self._socket = socket.socket(family, kinds[protocol], protocol)
        try:
            self._socket.setblocking(False)
            self._socket.bind((str(source), 0))
        except OSError:
            self._socket.close()
            raise
        self.number: int = os.getpid() & 0xFFFF if self._raw else self._socket.getsockname()[1]

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self.protocol == TCP:  # let nothing linger: not here, and not where it was accepted
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    @property
    def matches(self) -> tuple[str, str]:
        """The packet, and answers to it, in nft's words."""
        ip = "ip" if self.source.version == 4 else "ip6"
        if self._raw:
            icmp, name = ("icmp", "icmp") if ip == "ip" else ("icmpv6", "icmpv6")
            there = f"{ip} saddr {self.source} {icmp} type echo-request {name} id {self.number}"
            return there, f"{ip} daddr {self.source} {icmp} type echo-reply {name} id {self.number}"
        word = "tcp" if self.protocol == TCP else "udp"
        there = f"{ip} saddr {self.source} {ip} daddr {self.destination} {word} sport {self.number}"
        return f"{there} {word} dport {self.port}", f"{ip} daddr {self.source} {word} dport {self.number}"

    def send(self, wait_s: float, hopeless: Callable[[], bool] = lambda: False) -> Heard:
        """Send it and wait for an answer, or until it is `hopeless`, which is asked again and again."""
        began = time.monotonic()
        try:
            word = self._exchange(began + wait_s, hopeless)
        except OSError as error:
            refused = error.errno in (errno.ECONNREFUSED, errno.ECONNRESET)
            return Heard(refused, "refused" if refused else error.strerror or str(error), time.monotonic() - began)
        took_s = time.monotonic() - began
        return Heard(
            bool(word), word or (f"no answer within {wait_s:g} s" if took_s >= wait_s else "no answer"), took_s
        )

    def _exchange(self, deadline: float, hopeless: Callable[[], bool]) -> str:
        there = (str(self.destination), 0 if self._raw else self.port)
        if self.protocol == TCP:
            code = self._socket.connect_ex(there)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            if not self._ready(deadline, hopeless, to_write=True):
                return ""
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            return "connected"
        self._socket.connect(there)
        self._socket.send(self._echo() if self._raw else b"muslin")
        while self._ready(deadline, hopeless, to_write=False):
            data = self._socket.recv(65536)
            if not self._raw or self._answers(data):
                return "answered"
        return ""

    def _ready(self, deadline: float, hopeless: Callable[[], bool], *, to_write: bool) -> bool:
        wanted, nothing = [self._socket], list[socket.socket]()
        while (left := deadline - time.monotonic()) > 0:
            ready = select.select(
                nothing if to_write else wanted, wanted if to_write else nothing, [], min(left, _TICK_S)
            )
            if any(ready):
                return True
            if hopeless():
                return False
        return False

    def _echo(self) -> bytes:
        kind = _ECHO[self.source.version][0]
        packet = struct.pack("!BBHHH", kind, 0, 0, self.number, 1)  # of IPv6's checksum the kernel takes care
        if self.source.version == 6:
            return packet
        total = sum(struct.unpack("!4H", packet))
        return struct.pack("!BBHHH", kind, 0, ~(total + (total >> 16)) & 0xFFFF, self.number, 1)

    def _answers(self, data: bytes) -> bool:
        body = data[(data[0] & 0xF) * 4 :] if self.source.version == 4 else data
        kind, _, _, number = struct.unpack_from("!BBHH", body)
        return bool(kind == _ECHO[self.source.version][1] and number == self.number)


def namespace_of(interface: str) -> str:
    """The file of the network namespace at the other end of `interface`, a veth's.

    Raises NotFound when that is not on this host, or nothing keeps it open.
    """
    with Netlink() as netlink:
        wanted = _behind(netlink, interface)
        if wanted is None:
            raise NotFound(f"there is no interface {interface} on this host, so its pod is not here")
        for path in _namespaces():
            with contextlib.suppress(OSError), open(path) as opened:
                if _number_of(netlink, opened.fileno()) == wanted:
                    return path
    raise NotFound(f"no process and no name leads to the network namespace behind {interface}; run as root?")


def _behind(netlink: Netlink, interface: str) -> int | None:
    """The number by which this namespace knows the one that has a link's other end."""
    for data in interfaces.link_messages(netlink):
        found = attributes(data, interfaces.IFINFO.size)
        if interfaces.text(found.get(interfaces.IFLA_IFNAME, b"")) == interface and _IFLA_LINK_NETNSID in found:
            return int(_S32.unpack(found[_IFLA_LINK_NETNSID])[0])
    return None


def _number_of(netlink: Netlink, descriptor: int) -> int:
    """The number by which this namespace knows another; -1 when it does not."""
    body = bytes(4) + attribute(_NETNSA_FD, struct.pack("=I", descriptor))
    netlink.raw.send(HEADER.pack(16 + len(body), _RTM_GETNSID, NLM_F_REQUEST, 0, 0) + body)
    data = netlink.raw.recv(65536)
    length, kind, _, _, _ = HEADER.unpack_from(data)
    if kind == NLMSG_ERROR:
        raise OSError(errno.ENOENT, "the kernel does not number that namespace")
    return int(_S32.unpack(attributes(data[:length], 20)[_NETNSA_NSID])[0])


def _namespaces() -> Iterator[str]:
    """Every network namespace that a name or a process keeps, each once; named ones first."""
    seen = set()
    processes = (f"/proc/{each}/ns/net" for each in sorted(filter(str.isdigit, os.listdir("/proc")))[:_MOST_PROCESSES])
    for path in (*map(netns.path, netns.names()), *processes):
        with contextlib.suppress(OSError):
            found = Path(path).stat()
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                yield path
