"""How many packets of one IP protocol cross an interface, counted by the kernel.

A packet socket with a filter of four instructions counts what it matches (PACKET_STATISTICS) even when nobody reads
it, so the count is exact at any rate and costs nothing in Python.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from types import TracebackType
from typing import Final

from lab.wiring import UPLINK
from linux import netns

IPIP: Final = 4
_ETH_P_ALL: Final = 0x0003
_SO_ATTACH_FILTER: Final = 26
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_ANCILLARY_PROTOCOL: Final = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL: the packet's EtherType

_LOAD_HALF, _LOAD_BYTE, _JUMP_EQUAL, _RETURN = 0x28, 0x30, 0x15, 0x06
_FIELD: Final = {4: (0x0800, 9), 6: (0x86DD, 6)}  # EtherType; offset of the protocol (next header) in the IP header


class Capture:
    """Counts packets with `protocol` in the IP header (4: IP-in-IP) that go in or out of a device, from now on.

    Use as a context manager. With IPv6 (`version=6`) it looks at the first next-header field only.
    """

    def __init__(self, namespace: str, device: str = UPLINK, *, protocol: int = IPIP, version: int = 4) -> None:
        ether, offset = _FIELD[version]
        program = b"".join(
            struct.pack("HBBI", *instruction)
            for instruction in (
                (_LOAD_HALF, 0, 0, _ANCILLARY_PROTOCOL),
                (_JUMP_EQUAL, 0, 3, ether),
                (_LOAD_BYTE, 0, 0, offset),
                (_JUMP_EQUAL, 0, 1, protocol),
                (_RETURN, 0, 0, 1),
                (_RETURN, 0, 0, 0),
            )
        )
        buffer = ctypes.create_string_buffer(program)
        # opened for no protocol at all, so that nothing is counted before the filter stands
        self._socket = netns.open_socket(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self._socket.bind((device, _ETH_P_ALL))
        self._total = 0

    def count(self) -> int:
        """Packets seen since the capture began."""
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._total += struct.unpack("II", statistics)[0]
        return self._total

    def close(self) -> None:
        """Stop counting."""
        self._socket.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
