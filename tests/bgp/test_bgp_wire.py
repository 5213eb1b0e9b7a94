"""What ExaBGP puts on the wire of what we ask for: attributes, refreshes, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
from bgp_raw_peer import (
    REFRESH,
    UPDATE,
    RawPeer,
    Speaking,
    as_path,
    attribute,
    opening,
    packed,
    plain,
    speaker,
    speaking,
    update,
)

from bgp.attributes import Attributes, Origin
from bgp.exabgp.line import Announce, PeerOpen, Refresh, Teardown, Withdraw
from bgp.model import Session
from core.addr import Family
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

OURS, EXTERNAL, INTERNAL = "127.0.0.1", "127.0.0.2", "127.0.0.3"
P = ip_network("10.1.0.0/26")

EBGP = Session(
    name="p",
    peer=ip_address(EXTERNAL),
    port=179,
    local=ip_address(OURS),
    local_as=64512,
    remote_as=4200000001,
    hold_s=90,
    restart_s=120,
    passive=True,
)
IBGP = replace(EBGP, peer=ip_address(INTERNAL), remote_as=64512)

OUR_HOP = attribute(0x40, 3, ip_address(OURS).packed)
IGP = attribute(0x40, 1, b"\0")
LOCAL_PREF = attribute(0x40, 5, b"\0\0\0\x64")


class Pair:
    """Our ExaBGP with an eBGP and an iBGP peer."""

    def __init__(self, speaking: Speaking, external: RawPeer, internal: RawPeer) -> None:
        self.said, self.external, self.internal = speaking, external, internal


@pytest.fixture(params=[True, False], ids=["extended", "plain"])
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Both ways of speaking to ExaBGP are held to the same bytes."""
    with scratch_namespace():
        async with speaking(tmp_path / "run", speaker(EBGP, IBGP), extended=request.param) as made:
            external, internal = RawPeer(EXTERNAL, OURS), RawPeer(INTERNAL, OURS)
            try:
                await external.connect(opening(4200000001, "10.0.0.2"))
                await internal.connect(opening(64512, "10.0.0.3"))
                await made.wait("both are up", lambda: len(made.up) == 2)
                yield Pair(made, external, internal)
            finally:
                await external.close()
                await internal.close()


async def told(pair: Pair, peer: RawPeer, attributes: Attributes) -> bytes:
    """The path attributes of the UPDATE that an announcement with `attributes` becomes."""
    before = peer.count(UPDATE)
    assert await pair.said.exabgp.send(Announce((ip_address(peer.local),), attributes, (P,)))
    await peer.wait("the UPDATE", lambda: peer.count(UPDATE) > before)
    body = peer.bodies(UPDATE)[before]
    length = int.from_bytes(body[2:4], "big")
    assert body[:2] == b"\0\0"
    assert body[4 + length :] == packed(P)
    return body[4 : 4 + length]


