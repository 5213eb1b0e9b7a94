"""What bgp tells Prometheus: each session with its flaps, prefixes and limits; adverts, routes, ExaBGP, differences.

Labels are bounded: a session has series of its own while there are at most MOST_SESSIONS, in the order of the status
(`muslin_bgp_sessions` counts them all), and refusals beyond MOST_CAUSES causes are told as `other`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from typing import Final

from bgp.reporting.audit import STAGES
from core.metrics import Family
from core.resources.status import SessionState, SpeakerState

MOST_SESSIONS: Final = 500
MOST_CAUSES: Final = 20

STATES: Final = ("Established", "Down", "Blocked")

_CODE: Final = re.compile(r"\((\d+/\d+)\)")
"""How `bgp.exabgp.notification` ends the name of a NOTIFICATION."""

_LABELS: Final = ("peer", "name", "family")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What no status says: differences by stage, objects written by each reconciler, whether ExaBGP runs and how long
    its last sign of life took (seconds; None: none yet)."""

    differences: Mapping[str, int] = field(default_factory=dict)
    writes: Mapping[str, int] = field(default_factory=dict)
    running: bool = False
    ping_s: float | None = None


class Metrics:
    """What one speaker measures; asked from whatever thread answers."""

    def __init__(self) -> None:
        self._said, self._measured = SpeakerState(), Measured()

    def tell(self, said: SpeakerState, measured: Measured) -> None:
        """The newest status, and what it does not say."""
        self._said, self._measured = said, measured

    def families(self) -> Iterator[Family]:
        """Everything, as of now."""
        said, measured = self._said, self._measured
        yield from _speaker(said, measured)
        yield Family(
            name="muslin_bgp_sessions",
            help="Sessions by state, those without series of their own too.",
            labels=("state",),
            samples={(state,): float(sum(each.state == state for each in said.sessions)) for state in STATES},
        )
        yield from _sessions(said.sessions[:MOST_SESSIONS])


def _speaker(said: SpeakerState, measured: Measured) -> Iterator[Family]:
    for name, about, value in (
        ("programmed_revision", "The newest revision that is wholly told to peers and in the kernel.", said.programmed),
        ("told_revision", "The newest revision that is wholly told to peers.", said.told),
        ("ready", "1 when everything wanted is told and routed.", said.ready),
        ("stale", "1 while the datastore is away and bgp works from its last snapshot.", said.stale),
        ("problems", "What could not be carried out as written, and other trouble.", len(said.problems)),
        ("draining", "1 while the node is drained, or being drained.", bool(said.maintenance)),
        ("own_prefixes", "Prefixes of this node's own that peers are told.", len(said.routes_out)),
        ("rib_paths", "Paths heard, over all sessions.", said.heard),
        ("kernel_routes", "Routes of bgp that are in the kernel.", said.routes_in),
        ("adverts_pending", "Adverts that ExaBGP has not acknowledged.", said.pending),
        ("exabgp_up", "1 while ExaBGP runs.", measured.running),
    ):
        yield Family(name=f"muslin_bgp_{name}", help=about, samples={(): float(value)})
    yield Family(
        name="muslin_bgp_exabgp_restarts_total",
        help="How often ExaBGP was started again.",
        kind="counter",
        samples={(): float(said.restarts)},
    )
    if measured.ping_s is not None:
        about = "How long ExaBGP's last sign of life took."
        yield Family(name="muslin_bgp_exabgp_ping_seconds", help=about, samples={(): measured.ping_s})
    yield Family(
        name="muslin_bgp_differences",
        help="Prefixes that are not told, not heard or not routed as they should be, by stage.",
        labels=("stage",),
        samples={(stage,): float(measured.differences.get(stage, 0)) for stage in STAGES},
    )
    yield Family(
        name="muslin_bgp_writes_total",
        help="Adverts and kernel routes written since bgp started.",
        kind="counter",
        labels=("reconciler",),
        samples={(name,): float(count) for name, count in measured.writes.items()},
    )


def _sessions(sessions: Iterable[SessionState]) -> Iterator[Family]:
    labelled = {_labels(each): each for each in sessions}
    for name, about, value in _GAUGES:
        samples = {labels: float(found) for labels, each in labelled.items() if (found := value(each)) is not None}
        yield Family(name=f"muslin_bgp_session_{name}", help=about, labels=_LABELS, samples=samples)
    for name, about, count in _COUNTERS:
        samples = {labels: float(count(each)) for labels, each in labelled.items()}
        yield Family(
            name=f"muslin_bgp_session_{name}_total", help=about, kind="counter", labels=_LABELS, samples=samples
        )
    yield Family(
        name="muslin_bgp_session_last_error_timestamp_seconds",
        help="When the session last went down, by the code of the NOTIFICATION if there was one.",
        labels=(*_LABELS, "code"),
        samples={
            (*labels, _code(each.last_error)): moment
            for labels, each in labelled.items()
            if (moment := _moment(each.last_error_at)) is not None
        },
    )
    yield Family(
        name="muslin_bgp_session_prefixes_refused",
        help="Prefixes that the peer tells and that are not taken, by cause.",
        labels=(*_LABELS, "cause"),
        samples={
            (*labels, cause): float(count)
            for labels, each in labelled.items()
            for cause, count in _causes(each.refused).items()
        },
    )


def _labels(session: SessionState) -> tuple[str, ...]:
    try:
        family = f"ipv{ip_address(session.peer).version}"
    except ValueError:  # a blocked one: its address may be what is wrong with it
        family = ""
    return session.peer, session.name, family


def _causes(refused: Mapping[str, int]) -> Mapping[str, int]:
    counted = Counter(refused)
    most = dict(counted.most_common(MOST_CAUSES))
    others = counted.total() - sum(most.values())
    return {**most, "other": most.get("other", 0) + others} if others else most


def _code(error: str) -> str:
    found = _CODE.search(error)
    return found[1] if found else ""


def _moment(stamp: str) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None


_GAUGES: Final[tuple[tuple[str, str, Callable[[SessionState], float | None]], ...]] = (
    ("up", "1 while the session is established.", lambda each: each.state == "Established"),
    ("blocked", "1 while the session must not be opened.", lambda each: each.state == "Blocked"),
    (
        "established_timestamp_seconds",
        "Since when the session is established.",
        lambda each: _moment(each.since) if each.state == "Established" else None,
    ),
    ("hold_seconds", "The hold time that was agreed on.", lambda each: each.hold_s or None),
    ("prefixes_received", "Prefixes that the peer tells.", lambda each: each.received),
    ("prefixes_accepted", "Prefixes of the peer's that may be used.", lambda each: each.accepted),
    ("prefixes_advertised", "Prefixes that the peer is told.", lambda each: each.advertised),
    ("prefixes_pending", "Prefixes that the peer is to be told.", lambda each: each.pending),
    ("prefixes_received_limit", "The most that are taken, where there is a limit.", lambda each: each.most_in or None),
    ("prefixes_advertised_limit", "The most that are told, where there is one.", lambda each: each.most_out or None),
    ("warnings", "What a person should see although the session stands.", lambda each: len(each.warnings)),
    ("bfd_up", "1 while BFD hears the peer, where it is on.", lambda each: each.bfd == "Up" if each.bfd else None),
)

_COUNTERS: Final[tuple[tuple[str, str, Callable[[SessionState], float]], ...]] = (
    ("flaps", "How often the session went down since bgp started.", lambda each: each.flaps),
    ("bfd_flaps", "How often BFD lost the peer since bgp started.", lambda each: each.bfd_flaps),
)
