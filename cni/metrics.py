"""What the CNI agent tells Prometheus: what runtimes asked, how it went and how long it took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from core.metrics import Family, Histogram, Source

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds, as histograms count them."""

VERBS: Final = frozenset({"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"})
_OTHER: Final = "other"


class Metrics:
    """What one agent measures; asked from whatever thread answers."""

    def __init__(self) -> None:
        self._under_way = 0
        self._refused = 0
        self._requests: Counter[tuple[str, str]] = Counter()
        self._counts: dict[str, list[int]] = {}  # by verb: how many fell between two bounds, and beyond the last
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._others: list[Source] = []

    def also(self, source: Source) -> None:
        """Tell what another part measures, too."""
        self._others.append(source)

    def began(self) -> None:
        """A question has been read."""
        self._under_way += 1

    def ended(self, command: str, code: str, took_s: float) -> None:
        """It was answered with this code ("0": done, "gone": its asker was gone first)."""
        verb = command if command in VERBS else _OTHER
        self._under_way -= 1
        self._requests[verb, code] += 1
        self._counts.setdefault(verb, [0] * (len(BOUNDS) + 1))[bisect_left(BOUNDS, took_s)] += 1
        self._seconds[verb] += took_s

    @property
    def under_way(self) -> int:
        """Questions that are being answered, or wait for their turn."""
        return self._under_way

    def refused(self) -> None:
        """A connection brought no question, or did not take its answer."""
        self._refused += 1

    def families(self) -> Iterator[Family | Histogram]:
        """Everything, as of now."""
        for source in self._others:
            yield from source()
        yield Family(
            name="muslin_cni_requests_total",
            help="Questions of container runtimes, by the CNI error code they were answered with (0: done).",
            kind="counter",
            labels=("verb", "code"),
            samples={labels: float(count) for labels, count in self._requests.copy().items()},
        )
        yield Family(
            name="muslin_cni_refused_total",
            help="Connections to the agent that brought no question, or did not take the answer.",
            kind="counter",
            samples={(): float(self._refused)},
        )
        yield Family(
            name="muslin_cni_requests_in_flight",
            help="Questions that are being answered, or wait for their turn.",
            samples={(): float(self._under_way)},
        )
        yield Histogram(
            name="muslin_cni_request_seconds",
            help="How long questions took, from the whole question to its answer.",
            labels=("verb",),
            bounds=BOUNDS,
            samples={
                (verb,): (tuple(accumulate(counts[:-1])), sum(counts), self._seconds[verb])
                for verb, counts in list(self._counts.items())
            },
        )
