"""What ExaBGP is told while it runs reaches it, whatever else is going on; and what it cannot be told ends nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from bgp_raw_peer import KEEPALIVE, NOTIFICATION, RawPeer, Speaking, opening, speaker, speaking
from bgp_world import until

from bgp.exabgp.line import PeerDown, PeerUp, Withdraw
from bgp.model import Session
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

OURS, ONE, TWO = "127.0.0.1", "127.0.0.2", "127.0.0.3"

FIRST = Session(
    name="one",
    peer=ip_address(ONE),
    port=179,
    local=ip_address(OURS),
    local_as=64512,
    remote_as=65001,
    hold_s=90,
    restart_s=120,
    passive=True,
)
SECOND = replace(FIRST, name="two", peer=ip_address(TWO))
BLOCK = ip_network("10.244.1.0/26")


@asynccontextmanager
async def connected(where: str, hold_s: int = 90) -> AsyncIterator[RawPeer]:
    peer = RawPeer(where, OURS)
    try:
        await peer.connect(opening(65001, f"10.0.0.{where[-1]}", hold_s=hold_s))
        yield peer
    finally:
        await peer.close()


async def known(running: Speaking, session: Session, within_s: float = 8.0) -> None:
    """ExaBGP has the session: it takes something back from it."""
    async with asyncio.timeout(within_s):
        while not await running.exabgp.send(Withdraw((session.peer,), (BLOCK,))):
            pass


async def test_while_a_withdrawal_waits_for_a_peer_that_is_down(tmp_path: Path) -> None:
    calling = replace(FIRST, passive=False)
    with scratch_namespace(), socket.create_server((ONE, 179)) as silent:
        async with speaking(tmp_path / "run", speaker(calling)) as running:
            called, _ = await asyncio.to_thread(silent.accept)
            with called:  # and no OPEN comes
                assert await running.exabgp.send(Withdraw((calling.peer,), (BLOCK,)))
                running.exabgp.configure(speaker(calling, SECOND))
                await known(running, SECOND)


async def test_a_session_that_was_taken_out_and_put_back_at_once_begins_anew(tmp_path: Path) -> None:
    with scratch_namespace():
        async with speaking(tmp_path / "run", speaker(FIRST, SECOND)) as running, connected(TWO):
            async with connected(ONE) as before:
                await running.wait("both are up", lambda: len(running.up) == 2)
                running.exabgp.configure(speaker(SECOND))
                running.exabgp.configure(speaker(FIRST, SECOND))
                await before.wait("the session ends", lambda: before.closed)
            await known(running, FIRST)
            async with connected(ONE):
                await running.wait("it is up again", lambda: len(running.up) == 2)
            about = [type(each) for each in running.events if isinstance(each, (PeerUp, PeerDown))]
            assert about.count(PeerDown) == 1, "the other one saw nothing of it"


async def test_a_disk_that_is_full_keeps_the_sessions_there_are(tmp_path: Path) -> None:
    in_the_way = tmp_path / "run" / "exabgp.new"
    with scratch_namespace():
        async with speaking(tmp_path / "run", speaker(FIRST)) as running, connected(ONE):
            await running.wait("it is up", lambda: bool(running.up))
            in_the_way.mkdir()
            running.exabgp.configure(speaker(FIRST, SECOND))
            await asyncio.to_thread(until, "it is said", lambda: "cannot be written" in running.exabgp.problem)
            assert running.up
            in_the_way.rmdir()
            await known(running, SECOND)
            assert not running.exabgp.problem
            assert running.lives == ["start"]
            assert running.up


async def test_one_that_ends_as_soon_as_it_starts_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "bin" / "setpriv"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nexit 3\n")
    stub.chmod(0o755)
    with monkeypatch.context() as patched, scratch_namespace():
        patched.setenv("PATH", f"{stub.parent}:/usr/bin:/bin")
        made = Speaking(tmp_path / "run")
        made.exabgp.configure(speaker(FIRST))
        task = asyncio.create_task(made.exabgp.run())
        await asyncio.to_thread(until, "it was tried again", lambda: made.exabgp.restarts > 2 or task.done())
        assert not task.done()
        assert "start" in made.exabgp.problem
        stub.unlink()
        await made.wait("it runs", lambda: made.lives == ["start"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("jump_s", [3600, -3600])
async def test_a_clock_that_is_set_ends_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    ahead, site = tmp_path / "ahead", tmp_path / "site"
    ahead.write_text("0")
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + float(open({str(ahead)!r}).read() or 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    with scratch_namespace():
        short = speaker(replace(FIRST, hold_s=3))
        async with speaking(tmp_path / "run", short) as running, connected(ONE, hold_s=3) as peer:
            await peer.wait("it is up, and its timers run", lambda: peer.count(KEEPALIVE) > 2)
            ahead.write_text(str(jump_s))
            heard = peer.count(KEEPALIVE)
            await peer.wait("it keeps the session", lambda: peer.count(KEEPALIVE) >= heard + 4)
            assert not running.downs
            assert not peer.count(NOTIFICATION)
