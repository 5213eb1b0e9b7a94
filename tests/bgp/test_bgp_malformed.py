"""Malformed UPDATEs: what RFC 7606 asks for, and what reaches us through ExaBGP 5.0.15.

withdrawn    the prefixes are taken as withdrawn, the session stays          (treat-as-withdraw)
taken        the attribute is left out or as good, the prefixes are taken     (attribute discard)
reset        the session ends with a NOTIFICATION
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
import pytest_asyncio
from bgp_raw_peer import (
    NOTIFICATION,
    UPDATE,
    RawPeer,
    Speaking,
    as_path,
    attribute,
    message,
    opening,
    packed,
    plain,
    speaker,
    speaking,
    update,
)

from bgp.model import Session
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

OURS, EXTERNAL, INTERNAL = "127.0.0.1", "127.0.0.2", "127.0.0.3"
PREFIX, SENTINEL = ip_network("10.1.0.0/26"), ip_network("10.9.9.0/24")

SESSION = Session(
    name="p",
    peer=ip_address(EXTERNAL),
    port=179,
    local=ip_address(OURS),
    local_as=64512,
    remote_as=65001,
    hold_s=90,
    restart_s=120,
    passive=True,
)

WITHDRAWN, TAKEN, RESET = "withdrawn", "taken", "reset"

ORIGIN, PATH = attribute(0x40, 1, b"\0"), as_path(65001)
HOP = attribute(0x40, 3, IPv4Address(EXTERNAL).packed)


@dataclass(frozen=True, slots=True)
class Case:
    """`body` is the malformed UPDATE's; `rfc` what is asked for; `found` what happens, when it is something else."""

    name: str
    body: bytes
    rfc: str
    found: str = ""
    internal: bool = False

    @property
    def outcome(self) -> str:
        return self.found or self.rfc


def with_attributes(*attributes: bytes) -> bytes:
    return update(b"".join(attributes), PREFIX)[19:]


def more(flags: int, code: int, value: bytes) -> bytes:
    """A good announcement with one attribute more."""
    return with_attributes(ORIGIN, PATH, HOP, attribute(flags, code, value))


MP_REACH = attribute(0x80, 14, b"\0\1\1\4" + IPv4Address(EXTERNAL).packed + b"\0" + packed(PREFIX))

CASES = [
    Case("ORIGIN of two bytes", with_attributes(attribute(0x40, 1, b"\0\0"), PATH, HOP), WITHDRAWN, TAKEN),
    Case("ORIGIN 3", with_attributes(attribute(0x40, 1, b"\3"), PATH, HOP), WITHDRAWN),
    Case("ORIGIN as optional", with_attributes(attribute(0xC0, 1, b"\0"), PATH, HOP), WITHDRAWN),
    Case("AS_PATH segment 9", with_attributes(ORIGIN, attribute(0x40, 2, b"\x09\1\0\0\xfd\xe9"), HOP), WITHDRAWN),
    Case("AS_PATH too short", with_attributes(ORIGIN, attribute(0x40, 2, b"\2\2\0\0\xfd\xe9"), HOP), WITHDRAWN),
    Case("AS_PATH one byte", with_attributes(ORIGIN, attribute(0x40, 2, b"\2"), HOP), WITHDRAWN),
    Case("AS_PATH empty segment", with_attributes(ORIGIN, attribute(0x40, 2, b"\2\0"), HOP), WITHDRAWN),
    Case("NEXT_HOP of three bytes", with_attributes(ORIGIN, PATH, attribute(0x40, 3, b"\x7f\0\0")), WITHDRAWN),
    Case("NEXT_HOP of sixteen", with_attributes(ORIGIN, PATH, attribute(0x40, 3, bytes(16))), WITHDRAWN),
    Case("MED of three bytes", more(0x80, 4, b"\0\0\1"), WITHDRAWN),
    Case("MED as well-known", more(0x40, 4, b"\0\0\0\1"), WITHDRAWN),
    Case("LOCAL_PREF from outside", more(0x40, 5, b"\0\0\0\1"), TAKEN),
    Case("LOCAL_PREF of three bytes", more(0x40, 5, b"\0\0\1"), WITHDRAWN, internal=True),
    Case("LOCAL_PREF of three from outside", more(0x40, 5, b"\0\0\1"), TAKEN, WITHDRAWN),
    Case("ATOMIC_AGGREGATE of one byte", more(0x40, 6, b"\0"), TAKEN),
    Case("AGGREGATOR of five bytes", more(0xC0, 7, bytes(5)), TAKEN),
    Case("COMMUNITY of five bytes", more(0xC0, 8, bytes(5)), WITHDRAWN),
    Case("COMMUNITY of none", more(0xC0, 8, b""), WITHDRAWN),
    Case("ORIGINATOR_ID from outside", more(0x80, 9, bytes(4)), TAKEN),
    Case("ORIGINATOR_ID of five bytes", more(0x80, 9, bytes(5)), WITHDRAWN, internal=True),
    Case("ORIGINATOR_ID of five from outside", more(0x80, 9, bytes(5)), TAKEN, WITHDRAWN),
    Case("CLUSTER_LIST from outside", more(0x80, 10, bytes(4)), TAKEN),
    Case("CLUSTER_LIST of five bytes", more(0x80, 10, bytes(5)), WITHDRAWN, internal=True),
    Case("CLUSTER_LIST of none", more(0x80, 10, b""), WITHDRAWN, internal=True),
    Case("extended community of nine bytes", more(0xC0, 16, bytes(9)), WITHDRAWN),
    Case("large community of thirteen bytes", more(0xC0, 32, bytes(13)), WITHDRAWN),
    Case("large community of none", more(0xC0, 32, b""), WITHDRAWN),
    Case("AS4_PATH too short", more(0xC0, 17, b"\2\2\0\0\0\1"), TAKEN),
    Case("AS4_AGGREGATOR of three bytes", more(0xC0, 18, bytes(3)), TAKEN),
    Case("no ORIGIN", with_attributes(PATH, HOP), WITHDRAWN),
    Case("no AS_PATH", with_attributes(ORIGIN, HOP), WITHDRAWN),
    Case("no NEXT_HOP", with_attributes(ORIGIN, PATH), WITHDRAWN),
    Case("no LOCAL_PREF inside", with_attributes(ORIGIN, PATH, HOP), TAKEN, internal=True),
    Case("no attributes", with_attributes(), WITHDRAWN),
    Case("ORIGIN twice", with_attributes(ORIGIN, attribute(0x40, 1, b"\2"), PATH, HOP), TAKEN),
    Case("MED twice", more(0x80, 4, b"\0\0\0\1" + bytes.fromhex("800404") + bytes(4)), WITHDRAWN),
    Case("an attribute longer than all", with_attributes(ORIGIN, PATH, HOP, b"\x80\4\x40\0\0\0\1"), WITHDRAWN),
    Case("two bytes of an attribute", with_attributes(ORIGIN, PATH, HOP, b"\x80\4"), WITHDRAWN),
    Case("an unknown transitive attribute", more(0xC0, 200, b"new"), TAKEN),
    Case("an unknown attribute for us alone", more(0x80, 201, b"new"), TAKEN),
    Case("an unknown well-known attribute", more(0x40, 202, b"new"), RESET, TAKEN),
    Case("MP_REACH_NLRI twice", with_attributes(ORIGIN, PATH, HOP, MP_REACH, MP_REACH), RESET),
    Case("a prefix of 33 bits", with_attributes(ORIGIN, PATH, HOP) + b"\x21\x0a\0\0\0\0", RESET),
    Case("a prefix cut off", with_attributes(ORIGIN, PATH, HOP) + b"\x18\x0a", RESET),
    Case("a withdrawn prefix of 33 bits", b"\0\6\x21\x0a\0\0\0\0\0\0", RESET),
    Case("attributes longer than the message", b"\0\0\1\0" + ORIGIN + PATH, RESET),
    Case("withdrawn routes longer than the message", b"\1\0" + ORIGIN, RESET),
    Case("a body of three bytes", b"\0\0\0", RESET),
]


