"""Control packets on the wire, and every reason of RFC 5880, 6.8.6 to discard one unseen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.bfd.codec import Malformed, decode, encode
from bgp.bfd.model import Packet, State

WORD = st.integers(0, 2**32 - 1)
PACKETS = st.builds(
    Packet,
    state=st.sampled_from(State),
    mine=st.integers(1, 2**32 - 1),
    yours=st.integers(1, 2**32 - 1),
    multiplier=st.integers(1, 255),
    transmit_us=WORD,
    receive_us=WORD,
    diagnostic=st.integers(0, 31),
    poll=st.booleans(),
    final=st.booleans(),
    independent=st.booleans(),
    demand=st.booleans(),
    echo_us=WORD,
)
UP = Packet(state=State.UP, mine=0x01020304, yours=5, multiplier=3, transmit_us=300_000, receive_us=300_000, poll=True)


@given(PACKETS)
def test_what_is_written_is_read(packet: Packet) -> None:
    assert decode(encode(packet)) == packet
    assert len(encode(packet)) == 24


def test_the_layout_of_the_rfc() -> None:
    assert encode(UP).hex() == "20e003180102030400000005000493e0000493e000000000"


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, 0x00, "version 0"),
        (0, 0x40, "version 2"),
        (3, 23, "length 23"),
        (3, 25, "length 25"),
        (2, 0, "multiplier 0"),
        (1, 0xC1, "multipoint"),
        (1, 0xC4, "length 24"),  # authentication takes two bytes more
    ],
)
def test_what_must_be_discarded_is(offset: int, value: int, why: str) -> None:
    data = bytearray(encode(UP))
    data[offset] = value
    with pytest.raises(Malformed, match=why):
        decode(bytes(data))


def test_discriminators_are_asked_for() -> None:
    data = encode(UP)
    with pytest.raises(Malformed, match="discriminator of its own"):
        decode(data[:4] + bytes(4) + data[8:])
    with pytest.raises(Malformed, match="Up without our"):
        decode(data[:8] + bytes(4) + data[12:])
    for state in (State.DOWN, State.ADMIN_DOWN):
        first_word = bytes([data[0], state << 6, data[2], data[3]])
        assert decode(first_word + data[4:8] + bytes(4) + data[12:]).yours == 0


def test_an_authenticated_packet_is_not_ours() -> None:
    data = bytearray(encode(UP) + bytes(4))
    data[1] |= 0x04
    data[3] = 28
    with pytest.raises(Malformed, match="authenticated"):
        decode(bytes(data))


@given(st.binary(max_size=64))
def test_no_bytes_do_harm(data: bytes) -> None:
    try:
        packet = decode(data)
    except Malformed:
        return
    assert packet.mine
    assert packet.multiplier
