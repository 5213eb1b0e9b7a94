"""What the agent can tell of itself: its status, answers' outlook, the audit's sight, and what is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from bgp.bfd.watch import Bfd
from bgp.desired import absent
from bgp.exabgp.process import ExaBGP
from bgp.model import Maintenance, Speaker
from bgp.paths.learnt import Learnt
from bgp.paths.reach import PeerRoutes
from bgp.reporting import status
from bgp.reporting.audit import HEARD, View
from bgp.reporting.auditor import Auditor, Sight
from bgp.reporting.metrics import Measured
from bgp.reporting.report import MOST_ROUTES, Outlook
from bgp.sessions import Sessions
from bgp.telling.adverts import Advert
from bgp.telling.teller import Teller
from core import clock
from core.prefix import Prefix
from core.reconcile import Reconciler
from core.resources.status import SpeakerState
from core.snapshot import Snapshot
from linux.model import Facts, Route


@dataclass(slots=True, kw_only=True)
class Course:
    """How far the agent is: what it goes by, and since when.

    `whole` is the newest revision of which nothing was held, `settle_at` until when what was found at the start is held
    on to at most (None: no longer, or not yet), `problem` why there is no new speaker. `booted` and `configured` are
    when ExaBGP was started and last given other sessions, in RFC 3339.
    """

    speaker: Speaker | None = None
    snapshot: Snapshot
    whole: int = 0
    facts: Facts | None = None
    settle_at: float | None = None
    problem: str = ""
    booted: str = ""
    configured: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the agent is made of, as far as it is told of."""

    learnt: Learnt
    sessions: Sessions
    exabgp: ExaBGP
    bfd: Bfd
    teller: Teller
    kernel: Reconciler[Prefix, Route]
    peer_routes: PeerRoutes


class Account:
    """Tells of an agent on its `course`. `news` is called when its auditor has found something else."""

    def __init__(self, node: str, course: Course, parts: Parts, news: Callable[[], None]) -> None:
        self._course, self._parts = course, parts
        self.auditor = Auditor(node, self._sight, news, self._writes)
        self._maintained = Maintenance.NONE
        self._since, self._ready = clock.now(), False

    def status(self) -> SpeakerState:
        """The status of now, which says since when it is as ready as it is."""
        state = self._status()
        if state.ready is not self._ready:
            self._since, self._ready = clock.now(), state.ready
            state = self._status()
        return state

    def measured(self) -> Measured:
        """What the status does not tell and metrics do."""
        told, kernel, exabgp = self._parts.teller.reconciler, self._parts.kernel, self._parts.exabgp
        return Measured(
            differences=Counter(each.stage for each in self.auditor.found),
            writes={"adverts": told.progress.writes, "routes": kernel.progress.writes},
            running=exabgp.running,
            ping_s=exabgp.ping_s,
        )

    async def outlook(self) -> Outlook:
        """For answers: everything that is known now, but for routes."""
        course, parts = self._course, self._parts
        return Outlook(
            speaker=course.speaker,
            state=self.status(),
            wanted=dict(parts.teller.wanted),
            acknowledged=await parts.teller.driver.read(),
            withheld=self._withheld(),
            facts=course.facts or Facts(),
            running=parts.exabgp.running,
            booted=course.booted,
            configured=course.configured,
        )

    def _withheld(self) -> Mapping[Advert, str]:
        """Own prefixes that peers are not told, with why; no more than an answer could tell."""
        speaker, exporter = self._course.speaker, self._parts.teller.exporter
        if speaker is None or not speaker.sessions:
            return {}
        own = list(islice(speaker.own, MOST_ROUTES // len(speaker.sessions)))
        return {
            Advert(session.peer, prefix): why
            for session in speaker.sessions
            for prefix, why in exporter.refusals(session.peer, own).items()
        }

    def _status(self) -> SpeakerState:
        course, parts = self._course, self._parts
        speaker, told = course.speaker, parts.teller.reconciler.progress
        if speaker and told.healthy and told.revision == course.whole:
            self._maintained = speaker.maintenance
        outcome = status.Outcome(
            told=told,
            kernel=parts.kernel.progress,
            running=parts.exabgp.running,
            settled=course.settle_at is None,
            since=self._since,
            trouble=(course.problem, parts.exabgp.problem, parts.bfd.problem),
            missing=(
                *(absent(speaker, course.facts) if speaker and course.facts else ()),
                *parts.peer_routes.problems,
                *parts.learnt.problems(),
                *parts.teller.exporter.warnings,
            ),
            sessions=parts.sessions.states(
                speaker.blocked if speaker else (),
                parts.learnt.rib.count,
                parts.teller.told,
                parts.teller.pending,
            ),
            own_told=parts.teller.own_told(),
            maintained=self._maintained,
            routes=len(parts.kernel.seen),
            restarts=parts.exabgp.restarts,
            differences=self.auditor.found,
            taken=self.auditor.taken,
            paths={str(peer): path for peer, path in parts.bfd.states().items()},
        )
        return status.state(speaker, course.snapshot, outcome)

    def _writes(self) -> int:
        return self._parts.kernel.progress.writes + self._parts.teller.reconciler.progress.writes

    async def _sight(self) -> Sight | None:
        """For the audit, which is too early while what was found at the start is still held on to."""
        course, parts = self._course, self._parts
        if course.speaker is None or course.facts is None:
            return None
        hearing = not all(map(parts.learnt.rib.told_all, parts.sessions.up))
        view = View(
            wanted=dict(parts.teller.wanted),
            acknowledged=await parts.teller.driver.read(),
            refused=lambda prefix: parts.learnt.refused.get(prefix.network, ""),
            routes=dict(parts.kernel.wanted),
            errors={**parts.teller.reconciler.progress.errors, **parts.kernel.progress.errors},
            moving=frozenset({HEARD} if hearing else ()),
        )
        early = course.settle_at is not None or course.snapshot.held
        return Sight(None if early else view, course.snapshot, course.facts, list(parts.learnt.decisions.values()))
