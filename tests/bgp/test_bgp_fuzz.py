"""Mutated BGP messages at our listener, from peers by hand: thousands in the suite, more with MUSLIN_FUZZ=deep.

After every mutated message goes a good one with a prefix of its own (a sentinel). So it is known which messages were
read, which one ended a session, and that the session was kept otherwise. Every prefix that reaches us must stand in
what was sent, by an independent reading of the stream; a session next to it must not notice; nothing may fail.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

import pytest
from bgp_raw_peer import (
    KEEPALIVE,
    NOTIFICATION,
    OPEN,
    REFRESH,
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

from bgp.exabgp.line import Update
from bgp.model import Session
from core.addr import Network
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

DEEP = os.environ.get("MUSLIN_FUZZ") == "deep"
MUTATIONS = 200_000 if DEEP else 10_000
RESETTING = (9, 10, 17, 18)
SEED = 20_261_121
BATCH = 20
OURS, FINE = "127.0.0.1", "127.0.0.2"
FUZZERS = [f"127.0.0.{number}" for number in range(10, 26)]
FIRST_SENTINEL = int(IPv4Address("172.16.0.0"))
PATIENCE_S = 0.5

SESSION = Session(
    name="p",
    peer=ip_address(FINE),
    port=179,
    local=ip_address(OURS),
    local_as=64512,
    remote_as=65001,
    hold_s=90,
    restart_s=120,
    passive=True,
)


# --- what is sent


def attributes(local: str) -> list[bytes]:
    """One of each kind."""
    hop = IPv4Address(local).packed
    return [
        attribute(0x40, 1, b"\0"),
        as_path(65001, 65002, 4200000000),
        attribute(0x40, 3, hop),
        attribute(0x80, 4, b"\0\0\0\7"),
        attribute(0x40, 5, b"\0\0\0\x64"),
        attribute(0x40, 6, b""),
        attribute(0xC0, 7, (65001).to_bytes(4, "big") + hop),
        attribute(0xC0, 8, bytes.fromhex("fde90001ffff0000")),
        attribute(0x80, 9, hop),
        attribute(0x80, 10, hop + hop),
        attribute(0xC0, 16, bytes.fromhex("0002fde900000001")),
        attribute(0xC0, 17, b"\2\1\0\0\xfd\xe9"),
        attribute(0xC0, 18, (65001).to_bytes(4, "big") + hop),
        attribute(0xC0, 32, bytes(12)),
        attribute(0xC0, 99, b"what nobody knows"),
    ]


def multiprotocol(dice: random.Random, local: str) -> bytes:
    four = IPv4Address(local).packed
    return dice.choice(
        [
            attribute(0x80, 14, b"\0\1\1\4" + four + b"\0" + packed(some_prefix(dice))),
            attribute(0x80, 14, b"\0\2\1\x10" + bytes(15) + b"\1\0" + b"\x20\x20\x01\x0d\xb8"),
            attribute(0x80, 15, b"\0\1\1" + packed(some_prefix(dice))),
            attribute(0x80, 15, b"\0\2\1\x20\x20\x01\x0d\xb8"),
        ]
    )


def some_prefix(dice: random.Random) -> Network:
    length = dice.randint(8, 32)
    return IPv4Network((dice.getrandbits(24) | 10 << 24, length), strict=False)


def mutated_attribute(dice: random.Random, good: bytes) -> bytes:
    """The same attribute with something wrong with it, or nothing at all."""
    kind = dice.randrange(8)
    flags, code, value = good[0], good[1], good[3:]
    if kind == 0:
        return attribute(dice.getrandbits(8) & 0xEF, code, value)
    if kind == 1:
        return attribute(flags, code, value[: dice.randint(0, len(value))])
    if kind == 2:
        return attribute(flags, code, value + dice.randbytes(dice.randint(1, 40)))
    if kind == 3:
        return good + good
    if kind == 4:
        return attribute(flags, dice.getrandbits(8), value)
    if kind == 5:
        return attribute(flags, code, dice.randbytes(len(value)))
    if kind == 6:
        return good[:2] + bytes((dice.getrandbits(8),)) + value
    return b""


def mutated_update(dice: random.Random, local: str) -> bytes:
    known = attributes(local)
    if dice.random() < 0.9:  # ExaBGP resets for these, and a session costs more than a message
        known = [each for each in known if each[1] not in RESETTING]
    said = known[:3] + dice.sample(known[3:], dice.randint(0, 5)) if dice.random() < 0.8 else dice.sample(known, 5)
    if dice.random() < 0.1:
        said.append(multiprotocol(dice, local))
    for _ in range(dice.choice((1, 1, 1, 2))):
        at = dice.randrange(len(said))
        said[at] = mutated_attribute(dice, said[at] or as_path())
    gone = [some_prefix(dice) for _ in range(dice.choice((0, 0, 0, 1, 3)))]
    told = [some_prefix(dice) for _ in range(dice.choice((0, 1, 1, 2, 5)))]
    return update(b"".join(said), *told, withdrawn=tuple(map(str, gone)))


def mutated(dice: random.Random, local: str) -> bytes:
    """A message that is probably wrong."""
    lot = dice.random()
    if lot < 0.93:
        return mutated_update(dice, local)
    good = dice.choice(
        [
            update(b"".join(attributes(local)), some_prefix(dice), some_prefix(dice)),
            message(UPDATE, b"\0\0\0\0"),
            message(KEEPALIVE),
            message(NOTIFICATION, b"\6\2"),
            message(REFRESH, b"\0\1\0\1"),
            opening(65001, "10.0.0.9"),
        ]
    )
    if lot < 0.985:  # bytes of the body, its length being right
        body = bytearray(good[19:])
        for _ in range(dice.randint(1, 4)):
            if body:
                body[dice.randrange(len(body))] = dice.getrandbits(8)
        body = body[: dice.randint(0, len(body))] if dice.random() < 0.3 else body
        return message(good[18], bytes(body) + dice.randbytes(dice.choice((0, 0, 1, 30))))
    return bytes(each if dice.random() < 0.97 else dice.getrandbits(8) for each in good)  # header and all


def mutated_open(dice: random.Random) -> bytes:
    good = bytearray(opening(65001, "10.0.0.9"))
    for _ in range(dice.randint(1, 5)):
        good[dice.randrange(16, len(good))] = dice.getrandbits(8)
    return bytes(good[: dice.randint(19, len(good))] if dice.random() < 0.2 else good)


# --- what it says, read independently


def said(stream: bytes) -> Iterator[Network]:
    """Every IPv4 prefix that a stream of messages announces, whatever else is wrong with it."""
    while len(stream) >= 19 and stream.startswith(b"\xff" * 16):
        length = int.from_bytes(stream[16:18], "big")
        if stream[18] == UPDATE:
            yield from announced(stream[19:length])
        stream = stream[max(length, 19) :]


def announced(body: bytes) -> Iterator[Network]:
    gone = int.from_bytes(body[:2], "big")
    size = int.from_bytes(body[2 + gone : 4 + gone], "big")
    yield from prefixes(body[4 + gone + size :])
    left = body[4 + gone : 4 + gone + size]
    while len(left) > 3:
        wide = bool(left[0] & 0x10)
        length = int.from_bytes(left[2:4], "big") if wide else left[2]
        value = left[4 if wide else 3 :][:length]
        if left[1] == 14 and value[:3] == b"\0\1\1" and len(value) > 4:
            yield from prefixes(value[5 + value[3] :])
        left = left[(4 if wide else 3) + length :]


def prefixes(field: bytes) -> Iterator[Network]:
    while field and field[0] <= 32:
        size = (field[0] + 7) // 8
        if len(field) <= size:
            return
        yield IPv4Network((field[1 : 1 + size].ljust(4, b"\0"), field[0]), strict=False)
        field = field[1 + size :]


def sentinel(number: int) -> Network:
    return IPv4Network((FIRST_SENTINEL + number, 32))


# --- who sends it


@dataclass
class Fuzzer:
    """One peer's share of the mutations; opens its session anew whenever it was ended."""

    running: Speaking
    local: str
    sent: int = 0
    ended: int = 0
    legitimate: set[Network] = field(default_factory=set)

    async def run(self, numbers: list[int]) -> None:
        at = ip_address(self.local)
        while numbers:
            peer = await self._open(numbers[0])
            try:
                while numbers and at in self.running.up:
                    done = await self._send(peer, numbers[:BATCH])
                    numbers = numbers[done:]
                    self.sent += done
            finally:
                await peer.close()
            await self.running.wait("its end is seen", lambda: at not in self.running.up)

    async def _open(self, number: int) -> RawPeer:
        dice = random.Random(f"{SEED} open {number}")
        at = ip_address(self.local)
        hello = mutated_open(dice) if dice.random() < 0.2 else opening(65001, "10.0.0.9")
        for _ in range(50):
            peer = RawPeer(self.local, OURS)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await peer.connect(hello)
                    await self.running.wait("it is up", lambda: at in self.running.up)
                return peer
            except (ConnectionError, TimeoutError):
                await peer.close()
                hello = opening(65001, "10.0.0.9")
                self.ended += 1
            except BaseException:
                await peer.close()
                raise
        raise AssertionError(f"{self.local} gets no session any more: {self.running.events[-3:]}")

    async def _send(self, peer: RawPeer, numbers: list[int]) -> int:
        """One batch; how many of them were read."""
        at, seen = ip_address(self.local), len(self.running.events)
        stream = b"".join(
            mutated(random.Random(f"{SEED} {number}"), self.local) + update(plain(65001, self.local), sentinel(number))
            for number in numbers
        )
        peer.send(stream)
        self.legitimate.update(said(stream))
        last = sentinel(numbers[-1])
        try:
            async with asyncio.timeout(PATIENCE_S / 2):
                await self.running.wait(
                    "the batch",
                    lambda: peer.closed or at not in self.running.up or bool(self.running.heard(self.local, last)),
                )
        except TimeoutError:
            peer.send(bytes(4096))  # a length that waits for more: it gets what is no message
            await self.running.wait("it ends", lambda: at not in self.running.up)
        read = {
            prefix.network
            for event in self.running.events[seen:]
            if isinstance(event, Update) and event.peer == at
            for _, prefixes in event.announced
            for prefix in prefixes
        }
        assert read <= self.legitimate, (read - self.legitimate, numbers)
        reached = max((place for place, number in enumerate(numbers, 1) if sentinel(number) in read), default=0)
        if reached < len(numbers):
            self.ended += 1
        return min(reached + 1, len(numbers))


