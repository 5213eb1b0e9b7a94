"""Netlink in packed bytes: what rtnetlink says and hears, without a message class in sight.

Programming 100,000 routes is a matter of milliseconds a thousand, if each message is packed once and a thousand go
out in one send:

    send     [route][route][route] ... [route + ACK]     one system call, about 64 KiB
    kernel   does each in turn; one that fails does not stop the next
    hear     [error of seq 17][error of seq 404][ACK of the last]

Only the last message asks for an acknowledgement; a message that fails is always answered. So silence up to the
last ACK means success, and every error carries the sequence number of the message that caused it.

A dump is believed only when whole: one that the kernel marks as interrupted (NLM_F_DUMP_INTR) is asked for again,
and a socket that lost messages (ENOBUFS) raises. Nothing here returns less than the kernel had.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, TypeAlias

HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
ATTRIBUTE: Final = struct.Struct("=HH")  # length, type

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_OFFS = 2

_RECEIVE = 1 << 18  # bytes a read; a dump fills at most 32 KiB of it
_BUFFER = 32 << 20  # bytes; the default 208 KiB holds 256 route events
_BATCH_BYTES = 1 << 16
_BATCH_MESSAGES = 1024
_DUMP_ATTEMPTS = 20

Attributes: TypeAlias = dict[int, bytes]
Message: TypeAlias = tuple[int, int, int, bytes]
"""Type, flags, sender's port, and what follows the header."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes, start: int = 0) -> Attributes:
    """The attributes in `data` from `start`, by type, without their flags; the last of a type wins."""
    found: Attributes = {}
    at, end = start, len(data)
    while at + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def message(kind: int, flags: int, body: bytes) -> bytes:
    """One request with its sequence number and port left open (`Netlink.batch` fills in the first)."""
    return HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, 0, 0) + body


class Refused(OSError):
    """The kernel said no; in its own words when it gave any. `offset` is where in the message, if it said that too."""

    offset: int | None = None

    def __str__(self) -> str:
        return str(self.strerror)


def refusal_in(data: bytes, at: int, length: int, flags: int) -> Refused | None:
    """The error in an NLMSG_ERROR or NLMSG_DONE message at `at`; None when it is an acknowledgement."""
    (code,) = struct.unpack_from("=i", data, at + 16)
    if code >= 0:
        return None
    said, where = "", None
    if flags & _NLM_F_ACK_TLVS:
        quoted = struct.unpack_from("=I", data, at + 20)[0] if not flags & _NLM_F_CAPPED else 16
        start = at + 20 + ((quoted + 3) & ~3)
        found = attributes(data[start : at + length])
        said = found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode()
        where = found.get(_NLMSGERR_ATTR_OFFS)
    reason = os.strerror(-code)
    refusal = Refused(-code, f"{reason} ({said})" if said else reason)
    refusal.offset = int.from_bytes(where, sys.byteorder) if where else None
    return refusal


