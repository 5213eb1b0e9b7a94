"""ExaBGP and ours under load: nobody reads, somebody stops, something flaps."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from bgp_raw_peer import KEEPALIVE, UPDATE, RawPeer, Speaking, message, opening, plain, speaker, speaking, update

from bgp.attributes import Attributes
from bgp.exabgp.line import Announce, encode
from bgp.exabgp.stalls import Stalls
from bgp.model import Session
from bgp.telling.adverts import Advert, AdvertDriver, Telling, Told, desired_adverts
from core.addr import Network
from core.reconcile import Reconciler
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

OURS, ONE, TWO = "127.0.0.1", "127.0.0.2", "127.0.0.3"
MANY = 20_000
BLOCKS = [ip_network((0x0A000000 + 64 * number, 26)) for number in range(MANY)]

SESSION = Session(
    name="p",
    peer=ip_address(ONE),
    port=179,
    local=ip_address(OURS),
    local_as=64512,
    remote_as=65001,
    hold_s=90,
    restart_s=120,
    passive=True,
)


class Teller:
    """The adverts of some sessions, as the agent wires them to ExaBGP."""

    def __init__(self, running: Speaking, *sessions: Session) -> None:
        self.sessions, self._running = sessions, running
        self.driver = AdvertDriver(running.exabgp.send)
        self.driver.configured = frozenset(each.peer for each in sessions)
        self.reconciler: Reconciler[Advert, Told] = Reconciler(self.driver)
        self.number = 0

    def want(self, prefixes: Sequence[Network]) -> None:
        exported = {each.peer: dict.fromkeys(prefixes, Attributes()) for each in self.sessions}
        tellings = {each.peer: Telling(1, self.number) for each in self.sessions}
        up = self._running.up
        self.reconciler.set_desired(desired_adverts(self.sessions, exported, tellings, up, self.driver.told), 1)


def held(peer: RawPeer) -> set[bytes]:
    """The packed prefixes that a peer was told and not withdrawn; IPv4 /26 only."""
    table: set[bytes] = set()
    for body in peer.bodies(UPDATE):
        gone = int.from_bytes(body[:2], "big")
        attributes = int.from_bytes(body[2 + gone : 4 + gone], "big")
        table -= set(cut(body[2 : 2 + gone]))
        table |= set(cut(body[4 + gone + attributes :]))
    return table


def cut(prefixes: bytes) -> list[bytes]:
    return [prefixes[at : at + 5] for at in range(0, len(prefixes), 5)]


@asynccontextmanager
async def peers(*where: str, prepare: Mapping[str, int] | None = None) -> AsyncIterator[list[RawPeer]]:
    made = [RawPeer(each, OURS) for each in where]
    buffers = prepare or {}
    try:
        for peer in made:
            size = buffers.get(peer.local)
            await peer.connect(
                opening(65001, f"10.0.0.{peer.local.rpartition('.')[2]}"),
                prepare=lambda tcp, size=size: size and tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size),
            )
        yield made
    finally:
        for peer in made:
            await peer.close()


async def test_twenty_thousand_announcements_while_our_reader_pauses(tmp_path: Path) -> None:
    with scratch_namespace():
        patient = speaking(tmp_path / "run", speaker(SESSION), answer_s=60, extended=False)
        async with patient as running, peers(ONE) as (peer,):
            await running.wait("it is up", lambda: bool(running.up))
            bridge = running.exabgp._bridge
            assert bridge is not None
            bridge.transport.pause_reading()  # type: ignore[attr-defined]
            heard = len(running.events)
            for block in BLOCKS:
                text = encode(Announce((ip_address(ONE),), Attributes(), (block,)))
                bridge.write(text.encode() + b"\n")
            for start in range(0, MANY, 500):
                for block in BLOCKS[start : start + 500]:
                    peer.send(update(plain(65001, ONE), block))
            await peer.wait(
                "all announcements", lambda: len(held(peer)) == MANY if peer.count(UPDATE) > 300 else False, 60
            )
            assert len(running.events) == heard
            bridge.transport.resume_reading()  # type: ignore[attr-defined]
            await running.wait("all routes", lambda: len(running.table.get(ip_address(ONE), {})) == MANY, 30)
            assert running.table[ip_address(ONE)].keys() == {*BLOCKS}
            assert running.lives == ["start"]


async def test_a_stopped_speaker_is_replaced_within_fifteen_seconds(tmp_path: Path) -> None:
    with scratch_namespace():
        async with speaking(tmp_path / "run", speaker(SESSION)) as running, peers(ONE) as (peer,):
            await running.wait("it is up", lambda: bool(running.up))
            pid = running.exabgp.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            begun = time.monotonic()
            await running.wait("another one runs", lambda: running.lives == ["start", "loss", "start"], 20)
            assert time.monotonic() - begun < 15
            await peer.wait("it was lost without a word", lambda: peer.closed)
            assert not [kind for kind, _ in peer.heard if kind == 3]


async def test_a_peer_that_reads_nothing_is_cut_and_the_others_live(tmp_path: Path) -> None:
    stuck, fine = replace(SESSION, hold_s=3), replace(SESSION, peer=ip_address(TWO))
    with scratch_namespace():
        async with (
            speaking(tmp_path / "run", speaker(stuck, fine)) as running,
            peers(ONE, TWO, prepare={ONE: 4096}) as (deaf, other),
        ):
            await running.wait("both are up", lambda: len(running.up) == 2)
            deaf.pause()
            alive = asyncio.create_task(keep_alive(deaf))
            telling = Teller(running, stuck, fine)
            begun = time.monotonic()
            for count in range(2000, 2000 + 12 * 200, 200):
                telling.want(BLOCKS[:count])
                await telling.reconciler.step()
                await other.wait("the other one hears", lambda count=count: len(held(other)) == count)  # type: ignore[misc]
                if running.downs:
                    break
                await asyncio.sleep(1)  # it is cut after some seconds of this
            await running.wait("it is cut", lambda: bool(running.downs))
            assert time.monotonic() - begun < 12
            assert running.downs[0].peer == ip_address(ONE)
            assert running.downs[0].reason.endswith("Send Hold Timer Expired (8/0)")
            await running.wait("ExaBGP sees it, too", lambda: len(running.downs) > 1)
            assert [each.peer for each in running.downs] == [ip_address(ONE)] * 2
            assert running.up == {ip_address(TWO)}
            alive.cancel()
            async with peers(ONE) as (again,):
                await running.wait("it is back", lambda: len(running.up) == 2)
                telling.number += 1
                telling.want(BLOCKS[:100])
                assert (await telling.reconciler.step()).healthy
                await again.wait("it is told", lambda: len(held(again)) == 100)
                await other.wait("so is the other", lambda: len(held(other)) == 100)


async def keep_alive(peer: RawPeer) -> None:
    while True:
        peer.send(message(KEEPALIVE))
        await asyncio.sleep(0.5)


async def test_flaps_end_where_they_end(tmp_path: Path) -> None:
    with scratch_namespace():
        async with speaking(tmp_path / "run", speaker(SESSION)) as running, peers(ONE) as (peer,):
            await running.wait("it is up", lambda: bool(running.up))
            telling = Teller(running, SESSION)
            states = [BLOCKS[:1000], BLOCKS[:999], BLOCKS[1:1000], BLOCKS[:500]]
            stop = asyncio.Event()

            async def keep_telling() -> None:
                while not stop.is_set():
                    assert (await telling.reconciler.step()).healthy
                    await asyncio.sleep(0)  # a round without a change waits for nobody

            async with asyncio.TaskGroup() as group:
                telling.want(states[0])
                group.create_task(keep_telling())
                for number in range(400):
                    telling.want(states[number % 4])
                    await asyncio.sleep(0.005)
                stop.set()
            telling.want(BLOCKS[7:900])
            assert (await telling.reconciler.step()).healthy
            wanted = {bytes((26,)) + block.network_address.packed for block in BLOCKS[7:900]}
            await peer.wait("the last state", lambda: held(peer) == wanted)


def test_who_stands_still_is_told_by_what_is_acknowledged() -> None:
    stalls, one, two = Stalls(), ip_address(ONE), ip_address(TWO)
    assert stalls.see({one: 100, two: 5}, 0.0) == {one: 0.0, two: 0.0}
    assert stalls.see({one: 100, two: 6}, 4.0) == {one: 4.0, two: 0.0}
    assert stalls.see({one: 100}, 9.0) == {one: 9.0}
    assert stalls.see({one: 101, two: 6}, 10.0) == {one: 0.0, two: 0.0}
    assert stalls.see({}, 11.0) == {}
    assert stalls.see({one: 101}, 12.0) == {one: 0.0}
