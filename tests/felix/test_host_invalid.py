"""What conntrack cannot place, on a host whose interfaces are judged."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from linux import netns
from tests.felix.guarded import FAR, Guarded, guarded, hep, open_profile, policy, tcp
from tests.felix.host import OUTSIDE, PATIENCE_S, Host

pytestmark = pytest.mark.kernel

RST = 0x14
"""TCP's flags RST and ACK, which begin nothing: of a connection that nobody knows, such a packet is invalid."""


@pytest.fixture
async def node(real_host: Host, tmp_path: Path) -> AsyncIterator[Guarded]:
    async with guarded(real_host, tmp_path) as made:
        yield made


def _segment(source: str, destination: str, sport: int) -> bytes:
    header = struct.pack("!HHIIBBHHH", sport, 80, 1, 1, 5 << 4, RST, 1024, 0, 0)
    ends = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, len(header))
    total = sum(struct.unpack(f"!{(len(ends) + len(header)) // 2}H", ends + header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[18:]


async def test_what_is_forwarded_and_invalid_is_not_judged_as_if_the_host_had_sent_it(node: Guarded) -> None:
    """An untracked plane that has nothing to ask of one interface leaves nothing behind in its packets."""
    raw = policy("raw", "host == 'other'", ingress=[tcp(9)], egress=[tcp(9)], do_not_track=True, apply_on_forward=True)
    given = (open_profile("open"), hep("up", "eth0", profiles=("open",)), hep("other", "eth1", profiles=("open",)))
    await node.write(*given, raw)
    await node.start()
    with netns.inside(node.far.namespace):
        hearing = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with netns.inside(node.outside.namespace):
        sending = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with hearing, sending:
        hearing.setblocking(False)
        async with asyncio.timeout(PATIENCE_S):
            for sport in range(5000, 5050):  # the first may be lost while neighbours are looked for
                sending.sendto(_segment(OUTSIDE, FAR, sport), (FAR, 0))
                try:
                    async with asyncio.timeout(0.2):
                        await asyncio.get_running_loop().sock_recv(hearing, 100)
                except TimeoutError:
                    continue
                return
    pytest.fail("it never arrives")
