"""What a process measures, for Prometheus: families of samples, and their text (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its name, what it says, the names of its labels, and a value for each set of their values.

    A counter's name ends in `_total`.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge"] = "gauge"
    labels: Sequence[str] = ()
    samples: Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How what was measured is spread. For each set of labels' values: how many were at most each of `bounds`
    (ascending), how many there were at all, and their sum.
    """

    name: str
    help: str
    labels: Sequence[str] = ()
    bounds: Sequence[float]
    samples: Mapping[tuple[str, ...], tuple[Sequence[int], int, float]]


Source: TypeAlias = Callable[[], Iterable[Family | Histogram]]
"""Gives the families as of now. Called in the thread that answers."""


def exposed(families: Iterable[Family | Histogram]) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(families))
    return generate_latest(registry)


class _Collector:
    def __init__(self, families: Iterable[Family | Histogram]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        """For the library's registry."""
        for family in self._families:
            if isinstance(family, Histogram):
                yield _spread(family)
                continue
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            made = make(family.name, family.help, labels=tuple(family.labels))
            for values, sample in family.samples.items():
                made.add_metric(values, sample)
            yield made


def _spread(histogram: Histogram) -> Metric:
    made = HistogramMetricFamily(histogram.name, histogram.help, labels=tuple(histogram.labels))
    for values, (counts, count, total) in histogram.samples.items():
        buckets = [(str(bound), float(at_most)) for bound, at_most in zip(histogram.bounds, counts, strict=True)]
        made.add_metric(values, [*buckets, ("+Inf", float(count))], total)
    return made
