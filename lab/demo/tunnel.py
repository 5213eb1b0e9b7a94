"""Steps 5 and 6: IP-in-IP on and off while a transfer runs, and a dead underlay survived.

    node1 ── tor (BIRD) ── node2        `examples/ipip`; small, because it may run in a User-Mode Linux kernel

Run as `python -m lab.demo.tunnel`: on this machine when its kernel has ipip, inside the User-Mode one otherwise.
Checks go to standard output, and to $MUSLIN_SCRATCH/checks.json when that is set.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from core.errors import MuslinError
from lab import cluster as clusters
from lab import uml
from lab.capture import Capture
from lab.cluster import Cluster
from lab.demo.checks import Checks
from lab.probe import Transfer

EXAMPLE: Final = clusters.HOUSE / "examples" / "ipip"
HERE, THERE = "shop/web-1", "shop/web-2"

SETTLE_S: Final = 15.0
"""How long a change of mode or of the underlay may take to show; each wait ends as soon as it does."""

QUIET_PACKETS: Final = 40
"""Transfer packets that must pass untunnelled before we say that nothing is tunnelled."""

MOST_SILENCE_S: Final = 3.0
"""The longest pause a running transfer may see: a retransmission or two, not a reconnect."""


class _Watch:
    """A running transfer, and what its packets travel in, seen on both nodes' uplinks."""

    def __init__(self, lab: Cluster, transfer: Transfer) -> None:
        self.lab = lab
        self.transfer = transfer

    async def travels(self, *, tunnelled: bool) -> bool:
        """Wait until the transfer goes on, wholly in the tunnel (or wholly out of it), for a while."""
        try:
            async with asyncio.timeout(SETTLE_S):
                while not await self._wholly(tunnelled):
                    pass
        except TimeoutError:
            return False
        return True

    async def _wholly(self, tunnelled: bool) -> bool:
        with Capture(self.lab.namespace("node1")) as ipip, Capture(self.lab.namespace("node1"), protocol=6) as tcp:
            before = self.transfer.received
            async with asyncio.timeout(SETTLE_S):
                while ipip.count() + tcp.count() < QUIET_PACKETS:
                    await asyncio.sleep(0.02)
            moved = self.transfer.received > before
            return moved and (tcp.count() == 0 if tunnelled else ipip.count() == 0)


async def _both_ways(lab: Cluster) -> bool:
    return all((await lab.matrix(timeout=3)).values())


async def switch(lab: Cluster, checks: Checks) -> None:
    """Step 5: the pool from Never to Always and back, by one apply each, under a running transfer."""
    checks.step(5, "ipipMode from Never to Always and back, under a running TCP transfer")
    async with lab.transfer(HERE, THERE) as transfer:
        watch = _Watch(lab, transfer)
        checks.check("Never: the transfer runs, no protocol-4 packet on the wire", await watch.travels(tunnelled=False))
        transfer.mark()
        await lab.apply(EXAMPLE / "pool-always.yaml")
        checks.check("Always: every packet of the transfer is in protocol 4", await watch.travels(tunnelled=True))
        checks.check("pods answer both ways through the tunnel", await _both_ways(lab))
        await lab.apply(EXAMPLE / "pool-never.yaml")
        checks.check("Never again: no protocol-4 packet on the wire", await watch.travels(tunnelled=False))
        silence = transfer.silence_s
        checks.check(
            "the transfer survived both switches", silence < MOST_SILENCE_S, f"longest pause {silence * 1000:.0f} ms"
        )


async def fall_back(lab: Cluster, checks: Checks) -> None:
    """Step 6: a Fallback pool while the router carries the blocks, when it stops, and when it recovers."""
    checks.step(6, "ipipMode Fallback: the router stops carrying the pods, and recovers")
    tor = lab.routers["tor"]
    await lab.apply(EXAMPLE / "pool-fallback.yaml")
    await lab.until(lambda: "" if len(tor.pod_routes()) == 2 else "blocks missing", "the router to carry both", 20)
    async with lab.transfer(HERE, THERE) as transfer:
        watch = _Watch(lab, transfer)
        checks.check("native while the router carries the blocks", await watch.travels(tunnelled=False))
        transfer.mark()
        await asyncio.to_thread(tor.reject)
        checks.check("the router has dropped the blocks", not tor.pod_routes(), f"{len(tor.pod_routes())} pod routes")
        checks.check("the next packets take the tunnel", await watch.travels(tunnelled=True))
        checks.check("pods answer both ways through the tunnel", await _both_ways(lab))
        await asyncio.to_thread(tor.accept)
        checks.check("native again when the router recovers", await watch.travels(tunnelled=False))
        silence = transfer.silence_s
        checks.check(
            "the transfer survived the underlay", silence < MOST_SILENCE_S, f"longest pause {silence * 1000:.0f} ms"
        )


async def run(checks: Checks) -> None:
    """Both steps, on a lab of their own."""
    lab = await clusters.up(EXAMPLE / "topology.yaml", checks.progress, name="demo-ipip")
    try:
        await switch(lab, checks)
        await fall_back(lab, checks)
    finally:
        await clusters.down(lab.name)


def main() -> int:
    """The command line above."""
    checks = Checks(lambda text: print(text, flush=True), colour=bool(os.environ.get("MUSLIN_COLOUR")))  # noqa: T201
    try:
        asyncio.run(run(checks))
    except MuslinError as problem:
        checks.check("steps 5 and 6 run to their end", held=False, seen=problem)
    if scratch := os.environ.get(uml.SCRATCH):
        checks.write(Path(scratch) / "checks.json")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