class Bench:
    """The one ExaBGP that all cases share; sessions are opened anew as needed."""

    def __init__(self, running: Speaking) -> None:
        self.running = running
        self.peers: dict[str, RawPeer] = {}

    async def peer(self, local: str) -> RawPeer:
        at = ip_address(local)
        if local in self.peers and at in self.running.up:
            return self.peers[local]
        async with asyncio.timeout(20):
            while True:
                if local in self.peers:
                    await self.peers[local].close()
                self.peers[local] = RawPeer(local, OURS)
                try:
                    await self.peers[local].connect(opening(65001 if local == EXTERNAL else 64512, "10.0.0.2"))
                    await self.running.wait("it is up", lambda: at in self.running.up, 1)
                    return self.peers[local]
                except (ConnectionError, AssertionError):
                    await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    with scratch_namespace():
        inside = replace(SESSION, peer=ip_address(INTERNAL), remote_as=64512)
        async with speaking(tmp_path_factory.mktemp("bgp") / "run", speaker(SESSION, inside)) as running:
            made = Bench(running)
            try:
                yield made
            finally:
                for peer in made.peers.values():
                    await peer.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.asyncio(loop_scope="module")
async def test_malformed(shared: Bench, case: Case) -> None:
    local = INTERNAL if case.internal else EXTERNAL
    running = shared.running
    peer = await shared.peer(local)
    before = len(running.downs)
    running.errors.clear()
    peer.send(update(plain(65001, local), PREFIX))
    await running.wait("a good route", lambda: running.heard(local, PREFIX) is not None)
    running.table[ip_address(local)].pop(SENTINEL, None)
    peer.send(message(UPDATE, case.body))
    peer.send(update(plain(65001, local), SENTINEL))
    await running.wait("it is through", lambda: len(running.downs) > before or bool(running.heard(local, SENTINEL)))
    if len(running.downs) > before:
        outcome = RESET
        assert running.downs[-1].reason.startswith("we sent ")
        # What we sent after the malformed one is unread at its end, so it may be reset before its NOTIFICATION is read.
        await peer.wait("the end", lambda: peer.closed or peer.count(NOTIFICATION) == 1)
    else:
        outcome = TAKEN if running.heard(local, PREFIX) else WITHDRAWN
    assert (outcome, running.errors) == (case.outcome, [])
    assert running.lives == ["start"]
