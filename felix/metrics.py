"""What felix tells Prometheus: how far it is, and every decision of policy by what decided it.

Decisions are counted by the kernel, in one named counter for each reason (`policy.outcomes`), and read when somebody
asks. Their labels are bounded: past MOST_SERIES, reasons that come share series whose reason is `other`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from core.metrics import Family
from core.resources.status import FelixState
from linux.nft_counters import Counted, CounterReader
from policy.tally import tally

MOST_SERIES: Final = 2000
"""Reasons that have series of their own."""

_LABELS: Final = ("verdict", "direction", "plane", "tier", "policy", "rule", "reason", "staged")
_OTHER: Final = "other"


class Metrics:
    """What one felix measures. Made in its network namespace; asked from whatever thread answers."""

    def __init__(self) -> None:
        self._reader = CounterReader()
        self._decisions = Decisions()
        self._said = FelixState()
        self._writes: Mapping[str, int] = {}

    def close(self) -> None:
        """Let go of the kernel."""
        self._reader.close()

    def tell(self, said: FelixState, writes: Mapping[str, int]) -> None:
        """The newest status, and how many objects each reconciler has written."""
        self._said, self._writes = said, writes

    def families(self) -> Iterator[Family]:
        """Everything, as of now. Counters that the kernel does not tell are left out rather than told as nothing."""
        said = self._said
        states = Counter(each.state for each in said.endpoints.values())
        for name, about, value in (
            (
                "programmed_revision",
                "The newest revision of the datastore that is wholly in the kernel.",
                said.programmed,
            ),
            ("decided_revision", "The newest revision that was decided on.", said.decided),
            ("ready", "1 when everything that was decided on is in the kernel.", said.ready),
            ("stale", "1 while the datastore is away and felix works from its last snapshot.", said.stale),
            ("routes", "Routes of felix that are in the kernel.", said.routes),
            ("problems", "Objects that could not be carried out as written, and other trouble.", len(said.problems)),
        ):
            yield Family(name=f"muslin_felix_{name}", help=about, samples={(): float(value)})
        yield Family(
            name="muslin_felix_endpoints",
            help="This node's endpoints by state.",
            labels=("state",),
            samples={(state,): float(states[state]) for state in ("up", "pending", "error")},
        )
        yield Family(
            name="muslin_felix_writes_total",
            help="Objects written to the kernel since felix started.",
            kind="counter",
            labels=("reconciler",),
            samples={(name,): float(count) for name, count in self._writes.items()},
        )
        with contextlib.suppress(OSError):
            yield from self._decisions.families(self._reader.read())


class Decisions:
    """The decisions of policy, in packets and bytes of first packets of flows: series that never run backwards.

    The reasons that had counted most when they were first seen have series of their own, and keep them. What the others
    count is added up in `other`, also when a reason goes.
    """

    def __init__(self, most: int = MOST_SERIES) -> None:
        self._most = most
        self._own: set[str] = set()
        self._last: dict[str, Counted] = {}
        self._others: Counter[tuple[str, tuple[str, ...]]] = Counter()

    def families(self, counters: Mapping[str, Counted]) -> Iterator[Family]:
        """What the kernel's counters say now."""
        self._own &= counters.keys()
        newcomers = sorted(
            counters.keys() - self._own - self._last.keys(), key=lambda name: (-counters[name].packets, name)
        )
        self._own.update(newcomers[: max(0, self._most - len(self._own))])
        self._add_up({name: counted for name, counted in counters.items() if name not in self._own})
        own = {_labels(name): counters[name] for name in sorted(self._own)}
        for unit in ("packets", "bytes"):
            samples = {labels: float(getattr(counted, unit)) for labels, counted in own.items()}
            samples.update((labels, float(count)) for (of, labels), count in self._others.items() if of == unit)
            yield Family(
                name=f"muslin_felix_policy_{unit}_total",
                help=f"{unit.capitalize()} that policy judged (the first of each flow), by what decided.",
                kind="counter",
                labels=_LABELS,
                samples=samples,
            )

    def _add_up(self, others: Mapping[str, Counted]) -> None:
        for name, now in others.items():
            before = self._last.get(name, Counted(0, 0))
            if now.packets < before.packets:
                before = Counted(0, 0)  # it went, and came again
            labels = _labels(name, own=False)
            self._others["packets", labels] += now.packets - before.packets
            self._others["bytes", labels] += now.bytes - before.bytes
        self._last = dict(others)


def _labels(name: str, *, own: bool = True) -> tuple[str, ...]:
    said = tally(name)
    direction = said.direction.lower() if said.direction else ""
    staged = "true" if said.staged else "false"
    if not own:
        return said.verdict.lower(), direction, said.plane, "", "", "", _OTHER, staged
    return said.verdict.lower(), direction, said.plane, said.tier, said.policy, said.rule, said.why, staged
