"""Ends the connections that the kernel tracks of addresses that change hands.

An address that is given again soon would otherwise bring its new pod what was its former one's: UDP that goes on
leading nowhere, translated connections, and answers that pass as established. They are cut when an
address is given, after felix's rules and route are there, and when it is freed.

    cut(a) ──┐
    cut(b) ──┴── one look through the table ──> next look: those who came meanwhile, together
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from core.addr import Address
from linux.conntrack import Conntrack


class Flows:
    """The table of the network namespace of the threads that this process starts."""

    def __init__(self) -> None:
        self._waiting: set[Address] = set()
        self._looking: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def cut(self, addresses: Iterable[Address]) -> None:
        """Return when nothing that was tracked of `addresses` is left. Raises OSError when the kernel refuses."""
        wanted = set(addresses)
        if not wanted:
            return
        self._waiting |= wanted
        if self._next is None:
            self._next = asyncio.create_task(self._look(self._looking), name="cut connections")
        await asyncio.shield(self._next)

    async def _look(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._looking, self._next = self._next, None
        mine, self._waiting = self._waiting, set()
        await asyncio.to_thread(_cut, mine)


def _cut(addresses: AbstractSet[Address]) -> None:
    with Conntrack() as table:
        for flow in list(table.flows_of(addresses)):
            table.delete(flow)
