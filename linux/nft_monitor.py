"""Hearing other people's transactions on our nftables table, by netlink multicast.

The kernel announces what each transaction changed and then its new generation. Our own are told apart by time, not
by name: while one of ours runs nobody reads the socket, and afterwards exactly one that touched our table is waiting.
"""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import Final

from linux.netlink import NETLINK_NETFILTER, Netlink, attributes

_GROUP: Final = 7  # NFNLGRP_NFTABLES
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_NEWGEN: Final = 15
_INET: Final = 1
_GEN_PID: Final = 2
_GEN_NAME: Final = 3
_UNKNOWN: Final = "somebody; the kernel had more to say than the socket could hold"


class Monitor:
    """Listens from the moment it is made, in the namespace of the thread that makes it."""

    def __init__(self, table: str) -> None:
        self._table = table.encode() + b"\0"
        self._netlink = Netlink(NETLINK_NETFILTER, groups=(_GROUP,))
        self._touched = False
        self._ours = False
        self._heard = asyncio.Event()
        self._who: list[str] = []

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._netlink.fileno())
        self._netlink.close()

    async def foreign(self) -> str:
        """Wait for somebody else's transaction on our table; who it was (program and process), as far as known."""
        while not self._who:
            self._heard.clear()
            if not self._ours:
                self._listen()
            await self._heard.wait()
        who = self._who[-1]
        self._who.clear()
        return who

    def begin(self) -> None:
        """One of our own transactions is about to run."""
        self._hear()
        self._ours = True
        asyncio.get_running_loop().remove_reader(self._netlink.fileno())

    def end(self, commits: int) -> None:
        """It is over, having changed the table `commits` times."""
        found = self._transactions()
        if len(found) > commits or _UNKNOWN in found:
            self._tell(found)
        self._ours = False
        self._listen()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._netlink.fileno(), self._hear)

    def _hear(self) -> None:
        self._tell(self._transactions())

    def _tell(self, found: list[str]) -> None:
        if found:
            self._who += found
            self._heard.set()

    def _transactions(self) -> list[str]:
        """Who made each transaction heard so far that touched our table."""
        found = []
        try:
            for kind, _, _, data in self._netlink.notifications():
                if kind >> 8 != _SUBSYSTEM:
                    continue
                parts = attributes(data, 4)
                if kind & 0xFF != _NEWGEN:
                    self._touched = self._touched or (data[0] == _INET and parts.get(1) == self._table)
                    continue
                if self._touched:
                    found.append(_who(parts.get(_GEN_NAME, b""), parts.get(_GEN_PID, b"")))
                self._touched = False
        except OSError as lost:
            if lost.errno != errno.ENOBUFS:
                raise
            found.append(_UNKNOWN)
        return found


def _who(name: bytes, pid: bytes) -> str:
    number = struct.unpack("!I", pid)[0] if len(pid) == 4 else 0
    return f"{name.rstrip(bytes(1)).decode(errors='replace') or 'unknown'} (process {number})"
