"""What felix tells Prometheus: how far it is, and every decision of policy by what decided it.

Decisions are counted by the kernel, in one named counter for each reason (`policy.outcomes`), and read when somebody
asks. Their labels are bounded: past MOST_SERIES the reasons that counted least are one series, `other`.
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
            yield from decisions(self._reader.read())


def decisions(counters: Mapping[str, Counted]) -> Iterator[Family]:
    """The decisions of policy, in packets and bytes of first packets of flows."""
    ranked = sorted(counters.items(), key=lambda item: (-item[1].packets, item[0]))
    packets: Counter[tuple[str, ...]] = Counter()
    size: Counter[tuple[str, ...]] = Counter()
    for place, (name, counted) in enumerate(ranked):
        labels = _labels(name, own=place < MOST_SERIES)
        packets[labels] += counted.packets
        size[labels] += counted.bytes
    for unit, samples in (("packets", packets), ("bytes", size)):
        yield Family(
            name=f"muslin_felix_policy_{unit}_total",
            help=f"{unit.capitalize()} that policy judged (the first of each flow), by what decided.",
            kind="counter",
            labels=_LABELS,
            samples={labels: float(count) for labels, count in samples.items()},
        )


def _labels(name: str, *, own: bool) -> tuple[str, ...]:
    said = tally(name)
    direction = said.direction.lower() if said.direction else ""
    staged = "true" if said.staged else "false"
    if not own:
        return said.verdict.lower(), direction, said.plane, "", "", "", _OTHER, staged
    return said.verdict.lower(), direction, said.plane, said.tier, said.policy, said.rule, said.why, staged