class Netlink:
    """One netlink socket, in the network namespace of the thread that makes it (and for good, whoever uses it).

    Blocking by default. With `groups` it hears their notifications; give it to an event loop by `fileno`.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE, groups: Sequence[int] = ()) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                with contextlib.suppress(OSError):  # older kernels; every reader checks what it gets anyway
                    self._socket.setsockopt(_SOL_NETLINK, option, 1)
            for option, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
                except PermissionError:
                    self._socket.setsockopt(socket.SOL_SOCKET, plain, _BUFFER)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0
        self._turn = threading.Lock()  # a cancelled task leaves its thread behind, still talking

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; doing so twice is harmless."""
        self._socket.close()

    def fileno(self) -> int:
        """For an event loop's `add_reader`."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The kernel's name for this socket: the sender's port in notifications of what it changed."""
        return int(self._socket.getsockname()[0])

    @property
    def raw(self) -> socket.socket:
        """The socket itself, to attach a filter to."""
        return self._socket

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """One change; raises `Refused` with the kernel's reason."""
        for refusal in self.batch([message(kind, flags, body)]).values():
            raise refusal

    def batch(self, messages: Sequence[bytes]) -> Mapping[int, Refused]:
        """Send requests packed by `message`; returns what failed, by index. Blocks: run large ones in a thread."""
        failed: dict[int, Refused] = {}
        start = 0
        while start < len(messages):
            size, end = 0, start
            while end < len(messages) and end - start < _BATCH_MESSAGES and size < _BATCH_BYTES:
                size += len(messages[end])
                end += 1
            with self._turn:
                self._exchange(messages[start:end], start, failed)
            start = end
        return failed

    def _exchange(self, messages: Sequence[bytes], offset: int, failed: dict[int, Refused]) -> None:
        base = self._sequence + 1
        self._sequence = last = self._sequence + len(messages)
        out = bytearray(b"".join(messages))
        at = 0
        for sequence, each in enumerate(messages, base):
            struct.pack_into("=I", out, at + 8, sequence & 0xFFFFFFFF)
            at += len(each)
        final = at - len(messages[-1])
        (flags,) = struct.unpack_from("=H", out, final + 6)
        struct.pack_into("=H", out, final + 6, flags | NLM_F_ACK)
        self._socket.send(out)
        while True:
            data = self._socket.recv(_RECEIVE)
            at = 0
            while at < len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
                if kind == NLMSG_ERROR and base <= sequence <= last:
                    refusal = refusal_in(data, at, length, flags)
                    if refusal is not None:
                        failed[offset + sequence - base] = refusal
                    if sequence == last:
                        return
                at += (length + 3) & ~3

    def ask(self, kind: int, body: bytes) -> bytes:
        """The one message that answers a question, without its header; raises `Refused` with the kernel's reason."""
        with self._turn:
            self._sequence += 1
            sequence = self._sequence & 0xFFFFFFFF
            self._socket.send(HEADER.pack(16 + len(body), kind, NLM_F_REQUEST, sequence, 0) + body)
            while True:
                data = self._socket.recv(_RECEIVE)
                length, answer, flags, heard, _ = HEADER.unpack_from(data)
                if heard != sequence:
                    continue
                refusal = refusal_in(data, 0, length, flags) if answer == NLMSG_ERROR else None
                if refusal is not None:
                    raise refusal
                return data[16:length]

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Every message of a dump, each without its header. Asked again while interrupted; raises OSError."""
        for _ in range(_DUMP_ATTEMPTS):
            with self._turn:
                found = self._dump(kind, body)
            if found is not None:
                return found
        raise OSError(errno.EINTR, f"the kernel's tables change too fast to read: {_DUMP_ATTEMPTS} dumps interrupted")

    def _dump(self, kind: int, body: bytes) -> list[bytes] | None:
        self._sequence += 1
        sequence = self._sequence
        self._socket.send(
            HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, sequence & 0xFFFFFFFF, 0) + body
        )
        found: list[bytes] = []
        interrupted = False
        while True:
            data = self._socket.recv(_RECEIVE)
            at = 0
            while at < len(data):
                length, answer, flags, heard, _ = HEADER.unpack_from(data, at)
                if heard == sequence:
                    interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                    if answer in (NLMSG_DONE, NLMSG_ERROR):
                        refusal = refusal_in(data, at, length, flags)
                        if refusal is not None and refusal.errno != errno.EINTR:
                            raise refusal
                        return None if interrupted or refusal is not None else found
                    found.append(data[at + 16 : at + length])
                at += (length + 3) & ~3

    def notifications(self) -> Iterator[Message]:
        """What has been heard and not read yet, without waiting. Raises OSError(ENOBUFS) when some was lost."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                length, kind, flags, _, port = HEADER.unpack_from(data, at)
                yield kind, flags, port, data[at + 16 : at + length]
                at += (length + 3) & ~3