async def test_mutations_do_no_harm(tmp_path: Path) -> None:
    sessions = [replace(SESSION, peer=ip_address(each)) for each in (FINE, *FUZZERS)]
    with scratch_namespace():
        async with speaking(tmp_path / "run", speaker(*sessions)) as running:
            fine = RawPeer(FINE, OURS)
            try:
                await fine.connect(opening(65001, "10.0.0.2"))
                own = [some_prefix(random.Random(number)) for number in range(100)]
                for each in own:
                    fine.send(update(plain(65001, FINE), each))
                fuzzers = [Fuzzer(running, local) for local in FUZZERS]
                shares = [list(range(start, MUTATIONS, len(FUZZERS))) for start in range(len(FUZZERS))]
                async with asyncio.TaskGroup() as group:
                    for fuzzer, share in zip(fuzzers, shares, strict=True):
                        group.create_task(fuzzer.run(share))
                print({each.local: (each.sent, each.ended) for each in fuzzers})
                assert sum(each.sent for each in fuzzers) == MUTATIONS
                assert running.lives == ["start"]
                assert running.errors == []
                assert running.table[ip_address(FINE)].keys() == {*own}
                assert not [down for down in running.downs if down.peer == ip_address(FINE)]
                assert not fine.closed
                assert fine.count(OPEN) == 1
                kept = 1 - sum(each.ended for each in fuzzers) / MUTATIONS
                assert kept > 0.6, f"{kept:.0%} of the messages left the session standing"
            finally:
                await fine.close()


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (update(plain(65001, FINE), "10.1.0.0/26", "10.2.0.0/16"), {"10.1.0.0/26", "10.2.0.0/16"}),
        (update(b"", withdrawn=("10.1.0.0/26",)), set()),
        (update(attribute(0x80, 14, b"\0\1\1\4\x7f\0\0\1\0\x08\x0a")), {"10.0.0.0/8"}),
        (message(KEEPALIVE) + update(b"", "10.3.0.0/24") + bytes(30) + update(b"", "10.4.0.0/24"), {"10.3.0.0/24"}),
    ],
)
def test_the_independent_reading(stream: bytes, found: set[str]) -> None:
    assert set(said(stream)) == {IPv4Network(each) for each in found}
