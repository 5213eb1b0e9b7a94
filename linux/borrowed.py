"""The TCP sockets of a child process: looked at, guarded, cut off, by way of `pidfd_getfd` (Linux 5.6).

A daemon that we start and must not change keeps sockets whose options it does not set as we need them. `borrowed` gives
duplicates of them for a moment; what is set on these is set on its own. It takes the rights to trace the child.

    listener  ── guard ──>  a filter that drops packets of some addresses below a TTL (RFC 5082); sockets that it
                            accepts inherit it, so that it holds from the first SYN on
    session   ── progress ─> bytes that the far end has acknowledged, bytes that wait for that
              ── cut ─────> a reset, whatever waits in the queue
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Final

from core.addr import Address

_PIDFD_GETFD: Final = 438
"""The system call's number, on every architecture."""
_SO_ATTACH_FILTER: Final = 26
_SIOCOUTQ: Final = 0x5411
_ACKED_AT: Final = 120
"""Of `tcpi_bytes_acked` in `struct tcp_info` (include/uapi/linux/tcp.h)."""

_NETWORK: Final = -0x100000
"""SKF_NET_OFF: offsets from here count from the IP header (include/uapi/linux/filter.h)."""
_LOAD_WORD, _LOAD_BYTE, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x30, 0x15, 0x35, 0x06
_ACCEPT: Final = 0xFFFFFFFF
_SOURCE_AT: Final = {4: 12, 6: 8}
_TTL_AT: Final = {4: 8, 6: 7}
_LONGEST: Final = 4096
"""Instructions that the kernel takes (BPF_MAXINSNS)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one connection, bytes: `acked` by the far end since it began, and `queued`, still to be."""

    acked: int
    queued: int


@contextlib.contextmanager
def borrowed(pid: int, pidfd: int) -> Iterator[list[socket.socket]]:
    """Duplicates of the TCP sockets of a process that runs, closed again at the end: they would keep a connection
    open that the process has closed. Raises OSError when the process is gone or may not be traced."""
    with contextlib.ExitStack() as closing:
        os.fstat(pidfd)  # a handle that is none has the same error as a socket that is gone
        found = []
        for number in _sockets(pid):
            descriptor = _duplicate(pidfd, number)
            if descriptor is None:
                continue
            try:
                duplicate = closing.enter_context(socket.socket(fileno=descriptor))
            except OSError:  # something else stands in its place by now
                os.close(descriptor)
                continue
            if duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.type == socket.SOCK_STREAM:
                found.append(duplicate)
        yield found


def _sockets(pid: int) -> Iterator[int]:
    """The numbers of a process's descriptors that are sockets."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just closed it
            if os.readlink(entry).startswith("socket:"):
                yield int(entry.name)


def listens(tcp: socket.socket) -> bool:
    """Whether it waits for connections."""
    return bool(tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def far_end(tcp: socket.socket) -> Address | None:
    """Whom it is connected to, if to anybody."""
    try:
        return ip_address(tcp.getpeername()[0].partition("%")[0])
    except OSError:
        return None


def guard(tcp: socket.socket, least: Mapping[Address, int]) -> None:
    """Have the kernel drop what comes from an address with a lower TTL than `least` says, in place of any guard before.
    Other addresses are not looked at."""
    version = 6 if tcp.family == socket.AF_INET6 else 4
    program = b"".join(_demand(address, ttl) for address, ttl in least.items() if address.version == version)
    program += _instruction(_RETURN, 0, 0, _ACCEPT)
    length = len(program) // 8
    if length > _LONGEST:
        raise OSError(f"{len(least)} addresses are too many for one filter")
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a length, and a pointer where the architecture aligns it
    tcp.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", length, ctypes.addressof(code)))


def send_ttl(tcp: socket.socket, ttl: int) -> None:
    """Send with this TTL from now on. A listener answers with it, and so does what it accepts until told otherwise."""
    if tcp.family == socket.AF_INET6:
        tcp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        tcp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)


def progress(tcp: socket.socket) -> Progress:
    """How far a connection has come."""
    info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + 8)
    queued = ctypes.c_int()
    if ctypes.CDLL(None, use_errno=True).ioctl(tcp.fileno(), _SIOCOUTQ, ctypes.byref(queued)) < 0:
        raise OSError(ctypes.get_errno(), "SIOCOUTQ")
    return Progress(struct.unpack_from("=Q", info, _ACKED_AT)[0], queued.value)


def cut(tcp: socket.socket) -> None:
    """End a connection for its owner, now; the far end gets a reset when the owner closes it."""
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):  # it is closed already
        tcp.shutdown(socket.SHUT_RDWR)


def _duplicate(pidfd: int, descriptor: int) -> int | None:
    """Ours of a descriptor of the process; None when it has just closed it."""
    libc = ctypes.CDLL(None, use_errno=True)
    duplicate = libc.syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
    if duplicate < 0:
        number = ctypes.get_errno()
        if number == errno.EBADF:
            return None
        raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
    return int(duplicate)


def _demand(address: Address, ttl: int) -> bytes:
    """Code that drops a packet from `address` below `ttl`, and goes on with any other."""
    version = 4 if isinstance(address, IPv4Address) else 6
    words = struct.unpack(f"!{len(address.packed) // 4}I", address.packed)
    code = b""
    for number, word in enumerate(words):
        left = 2 * (len(words) - number - 1) + 3  # instructions between the comparison and the next address
        code += _instruction(_LOAD_WORD, 0, 0, _NETWORK + _SOURCE_AT[version] + 4 * number)
        code += _instruction(_EQUAL, 0, left, word)
    code += _instruction(_LOAD_BYTE, 0, 0, _NETWORK + _TTL_AT[version])
    return code + _instruction(_AT_LEAST, 1, 0, ttl) + _instruction(_RETURN, 0, 0, 0)


def _instruction(code: int, yes: int, no: int, operand: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, operand & 0xFFFFFFFF)
