"""Transactions of netfilter's tables in packed bytes: one send is one transaction, all of it or nothing.

    send     [begin][delete element ...][add element ...] ... [add counter + ACK][end]       one system call
    kernel   checks every message, then commits the lot, or takes all of it back; all of that before `send` returns
    hear     [error of seq 17 at byte 940] ... [ACK of the last]

A message that fails is always answered, with the place in it that the kernel did not like. The ACK of the last one
comes in either case; a commit that fails as a whole is answered under the number of `begin`.
Formats: linux/netfilter/nfnetlink.h; net/netfilter/nfnetlink.c, nfnetlink_rcv_batch.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Final

from linux.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    Netlink,
    Refused,
    refusal_in,
)

_BEGIN: Final = 0x10
_END: Final = 0x11
_RECEIVE: Final = 1 << 18
_GENERIC: Final = struct.Struct("!BBH")  # family, version, resource


def generic(family: int, resource: int = 0) -> bytes:
    """What every netfilter message begins with, after its header (struct nfgenmsg)."""
    return _GENERIC.pack(family, 0, resource)


class Nfnetlink(Netlink):
    """A netlink socket for netfilter; also for its dumps."""

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)

    def transaction(self, subsystem: int, messages: Sequence[bytes]) -> Mapping[int, Refused]:
        """Carry out requests packed by `linux.netlink.message`, in order and as one.

        Returns what the kernel did not like, by index; nothing was changed then. Raises OSError when it refused the
        whole, or when its answer was lost: then it is not known what was done.
        """
        if not messages:
            return {}
        frame = generic(0, subsystem)
        with self._turn:
            base = self._sequence + 1
            self._sequence = base + len(messages) + 1
            self._socket.send(_numbered([_bare(_BEGIN, frame), *messages, _bare(_END, frame)], base))
            return self._answers(base, len(messages))

    def _answers(self, base: int, count: int) -> Mapping[int, Refused]:
        failed: dict[int, Refused] = {}
        acknowledged = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
                index = sequence - base - 1 & 0xFFFFFFFF
                if kind == NLMSG_ERROR and sequence == base & 0xFFFFFFFF:
                    raise refusal_in(data, at, length, flags) or OSError(errno.EPROTO, "the kernel answers a beginning")
                if kind == NLMSG_ERROR and index < count:
                    refusal = refusal_in(data, at, length, flags)
                    acknowledged = acknowledged or index == count - 1
                    if refusal is not None:
                        failed[index] = refusal
                at += (length + 3) & ~3
        if not acknowledged and not failed:
            raise OSError(errno.EPROTO, "the kernel did not say what became of a transaction")
        return failed


def _bare(kind: int, body: bytes) -> bytes:
    return HEADER.pack(16 + len(body), kind, NLM_F_REQUEST, 0, 0) + body


def _numbered(messages: Sequence[bytes], base: int) -> bytearray:
    """The messages as one buffer, numbered from `base`; the last but one asks for an answer."""
    out = bytearray(b"".join(messages))
    at = last = before = 0
    for sequence, each in enumerate(messages, base):
        struct.pack_into("=I", out, at + 8, sequence & 0xFFFFFFFF)
        last, before = at, last
        at += len(each)
    (flags,) = struct.unpack_from("=H", out, before + 6)
    struct.pack_into("=H", out, before + 6, flags | NLM_F_ACK)
    return out
