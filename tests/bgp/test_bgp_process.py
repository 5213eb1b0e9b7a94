"""ExaBGP as a child: replaced whenever its state is unknown, alone in its run directory."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest
from bgp_world import until

from bgp.exabgp.line import Ping, Withdraw
from bgp.exabgp.process import ExaBGP
from bgp.model import Session, Speaker
from core.addr import Address
from core.errors import Unavailable
from linux.netns import scratch_namespace

pytestmark = pytest.mark.kernel

HERE, THERE = ip_address("127.0.0.1"), ip_address("127.0.0.9")


def speaker(*peers: Address, port: int = 179) -> Speaker:
    sessions = [
        Session(
            name="p", peer=each, port=179, local=HERE, local_as=1, remote_as=2, hold_s=90, restart_s=120, passive=True
        )
        for each in peers
    ]
    return Speaker(router_id=IPv4Address(1), as_number=1, port=port, listen=(HERE,), sessions=tuple(sessions))


class Child:
    """An ExaBGP and what was heard of its lives."""

    def __init__(self, run_dir: Path) -> None:
        self.lives: list[str] = []
        self.exabgp = ExaBGP(
            run_dir,
            on_line=lambda _: None,
            on_start=lambda: self.lives.append("start"),
            on_loss=lambda: self.lives.append("loss"),
            answer_s=1.0,
        )

    async def lived(self, *lives: str) -> int:
        """Wait for exactly these starts and losses; the process id now."""
        await reached(f"{lives}", lambda: self.lives == list(lives) and self.exabgp.pid is not None)
        assert self.exabgp.pid is not None
        return self.exabgp.pid


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def reached(what: str, holds: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, what, holds)


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    with scratch_namespace():
        made = Child(tmp_path / "run")
        task = asyncio.create_task(made.exabgp.run())
        made.exabgp.configure(speaker())
        try:
            yield made
        finally:
            pid = made.exabgp.pid
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await reached("ExaBGP ends with us", lambda: not Path(f"/proc/{pid}").exists())


async def test_a_stuck_one_is_killed_and_replaced(child: Child) -> None:
    first = await child.lived("start")
    assert await child.exabgp.send(Ping())
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(Unavailable, match="did not answer"):
        await child.exabgp.send(Ping())
    assert await child.lived("start", "loss", "start") != first
    assert await child.exabgp.send(Ping())


async def test_a_lost_bridge_means_a_new_process(child: Child) -> None:
    first = await child.lived("start")
    for bridge in children(first):
        os.kill(bridge, signal.SIGKILL)
    assert await child.lived("start", "loss", "start") != first


async def test_reload_keeps_the_process_and_another_port_does_not(child: Child) -> None:
    first = await child.lived("start")
    withdraw = Withdraw((THERE,), (ip_network("10.244.1.0/26"),))
    assert not await child.exabgp.send(withdraw)
    child.exabgp.configure(speaker(THERE))
    async with asyncio.timeout(10):
        while not await child.exabgp.send(withdraw):  # until it has read its new configuration
            pass
    assert await child.lived("start") == first
    child.exabgp.configure(speaker(THERE, port=1790))
    assert await child.lived("start", "loss", "start") != first


async def test_one_run_directory_has_one_agent(child: Child, tmp_path: Path) -> None:
    await child.lived("start")
    with pytest.raises(Unavailable, match="another muslin bgp runs in"):
        await Child(tmp_path / "run").exabgp.run()
    assert await child.exabgp.send(Ping())


async def test_a_port_that_is_taken_is_said(child: Child) -> None:
    await child.lived("start")
    other = Child(child.exabgp._run_dir.with_name("other"))
    task = asyncio.create_task(other.exabgp.run())
    try:
        other.exabgp.configure(speaker())
        await reached("the reason", lambda: "does not start" in other.exabgp.problem)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(Unavailable, match="not running"):
        await other.exabgp.send(Ping())
