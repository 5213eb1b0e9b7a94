"""Who reaches whom, found out with packets: one process, one thread, sockets in every namespace.

    a round:   forget what conntrack knows ── send every probe ── send the controls, last ── wait for
               every answer that should come, and every control's ── a little longer, for what should not come

All clients and all servers are sockets of this process, so a round of hundreds of probes takes the time of one. A
source port serves one round and never comes back, so each probe is a new flow.

What is denied is silent, and so is what is lost. The controls tell them apart: after all probes, each node asks each
of its own pods (which policy never forbids), the nodes ask each other, and each outside host asks each node. Packets do
not overtake one another on these wires, so when the controls are answered, a probe that was let through has been too.

TCP and UDP are asked through the kernel's own sockets. This machine's kernel may lack SCTP, so there an
INIT chunk and its INIT ACK are written by hand, which is what a firewall sees of a handshake. ICMP counts as through
when the destination sees it; any other protocol when its echo is back.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from linux import netns
from tests.packets.cases import NUMBERS, OUTSIDE, Probe
from tests.packets.ground import NODE_ADDRESSES, NODES, Ground

PORTS = (79, 80, 81, 82, 83, 443, 8080, 8081)
CONTROL_PORT = 7
RAW = (1, 58, 99, 103, NUMBERS["sctp"])
"""Protocols that are spoken over raw sockets."""

LIMIT_S = 8.0
"""How long what should be answered may take."""

GRACE_S = 0.02
"""How long a round goes on after all that should come has come, for what should not."""

TCP, UDP, SCTP = NUMBERS["tcp"], NUMBERS["udp"], NUMBERS["sctp"]

Pair = tuple[str, str, int]
"""Source, destination, IP version."""

Asked = tuple[Probe, Pair]


@dataclass
class Round:
    """What one round has sent, and what has come back."""

    number: int
    answered: set[Asked] = field(default_factory=set)
    controls: set[tuple[str, str]] = field(default_factory=set)
    open: list[socket.socket] = field(default_factory=list)


class Prober:
    """Servers in every namespace, and the rounds asked of them."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._selector = selectors.DefaultSelector()
        self._servers: list[socket.socket] = []
        self._raw: dict[tuple[str, int, int], socket.socket] = {}
        self._name_of = {address: name for name, own in ground.addresses.items() for address in own}
        self._name_of |= {address: node for node, own in NODE_ADDRESSES.items() for address in own}
        self._round = Round(10_000)
        self.refused: dict[Asked, str] = {}
        self._conntrack = [_conntrack(ground.space(node)) for node in NODES]
        for host in ground.addresses:
            self._serve(host)
        for node in NODES:
            with netns.inside(ground.space(node)):
                self._echo(CONTROL_PORT)

    def close(self) -> None:
        """Close every socket."""
        for each in (*self._servers, *self._conntrack):
            each.close()
        self._selector.close()

    # --- servers

    def _serve(self, host: str) -> None:
        with netns.inside(self._ground.space(host)):
            for port in PORTS:
                self._listen(port)
                self._echo(port)
            for family in (4, 6):
                for protocol in RAW:
                    if protocol == (58 if family == 4 else 1):
                        continue
                    raw = socket.socket(_FAMILY[family], socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
                    self._raw[host, family, protocol] = raw
                    self._watch(raw, self._reader(raw, host, family, protocol))

    def _listen(self, port: int) -> None:
        opened = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("::", port))
        opened.listen(256)

        def accept() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    caller, _ = opened.accept()
                    with caller, contextlib.suppress(OSError):
                        caller.send(b"!")

        self._watch(opened, accept)

    def _echo(self, port: int) -> None:
        opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(("::", port))

        def answer() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, caller = opened.recvfrom(64)
                    opened.sendto(data, caller)

        self._watch(opened, answer)

    def _watch(self, opened: socket.socket, readable: Callable[[], None]) -> None:
        self._servers.append(opened)
        self._selector.register(opened, selectors.EVENT_READ, readable)

    def _reader(self, raw: socket.socket, host: str, family: int, protocol: int) -> Callable[[], None]:
        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, sender = raw.recvfrom(256)
                    if family == 4:
                        data = data[(data[0] & 15) * 4 :]
                    other = self._name_of.get(sender[0])
                    if other is not None:
                        self._heard(raw, protocol, host, other, sender[0], data)

        return read

    def _heard(self, raw: socket.socket, protocol: int, host: str, other: str, address: str, data: bytes) -> None:
        """A raw packet has come to `host` from `other`."""
        family = 6 if ":" in address else 4
        if protocol in (1, 58):
            kind, code, _, number = struct.unpack("!BBHH", data[:6])
            if number == self._round.number:
                self._note(Probe(protocol, icmp=(kind, code)), (other, host, family))
        elif protocol == SCTP:
            sport, dport, _, _ = struct.unpack("!HHII", data[:12])
            if data[12] == 1:
                raw.sendto(_sctp(dport, sport, 2, data[16:20]), (address, 0))
            elif data[12] == 2 and dport == self._round.number:
                self._note(Probe(protocol, sport), (host, other, family))
        elif data[:1] == b"?":
            raw.sendto(b"!" + data[1:], (address, 0))
        elif data[1:] == self._round.number.to_bytes(2):
            self._note(Probe(protocol), (host, other, family))

    def _note(self, probe: Probe, pair: Pair) -> None:
        self._round.answered.add((probe, pair))

    # --- a round

    def ask(self, questions: Collection[Asked], wanted: Collection[Asked]) -> set[Asked]:
        """Ask all `questions` and return those that were answered.

        `wanted` is only how long to wait: until these are answered, LIMIT_S at most.
        """
        return {
            each for part in _apart(questions) for each in self._ask_at_once(part, frozenset(wanted).intersection(part))
        }

    def _ask_at_once(self, questions: Collection[Asked], wanted: frozenset[Asked]) -> set[Asked]:
        for each in self._conntrack:
            _flush(each)
        self.refused = {}
        this = self._round = Round(self._round.number + 1)
        assert this.number < 60_000, "the rounds have used up all source ports"
        grouped: dict[str, dict[tuple[Probe, int], list[str]]] = {}
        for probe, (source, destination, family) in questions:
            grouped.setdefault(source, {}).setdefault((probe, family), []).append(destination)
        try:
            for source, probes in grouped.items():
                with netns.inside(self._ground.space(source)):
                    for (probe, family), destinations in probes.items():
                        self._send(probe, family, source, destinations)
            controls = self._send_controls()
            self._receive(lambda: this.controls >= controls and this.answered >= wanted, LIMIT_S)
            self._receive(lambda: False, GRACE_S)
        finally:
            for opened in this.open:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(opened)
                opened.close()
        missing = controls - this.controls
        assert not missing, f"the wires lose packets that nobody may deny: {sorted(missing)}"
        return this.answered.intersection(questions)

    def _send(self, probe: Probe, family: int, source: str, destinations: Iterable[str]) -> None:
        there = [(name, self._ground.addresses[name][family == 6]) for name in destinations]
        if probe.protocol == TCP:
            for name, address in there:
                self._connect(probe, family, source, name, address)
        elif probe.protocol == UDP:
            self._datagrams(probe, family, source, there)
        else:
            raw, number = self._raw[source, family, probe.protocol], self._round.number
            for _, address in there:
                raw.sendto(_payload(probe, number, address), (address, 0))

    def _connect(self, probe: Probe, family: int, source: str, name: str, address: str) -> None:
        assert probe.port
        opened = socket.socket(_FAMILY[family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        opened.bind(("", self._round.number))
        this = self._round
        this.open.append(opened)
        code = opened.connect_ex((address, probe.port))
        assert code in (0, errno.EINPROGRESS), f"{source} to {name}: {errno.errorcode[code]}"

        def read() -> None:
            try:
                if opened.recv(1) == b"!":
                    self._note(probe, (source, name, family))
            except OSError as error:
                self.refused[probe, (source, name, family)] = error.strerror
            self._selector.unregister(opened)

        self._selector.register(opened, selectors.EVENT_READ, read)

    def _datagrams(self, probe: Probe, family: int, source: str, there: list[tuple[str, str]]) -> None:
        opened = socket.socket(_FAMILY[family], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("", self._round.number + PORTS.index(probe.port or 0)))
        self._round.open.append(opened)
        word = f"{self._round.number}".encode()
        for _, address in there:
            opened.sendto(word, (address, probe.port or 0))

        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, sender = opened.recvfrom(64)
                    if data == word and sender[1] == probe.port:
                        self._note(probe, (source, self._name_of[sender[0]], family))

        self._selector.register(opened, selectors.EVENT_READ, read)

    def _send_controls(self) -> set[tuple[str, str]]:
        """Ask what is never denied, after all the rest; who asked which address."""
        asked = set()
        word = f"control {self._round.number}".encode()
        for host, address, port in self._controls():
            with netns.inside(self._ground.space(host)):
                opened = socket.socket(_FAMILY[6 if ":" in address else 4], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._round.open.append(opened)
            opened.sendto(word, (address, port))
            asked.add((host, address))
            self._selector.register(opened, selectors.EVENT_READ, self._control(opened, word, (host, address)))
        return asked

    def _control(self, opened: socket.socket, word: bytes, asked: tuple[str, str]) -> Callable[[], None]:
        def read() -> None:
            with contextlib.suppress(BlockingIOError):
                if opened.recv(64) == word:
                    self._round.controls.add(asked)

        return read

    def _controls(self) -> Iterator[tuple[str, str, int]]:
        for pod, node in self._ground.node_of.items():
            for address in self._ground.addresses[pod]:
                yield node, address, PORTS[0]
        outside = [name for name in self._ground.addresses if name.startswith(OUTSIDE)]
        for node in NODES:
            for address in NODE_ADDRESSES[node]:
                for host in (*outside, *(each for each in NODES if each != node)):
                    yield host, address, CONTROL_PORT

    def _receive(self, done: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not done() and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                key.data()


def _apart(questions: Collection[Asked]) -> Iterator[list[Asked]]:
    """The questions in parts that do not answer each other.

    To conntrack, a protocol without ports is one flow between two addresses: what one end asks opens the way for the
    other, so there the two ends ask one after the other, and conntrack forgets in between.
    """
    whole = [(probe, pair) for probe, pair in questions if probe.port is not None or probe.icmp or pair[0] < pair[1]]
    yield whole
    if rest := list(set(questions).difference(whole)):
        yield rest


def bare(probe: Probe) -> Probe:
    """The probe without the families it was asked in, as answers name it."""
    return Probe(probe.protocol, probe.port, probe.icmp)


def differences(found: Collection[Asked], wanted: Collection[Asked]) -> Mapping[str, list[str]]:
    """What is wrong, for a person: who got through, and who did not."""
    return {
        what: sorted(
            f"{a} > {b} IPv{family} {probe.protocol}/{probe.port or probe.icmp}" for probe, (a, b, family) in those
        )
        for what, those in (
            ("reached but should not", set(found) - set(wanted)),
            ("did not reach but should", set(wanted) - set(found)),
        )
        if those
    }


_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def _payload(probe: Probe, number: int, address: str) -> bytes:
    if probe.icmp:
        body = struct.pack("!HHQ", number, 1, 0)
        kind = struct.pack("!BB", *probe.icmp)
        check = 0 if ":" in address else _checksum(kind + bytes(2) + body)  # the kernel fills in ICMPv6's
        return kind + struct.pack("!H", check) + body
    if probe.protocol == SCTP:
        return _sctp(number, probe.port or 0, 1, b"")
    return b"?" + number.to_bytes(2)


@lru_cache(4096)
def _sctp(sport: int, dport: int, chunk: int, tag: bytes) -> bytes:
    """A packet with an INIT (1) or INIT ACK (2) chunk, as RFC 9260, 3.3.2 and 3.3.3 have them."""
    own = 0x6D75736C
    cookie = struct.pack("!HH4s", 7, 8, b"seed") if chunk == 2 else b""
    body = struct.pack("!BBHIIHHI", chunk, 0, 20 + len(cookie), own, 65536, 1, 1, 1) + cookie
    header = struct.pack("!HH", sport, dport) + (tag or bytes(4))
    return header + struct.pack("<I", _crc32c(header + bytes(4) + body)) + body


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _conntrack(namespace: str) -> socket.socket:
    """A socket to a node's conntrack (NETLINK_NETFILTER is 12)."""
    with netns.inside(namespace):
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    opened.settimeout(5)
    return opened


def _flush(conntrack: socket.socket) -> None:
    """Forget every flow: IPCTNL_MSG_CT_DELETE (0x0102) without a tuple, acknowledged (nfnetlink_conntrack.h)."""
    conntrack.send(struct.pack("=IHHIIBBH", 20, 0x0102, 5, 1, 0, 0, 0, 0))
    _, kind, _, _, _, error = struct.unpack("=IHHIIi", conntrack.recv(4096)[:20])
    assert (kind, error) == (2, 0), f"conntrack is not flushed: {error}"