async def test_attributes_are_sent_as_they_are_given(pair: Pair) -> None:
    everything = Attributes(
        next_hop=ip_address("127.0.0.9"),
        as_path=(64512, 64512, 4200000009),
        origin=Origin.INCOMPLETE,
        med=7,
        local_pref=250,
        communities=("64512:1", "65535:0", "4200000000:2:3"),
        originator=IPv4Address("10.0.0.9"),
        clusters=(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")),
    )
    common = attribute(0x40, 1, b"\2") + as_path(64512, 64512, 4200000009)
    hop, med = attribute(0x40, 3, b"\x7f\0\0\x09"), attribute(0x80, 4, b"\0\0\0\7")
    communities = attribute(0xC0, 8, bytes.fromhex("fc000001ffff0000"))
    reflected = attribute(0x80, 9, b"\x0a\0\0\x09") + attribute(0x80, 10, b"\x0a\0\0\1\x0a\0\0\2")
    large = attribute(0xC0, 32, (4200000000).to_bytes(4, "big") + b"\0\0\0\2\0\0\0\3")
    local_pref = attribute(0x40, 5, b"\0\0\0\xfa")
    assert await told(pair, pair.internal, everything) == common + hop + med + local_pref + communities + (
        reflected + large
    )
    assert await told(pair, pair.external, everything) == common + hop + med + communities + reflected + large


async def test_what_is_not_given_is_filled_in(pair: Pair) -> None:
    assert await told(pair, pair.external, Attributes()) == IGP + as_path(64512) + OUR_HOP
    assert await told(pair, pair.internal, Attributes()) == IGP + as_path() + OUR_HOP + LOCAL_PREF
    prepended = Attributes(as_path=(64512, 64512, 64512))
    assert await told(pair, pair.external, prepended) == IGP + as_path(64512, 64512, 64512) + OUR_HOP


async def test_withdrawn_whatever_it_was_told_with(pair: Pair) -> None:
    await told(pair, pair.external, Attributes(med=5, communities=("64512:1",)))
    assert await pair.said.exabgp.send(Withdraw((ip_address(EXTERNAL),), (P,)))
    await pair.external.wait("the withdrawal", lambda: pair.external.count(UPDATE) == 2)
    gone = packed(P)
    assert pair.external.bodies(UPDATE)[1] == len(gone).to_bytes(2, "big") + gone + b"\0\0"


async def test_what_is_told_to_both_and_refused_by_none(pair: Pair) -> None:
    both = (ip_address(EXTERNAL), ip_address(INTERNAL))
    other = ip_network("10.2.0.0/26")
    assert await pair.said.exabgp.send(Announce(both, Attributes(), (other, P)))
    for peer, path, more in ((pair.external, as_path(64512), b""), (pair.internal, as_path(), LOCAL_PREF)):
        await peer.wait("the UPDATE", lambda peer=peer: peer.count(UPDATE) == 1)  # type: ignore[misc]
        assert peer.bodies(UPDATE) == [update(IGP + path + OUR_HOP + more, P, other)[19:]]
    assert not await pair.said.exabgp.send(Announce((ip_address("127.0.0.77"),), Attributes(), (P,)))
    assert not await pair.said.exabgp.send(Announce((*both, ip_address("127.0.0.77")), Attributes(), (P,)))


async def test_what_is_heard_with_all_attributes(pair: Pair) -> None:
    more = attribute(0xC0, 8, bytes.fromhex("fc000001")) + attribute(0x80, 9, b"\x0a\0\0\x09")
    more += attribute(0x80, 10, b"\x0a\0\0\1") + attribute(0xC0, 32, b"\0\0\0\1\0\0\0\2\0\0\0\3")
    pair.internal.send(update(plain(65001, INTERNAL) + attribute(0x40, 5, b"\0\0\0\xfa") + more, P))
    await pair.said.wait("the route", lambda: pair.said.heard(INTERNAL, P) is not None)
    path = pair.said.heard(INTERNAL, P)
    assert path is not None
    assert (path.originator, path.clusters) == (IPv4Address("10.0.0.9"), (IPv4Address("10.0.0.1"),))
    assert path.communities == ("64512:1", "1:2:3")
    assert (path.as_path, path.local_pref) == ((65001,), 250)


async def test_what_an_open_says(pair: Pair) -> None:
    heard = {event.peer: event for event in pair.said.events if isinstance(event, PeerOpen)}
    external = heard[ip_address(EXTERNAL)]
    assert external == PeerOpen(
        ip_address(EXTERNAL),
        120,
        frozenset({Family.V4}),
        hold_s=90,
        kept=frozenset({Family.V4}),
        as_number=4200000001,
        four_byte_as=True,
        router_id=IPv4Address("10.0.0.2"),
        route_refresh=True,
    )


async def test_refresh_is_asked_for_and_given(pair: Pair) -> None:
    assert await pair.said.exabgp.send(Refresh(ip_address(EXTERNAL), Family.V4))
    await pair.external.wait("ROUTE-REFRESH", lambda: pair.external.count(REFRESH) == 1)
    assert pair.external.bodies(REFRESH) == [b"\0\1\0\1"]


async def test_a_torn_down_session_comes_back(pair: Pair) -> None:
    assert await pair.said.exabgp.send(Teardown(ip_address(EXTERNAL), 4))
    await pair.said.wait("it is down", lambda: bool(pair.said.downs))
    assert pair.said.downs[0].peer == ip_address(EXTERNAL)
    assert pair.said.downs[0].reason == "we closed it"
    again = RawPeer(EXTERNAL, OURS)
    try:
        async with asyncio.timeout(20):
            await again.connect(opening(4200000001, "10.0.0.2"))
            await pair.said.wait("it is up again", lambda: ip_address(EXTERNAL) in pair.said.up)
    finally:
        await again.close()
    assert ip_address(INTERNAL) in pair.said.up
