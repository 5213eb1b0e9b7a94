"""Answer the CalicoNodeStatus objects that ask this node: once, or every so often.

    snapshot ── questions for us ──> due? ──> report ──> written, if the question is still there as it was asked

Whether a question that wants one answer has had it stands in its own status: who restarts does not answer again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from msgspec import structs

from bgp.paths.decision import Explanation
from bgp.paths.learnt import Learnt
from bgp.reporting.report import Outlook, first, report
from core import clock
from core.errors import Conflict, MuslinError
from core.prefix import Prefix
from core.resources import CalicoNodeStatus
from core.resources.node_status import CalicoNodeStatusSpec, NodeStatus
from core.routing import Metric, RouteProtocol
from core.snapshot import Snapshot
from datastore import objects
from datastore.api import Store
from linux.prefix_routes import PrefixRoutes

Look = Callable[[], Awaitable[Outlook]]
"""Gives everything there is to tell now, but for routes."""

AT_ONCE: Final = 100
"""Prefixes that are explained without a pause."""

AGAIN_S: Final = 2.0
"""When an answer that could not be written is tried again, in seconds."""

WRITE_S: Final = 10.0
"""How long one write may take, in seconds."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Question:
    spec: CalicoNodeStatusSpec
    due: float | None  # by the steady clock; None: it has its answer


class Answers:
    """The questions to `node`, and when each is to be answered next."""

    def __init__(self, store: Store, node: str, learnt: Learnt, look: Look) -> None:
        self._store, self._node, self._learnt, self._look = store, node, learnt, look
        self._questions: dict[str, _Question] = {}
        self._changed = asyncio.Event()

    def ask(self, snapshot: Snapshot) -> None:
        """Take over the questions of a snapshot; cheap."""
        asked = {key.name: each for key, each in snapshot.of(CalicoNodeStatus).items() if each.spec.node == self._node}
        self._questions = {name: self._taken(name, each) for name, each in asked.items()}
        self._changed.set()

    def _taken(self, name: str, asked: CalicoNodeStatus) -> _Question:
        known = self._questions.get(name)
        answered = asked.status is not None and bool(asked.status.last_updated)
        if known is None or known.spec != asked.spec:  # the answer that is there is to another question, if we knew one
            done = known is None and answered and not asked.spec.period_s
            return _Question(asked.spec, None if done else time.monotonic())
        if not known.spec.period_s:  # what we have just written may not have come back yet, or was taken away again
            known.due = None if answered else known.due or time.monotonic() + AGAIN_S
        return known

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            self._changed.clear()
            for name, question in list(self._questions.items()):
                if question.due is not None and question.due <= time.monotonic():
                    await self._answer(name, question)
            dues = [each.due for each in self._questions.values() if each.due is not None]
            with contextlib.suppress(TimeoutError):  # one is due
                async with asyncio.timeout(max(0.0, min(dues) - time.monotonic()) if dues else None):
                    await self._changed.wait()

    async def _answer(self, name: str, question: _Question) -> None:
        period_s = question.spec.period_s
        question.due = time.monotonic() + period_s if period_s else None
        try:
            async with asyncio.timeout(WRITE_S):
                await self._write(name, question.spec)
        except Conflict:
            pass  # it was asked anew, or taken back: the next snapshot says which
        except (MuslinError, TimeoutError) as error:
            log.warning("question.unanswered", name=name, why=str(error) or "the datastore does not answer")
            question.due = time.monotonic() + AGAIN_S

    async def _write(self, name: str, spec: CalicoNodeStatusSpec) -> None:
        status = structs.replace(await self._report(spec), last_updated=clock.now())
        found = await objects.read(self._store, CalicoNodeStatus, name)
        if found is not None and found[0].spec == spec:
            await objects.write(self._store, structs.replace(found[0], status=status), found[1])

    async def _report(self, spec: CalicoNodeStatusSpec) -> NodeStatus:
        outlook = await self._look()
        if "Routes" in spec.classes:
            outlook = replace(outlook, **await self._routes(spec.prefix))
        return await asyncio.to_thread(report, spec, outlook)

    async def _routes(self, asked: str) -> dict[str, Any]:
        """What the kernel has and why, a few prefixes at a time: sessions have to be kept alive meanwhile."""
        with contextlib.closing(PrefixRoutes(RouteProtocol.BGP, Metric.BGP)) as routes:
            kernel = await routes.read()
        known = {*self._learnt.decisions, *kernel, *(each.prefix for each in self._learnt.rib.gone)}
        prefixes, meant = await asyncio.to_thread(first, known, asked)
        explained: dict[Prefix, Explanation] = {}
        for start in range(0, len(prefixes), AT_ONCE):
            some = prefixes[start : start + AT_ONCE]
            told = self._learnt.explain(time.monotonic(), (prefix.network for prefix in some))
            explained.update(zip(some, told, strict=True))
            await asyncio.sleep(0)
        return {"kernel": kernel, "explained": explained, "meant": meant}
