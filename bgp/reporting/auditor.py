"""Look again and again whether everything is where it should be; the task around `bgp.reporting.audit`.

The kernel is read each time: what the reconciler believes is what is being checked. It looks in a thread, and not for
more than a twentieth of the time: a node with 100,000 routes looks less often than one with a hundred. While anything
is being written it waits, with a bound: it would find what is on its way, and hold it up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from bgp.paths.decision import Decision
from bgp.reporting.audit import MOST_SHOWN, Standing, View, differences, expected
from bgp.reporting.status import Taken, taken
from core.prefix import Prefix
from core.resources.status import Difference
from core.routing import Metric, RouteProtocol
from core.snapshot import Snapshot
from linux.model import Facts, NextHop, Route
from linux.prefix_routes import PrefixRoutes

PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 10.0
CALM_S: Final = 0.5
"""How long nothing was written when it looks."""
PATIENCE_S: Final = 5.0
"""How long it waits for that at most."""
SHARE: Final = 20
"""How many times longer it waits than it looked."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sight:
    """What there is to look at: the view (None: too early to tell) but for what the auditor finds out itself, what it
    finds it out from, and what was decided on each prefix."""

    view: View | None
    snapshot: Snapshot
    facts: Facts
    decisions: Collection[Decision]


class Auditor:
    """Looks at what `sight` gives (None: nothing yet); `news` is called when what it found has changed, and `writes`
    counts what has been written.

    `taken` is what became of what each peer tells, by its address: it takes too long to be counted for every status.
    """

    def __init__(
        self,
        node: str,
        sight: Callable[[], Awaitable[Sight | None]],
        news: Callable[[], None],
        writes: Callable[[], int],
    ) -> None:
        self._node, self._sight, self._news, self._writes = node, sight, news, writes
        self._standing = Standing()
        self.taken: Mapping[str, Taken] = {}
        self._expected: tuple[Snapshot, Mapping[Prefix, str]] = (Snapshot(), {})

    @property
    def found(self) -> tuple[Difference, ...]:
        """The differences that count, all of them."""
        return self._standing.found

    @property
    def shown(self) -> list[Difference]:
        """The first of them, for a status."""
        return list(self.found[:MOST_SHOWN])

    async def run(self) -> None:
        """Look until cancelled."""
        routes = PrefixRoutes(RouteProtocol.BGP, Metric.BGP)  # one of its own: another's reads would disturb its writes
        try:
            while True:
                begun = time.monotonic()
                await self._look(routes)
                spent = time.monotonic() - begun
                await asyncio.sleep(min(LONGEST_PAUSE_S, max(PAUSE_S, SHARE * spent)) - CALM_S)
                await calm(self._writes)
        finally:
            routes.close()

    async def _look(self, routes: PrefixRoutes) -> None:
        try:
            kernel = await routes.read()
        except OSError as error:
            log.warning("audit.unread", why=str(error))
            return
        sight = await self._sight()
        if sight is None:
            return
        before, self.taken = self.taken, await asyncio.to_thread(taken, sight.decisions)
        changed = before != self.taken
        if sight.view is None:
            self._standing.clear()
        else:
            seen = await asyncio.to_thread(self._compare, sight, sight.view, kernel)
            if self._standing.look(seen, sight.view.moving, time.monotonic()):
                log.info("audit.differs" if self.found else "audit.agrees", count=len(self.found))
                changed = True
        if changed:
            self._news()

    def _compare(self, sight: Sight, view: View, kernel: Mapping[Prefix, Route]) -> list[Difference]:
        snapshot, found = self._expected
        if snapshot is not sight.snapshot:
            found = expected(sight.snapshot, self._node)
            self._expected = (sight.snapshot, found)
        names = {link.index: name for name, link in sight.facts.links.items()}
        view = replace(view, kernel=kernel, expected=found)
        return list(differences(view, lambda hop: _spelt(hop, names)))


async def calm(writes: Callable[[], int], calm_s: float = CALM_S, patience_s: float = PATIENCE_S) -> None:
    """Wait until `writes` has counted nothing for `calm_s`, at most for `patience_s` and the last of these."""
    bound = time.monotonic() + patience_s
    written: int | None = None
    while writes() != written and time.monotonic() < bound:
        written = writes()
        await asyncio.sleep(calm_s)


def _spelt(hop: NextHop, names: Mapping[int, str]) -> str:
    device = names.get(hop.device, f"device {hop.device}")
    return f"{hop.gateway} on {device}" if hop.gateway else device
