"""Control packets, wire to value and back (RFC 5880, 4.1).

    0       3       8 P F C A D M    16              24              31
    | vers=1 | diag | state| flags  | detect mult   | length        |
    | my discriminator, your discriminator                          |
    | desired min TX, required min RX, required min echo RX         |

`decode` makes the checks of 6.8.6 that need no session; `bgp.bfd.keeper` makes the rest. A packet that none of them
refuses has been heard.
"""

from __future__ import annotations

import struct
from typing import Final

from bgp.bfd.model import Packet, State

VERSION: Final = 1
LENGTH: Final = 24
AUTHENTICATED_LENGTH: Final = 26

_LAYOUT: Final = struct.Struct("!BBBBIIIII")
_POLL, _FINAL, _INDEPENDENT, _AUTHENTICATED, _DEMAND, _MULTIPOINT = 0x20, 0x10, 0x08, 0x04, 0x02, 0x01


class Malformed(ValueError):
    """What came is no control packet that may be looked at; the text says why."""


def encode(packet: Packet) -> bytes:
    """The packet as it goes on the wire."""
    flags = (
        (_POLL if packet.poll else 0)
        | (_FINAL if packet.final else 0)
        | (_INDEPENDENT if packet.independent else 0)
        | (_DEMAND if packet.demand else 0)
    )
    return _LAYOUT.pack(
        VERSION << 5 | packet.diagnostic,
        packet.state << 6 | flags,
        packet.multiplier,
        LENGTH,
        packet.mine,
        packet.yours,
        packet.transmit_us,
        packet.receive_us,
        packet.echo_us,
    )


def decode(data: bytes) -> Packet:
    """What a datagram says; `Malformed` when it must be discarded unseen."""
    if len(data) < LENGTH:
        raise Malformed(f"{len(data)} bytes are no control packet")
    first, second, multiplier, length, mine, yours, transmit_us, receive_us, echo_us = _LAYOUT.unpack_from(data)
    if first >> 5 != VERSION:
        raise Malformed(f"version {first >> 5}")
    if length < (AUTHENTICATED_LENGTH if second & _AUTHENTICATED else LENGTH):
        raise Malformed(f"length {length} is too short")
    if length > len(data):
        raise Malformed(f"length {length}, but only {len(data)} bytes")
    if multiplier == 0:
        raise Malformed("detection multiplier 0")
    if second & _MULTIPOINT:
        raise Malformed("multipoint")
    if mine == 0:
        raise Malformed("no discriminator of its own")
    state = State(second >> 6)
    if yours == 0 and state in (State.INIT, State.UP):
        raise Malformed(f"{state.label} without our discriminator")
    if second & _AUTHENTICATED:
        raise Malformed("authenticated, which this session is not")
    return Packet(
        state=state,
        mine=mine,
        yours=yours,
        multiplier=multiplier,
        transmit_us=transmit_us,
        receive_us=receive_us,
        diagnostic=first & 0x1F,
        poll=bool(second & _POLL),
        final=bool(second & _FINAL),
        independent=bool(second & _INDEPENDENT),
        demand=bool(second & _DEMAND),
        echo_us=echo_us,
    )
