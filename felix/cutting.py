"""Ending live connections that policy has come to deny: the task around `felix.cut`.

    programmed ruling ──> look ──> dump ──> cuts ──> fence programmed ──> entries deleted
         after the rules are in the kernel, never before: what is deleted is judged by them at its next packet

Each ruling that was in the kernel for a moment counts: what it let in, the next may deny. A pass is followed by a pause
of several times its length, so that looking at connections never takes more than a small part of one core, however
fast policy changes and however many connections there are. What fails is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final

import structlog

from core.nftables import Element, Ruleset
from felix.cut import Cut, Look, Ruling, cuts, look
from felix.fence import Fence
from linux.conntrack import Conntrack, Flow
from linux.route_query import Ways

MOST_RULINGS: Final = 64
"""Of more that wait, all that is local is looked at instead of each step's changes."""

REST: Final = 9.0
"""A pause after a pass, in lengths of the pass."""

FENCED_WITHIN_S: Final = 5.0
"""How long connections are spared until their fence stands; then they are cut without one."""

RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 60.0

TOLD: Final = 20
"""Connections that are named in the log, of each pass; the others are counted."""

log = structlog.get_logger()


class Cutter:
    """Ends connections of the network namespace in which it is made. All but `run` is called in its event loop.

    `fence_changed` is called when `fence` is to be programmed; it returns the generation that has it. `interfaces` are
    those whose end may end it: a ruling is to be made when one goes.
    """

    def __init__(self, fence_changed: Callable[[], int]) -> None:
        self._fence_changed = fence_changed
        self._conntrack = Conntrack()
        self._ways = Ways()
        self._fence = Fence()
        self.fence, self.interfaces = Ruleset(), frozenset[str]()
        self._before: Ruling | None = None
        self._wanted: Ruling | None = None
        self._rulings: list[Ruling] = []
        self._pending = Look()
        self._generation = 0
        self._ruled = asyncio.Event()
        self._progress = asyncio.Condition()

    def close(self) -> None:
        """Let go of the kernel."""
        self._conntrack.close()
        self._ways.close()

    def adopt(self, elements: Mapping[Element, str]) -> None:
        """Take over the fence that an earlier felix left in the kernel."""
        self._stand(Fence.found(elements, time.monotonic()))

    def wanted(self, ruling: Ruling) -> None:
        """`ruling` is about to be in the kernel, and may be before we hear of it; `fence` is what goes with it."""
        first, self._wanted = self._wanted is None, ruling
        fence = self._fence.of_pods(ruling) if first else self._fence.under(ruling)
        if fence is not self._fence:
            self._stand(fence)

    def _stand(self, fence: Fence) -> None:
        self._fence, self.fence, self.interfaces = fence, fence.rules, fence.interfaces

    async def programmed(self, generation: int, ruling: Ruling | None) -> None:
        """`generation` is in the kernel, and `ruling` with it."""
        async with self._progress:
            self._generation = generation
            self._progress.notify_all()
        latest = self._rulings[-1] if self._rulings else self._before
        if ruling is not None and ruling is not latest:
            self._rulings.append(ruling)
            self._ruled.set()

    async def run(self) -> None:
        """End what is to end, until cancelled."""
        failures = 0
        while True:
            await self._something_to_do()
            began = time.monotonic()
            try:
                await self._pass()
            except OSError as error:
                pause_s = min(MOST_RETRY_S, RETRY_S * 2.0 ** min(failures, 10))
                failures += 1
                log.warning("connections.unread", why=str(error), retry_s=pause_s)
            else:
                failures = 0
                pause_s = REST * (time.monotonic() - began)
            await asyncio.sleep(pause_s)

    async def _something_to_do(self) -> None:
        """Wait for a ruling, or until a fence's time is over; not at all while a pass is due again."""
        if self._pending:
            return
        over_at = self._fence.over_at
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if over_at is None else max(0.0, over_at - time.monotonic())):
                await self._ruled.wait()

    async def _pass(self) -> None:
        self._ruled.clear()
        rulings, self._rulings = self._rulings, []
        if rulings:
            self._pending |= await asyncio.to_thread(_looked, self._before, rulings)
            self._before = rulings[-1]
        found: list[Cut] = []
        spared: list[Cut] = []
        if self._pending and self._before is not None:
            found, spared = await asyncio.to_thread(self._find, self._pending, self._before)
            found, passed = self._of_one_pod(found)
            spared += passed
        await self._raise_fence(found)
        cut = await asyncio.to_thread(self._delete, found)
        self._pending = Look(frozenset(end for each in spared for end in each.ends))
        _tell(cut)

    def _find(self, asked: Look, ruling: Ruling) -> tuple[list[Cut], list[Cut]]:
        """What `ruling` ends of the flows there are; and what of that is spared for another look.

        The newest ruling may have let in what the one in force when we began would end: that it is in the kernel is
        heard a little later than it is so. What it allows is not ended, and looked at again when that is known.
        """
        self._ways.forget()  # routes may be others since
        found = list(cuts(asked, ruling, self._flows(asked), self._ways.devices))
        newest = self._wanted
        if newest is None or newest is ruling:
            return found, []
        still = list(cuts(asked, newest, [each.flow for each in found], self._ways.devices))
        self._ways.forget()
        ended = {each.flow for each in still}
        return still, [each for each in found if each.flow not in ended]

    def _of_one_pod(self, found: list[Cut]) -> tuple[list[Cut], list[Cut]]:
        """Those whose ends are still who they were when they were looked at; and those that another ruling ends, soon.

        Else a fence that is for one pod would stand for the next that has its address.
        """
        before, newest = self._before, self._wanted
        if before is None or newest is None or before.owners is newest.owners:
            return found, []
        same: list[Cut] = []
        passed: list[Cut] = []
        for each in found:
            other = any(before.owners.get(end) != newest.owners.get(end) for end in each.ends)
            (passed if other else same).append(each)
        return same, passed

    def _flows(self, asked: Look) -> Iterator[Flow]:
        return self._conntrack.flows() if asked.everything else self._conntrack.flows_of(asked.addresses)

    def _delete(self, found: Iterable[Cut]) -> list[Cut]:
        return [each for each in found if self._conntrack.delete(each.flow)]

    async def _raise_fence(self, found: Iterable[Cut]) -> None:
        owners = self._before.owners if self._before else {}
        after = self._fence.after(found, owners, time.monotonic())
        if after.until.keys() == self._fence.until.keys() and after.ends == self._fence.ends:
            self._fence = after
            return
        self._stand(after)
        generation = self._fence_changed()
        try:
            async with asyncio.timeout(FENCED_WITHIN_S), self._progress:
                await self._progress.wait_for(lambda: self._generation >= generation)
        except TimeoutError:
            log.warning("connections.unfenced", why=f"the table was not programmed within {FENCED_WITHIN_S:g} s")


def _looked(before: Ruling | None, rulings: list[Ruling]) -> Look:
    """What to look at after `rulings` were in force one after the other."""
    if len(rulings) > MOST_RULINGS:
        last = rulings[-1]
        return look(before, last) | Look(frozenset(last.owners), everything=bool(last.enabled and last.guard.hosts))
    asked = look(before, rulings[0])
    for earlier, later in pairwise(rulings):
        asked |= look(earlier, later)
    return asked


def _tell(cut: list[Cut]) -> None:
    for each in cut[:TOLD]:
        log.info("connection.cut", flow=str(each.flow.original), why=each.why)
    if len(cut) > TOLD:
        log.info("connections.cut", more=len(cut) - TOLD)
